"""The settings of a run that averages the weights or probabilities of other runs.

Such a run does not train.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from finetune_core.config.edit import LONGEST_PATH
from finetune_core.formatting import pluralize

AveragingMethod = Literal["soup", "greedy_soup", "wise", "ensemble"]
_MOST_RUNS = 1000
_TITLES = {"soup": "Soup", "greedy_soup": "Greedy soup", "ensemble": "Ensemble"}


class Averaging(BaseModel):
    """The runs to average, and the method.

    Attributes:
        how: ``soup``, the mean of all weights; ``greedy_soup``, the mean of the runs that do not
            lower the validation accuracy (both: Wortsman et al. 2022, Model soups); ``wise``, the
            mean of one run and its initial weights (Wortsman et al. 2022, WiSE-FT); ``ensemble``,
            the mean of the probabilities, where all networks stay.
        runs: the run directories.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    how: AveragingMethod
    runs: tuple[Annotated[str, Field(min_length=1, max_length=LONGEST_PATH)], ...] = Field(
        max_length=_MOST_RUNS
    )

    @model_validator(mode="after")
    def _check_number_of_runs(self) -> Self:
        if self.how == "wise" and len(self.runs) != 1:
            raise PydanticCustomError(
                "runs", "WiSE-FT averages one run with what it started from: name one"
            )
        if self.how != "wise" and len(set(self.runs)) < max(2, len(self.runs)):
            raise PydanticCustomError(
                "runs", f"{self._noun} is made of two runs or more, each named once"
            )
        return self

    @property
    def title(self) -> str:
        """The standard term for the result."""
        if self.how == "wise":
            return "WiSE-FT"
        return f"{_TITLES[self.how]} of {pluralize(len(self.runs), 'run')}"

    @property
    def _noun(self) -> str:
        return "an ensemble" if self.how == "ensemble" else "a soup"

"""What a run is made of whose weights, or probabilities, are averaged from those of others, in the place of training."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from finetune_core.config.edit import LONGEST_PATH
from finetune_core.formatting import things

How = Literal["soup", "greedy_soup", "wise", "ensemble"]
_MOST_RUNS = 1000
_TITLES = {"soup": "Soup", "greedy_soup": "Greedy soup", "ensemble": "Ensemble"}


class Averaged(BaseModel):
    """How runs are averaged, and which.

    Attributes:
        how: ``soup``, the mean of all; ``greedy_soup``, of those that do not lower the validation accuracy (both Wortsman et al. 2022,
            Model soups); ``wise``, of one run and what it started from (Wortsman et al. 2022, WiSE-FT); ``ensemble``, the mean of their
            probabilities: all networks stay.
        runs: their folders.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    how: How
    runs: tuple[Annotated[str, Field(min_length=1, max_length=LONGEST_PATH)], ...] = Field(
        max_length=_MOST_RUNS
    )

    @model_validator(mode="after")
    def _as_many_as_it_takes(self) -> Self:
        if self.how == "wise" and len(self.runs) != 1:
            raise PydanticCustomError(
                "runs", "WiSE-FT averages one run with what it started from: name one"
            )
        if self.how != "wise" and len(set(self.runs)) < max(2, len(self.runs)):
            raise PydanticCustomError(
                "runs", f"{self._whole} is made of two runs or more, each named once"
            )
        return self

    @property
    def title(self) -> str:
        """The field's term for it."""
        if self.how == "wise":
            return "WiSE-FT"
        return f"{_TITLES[self.how]} of {things(len(self.runs), 'run')}"

    @property
    def _whole(self) -> str:
        return "an ensemble" if self.how == "ensemble" else "a soup"

"""What an ordering is: the claim, who made it, and all that is fixed before anything is run. One file of data each."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from finetune_core.config import setting_of
from finetune_core.config.averaged import How
from finetune_core.config.run_config import StrategyName
from finetune_core.data.public import PUBLIC_SETS
from finetune_core.data.sample import SAMPLE_NAME
from finetune_core.errors import ConfigError
from finetune_core.evaluation.single_run.corruptions import CORRUPTIONS

FOLDER = Path(__file__).parent
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]
Axis = Literal["test", "shifted"]
Where = Literal["online", "offline"]
Block = Literal["first", "middle", "last"]

# what ``plan`` decides
_PLANNED = {
    "data",
    "backbone",
    "strategy",
    "stage_rates",
    "seed",
    "head_seed",
    "from_run",
    "averaged",
}


def _known_settings(settings: dict[str, Any]) -> dict[str, Any]:
    for name in settings:
        if name in _PLANNED:
            raise ValueError(f"{name} is no setting to be given here")
        try:
            setting_of(name)
        except KeyError:
            raise ValueError(f"there is no setting {name}") from None
    return settings


Settings = Annotated[dict[str, Any], AfterValidator(_known_settings)]


class _Fixed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Images(_Fixed):
    """How many images are drawn, without replacement; ``source_…``: of those that the first of two trainings sees."""

    train: Count
    val: Count
    test: Count
    source_train: Count = 0
    source_val: Count = 0


class Corrupted(_Fixed):
    """Images made worse: each by one of the corruptions, in turn. ``severity`` 1 to 3."""

    corruptions: tuple[Text, ...] = Field(min_length=1)
    severity: int = Field(ge=1, le=3)

    @field_validator("corruptions")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := set(names) - set(CORRUPTIONS):
            raise ValueError(f"there is no corruption {', '.join(sorted(unknown))}")
        return names


class Group(_Fixed):
    """A class made of others: those that the first training sees, and those that the second one does."""

    source: tuple[Text, ...] = Field(min_length=1)
    target: tuple[Text, ...] = Field(min_length=1)


class Adaptation(_Fixed):
    """A network is first trained in full on other images (``source``); every arm goes on from it, head included, on changed ones.

    Attributes:
        kind: ``corrupted`` changes the pixels, ``groups`` what is in a class, ``mirrored`` labels: the first class becomes the last.
    """

    kind: Literal["corrupted", "groups", "mirrored"]
    corrupted: Corrupted | None = None
    groups: dict[Text, Group] = {}
    source_settings: Settings = {}

    @model_validator(mode="after")
    def _is_told(self) -> Self:
        if (self.kind == "corrupted") != (self.corrupted is not None) or (
            self.kind == "groups"
        ) != bool(self.groups):
            raise ValueError("corruptions belong to the kind corrupted, groups to the kind groups")
        return self


class Setup(_Fixed):
    """Where the ordering is tried, or why it cannot be.

    Attributes:
        data: as ``fetch`` names it, or ``digits``.
        settings: of every run (fields of ``RunConfig``).
    """

    why_not: str = ""
    data: str = ""
    backbone: str = ""
    images: Images = Images(train=0, val=0, test=0)
    settings: Settings = {}

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        images = self.images
        if not self.why_not and not (
            self.data and self.backbone and images.train and images.val and images.test
        ):
            raise ValueError(
                "needs data, backbone and images, or the reason why it cannot be tried"
            )
        if not self.why_not and self.data not in (SAMPLE_NAME, *PUBLIC_SETS):
            raise ValueError(f"no public set is called {self.data!r}")
        return self


class Arm(_Fixed):
    """One way to train.

    Attributes:
        strategy: None where ``block`` says which part trains beside the head, or where the arm is made ``of`` another.
        of, how: made of another arm's runs of the same seed, without training; ``best``: the one with the highest validation accuracy.
        runs: of each seed; several have one head and differ in the order of the images and in augmentation.
        rate: how many times the setup's learning rate.
    """

    strategy: StrategyName | None = None
    block: Block | None = None
    of: str = ""
    how: How | Literal["best", ""] = ""
    runs: int = Field(1, ge=1)
    rate: float = Field(1.0, gt=0)
    settings: Settings = {}

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if sum(map(bool, (self.strategy, self.block, self.of))) != 1 or bool(self.of) != bool(
            self.how
        ):
            raise ValueError(
                "an arm has a strategy or a block, or is made of another arm, and then it says how"
            )
        return self


class Claim(_Fixed):
    """One inequality: the metric of ``better`` is above that of ``than``, or, with a margin, not below it by more than that.

    Attributes:
        on: ``test``: images like those trained on; ``shifted``: the same, corrupted.
        margin: a share, 0.02 being two points; ours, where the authors say "comparable".
        published: by how much, where it is known.
    """

    better: Text
    than: Text
    on: Axis
    margin: float = Field(0.0, ge=0, lt=1)
    published: str = ""

    @property
    def words(self) -> str:
        """``lp_ft > full``, or, with a margin, ``lora ≥ full − 2 points``."""
        return (
            f"{self.better} ≥ {self.than} − {100 * self.margin:g} points"
            if self.margin
            else f"{self.better} > {self.than}"
        )


class Ordering(_Fixed):
    """A published ordering.

    Attributes:
        claim: in one sentence, as far as it is tried.
        departures: what is not as the authors did it.
        measure: the metric, one of ``MEASURES`` that higher is better of.
        shift: what makes the second axis.
    """

    name: Text
    authors: Text
    year: int
    title: Text
    claim: Text
    departures: tuple[Text, ...] = ()
    measure: Literal["accuracy", "macro_f1"] = "accuracy"
    seeds: int = Field(5, ge=2)
    shift: Corrupted | None = None
    adaptation: Adaptation | None = None
    arms: dict[Text, Arm] = {}
    claims: tuple[Claim, ...] = ()
    online: Setup
    offline: Setup

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        named = {claim.better for claim in self.claims} | {claim.than for claim in self.claims}
        if unknown := (named | {arm.of for arm in self.arms.values() if arm.of}) - set(self.arms):
            raise ValueError(f"there is no arm {', '.join(sorted(unknown))}")
        if several := {name for name in named if self.arms[name].runs > 1}:
            raise ValueError(
                f"{', '.join(several)} has several runs of a seed: a claim is about one made of them"
            )
        if self.shift is None and any(claim.on == "shifted" for claim in self.claims):
            raise ValueError("a claim on shifted images needs the shift")
        if not (self.online.why_not and self.offline.why_not) and not self.claims:
            raise ValueError("what can be tried has a claim")
        return self

    def setup(self, where: Where) -> Setup:
        return self.online if where == "online" else self.offline


def names() -> list[str]:
    """Of all orderings, in their order."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Ordering:
    """The ordering of that name.

    Raises:
        ConfigError: when there is none, or its file is no ordering.
    """
    if name not in names():
        raise ConfigError({"ordering": f"there is no {name!r}; there are {', '.join(names())}"})
    try:
        return Ordering.model_validate(
            tomllib.loads((FOLDER / f"{name}.toml").read_text()) | {"name": name}
        )
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise ConfigError({name: str(error)}) from None

"""Data model of an ordering: the claim, its authors, and everything fixed before the runs.

Each ordering is one TOML file.
"""

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

from finetune_core.config import get_setting
from finetune_core.config.averaged import AveragingMethod
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

# settings that ``plan`` sets
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


def _check_settings(settings: dict[str, Any]) -> dict[str, Any]:
    for name in settings:
        if name in _PLANNED:
            raise ValueError(f"{name} is no setting to be given here")
        try:
            get_setting(name)
        except KeyError:
            raise ValueError(f"there is no setting {name}") from None
    return settings


Settings = Annotated[dict[str, Any], AfterValidator(_check_settings)]


class _Fixed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Images(_Fixed):
    """Numbers of images, drawn without replacement.

    ``source_train`` and ``source_val`` are images of the first of two trainings.
    """

    train: Count
    val: Count
    test: Count
    source_train: Count = 0
    source_val: Count = 0


class Corrupted(_Fixed):
    """Corrupted images. The corruptions take turns, with ``severity`` 1 to 3."""

    corruptions: tuple[Text, ...] = Field(min_length=1)
    severity: int = Field(ge=1, le=3)

    @field_validator("corruptions")
    @classmethod
    def _check_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := set(names) - set(CORRUPTIONS):
            raise ValueError(f"there is no corruption {', '.join(sorted(unknown))}")
        return names


class Group(_Fixed):
    """A class that combines classes of the data set.

    Attributes:
        source: classes in the first training.
        target: classes in the second training.
    """

    source: tuple[Text, ...] = Field(min_length=1)
    target: tuple[Text, ...] = Field(min_length=1)


class Adaptation(_Fixed):
    """A first training in full on other images (``source``), before the arms.

    Every arm starts from that network, including its head, on changed images.

    Attributes:
        kind: ``corrupted`` changes the pixels, ``groups`` the members of a class, ``mirrored`` the
            labels: the first class becomes the last.
        corrupted: the corruptions, for ``corrupted``.
        groups: the classes, for ``groups``.
        source_settings: further settings of the first training.
    """

    kind: Literal["corrupted", "groups", "mirrored"]
    corrupted: Corrupted | None = None
    groups: dict[Text, Group] = {}
    source_settings: Settings = {}

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if (self.kind == "corrupted") != (self.corrupted is not None) or (
            self.kind == "groups"
        ) != bool(self.groups):
            raise ValueError("corruptions belong to the kind corrupted, groups to the kind groups")
        return self


class Setup(_Fixed):
    """Conditions of a test of the ordering, or the reason why it cannot be tested.

    Attributes:
        why_not: why the ordering cannot be tested. Empty if it can.
        data: name of a public data set as in ``fetch``, or ``digits``.
        backbone: the backbone of all runs.
        images: numbers of images.
        settings: settings of every run (fields of ``RunConfig``).
    """

    why_not: str = ""
    data: str = ""
    backbone: str = ""
    images: Images = Images(train=0, val=0, test=0)
    settings: Settings = {}

    @model_validator(mode="after")
    def _check_complete(self) -> Self:
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
        strategy: None if ``block`` names the part that trains besides the head, or if the arm is
            made from another arm.
        block: the part that trains besides the head.
        of: the arm whose runs of the same seed this arm is made from, without training.
        how: how it is made from them. ``best`` takes the run with the highest validation accuracy.
        runs: number of runs per seed. They share one head, and differ in the order of the images
            and in augmentation.
        rate: factor of the setup's learning rate.
        settings: further settings of the runs.
    """

    strategy: StrategyName | None = None
    block: Block | None = None
    of: str = ""
    how: AveragingMethod | Literal["best", ""] = ""
    runs: int = Field(1, ge=1)
    rate: float = Field(1.0, gt=0)
    settings: Settings = {}

    @model_validator(mode="after")
    def _check_one_source(self) -> Self:
        if sum(map(bool, (self.strategy, self.block, self.of))) != 1 or bool(self.of) != bool(
            self.how
        ):
            raise ValueError(
                "an arm has a strategy or a block, or is made of another arm, and then it says how"
            )
        return self


class Claim(_Fixed):
    """One inequality: the metric of ``better`` is above that of ``than``.

    With a margin, the metric of ``better`` is not below that of ``than`` by more than the margin.

    Attributes:
        better: an arm.
        than: the other arm.
        on: ``test`` for images like those trained on, ``shifted`` for the same images, corrupted.
        margin: a share, for example 0.02 for two points. It is ours where the authors say
            "comparable".
        published: the published difference, if known.
    """

    better: Text
    than: Text
    on: Axis
    margin: float = Field(0.0, ge=0, lt=1)
    published: str = ""

    @property
    def text(self) -> str:
        """The claim as ``lp_ft > full``, or, with a margin, ``lora ≥ full − 2 points``."""
        return (
            f"{self.better} ≥ {self.than} − {100 * self.margin:g} points"
            if self.margin
            else f"{self.better} > {self.than}"
        )


class Ordering(_Fixed):
    """A published ordering.

    Attributes:
        name: name of the file.
        authors: the authors.
        year: year of publication.
        title: title of the paper.
        claim: the claim in one sentence, as far as it is tested.
        departures: differences from the authors' experiment.
        measure: the metric, one of ``MEASURES``, higher is better.
        seeds: number of seeds.
        shift: the corruptions of the second axis. None if there is no second axis.
        adaptation: a training before the arms, or None.
        arms: name -> arm.
        claims: the claims.
        online: where the ordering is tested with a connection.
        offline: where the ordering is tested without a connection.
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
    def _check_consistent(self) -> Self:
        mentioned = {claim.better for claim in self.claims} | {claim.than for claim in self.claims}
        if unknown := (mentioned | {arm.of for arm in self.arms.values() if arm.of}) - set(
            self.arms
        ):
            raise ValueError(f"there is no arm {', '.join(sorted(unknown))}")
        if several := {name for name in mentioned if self.arms[name].runs > 1}:
            raise ValueError(
                f"{', '.join(several)} has several runs of a seed: a claim is about one made "
                "of them"
            )
        if self.shift is None and any(claim.on == "shifted" for claim in self.claims):
            raise ValueError("a claim on shifted images needs the shift")
        if not (self.online.why_not and self.offline.why_not) and not self.claims:
            raise ValueError("what can be tried has a claim")
        return self

    def setup(self, where: Where) -> Setup:
        """Return the setup for ``online`` or ``offline``."""
        return self.online if where == "online" else self.offline


def list_orderings() -> list[str]:
    """Return the names of all orderings, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_ordering(name: str) -> Ordering:
    """Load an ordering.

    Raises:
        ConfigError: if there is none of that name or its file is invalid.
    """
    if name not in list_orderings():
        raise ConfigError(
            {"ordering": f"there is no {name!r}; there are {', '.join(list_orderings())}"}
        )
    try:
        return Ordering.model_validate(
            tomllib.loads((FOLDER / f"{name}.toml").read_text()) | {"name": name}
        )
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise ConfigError({name: str(error)}) from None

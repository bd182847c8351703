"""What a comparison is made of: runs, arms (runs that differ in their seeds only), and pairs of arms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from finetune_core.config import RunConfig
from finetune_core.evaluation.costs import Cost, Depth
from finetune_core.evaluation.paired import Interval, PairedTest
from finetune_core.runs.store import Run
from finetune_core.training.strategies import STRATEGIES
from finetune_core.words import percent

STRATEGY_FIELDS = ("strategy", "cut", "stage_rates")


@dataclass(frozen=True)
class Member:
    """One run of an arm."""

    run: Run
    accuracy: Interval
    cost: Cost


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seeds only.

    Attributes:
        accuracy: mean over seeds; its interval counts images and, with several seeds, seeds.
        seed_deviation: standard deviation of the seeds' accuracies; None with one seed.
    """

    title: str
    config: RunConfig
    members: tuple[Member, ...]
    accuracy: Interval
    seed_deviation: float | None
    cost: Cost
    depth: Depth

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest accuracy of its runs."""
        values = [member.accuracy.value for member in self.members]
        return min(values), max(values)


@dataclass(frozen=True)
class Pair:
    """Two arms, by their places among the arms; ``test`` is of the first less the second.

    Attributes:
        holm_p: corrected over all pairs of the comparison.
        smallest: the smallest difference that would have shown.
        different: ``holm_p`` is at most 5 %, and the interval leaves 0 out.
        verdict: in words.
    """

    a: int
    b: int
    test: PairedTest
    holm_p: float
    smallest: float
    different: bool
    verdict: str


@dataclass(frozen=True)
class Standing:
    """How an arm, by its place, stands to the one to take, or, where there is too little to choose by, to the best: ``worse`` where
    the two can be told apart, else ``alike``."""

    arm: int
    kind: Literal["taken", "best", "alike", "worse"]
    words: str


def arm_order(config: RunConfig, depth: Depth) -> tuple[str, float, int]:
    """By what arms are sorted: an arm's place is its colour and its symbol."""
    return config.backbone, config.train_fraction, depth.trained_stages


def arm_titles(configs: Sequence[RunConfig]) -> list[str]:
    """What tells the configs apart, as short as can be."""
    titles = [_strategy_title(config) for config in configs]
    for name in sorted(differing_settings(configs), key=lambda name: (name not in ("backbone", "train_fraction"), name)):
        if name in STRATEGY_FIELDS or (name not in ("backbone", "train_fraction") and len(set(titles)) == len(titles)):
            continue
        titles = [f"{title} · {_in_short(name, getattr(config, name))}" for title, config in zip(titles, configs, strict=True)]
    return titles


def _strategy_title(config: RunConfig) -> str:
    title = STRATEGIES[config.strategy].title
    if config.cut is not None:
        return f"{title} from {config.cut} on"
    if config.stage_rates is not None:
        return f"{title} ({', '.join(f'{name} {rate:g}' for name, rate in config.stage_rates.items() if rate)})"
    return title


def _in_short(name: str, value: Any) -> str:
    if name == "backbone":
        return value
    if name == "train_fraction":
        return f"{percent(value, 0 if value >= 0.01 else 1)} of the data"
    if name == "edits":
        return f"{len(value)} changes to the data"
    return f"{name.replace('_', ' ')} {value:g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"


def differing_settings(configs: Sequence[RunConfig]) -> list[str]:
    """Names of the settings, the seed aside, that are not the same in all configs."""
    names = [name for name in RunConfig.model_fields if name != "seed"]
    return [name for name in names if len({str(getattr(config, name)) for config in configs}) > 1]

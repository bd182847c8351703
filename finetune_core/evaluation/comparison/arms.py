"""What a comparison is made of: runs, arms (runs that differ in their seeds only), and how arms stand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetune_core.config import RunConfig
from finetune_core.evaluation.comparison.costs import Cost, Depth
from finetune_core.evaluation.comparison.measures import Measure
from finetune_core.evaluation.comparison.paired import About
from finetune_core.evaluation.comparison.strategies import Interval
from finetune_core.formatting import percent, things
from finetune_core.runs.convergence import UNKNOWN, Convergence
from finetune_core.runs.design import depends_on_seed, settings_without_effect
from finetune_core.runs.store import Run
from finetune_core.training.strategies import run_kind

STRATEGY_FIELDS = ("strategy", "cut", "stage_rates", "features_from", "lora_from", "averaged")


@dataclass(frozen=True)
class Member:
    """One run of an arm; ``score`` is the metric of the comparison, in its own sense."""

    run: Run
    accuracy: Interval
    score: Interval
    cost: Cost


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seeds only.

    Attributes:
        accuracy: mean over seeds; its interval counts images and, with several seeds, seeds.
        measure: the metric of the comparison. score: of it, in its own sense, as ``accuracy``; the same where that is the metric.
        seed_deviation: standard deviation of the seeds' scores; None with one seed.
        ensemble: the score of the mean probabilities of its networks; None with one.
        convergence: of the first of its runs that has not converged, where there is one, else of the first.
        unfinished: how its runs ended, where they did not train to the end: ``stopped after 2 of 10 epochs``. None where they did.
    """

    title: str
    config: RunConfig
    members: tuple[Member, ...]
    accuracy: Interval
    measure: Measure
    score: Interval
    seed_deviation: float | None
    cost: Cost
    depth: Depth
    unfinished: str | None = None
    ensemble: Interval | None = None
    convergence: Convergence = UNKNOWN

    @property
    def runs(self) -> list[Run]:
        return [member.run for member in self.members]

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest score of its runs."""
        values = [member.score.value for member in self.members]
        return min(values), max(values)

    @property
    def rank(self) -> float:
        """Its score, higher being better."""
        return -self.score.value if self.measure.lower_is_better else self.score.value

    @property
    def has_too_few_seeds(self) -> bool:
        """Return whether its only seed says nothing about its strategy with other seeds."""
        return len(self.members) == 1 and depends_on_seed(self.config)

    @property
    def speaks(self) -> bool:
        """Return whether it can speak for its strategy: trained to the end, long enough, with enough seeds."""
        return not (self.has_too_few_seeds or self.unfinished or self.is_undertrained)

    @property
    def is_undertrained(self) -> bool:
        return self.convergence.converged is False


def best_first(arms: Sequence[Arm]) -> list[tuple[int, Arm]]:
    """Return the arms with their places, sorted by their score."""
    return sorted(enumerate(arms), key=lambda one: -one[1].rank)


Standing = Literal["taken", "best", "alike", "worse", "better"]


@dataclass(frozen=True)
class ArmVerdict:
    """How an arm, by its place, stands to the one to take, or, where there is too little to choose by, to the best.

    Attributes:
        about: which claim says so: about the strategies, where both can be compared, else about the networks.
        kind: ``worse`` or ``better`` where the two can be distinguished, else ``alike``.
        text: by how much, or what would not have shown; empty for the arm itself.
    """

    arm: int
    about: About
    kind: Standing
    text: str


def unfinished(run: Run) -> str | None:
    """How a run that has not trained to the end has ended: ``stopped after 2 of 10 epochs``; None of a finished one."""
    if run.status == "finished":
        return None
    return f"{run.status} after {len(run.history.epochs)} of {things(run.config.epochs, 'epoch')}"


def run_titles(runs: Sequence[Run]) -> list[str]:
    """What tells the runs apart, as short as can be, and which did not train to the end."""
    titles = with_endings(
        arm_titles([run.config for run in runs]), [unfinished(run) for run in runs]
    )
    if len(set(titles)) < len(titles):
        titles = [
            f"{title} · seed {run.config.seed}" for title, run in zip(titles, runs, strict=True)
        ]
    if len(set(titles)) < len(titles):
        titles = [f"{title} · {run.run_id[-4:]}" for title, run in zip(titles, runs, strict=True)]
    return titles


def with_endings(titles: Sequence[str], endings: Sequence[str | None]) -> list[str]:
    """Each title, followed by how its runs ended, where that is not at their end."""
    return [
        f"{title} · {ending}" if ending else title
        for title, ending in zip(titles, endings, strict=True)
    ]


def arm_order(config: RunConfig, depth: Depth) -> tuple[str, float, int]:
    """By what arms are sorted: an arm's place is its colour and its symbol."""
    return config.backbone, config.train_fraction, depth.trained_stages


def arm_titles(configs: Sequence[RunConfig]) -> list[str]:
    """What tells the configs apart, as short as can be."""
    titles = [_strategy_title(config) for config in configs]
    for name in sorted(
        differing_settings(configs),
        key=lambda name: (name not in ("backbone", "train_fraction"), name),
    ):
        if name in STRATEGY_FIELDS or (
            name not in ("backbone", "train_fraction") and len(set(titles)) == len(titles)
        ):
            continue
        titles = [
            f"{title} · {_in_short(name, getattr(config, name))}"
            for title, config in zip(titles, configs, strict=True)
        ]
    return titles


def _strategy_title(config: RunConfig) -> str:
    title = run_kind(config)
    if config.is_ensemble:
        return title
    if config.cut is not None:
        return f"{title} from {config.cut} on"
    if config.features_from is not None:
        return f"{title} on {config.features_from}"
    if config.lora_from is not None:
        return f"{title} from {config.lora_from} on"
    if config.stage_rates is not None:
        return f"{title} ({_describe_rates(config.stage_rates)})"
    return title


def _describe_rates(rates: Mapping[str, float]) -> str:
    """``block5, block6 ×3``; the head is named where it alone trains, or at a rate of its own."""
    named = [
        name if rate == 1 else f"{name} ×{rate:g}"
        for name, rate in rates.items()
        if rate and (name, rate) != ("head", 1)
    ]
    return ", ".join(named) or "head"


def _in_short(name: str, value: Any) -> str:
    if name == "backbone":
        return str(value)
    if name == "train_fraction":
        return f"{percent(value, 0 if value >= 0.01 else 1)} of the data"
    if name == "from_run":
        return f"from run {Path(value).name}" if value else "from no run"
    if name == "edits":
        return f"{len(value)} changes to the data"
    if isinstance(value, tuple):
        return f"{name} {', '.join(f'{one:g}' for one in value)}"
    return (
        f"{name.replace('_', ' ')} {value:g}"
        if isinstance(value, float)
        else f"{name.replace('_', ' ')} {value}"
    )


def differing_settings(configs: Sequence[RunConfig]) -> list[str]:
    """Return the names of the settings, the seed aside, in which runs differ that obey them.

    Settings that are left to Thaw in all of these runs follow from the strategy and are not named.
    """

    def differs(name: str) -> bool:
        obeying = [config for config in configs if name not in settings_without_effect(config)]
        values = {str(getattr(config, name)) for config in obeying}
        return len(values) > 1 and not all(name in config.auto for config in obeying)

    return [name for name in RunConfig.model_fields if name != "seed" and differs(name)]

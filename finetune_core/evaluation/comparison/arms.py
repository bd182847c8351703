"""Building blocks of a comparison: runs, arms (runs that differ in their seeds only), standings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetune_core.config import RunConfig
from finetune_core.evaluation.comparison.costs import Cost, Depth
from finetune_core.evaluation.comparison.measures import Measure
from finetune_core.evaluation.comparison.paired import About
from finetune_core.evaluation.comparison.strategies import Interval
from finetune_core.formatting import format_percent, pluralize
from finetune_core.runs.convergence import UNKNOWN, Convergence
from finetune_core.runs.design import depends_on_seed, find_ineffective_settings
from finetune_core.runs.store import Run
from finetune_core.training.strategies.catalogue import describe_run_kind

STRATEGY_FIELDS = ("strategy", "cut", "stage_rates", "features_from", "lora_from", "averaged")


@dataclass(frozen=True)
class Member:
    """One run of an arm; ``score`` is the value of the comparison's metric."""

    run: Run
    accuracy: Interval
    score: Interval
    cost: Cost


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seeds only.

    Attributes:
        title: shortest text that tells the arms apart.
        config: settings of the first run.
        members: the runs, by seed.
        accuracy: mean over seeds. Its interval covers images and, with several seeds, seeds.
        measure: the metric of the comparison.
        score: value of the metric, with an interval as for ``accuracy``; equal to it if that is the
            metric.
        seed_deviation: standard deviation of the seeds' scores; None with one seed.
        cost: usual cost of the runs.
        depth: depth of the cut.
        unfinished: the end of the runs that did not train to the end: ``stopped after 2 of 10
            epochs``. None if they did.
        ensemble: score of the mean probabilities of the networks; None with one network.
        convergence: of the first run that has not converged if there is one, else of the first run.
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
        """The runs, by seed."""
        return [member.run for member in self.members]

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest score of the runs."""
        values = [member.score.value for member in self.members]
        return min(values), max(values)

    @property
    def rank(self) -> float:
        """The score with its sign chosen so that higher is better."""
        return -self.score.value if self.measure.lower_is_better else self.score.value

    @property
    def has_too_few_seeds(self) -> bool:
        """True if the only seed says nothing about the strategy with other seeds."""
        return len(self.members) == 1 and depends_on_seed(self.config)

    @property
    def supports_claims(self) -> bool:
        """True if the arm supports claims about its strategy.

        Its runs have trained to the end, long enough, with enough seeds.
        """
        return not (self.has_too_few_seeds or self.unfinished or self.is_undertrained)

    @property
    def is_undertrained(self) -> bool:
        """True if a run has not converged."""
        return self.convergence.converged is False


def sort_by_score(arms: Sequence[Arm]) -> list[tuple[int, Arm]]:
    """Return the arms with their indices, sorted by their score."""
    return sorted(enumerate(arms), key=lambda entry: -entry[1].rank)


Standing = Literal["taken", "best", "alike", "worse", "better"]


@dataclass(frozen=True)
class ArmVerdict:
    """Standing of an arm relative to the advised arm, or to the best arm if none is advised.

    Attributes:
        arm: index of the arm.
        about: claim that the verdict rests on: about the strategies if both can be compared, else
            about the networks.
        kind: ``worse`` or ``better`` if the two can be distinguished, else ``alike``.
        text: size of the difference, or the smallest one that would have shown; empty for the
            reference arm.
    """

    arm: int
    about: About
    kind: Standing
    text: str


def describe_ending(run: Run) -> str | None:
    """Return how an unfinished run has ended: ``stopped after 2 of 10 epochs``.

    None for a finished run.
    """
    if run.status == "finished":
        return None
    return (
        f"{run.status} after {len(run.history.epochs)} of {pluralize(run.config.epochs, 'epoch')}"
    )


def run_titles(runs: Sequence[Run]) -> list[str]:
    """Return short titles that tell the runs apart and mark unfinished runs."""
    titles = append_endings(
        arm_titles([run.config for run in runs]), [describe_ending(run) for run in runs]
    )
    if len(set(titles)) < len(titles):
        titles = [
            f"{title} · seed {run.config.seed}" for title, run in zip(titles, runs, strict=True)
        ]
    if len(set(titles)) < len(titles):
        titles = [f"{title} · {run.run_id[-4:]}" for title, run in zip(titles, runs, strict=True)]
    return titles


def append_endings(titles: Sequence[str], endings: Sequence[str | None]) -> list[str]:
    """Append to each title how its runs ended, if they did not finish."""
    return [
        f"{title} · {ending}" if ending else title
        for title, ending in zip(titles, endings, strict=True)
    ]


def arm_sort_key(config: RunConfig, depth: Depth) -> tuple[str, float, int]:
    """Return the sort key of an arm; the place of an arm determines its colour and symbol."""
    return config.backbone, config.train_fraction, depth.trained_stages


def arm_titles(configs: Sequence[RunConfig]) -> list[str]:
    """Return short titles that tell the configs apart."""
    titles = [_strategy_title(config) for config in configs]
    for name in sorted(
        find_differing_settings(configs),
        key=lambda name: (name not in ("backbone", "train_fraction"), name),
    ):
        if name in STRATEGY_FIELDS or (
            name not in ("backbone", "train_fraction") and len(set(titles)) == len(titles)
        ):
            continue
        titles = [
            f"{title} · {_format_setting(name, getattr(config, name))}"
            for title, config in zip(titles, configs, strict=True)
        ]
    return titles


def _strategy_title(config: RunConfig) -> str:
    title = describe_run_kind(config)
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
    """Return ``block5, block6 ×3``.

    The head is named only if it trains alone, or at a rate of its own.
    """
    named = [
        name if rate == 1 else f"{name} ×{rate:g}"
        for name, rate in rates.items()
        if rate and (name, rate) != ("head", 1)
    ]
    return ", ".join(named) or "head"


def _format_setting(name: str, value: Any) -> str:
    if name == "backbone":
        return str(value)
    if name == "train_fraction":
        return f"{format_percent(value, 0 if value >= 0.01 else 1)} of the data"
    if name == "from_run":
        return f"from run {Path(value).name}" if value else "from no run"
    if name == "edits":
        return f"{len(value)} changes to the data"
    if isinstance(value, tuple):
        return f"{name} {', '.join(f'{number:g}' for number in value)}"
    return (
        f"{name.replace('_', ' ')} {value:g}"
        if isinstance(value, float)
        else f"{name.replace('_', ' ')} {value}"
    )


def find_differing_settings(configs: Sequence[RunConfig]) -> list[str]:
    """Return the names of the settings in which runs differ, without the seed.

    A run counts only for settings that have an effect on it. Settings that are left to Thaw in all
    of these runs follow from the strategy and are not named.
    """

    def differs(name: str) -> bool:
        obeying = [config for config in configs if name not in find_ineffective_settings(config)]
        values = {str(getattr(config, name)) for config in obeying}
        return len(values) > 1 and not all(name in config.auto for config in obeying)

    return [name for name in RunConfig.model_fields if name != "seed" and differs(name)]

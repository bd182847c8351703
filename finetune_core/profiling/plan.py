"""Rounds of a profile: the next runs, given the base config and the finished runs.

All of it is a pure function, so that an interrupted profile continues where it stopped.

0. The linear probe.
1. Each stage alone with the head, first seed, for a quarter of the epochs, with the learning rate
   and with three times that. The rate with the lower validation log loss is the stage's from then
   on: what suits a late stage is too small for an early one. The half of the stages with the lower
   log loss goes on, at least two (successive halving, Jamieson & Talwalkar 2016); among ties those
   with fewer parameters.
2. These at full length, first seed; then the other seeds of the better half of them, at least two.
3. Greedy forward selection (Kaplun et al. 2023, SubTuning): begin with the stage of the best mean
   validation accuracy among those with all seeds, and add the stage that raises it most while that
   gain is significant on the validation images. The log loss breaks ties. A set that is not better
   with the first seed is not trained with the other seeds.
4. Full fine-tuning as the reference. Its other seeds are trained only if it is at least as accurate
   on the validation images as the selected stages: else it is no candidate.
5. A third seed of the selected stages, and of full fine-tuning if it is a candidate.

Test images are never used here.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from finetune_core.config import RunConfig
from finetune_core.errors import ConfigError
from finetune_core.evaluation.comparison.paired import ArmPredictions, summarize_accuracy
from finetune_core.evaluation.comparison.pairs import compare_pairs, pool_seed_variances
from finetune_core.profiling.settings import HEAD, Rates, Setup
from finetune_core.runs.convergence import UNKNOWN, Convergence
from finetune_core.runs.design import PROFILE_RATES, run_key

_FEWEST = 2  # minimum number of stages that go on

Part = Literal["third_seeds", "full_seeds", "selection", "second_seeds"]
# In the order in which a budget leaves them out.
PARTS: dict[Part, str] = {
    "third_seeds": "a third seed",
    "full_seeds": "the second seed of full fine-tuning",
    "selection": "adding further stages",
    "second_seeds": "the second seed of each stage",
}
Round = Literal["probe", "short", "full_length", "seeds", "selection", "full", "third_seeds"]
ROUNDS: dict[Round, str] = {
    "probe": "Linear probe",
    "short": "Each stage alone, short",
    "full_length": "The better half at full length",
    "seeds": "A second seed of the best",
    "selection": "Adding a stage",
    "full": "Full fine-tuning",
    "third_seeds": "A third seed",
}


@dataclass(frozen=True, eq=False)
class Outcome:
    """Predictions and cost of a finished run.

    Attributes:
        run_id: id of the run.
        val_loss: mean cross-entropy of the validation images, in nats.
        val_correct: bool ``[validation images]``.
        correct: bool ``[images]`` of those that gains are reported on.
        parameters: number of parameters that trained.
        seconds: duration of the run.
        convergence: whether the run has converged.
    """

    run_id: str
    val_loss: float
    val_correct: np.ndarray
    correct: np.ndarray
    parameters: int = 0
    seconds: float = 0.0
    convergence: Convergence = UNKNOWN


Outcomes = Mapping[str, Outcome]  # by ``run_key``


@dataclass(frozen=True)
class SelectionStep:
    """One step of the greedy selection.

    Attributes:
        stage: the stage that was tried last, the best of its round.
        accuracy: on the validation images, mean over the seeds, with this stage.
        gain: increase over the accuracy before; None for the first stage.
        kept: True if the stage is trained.
    """

    stage: str
    accuracy: float
    gain: float | None
    kept: bool


@dataclass(frozen=True)
class Progress:
    """Progress of a profile.

    Attributes:
        round: the next round, or the last one.
        wanted: runs of this round that are still to be trained; empty if the profile is complete.
        stopped: the stages that ended after the short round.
        going_on: the stages that trained at full length.
        rates: for each stage that trained, the rate that the short round chose.
        sets: sets of several stages that were tried, in order.
        path: steps of the selection.
        chosen: selected stages, in the order of the selection.
        left_out: parts that did not fit into the budget.
    """

    round: Round
    wanted: tuple[RunConfig, ...] = ()
    stopped: tuple[str, ...] = ()
    going_on: tuple[str, ...] = ()
    rates: Rates = field(default_factory=dict)
    sets: tuple[tuple[str, ...], ...] = ()
    path: tuple[SelectionStep, ...] = ()
    chosen: tuple[str, ...] = ()
    left_out: tuple[Part, ...] = ()


def advance(
    setup: Setup,
    known: Outcomes,
    failed: Collection[str] = (),
    parts: Collection[Part] = tuple(PARTS),
) -> Progress:
    """Return the progress of the profile, and the runs of the next round.

    Args:
        setup: settings of the runs.
        known: the finished runs.
        failed: runs that could not be trained, by ``run_key``; the profile goes on without them.
        parts: parts that there is time for. Runs of other parts count if they are finished.

    Raises:
        ConfigError: if the probe or every stage has failed.
    """
    return _Replay(setup, known, failed, parts).progress()


def forecast(
    setup: Setup,
    known: Outcomes,
    failed: Collection[str] = (),
    parts: Collection[Part] = tuple(PARTS),
) -> list[RunConfig]:
    """Return the runs that are still to be trained, at most, if one stage is enough.

    The stages next to the input are assumed to go on, because their runs take longest.
    """
    imagined: dict[str, Outcome] = {}
    expected: list[RunConfig] = []
    images = next((len(outcome.val_correct) for outcome in known.values()), 1)
    while missing := advance(setup, {**known, **imagined}, failed, parts).wanted:
        expected += missing
        for config in missing:
            first = next(iter(config.stage_rates or {HEAD: 1.0}))
            place = setup.stages.index(first) if first in setup.sizes else 0
            nothing = np.zeros(images, bool)
            imagined[run_key(config)] = Outcome("", 1e6 + place, nothing, nothing)
    return expected


def fit_budget(
    setup: Setup,
    known: Outcomes,
    failed: Collection[str],
    seconds: Callable[[Sequence[RunConfig]], float],
    budget: float,
) -> tuple[Part, ...]:
    """Return the parts that fit into what is left of a budget.

    Args:
        setup: settings of the runs.
        known: the finished runs.
        failed: runs that could not be trained, by ``run_key``.
        seconds: forecasts the time of runs.
        budget: seconds, for all runs from here on.
    """
    parts = list(PARTS)
    remaining = seconds(forecast(setup, known, failed, parts))
    for part in PARTS:
        if remaining <= budget:
            break
        others = [other for other in parts if other != part]
        less = seconds(forecast(setup, known, failed, others))
        if less < remaining:  # else the runs of the part are finished already
            parts, remaining = others, less
    return tuple(parts)


class _Missing(Exception):
    """Raised if runs that the next decision depends on are not finished."""


class _Replay:
    """Replay of all decisions of a profile, up to the first one that lacks runs."""

    def __init__(
        self,
        setup: Setup,
        known: Outcomes,
        failed: Collection[str],
        parts: Collection[Part],
    ) -> None:
        self._setup, self._known, self._failed, self._parts = setup, known, failed, parts
        self._wanted: list[RunConfig] = []
        self._left_out: set[Part] = set()
        self._round: Round = "probe"
        self._stopped: list[str] = []
        self._going_on: list[str] = []
        self._rates: dict[str, float] = {}
        self._seeded: set[frozenset[str]] = set()  # sets of stages that train with all seeds
        self._sets: list[tuple[str, ...]] = []
        self._path: list[SelectionStep] = []
        self._chosen: tuple[str, ...] = ()

    def progress(self) -> Progress:
        with suppress(_Missing):
            self._decide()
        ordered = tuple(sorted(self._wanted, key=self._sort_key))
        left_out = tuple(part for part in PARTS if part in self._left_out)
        return Progress(
            self._round,
            ordered,
            tuple(self._stopped),
            tuple(self._going_on),
            dict(self._rates),
            tuple(self._sets),
            tuple(self._path),
            self._chosen,
            left_out,
        )

    def _sort_key(self, config: RunConfig) -> tuple[int, int]:
        """Return the sort key of a run: shallow cuts first, runs without a trunk last.

        Features of a deeper cut are computed from those of a shallow one.
        """
        names = [name for name in self._setup.sizes if name in (config.stage_rates or {})]
        place = self._setup.stages.index(names[0]) if names else 0
        return place or len(self._setup.sizes), config.seed

    def _decide(self) -> None:
        setup = self._setup
        self._require_runs("probe", setup.make_probe_configs())
        if not any(map(self._get_outcome, setup.make_probe_configs())):
            raise ConfigError({"data": "the linear probe failed, so there is nothing to compare"})
        first, *others = setup.seeds
        self._halve()
        self._require_runs(
            "full_length",
            [config for stage in self._going_on for config in self._make_arm_configs([stage])],
        )
        self._going_on = [
            stage
            for stage in self._going_on
            if self._find_outcomes(self._make_arm_configs([stage]))
        ]
        if not self._going_on:
            raise ConfigError({"stages": "the runs of all stages failed"})
        best = self._find_better_half(
            {stage: self._make_stages_config([stage], first) for stage in self._going_on}
        )
        self._seeded = {frozenset([stage]) for stage in best}
        self._require_runs(
            "seeds", [config for stage in best for config in self._make_arm_configs([stage])]
        )
        self._select(best)
        self._require_runs("full", [setup.make_full_config(first)])
        candidate = self._is_full_candidate()
        if candidate:
            self._require_runs(
                "full", self._filter_part("full_seeds", map(setup.make_full_config, others))
            )
        if (seed := setup.extra_seed) is not None:
            third = [
                self._make_stages_config(self._chosen, seed),
                *([setup.make_full_config(seed)] if candidate else []),
            ]
            self._require_runs("third_seeds", self._filter_part("third_seeds", third))

    def _halve(self) -> None:
        """Choose each stage's rate, and stop the stages with the higher log loss."""
        short = self._setup.make_short_config
        tried = {
            (stage, rate): short(stage, rate)
            for stage in self._setup.stages
            for rate in PROFILE_RATES
        }
        self._require_runs("short", tried.values())
        finished = [
            (outcome.val_loss, key)
            for key, run in tried.items()
            if (outcome := self._get_outcome(run))
        ]
        for _, (stage, rate) in sorted(finished):
            self._rates.setdefault(stage, rate)
        kept = self._find_better_half(
            {stage: tried[stage, rate] for stage, rate in self._rates.items()}
        )
        for stage in self._setup.stages:
            if stage in self._rates:
                (self._going_on if stage in kept else self._stopped).append(stage)

    def _find_better_half(self, runs: Mapping[str, RunConfig]) -> list[str]:
        """Return the half of the stages with the lower validation log loss, at least two."""
        outcomes = {stage: self._get_outcome(config) for stage, config in runs.items()}
        losses = {stage: outcome.val_loss for stage, outcome in outcomes.items() if outcome}
        ranked = sorted(losses, key=lambda stage: (losses[stage], self._setup.sizes[stage]))
        return ranked[: max(_FEWEST, len(ranked) // 2)]

    def _select(self, candidates: Sequence[str]) -> None:
        """Add stages while the gain on the validation images is significant."""
        first = self._setup.seeds[0]
        best = max(candidates, key=lambda stage: self._mean_score([stage]))
        self._chosen = (best,)
        self._path.append(SelectionStep(best, self._mean_score([best])[0], None, True))
        while rest := [stage for stage in self._going_on if stage not in self._chosen]:
            self._round = "selection"
            runs = {name: self._make_stages_config((*self._chosen, name), first) for name in rest}
            usable = self._filter_part("selection", runs.values())
            if len(usable) < len(runs):
                return
            self._require_runs("selection", usable)
            tried = [stage for stage in rest if self._get_outcome(runs[stage])]
            if not tried:
                return
            self._sets += [(*self._chosen, stage) for stage in tried]
            added = max(tried, key=lambda stage: self._mean_score((*self._chosen, stage)))
            larger = (*self._chosen, added)
            if self._first_accuracy(larger) > self._first_accuracy(self._chosen):
                self._seeded.add(frozenset(larger))
                self._require_runs("selection", self._make_arm_configs(larger))
            before, after = self._mean_score(self._chosen)[0], self._mean_score(larger)[0]
            kept = frozenset(larger) in self._seeded and self._is_better(larger, self._chosen)
            self._path.append(SelectionStep(added, after, after - before, kept))
            if not kept:
                return
            self._chosen = larger

    def _make_arm_configs(self, stages: Collection[str]) -> list[RunConfig]:
        first, *others = self._setup.seeds
        seeds = others if frozenset(stages) in self._seeded else []
        more = (self._make_stages_config(stages, seed) for seed in seeds)
        return [self._make_stages_config(stages, first), *self._filter_part("second_seeds", more)]

    def _make_stages_config(self, stages: Collection[str], seed: int) -> RunConfig:
        return self._setup.make_stages_config(stages, seed, self._rates)

    def _first_accuracy(self, stages: Collection[str]) -> float:
        """Return the validation accuracy of the first finished run of an arm."""
        return float(self._find_outcomes(self._make_arm_configs(stages))[0].val_correct.mean())

    def _is_full_candidate(self) -> bool:
        """Return whether full fine-tuning is as accurate on validation images as the selection."""
        whole = self._get_outcome(self._setup.make_full_config(self._setup.seeds[0]))
        return whole is not None and whole.val_correct.mean() >= self._mean_score(self._chosen)[0]

    def _require_runs(self, current: Round, configs: Iterable[RunConfig]) -> None:
        """Raise ``_Missing`` unless these runs are finished or have failed."""
        self._round = current
        missing = {run_key(config): config for config in configs if not self._get_outcome(config)}
        self._wanted = [config for key, config in missing.items() if key not in self._failed]
        if self._wanted:
            raise _Missing

    def _filter_part(self, part: Part, configs: Iterable[RunConfig]) -> list[RunConfig]:
        """Return the runs of a part: all if there is time for it, else the finished ones."""
        part_configs = list(configs)
        if part in self._parts:
            return part_configs
        finished = [config for config in part_configs if self._get_outcome(config)]
        if len(finished) < len(part_configs):
            self._left_out.add(part)
        return finished

    def _get_outcome(self, config: RunConfig) -> Outcome | None:
        return self._known.get(run_key(config))

    def _find_outcomes(self, configs: Iterable[RunConfig]) -> list[Outcome]:
        return [outcome for config in configs if (outcome := self._get_outcome(config))]

    def _mean_score(self, stages: Collection[str]) -> tuple[float, float]:
        """Return the mean validation accuracy of an arm, and its negative log loss."""
        outcomes = self._find_outcomes(self._make_arm_configs(stages))
        accuracy = np.mean([outcome.val_correct.mean() for outcome in outcomes])
        return float(accuracy), -float(np.mean([outcome.val_loss for outcome in outcomes]))

    def _collect_validation_answers(self, stages: Collection[str]) -> ArmPredictions:
        return summarize_accuracy(
            np.stack(
                [
                    outcome.val_correct
                    for outcome in self._find_outcomes(self._make_arm_configs(stages))
                ]
            )
        )

    def _is_better(self, stages: Collection[str], others: Collection[str]) -> bool:
        """Return whether stages beat other ones on validation images, by the test of comparisons.

        The seed variance is pooled over all arms of full length.
        """
        if self._mean_score(stages)[0] <= self._mean_score(others)[0]:
            return False
        arms = [self._collect_validation_answers(names) for names in (stages, others)]
        alone = [stage for stage in self._going_on if others != (stage,)]
        rest = [self._collect_validation_answers([stage]) for stage in alone]
        variances = pool_seed_variances([*arms, *rest], [True] * (len(rest) + 2))[:2]
        (pair,) = compare_pairs(arms, [True, True], variances)
        return pair.widest.different

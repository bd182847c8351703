"""Comparison of several runs on the same images: arms, pairs, and a verdict.

Runs that differ in nothing but the seed are one arm.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np

from finetune_core.data.splits import SHIFTED, TEST, VAL
from finetune_core.errors import RunError
from finetune_core.evaluation.comparison.arms import (
    STRATEGY_FIELDS,
    Arm,
    ArmVerdict,
    Member,
    append_endings,
    arm_sort_key,
    arm_titles,
    describe_ending,
    find_differing_settings,
)
from finetune_core.evaluation.comparison.as_json import arm_json, pair_json, run_json
from finetune_core.evaluation.comparison.choice import choose
from finetune_core.evaluation.comparison.costs import run_cost, run_depth, trunk_rate, usual_cost
from finetune_core.evaluation.comparison.details import (
    describe_baselines,
    judge_arms,
    list_notes,
)
from finetune_core.evaluation.comparison.ensemble import ensemble_score
from finetune_core.evaluation.comparison.measures import ACCURACY, Measure, get_measure
from finetune_core.evaluation.comparison.optimism import selection_optimism
from finetune_core.evaluation.comparison.orderings import find_contradictions
from finetune_core.evaluation.comparison.pair_text import quote
from finetune_core.evaluation.comparison.paired import (
    ArmPredictions,
    summarize_accuracy,
    summarize_measure,
)
from finetune_core.evaluation.comparison.pairs import (
    Pair,
    compare_pairs,
    pool_seed_variances,
)
from finetune_core.evaluation.comparison.same_images import check_same_classes, check_same_images
from finetune_core.evaluation.comparison.strategies import (
    NO_SEED_VARIANCE,
    Interval,
    SeedVariance,
    accuracy_interval,
    estimate_seed_variances,
    measure_interval,
)
from finetune_core.evaluation.comparison.tables import Images, Key, load_table, make_key
from finetune_core.evaluation.comparison.verdicts import Verdict, metric_text, state_verdict
from finetune_core.evaluation.reference_points import majority_class
from finetune_core.evaluation.single_run.corruptions import CorruptedSplit
from finetune_core.evaluation.single_run.metrics import stack_logits
from finetune_core.evaluation.single_run.scores import count_resamples
from finetune_core.formatting import pluralize
from finetune_core.runs.convergence import Convergence, judge_together
from finetune_core.runs.design import arm_key, depends_on_seed, run_key
from finetune_core.runs.store import Run
from finetune_core.training.strategies.catalogue import count_epochs


@dataclass(frozen=True)
class Comparison:
    """Runs compared together.

    Attributes:
        measure: the metric of the comparison.
        split: ``test`` if all runs have it, else ``val``; ``shifted`` for another data set, or for
            corrupted copies of the runs' own images.
        images: number of images.
        arms: the arms, shallow training first.
        pairs: every pair of arms.
        best: index of the best arm among those whose strategies can be compared; among all arms if
            none can.
        advised: index of the cheapest arm that no other strategy beats; None if the evidence does
            not suffice.
        verdict: the answer, its size, and what to do.
        baseline: gain of training in epochs over a linear probe; empty if no arm is one.
        published: sentences, one for each published ordering of strategies that the verdicts
            contradict.
        arm_verdicts: standing of each arm; empty if there is one strategy only.
        notes: limits of the numbers.
        differing: settings in which arms differ besides the strategy.
        optimism: how much better the best arm looks because it was chosen on these images; None if
            none is advised.
        ensemble: score of the mean probabilities of the runs of a single strategy, whose runs are
            one arm each; else None.
    """

    measure: Measure
    split: str
    images: int
    arms: tuple[Arm, ...]
    pairs: tuple[Pair, ...]
    best: int
    advised: int | None
    verdict: Verdict
    baseline: str
    published: tuple[str, ...]
    arm_verdicts: tuple[ArmVerdict, ...]
    notes: tuple[str, ...]
    differing: tuple[str, ...]
    optimism: float | None = None
    ensemble: Interval | None = None

    @property
    def footnote(self) -> str:
        """Note on the score of the arm that was chosen on these images; empty without one."""
        if self.advised is None or self.optimism is None:
            return ""
        least = 0.001  # the smallest value that is shown
        by = self.measure.format_difference(max(self.optimism, least))
        return (
            f"{quote(self.arms[self.advised].title)} was chosen on these images, so its "
            f"{metric_text(self.measure, self.split)} is optimistic: choosing the best flatters "
            f"it by {'about' if self.optimism > least else 'under'} {by} "
            f"{self.measure.short_unit} (bootstrap)."
        )

    @property
    def majority_class(self) -> float | None:
        """Accuracy of always predicting the most frequent class of the training images.

        None for other metrics, and if the images are not the whole split.
        """
        run = self.arms[0].runs[0]
        is_whole = run.started["counts"].get(self.split) == self.images
        known = majority_class(run, self.split) if is_whole else None
        return known.value if known and self.measure is ACCURACY else None

    @property
    def order(self) -> tuple[int, ...]:
        """Indices of the arms: the advised or best one first, then by verdict.

        Unsorted if there are no verdicts.
        """
        return tuple(verdict.arm for verdict in self.arm_verdicts) or tuple(range(len(self.arms)))

    def __repr__(self) -> str:
        return (
            f"<Comparison of {len(self.arms)} on {pluralize(self.images, f'{self.split} image')}: "
            f"{self.verdict}>"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values.

        ``runs``, ``arms``, ``pairs``, ``verdict`` and its lines ``answer``, ``size``, ``action``,
        ``baseline``, ``published``, ``images``, ``split``, ``notes``, ``optimism``,
        ``majority_class``, ``advised`` (None if the evidence does not suffice).
        """
        arms = self.arms
        return {
            "measure": self.measure.name,
            "split": self.split,
            "images": self.images,
            "runs": [run_json(arm, member) for arm in arms for member in arm.members],
            "arms": [arm_json(arm) for arm in arms],
            "pairs": [pair_json(pair, arms) for pair in self.pairs],
            "verdict": str(self.verdict),
            **asdict(self.verdict),
            "baseline": self.baseline,
            "published": list(self.published),
            "advised": None if self.advised is None else arms[self.advised].title,
            "notes": [*self.notes, *([self.footnote] if self.footnote else [])],
            "optimism": self.optimism,
            "majority_class": self.majority_class,
            "ensemble": self.ensemble and asdict(self.ensemble),
        }


def compare_runs(
    runs: Sequence[Run],
    measure: str = ACCURACY.name,
    on: Images = None,
    classes: Collection[str] | None = None,
) -> Comparison:
    """Compare runs with each other.

    Args:
        runs: the runs.
        measure: name of the metric, a key of ``MEASURES``.
        on: images that all runs have predicted: the fingerprint of another data set
            (``predict_shifted``), a corruption of their own images (``measure_robustness``), or
            None for their own images.
        classes: names of the classes whose images count; all if None.

    Raises:
        ConfigError: if there is no such metric.
        RunError: if a run has no predictions, the class lists differ, or the runs were not
            evaluated on the same images.
    """
    metric = get_measure(measure)
    if not runs:
        raise RunError("There is no run to compare.")
    if early := [run.run_id for run in runs if not run.history.has_predictions]:
        raise RunError(f"There is nothing to compare of {', '.join(early)}: no epoch has ended.")
    check_same_classes(runs)
    runs, repeats = _drop_repeats(runs)
    keys = {run.run_dir: make_key(run, on, classes) for run in runs}
    tables = {folder: load_table(key) for folder, key in keys.items()}
    split = (
        SHIFTED
        if on
        else TEST
        if all(TEST in set(table["split"]) for table in tables.values())
        else VAL
    )
    tables = {folder: table[table["split"] == split] for folder, table in tables.items()}
    check_same_images(runs, tables, on)
    grouped, titles, one_strategy = _group_runs(runs)
    by_arm = tuple(tuple(keys[run.run_dir] for run in group) for group in grouped)
    summaries = _summarize_arms(metric, by_arm, split)
    finished = [describe_ending(group[0]) is None for group in grouped]
    alike = [
        ended and count_epochs(group[0].config) > 0
        for ended, group in zip(finished, grouped, strict=True)
    ]
    variances = pool_seed_variances(summaries, alike)
    ensembles = _score_ensembles(metric, by_arm, split)
    convergence = _judge_convergence(grouped)
    arms = tuple(
        replace(
            _make_arm(title, group, answered, variance, runs), ensemble=ensemble, convergence=judged
        )
        for title, group, answered, variance, ensemble, judged in zip(
            titles, grouped, summaries, variances, ensembles, convergence, strict=True
        )
    )
    trained = [
        ended and judged.converged is not False
        for ended, judged in zip(finished, convergence, strict=True)
    ]
    of_strategies = [
        variance or (None if one_strategy or depends_on_seed(group[0].config) else NO_SEED_VARIANCE)
        for variance, group in zip(variances, grouped, strict=True)
    ]
    pairs = compare_pairs(summaries, trained, of_strategies)
    choice = choose(arms, pairs)
    undertrained = any(arm.is_undertrained for arm in arms)
    images = summaries[0].images
    verdict = state_verdict(arms, pairs, choice, images, split, one_strategy=one_strategy)
    arm_verdicts = () if one_strategy else judge_arms(arms, pairs, choice)
    differing = tuple(
        name
        for name in find_differing_settings([arm.config for arm in arms])
        if name not in STRATEGY_FIELDS
    )
    notes = list_notes(split, arms, variances, repeats)
    return Comparison(
        metric,
        split,
        images,
        arms,
        pairs,
        choice.best,
        choice.advised,
        verdict,
        "" if undertrained else describe_baselines(arms, pairs),
        ()
        if undertrained or isinstance(on, CorruptedSplit)
        else find_contradictions(arms, pairs, split),
        arm_verdicts,
        notes,
        differing,
        None
        if choice.advised is None
        else _estimate_optimism(metric, tuple(by_arm[index] for index in choice.comparable), split),
        _score_ensembles(metric, (tuple(chain.from_iterable(by_arm)),), split)[0]
        if one_strategy
        else None,
    )


def _group_runs(runs: Sequence[Run]) -> tuple[list[list[Run]], list[str], bool]:
    """Group runs into arms.

    Shallow training comes first. A run that did not train to the end is no seed of its strategy: it
    forms an arm with the runs that ended after as many epochs. If there is one strategy only, each
    run is an arm.

    Returns:
        The runs of each arm by seed, the arms' titles, and whether all runs share one strategy.
    """
    groups: dict[tuple[str, str | None], list[Run]] = {}
    for run in runs:
        groups.setdefault((arm_key(run.config), describe_ending(run)), []).append(run)
    grouped = [sorted(group, key=lambda run: run.config.seed) for group in groups.values()]
    grouped.sort(
        key=lambda group: (
            arm_sort_key(group[0].config, run_depth(group[0])),
            describe_ending(group[0]) or "",
        )
    )
    titles = append_endings(
        arm_titles([group[0].config for group in grouped]),
        [describe_ending(group[0]) for group in grouped],
    )
    if len(grouped) > 1:
        return grouped, titles, False
    if len(runs) == 1:
        return grouped, titles, True
    return (
        [[run] for run in grouped[0]],
        [f"{titles[0]} · seed {run.config.seed}" for run in grouped[0]],
        True,
    )


def _judge_convergence(grouped: Sequence[Sequence[Run]]) -> list[Convergence]:
    """Judge whether the runs of each arm have converged, given all runs."""
    runs = [run for group in grouped for run in group]
    judged = dict(
        zip(
            (run.run_dir for run in runs),
            judge_together([(run.config, run.history) for run in runs]),
            strict=True,
        )
    )
    return [
        min(
            (judged[run.run_dir] for run in group),
            key=lambda convergence: convergence.converged is not False,
        )
        for group in grouped
    ]


def _drop_repeats(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Return the latest of the runs that repeat each other, and the ids of the other ones.

    Repeating a seed adds no information, and would pass for a second seed.
    """
    latest: dict[tuple[str, str | None], Run] = {}
    for run in sorted(runs, key=lambda run: run.run_id):
        latest[run_key(run.config), describe_ending(run)] = run
    kept = {run.run_dir for run in latest.values()}
    return [run for run in runs if run.run_dir in kept], [
        run.run_id for run in runs if run.run_dir not in kept
    ]


@lru_cache(maxsize=16)  # a page asks again whenever it is redrawn
def _summarize_arms(
    measure: Measure, arms: tuple[tuple[Key, ...], ...], split: str
) -> list[ArmPredictions]:
    tables = [[load_table(run) for run in arm] for arm in arms]
    tables = [[table[table["split"] == split] for table in arm] for arm in tables]
    logits = [np.stack([stack_logits(table) for table in arm]) for arm in tables]
    return summarize_measure(measure, tables[0][0]["label"].to_numpy(), logits)


@lru_cache(maxsize=16)
def _score_ensembles(
    measure: Measure, arms: tuple[tuple[Key, ...], ...], split: str
) -> list[Interval | None]:
    """Return the score of the ensemble of each arm; None for an arm with one network."""
    scores: list[Interval | None] = []
    for arm in arms:
        tables = [table[table["split"] == split] for table in map(load_table, arm)]
        logits = np.stack([stack_logits(table) for table in tables])
        scores.append(
            ensemble_score(measure, tables[0]["label"].to_numpy(), logits) if len(arm) > 1 else None
        )
    return scores


@lru_cache(maxsize=16)
def _estimate_optimism(measure: Measure, arms: tuple[tuple[Key, ...], ...], split: str) -> float:
    labels = load_table(arms[0][0]).query("split == @split")["label"].to_numpy()
    values = np.stack([arm.by_image for arm in _summarize_arms(measure, arms, split)])
    return selection_optimism(labels, values, count_resamples(values.size))


def _make_arm(
    title: str,
    group: Sequence[Run],
    answered: ArmPredictions,
    variance: SeedVariance | None,
    runs: Sequence[Run],
) -> Arm:
    rate = trunk_rate(group, runs)
    members = tuple(
        Member(
            run,
            accuracy_interval(summarize_accuracy(answered.correct[index : index + 1]), None),
            measure_interval(answered.select_network(index), None),
            run_cost(run, rate),
        )
        for index, run in enumerate(group)
    )
    deviation = None if answered.seed_variance is None else answered.seed_variance**0.5
    costs = usual_cost([member.cost for member in members])
    score = measure_interval(answered, variance)
    accuracy = (
        score
        if answered.measure is ACCURACY
        else _pooled_accuracy(summarize_accuracy(answered.correct))
    )
    return Arm(
        title,
        group[0].config,
        members,
        accuracy,
        answered.measure,
        score,
        deviation,
        costs,
        run_depth(group[0]),
        describe_ending(group[0]),
    )


def _pooled_accuracy(answered: ArmPredictions) -> Interval:
    return accuracy_interval(answered, estimate_seed_variances([answered])[0])

"""Several runs on the same images -> arms, pairs, and a verdict. Runs that differ in nothing but the seed are one arm."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from finetune_core.data.splits import TEST, VAL
from finetune_core.errors import RunError
from finetune_core.evaluation import verdicts
from finetune_core.evaluation.arms import (
    STRATEGY_FIELDS,
    Arm,
    Member,
    Pair,
    Standing,
    arm_order,
    arm_titles,
    differing_settings,
)
from finetune_core.evaluation.costs import cost, run_depth, trunk_rate, usual_cost
from finetune_core.evaluation.paired import Interval, accuracy_interval, holm, is_different, paired_test, smallest_seen
from finetune_core.runs.design import arm_of
from finetune_core.runs.store import Run, summary
from finetune_core.training.predictions import load_predictions, predictions_changed


@dataclass(frozen=True)
class Comparison:
    """Runs judged together.

    Attributes:
        split: ``test`` where all runs have it, else ``val``.
        best: the place of the arm with the highest accuracy.
        advised: of the cheapest arm that no other one beats.
        headline, caveat: the verdict on all arms, in words: one sentence, and what else to know.
        standings: of each arm; none where the runs differ in their seeds only.
        notes: what has to be known to read it.
        differing: settings in which arms differ besides the strategy.
    """

    split: str
    images: int
    arms: tuple[Arm, ...]
    pairs: tuple[Pair, ...]
    best: int
    advised: int
    headline: str
    caveat: str
    standings: tuple[Standing, ...]
    notes: tuple[str, ...]
    differing: tuple[str, ...]

    @property
    def verdict(self) -> str:
        return f"{self.headline} {self.caveat}".strip()

    def to_json(self) -> dict[str, Any]:
        """Plain values: ``runs``, ``arms``, ``pairs``, ``verdict``, ``images``, ``split``, ``notes``, ``advised`` (None where there is too
        little to choose by)."""
        arms = self.arms
        return {
            "split": self.split,
            "images": self.images,
            "runs": [_run_json(arm, member) for arm in arms for member in arm.members],
            "arms": [_arm_json(arm) for arm in arms],
            "pairs": [_pair_json(pair, arms) for pair in self.pairs],
            "verdict": self.verdict,
            "advised": next((arms[one.arm].title for one in self.standings if one.kind == "taken"), None),
            "notes": list(self.notes),
        }


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """Judge runs together.

    Raises:
        RunError: when one has no predictions, or when they were not judged on the same images.
    """
    runs, repeats = _without_repeats(runs)
    if not runs:
        raise RunError("There is no run to compare.")
    answers = {run.run_dir: _answers(run.run_dir, predictions_changed(run.run_dir), _class_count(run)) for run in runs}
    split = TEST if all(TEST in set(table["split"]) for table in answers.values()) else VAL
    answers = {folder: table[table["split"] == split] for folder, table in answers.items()}
    _check_same_images(runs, answers)
    grouped, titles = _grouped(runs)
    correct = [np.stack([answers[run.run_dir]["correct"].to_numpy() for run in group]) for group in grouped]
    arms = tuple(_arm(title, group, table, runs) for title, group, table in zip(titles, grouped, correct, strict=True))
    pairs = _pairs(arms, correct)
    best = max(range(len(arms)), key=lambda index: (arms[index].accuracy.value, -arms[index].cost.seconds))
    beaten = {pair.b if pair.test.difference > 0 else pair.a for pair in pairs if pair.different}
    advised = min((index for index in range(len(arms)) if index not in beaten), key=lambda index: arms[index].cost.seconds)
    images = correct[0].shape[1]
    seeds_only = len(arms) > 1 and len({arm_of(arm.config) for arm in arms}) == 1
    told = (
        verdicts.same_but_for_seeds(arms, pairs, images) if seeds_only else verdicts.overall(arms, pairs, best, advised, images)
    )
    standings = () if seeds_only else verdicts.standings(arms, pairs, best, advised)
    differing = tuple(name for name in differing_settings([arm.config for arm in arms]) if name not in STRATEGY_FIELDS)
    notes = verdicts.notes(split, arms, repeats)
    return Comparison(split, images, arms, pairs, best, advised, *told, standings, notes, differing)


def _grouped(runs: Sequence[Run]) -> tuple[list[list[Run]], list[str]]:
    """The runs of each arm, by seed, and the arms' titles; shallow training first. Of one strategy alone, each run is an arm."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(arm_of(run.config), []).append(run)
    grouped = [sorted(group, key=lambda run: run.config.seed) for group in groups.values()]
    grouped.sort(key=lambda group: arm_order(group[0].config, run_depth(group[0])))
    titles = arm_titles([group[0].config for group in grouped])
    if len(grouped) > 1 or len(runs) == 1:
        return grouped, titles
    return [[run] for run in grouped[0]], [f"{titles[0]} · seed {run.config.seed}" for run in grouped[0]]


def _without_repeats(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Each config's latest run: the same seed again says nothing new, and would pass for a second seed. And who was left out."""
    latest: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: run.run_id):
        latest[run.config.model_dump_json()] = run
    kept = {run.run_dir for run in latest.values()}
    return [run for run in runs if run.run_dir in kept], [run.run_id for run in runs if run.run_dir not in kept]


def _class_count(run: Run) -> int:
    return len(run.history.started["classes"]) if run.history.started else 0


@lru_cache(maxsize=64)
def _answers(run_dir: Path, _changed: int, classes: int) -> pd.DataFrame:
    """``id, split, label, correct``, by id."""
    table = load_predictions(run_dir, classes)
    correct = np.stack(table["logits"].to_numpy()).argmax(1) == table["label"].to_numpy()
    return table.drop(columns="logits").assign(correct=correct).sort_values("id", ignore_index=True)


def _check_same_images(runs: Sequence[Run], answers: dict[Path, pd.DataFrame]) -> None:
    def shown(run: Run) -> list[tuple[str, str]]:
        classes, table = run.history.started["classes"], answers[run.run_dir]
        return [(name, classes[label]) for name, label in zip(table["id"], table["label"], strict=True)]

    first = shown(runs[0])
    others = [run.run_id for run in runs[1:] if shown(run) != first or not _same_source(runs[0], run)]
    if others:
        raise RunError(
            f"These runs did not use the same images for judging, so their accuracies cannot be compared: {', '.join(others)} did not use "
            f"those of {runs[0].run_id}. Compare runs on the same data with the same split."
        )


def _same_source(one: Run, other: Run) -> bool:
    """Two data sets may give their files the same names."""
    return one.config.data == other.config.data or one.history.started["fingerprint"] == other.history.started["fingerprint"]


def _arm(title: str, group: Sequence[Run], correct: np.ndarray, runs: Sequence[Run]) -> Arm:
    rate = trunk_rate(group, runs)
    members = tuple(Member(run, accuracy_interval(row[None]), cost(run, rate)) for run, row in zip(group, correct, strict=True))
    deviation = float(correct.mean(1).std(ddof=1)) if len(group) > 1 else None
    costs = usual_cost([member.cost for member in members])
    return Arm(title, group[0].config, members, accuracy_interval(correct), deviation, costs, run_depth(group[0]))


def _pairs(arms: Sequence[Arm], correct: Sequence[np.ndarray]) -> tuple[Pair, ...]:
    places = list(combinations(range(len(arms)), 2))
    tests = [paired_test(correct[a], correct[b]) for a, b in places]
    corrected = holm([test.p for test in tests])
    found = []
    for (a, b), test, holm_p in zip(places, tests, corrected, strict=True):
        different = is_different(test, holm_p)
        smallest = smallest_seen(test, len(places))
        words = verdicts.of_pair(arms[a].title, arms[b].title, test, different, smallest, len(places))
        found.append(Pair(a, b, test, holm_p, smallest, different, words))
    return tuple(found)


def _interval_json(interval: Interval) -> dict[str, float]:
    return {"accuracy": interval.value, "ci_low": interval.low, "ci_high": interval.high}


def _run_json(arm: Arm, member: Member) -> dict[str, Any]:
    seed = {"arm": arm.title, "seed": member.run.config.seed, "learning_rate": member.run.config.learning_rate}
    return summary(member.run) | seed | _interval_json(member.accuracy) | asdict(member.cost)


def _arm_json(arm: Arm) -> dict[str, Any]:
    low, high = arm.range
    return {
        "arm": arm.title,
        "strategy": arm.config.strategy,
        "backbone": arm.config.backbone,
        "train_fraction": arm.config.train_fraction,
        "learning_rate": arm.config.learning_rate,
        "run_ids": [member.run.run_id for member in arm.members],
        "seeds": [member.run.config.seed for member in arm.members],
        **_interval_json(arm.accuracy),
        "seed_deviation": arm.seed_deviation,
        "seed_low": low,
        "seed_high": high,
        **asdict(arm.depth),
        **asdict(arm.cost),
    }


def _pair_json(pair: Pair, arms: Sequence[Arm]) -> dict[str, Any]:
    test = pair.test
    return {
        "a": arms[pair.a].title,
        "b": arms[pair.b].title,
        "about": test.about,
        "difference": test.difference,
        "ci_low": test.low,
        "ci_high": test.high,
        "p": test.p,
        "mcnemar_p": test.mcnemar_p,
        "holm_p": pair.holm_p,
        "image_error": test.image_error,
        "seed_error": test.seed_error,
        "only_a": test.only_a,
        "only_b": test.only_b,
        "smallest_seen": pair.smallest,
        "different": pair.different,
        "verdict": pair.verdict,
    }

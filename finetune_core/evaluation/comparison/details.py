"""Details of a comparison as text: the baseline, standings of the arms, limits of the numbers."""

from collections.abc import Sequence

from finetune_core.data.splits import SHIFTED, VAL
from finetune_core.evaluation.comparison.arms import Arm, ArmVerdict, Standing
from finetune_core.evaluation.comparison.choice import Choice
from finetune_core.evaluation.comparison.pair_text import (
    CLAIMS,
    difference_text,
    find_pair,
    quote,
    undetected_text,
)
from finetune_core.evaluation.comparison.paired import About
from finetune_core.evaluation.comparison.pairs import Pair
from finetune_core.evaluation.comparison.strategies import SeedVariance
from finetune_core.evaluation.single_run.evaluate import evaluation_precision
from finetune_core.formatting import format_duration
from finetune_core.runs.design import depends_on_seed, features_key, is_baseline
from finetune_core.training.strategies.catalogue import BASELINE, STRATEGIES, count_epochs


def describe_baselines(arms: Sequence[Arm], pairs: Sequence[Pair]) -> str:
    """Describe what training in epochs gained over each linear probe on the same features.

    Returns:
        One sentence per probe; empty without one.
    """
    sentences = []
    for index, probe in enumerate(arms):
        alike = features_key(probe.config)
        trained = [
            place
            for place, arm in enumerate(arms)
            if count_epochs(arm.config) and features_key(arm.config) == alike
        ]
        if is_baseline(probe.config) and trained:
            sentences.append(_describe_baseline(arms, pairs, index, trained))
    return " ".join(sentences)


def _describe_baseline(
    arms: Sequence[Arm], pairs: Sequence[Pair], index: int, trained: Sequence[int]
) -> str:
    between = {place: find_pair(pairs, index, place) for place in trained}
    gains = {
        place: pair.networks.claim.gain * (1 if pair.a == place else -1)
        for place, pair in between.items()
    }
    better = [place for place in trained if between[place].widest.different and gains[place] > 0]
    plain = arms[index].title == STRATEGIES[BASELINE].title
    if better:
        best = max(better, key=gains.__getitem__)
        pair = between[best]
        about = pair.widest.claim.about
        of_models = f"{CLAIMS[about]}: " if about == "networks" else ""
        probe = "the linear probe" if plain else quote(arms[index].title)
        by = f"{pair.measure.format_difference(gains[best])} {pair.measure.unit}"
        return f"{of_models}{quote(arms[best].title)} beats {probe} by {by}."
    took = format_duration(arms[index].cost.seconds)
    probe = "a linear probe that" if plain else f"{quote(arms[index].title)}, which"
    alike = [place for place in trained if not between[place].widest.different]
    if not alike:
        return f"Everything you trained does worse than {probe} took {took}."
    apart = "distinguishable from" if len(alike) == len(trained) else "distinguishably better than"
    return f"Nothing you trained is {apart} {probe} took {took}."


def judge_arms(
    arms: Sequence[Arm], pairs: Sequence[Pair], choice: Choice
) -> tuple[ArmVerdict, ...]:
    """Judge each arm relative to the advised arm, or to the best arm if none is advised.

    The reference arm comes first, then the other arms, the best first.
    """
    first = choice.best if choice.advised is None else choice.advised
    order = sorted(range(len(arms)), key=lambda index: (index != first, -arms[index].rank))
    about: About = "strategies" if choice.comparable else "networks"
    verdicts = [ArmVerdict(first, about, "best" if choice.advised is None else "taken", "")]
    for index in order[1:]:
        pair = find_pair(pairs, first, index)
        verdict, measure = pair.widest, pair.measure
        claim = verdict.claim
        gained = claim.gain if pair.a == index else -claim.gain
        kind: Standing = "alike" if not verdict.different else "better" if gained > 0 else "worse"
        low, high = sorted(abs(value) for value in (claim.low, claim.high))
        text = (
            difference_text(measure, abs(gained), low, high)
            if verdict.different
            else undetected_text(measure, verdict.smallest)
        )
        verdicts.append(ArmVerdict(index, claim.about, kind, text))
    return tuple(verdicts)


def list_notes(
    split: str,
    arms: Sequence[Arm],
    variances: Sequence[SeedVariance | None],
    repeats: Sequence[str],
) -> tuple[str, ...]:
    """List the limits of the numbers, a sentence each."""
    notes = []
    if split == VAL and any(count_epochs(arm.config) for arm in arms):
        notes.append(
            "Each run's best epoch was chosen on these validation images, so all numbers are a "
            "little optimistic."
        )
    notes += [
        f"Not converged: {quote(arm.title)}, {arm.convergence.reason}."
        for arm in [arm for arm in arms if arm.is_undertrained][1:]
    ]
    early = [
        f"{quote(arm.title)}, seed {', '.join(str(run.config.seed) for run in arm.runs)}"
        for arm in arms
        if arm.unfinished
    ]
    if early:
        notes.append(
            "Not trained to the end, so compared as separate models, not as seeds of their "
            f"strategy: {'; '.join(early)}."
        )
    live = [
        f"{arm.title}, seed {run.config.seed} ({precision})"
        for arm in arms
        for run in arm.runs
        if (precision := evaluation_precision(run)) not in (None, "fp32")
    ]
    if live and split != SHIFTED:  # those images are predicted in fp32
        notes.append(
            "Evaluated during training, not in fp32 as finished runs are, so a few predictions "
            f"may differ: {'; '.join(live)}."
        )
    if any(len(arm.members) < 3 for arm in arms if depends_on_seed(arm.config)):
        notes.append("Three seeds or more for each tell a better strategy from a lucky run.")
    notes += [
        f"The seeds of {quote(arm.title)} spread more than the others', so their own spread counts."
        for arm, variance in zip(arms, variances, strict=True)
        if variance and variance.spreads_more
    ]
    if repeats:
        notes.append(
            f"Left out, because a later run has the same settings and seed: {', '.join(repeats)}."
        )
    return tuple(notes)

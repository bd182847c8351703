"""Verdict on a comparison in three lines: the answer, its size, what to do.

It is about the method in general (new images, new seeds) if the arms allow that. Else it is about
the trained models (new images), and says so. All other results stand under *Details*.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_core.data.checks import join_names
from finetune_core.evaluation.comparison.arms import Arm
from finetune_core.evaluation.comparison.choice import BLUNT, Choice
from finetune_core.evaluation.comparison.measures import ACCURACY, Measure
from finetune_core.evaluation.comparison.pair_text import (
    difference_text,
    find_pair,
    find_seeded_arms,
)
from finetune_core.evaluation.comparison.pairs import Pair, PairVerdict
from finetune_core.formatting import (
    SPLIT_TITLES,
    format_duration,
    format_number,
    lower_first,
    pluralize,
)
from finetune_core.runs.design import is_baseline
from finetune_core.training.strategies.catalogue import BASELINE, STRATEGIES, count_epochs

# A difference that matters: more test images are requested to show it, and a linear probe is not
# called as good while such a difference may be hidden.
WANTED = BLUNT / 2


@dataclass(frozen=True)
class Verdict:
    """Verdict of a comparison.

    Attributes:
        answer: one sentence.
        size: the difference with its 95 % interval; for arms that have not converged, the reason.
        action: what to do next.
    """

    answer: str
    size: str
    action: str

    @property
    def lines(self) -> tuple[str, ...]:
        """The three lines."""
        return self.answer, self.size, self.action

    def __str__(self) -> str:
        return " ".join(self.lines)


def metric_text(measure: Measure, split: str) -> str:
    """Return the metric's name within a sentence: ``test accuracy``, ``log loss``."""
    return lower_first(measure.title_on(split))


def state_verdict(
    arms: Sequence[Arm],
    pairs: Sequence[Pair],
    choice: Choice,
    images: int,
    split: str,
    *,
    one_strategy: bool = False,
) -> Verdict:
    """Return the verdict on arms that were evaluated on the same images.

    Args:
        arms: the arms.
        pairs: their pairs.
        choice: the chosen arm.
        images: number of images.
        split: the split of the images.
        one_strategy: True if the arms are runs of one strategy, which differ in their seeds only.
    """
    if undertrained := [arm for arm in arms if arm.is_undertrained]:
        return _state_not_converged(undertrained)
    view = _Context(arms, pairs, images, split)
    if one_strategy:
        return _state_one_strategy(view)
    if not choice.comparable:
        return _state_trained_models(view, choice.best)
    if choice.advised is None:
        return _state_no_clear_winner(view, choice)
    return _state_advice(view, choice)


@dataclass(frozen=True)
class _Context:
    """Context that all sentences of a verdict share."""

    arms: Sequence[Arm]
    pairs: Sequence[Pair]
    images: int
    split: str

    @property
    def on_images(self) -> str:
        """The images, with their split unless the metric's name includes it."""
        named = self.arms[0].measure is ACCURACY
        kind = "image" if named else f"{SPLIT_TITLES[self.split].lower()} image"
        return f"on {pluralize(self.images, kind)}"

    @property
    def metric(self) -> str:
        return metric_text(self.arms[0].measure, self.split)

    def name(self, index: int) -> str:
        return lower_first(self.arms[index].title)

    def score(self, index: int) -> str:
        return self.arms[index].measure.format_value(self.arms[index].score.value)

    def best_of(self, places: Sequence[int]) -> int:
        return max(places, key=lambda index: self.arms[index].rank)

    def describe_difference(self, first: int, second: int) -> str:
        """Describe the difference of two arms, first minus second, with its interval."""
        pair = find_pair(self.pairs, first, second)
        verdict, measure = pair.widest, pair.measure
        claim = verdict.claim
        gain, low, high = measure.to_difference(claim.gain, claim.low, claim.high)
        if pair.a != first:
            gain, low, high = -gain, -high, -low
        text = f"Difference {difference_text(measure, gain, low, high, of=False)}"
        if not verdict.different and low * high > 0:
            text += f"; not significant{_describe_family(verdict)}"
        return f"{text}."

    def least_gain(self, first: int, second: int) -> float:
        """Return the end of the interval of the first arm's gain that is worst for that arm."""
        pair = find_pair(self.pairs, first, second)
        claim = pair.widest.claim
        return claim.low if pair.a == first else -claim.high

    def describe_saving(self, cheap: int, dear: int) -> str:
        """Return ``: 3.0 s per run instead of 20 s``; empty if nothing is saved."""
        less, more = (self.arms[index].cost.seconds for index in (cheap, dear))
        return (
            f": {format_duration(less)} per run instead of {format_duration(more)}"
            if less < more
            else ""
        )


def _describe_family(verdict: PairVerdict) -> str:
    return f" among {verdict.family} pairs" if verdict.family > 1 else ""


def _state_not_converged(arms: Sequence[Arm]) -> Verdict:
    """Return a verdict that names the arms that have not converged, and concludes nothing."""
    reason = arms[0].convergence.reason
    if len(arms) > 1:
        reason = f"{arms[0].title}: {reason}"
    return Verdict(
        f"Not trained long enough: {join_names([lower_first(arm.title) for arm in arms])}.",
        f"{reason[0].upper()}{reason[1:]}.",
        "Train further: until then nothing follows about layers.",
    )


def _state_one_strategy(view: _Context) -> Verdict:
    """Return the verdict on runs of one strategy, one arm each, or on a single run."""
    arms, measure = view.arms, view.arms[0].measure
    action = "Add another strategy to compare it with."
    if len(arms) == 1:
        low, high = (measure.format_value(end) for end in (arms[0].score.low, arms[0].score.high))
        answer = f"{arms[0].title}: {view.metric} {view.score(0)} {view.on_images}."
        return Verdict(answer, f"95 % CI {low} to {high}.", action)
    values = [arm.score.value for arm in arms]
    least, most = (measure.format_value(value) for value in (min(values), max(values)))
    ended = f", all {arms[0].unfinished}" if arms[0].unfinished else ""
    apart = sum(pair.networks.different for pair in view.pairs)
    count = f"{apart} of {pluralize(len(view.pairs), 'pair')}" if apart else "no two"
    return Verdict(
        f"One strategy with {len(arms)} seeds{ended}: {view.metric} {least} to {most} "
        f"{view.on_images}.",
        f"The seeds span {measure.format_difference(max(values) - min(values))} "
        f"{measure.short_unit}; {count} can be told apart.",
        action,
    )


def _state_trained_models(view: _Context, best: int) -> Verdict:
    """Return a verdict on the trained models, for methods that cannot be compared yet."""
    others = [index for index in range(len(view.arms)) if index != best]
    alike = [index for index in others if not find_pair(view.pairs, best, index).networks.different]
    rival = view.best_of(alike or others)
    if alike:
        answer = (
            f"No clear winner among these trained models {view.on_images}: "
            f"{_describe_both(view, best, rival)}"
        )
    else:
        answer = f"Of these trained models, {view.name(best)} is best {view.on_images}: "
        answer += _describe_against(view, best, rival)
    single = any(not arm.unfinished and arm.has_too_few_seeds for arm in view.arms)
    actions = ["Resume the unfinished runs."] if any(arm.unfinished for arm in view.arms) else []
    if single:
        actions.append("Train more seeds to compare the methods in general.")
    return Verdict(answer, view.describe_difference(best, rival), " ".join(actions))


def _state_no_clear_winner(view: _Context, choice: Choice) -> Verdict:
    """Return a verdict that asks for more of what the larger error comes from."""
    best, rival = choice.best, view.best_of(choice.alike)
    answer = f"No clear winner {view.on_images}: {_describe_both(view, best, rival)}"
    blunt = find_pair(view.pairs, best, rival)
    if blunt.widest.smallest <= BLUNT:  # another pair is the reason why nothing is advised
        others = [find_pair(view.pairs, best, index) for index in choice.alike]
        blunt = max(others, key=lambda one: one.widest.smallest)
    return Verdict(
        answer,
        view.describe_difference(best, rival),
        _suggest_more(view, blunt) + _suggest_missing_runs(view, choice),
    )


def _suggest_more(view: _Context, pair: Pair) -> str:
    measure, smallest = pair.measure, pair.widest.smallest
    seeded = find_seeded_arms(view.arms, pair)
    if seeded and (pair.seed_error or 0.0) > pair.image_error:
        return _suggest_seeds(view, pair, seeded)
    if images := pair.images_needed(WANTED):
        return (
            f"Test more images: {format_number(images)} would show "
            f"{measure.format_difference(WANTED)} {measure.short_unit}."
        )
    if smallest >= measure.max_difference:
        return "Test more images: so few can hardly show any difference."
    # More images alone do not suffice, because the variance due to seeds stays.
    difference = f"{measure.format_difference(smallest)} {measure.short_unit}"
    seeds = ", train more seeds" if seeded else ""
    return f"Test more images{seeds}: these show no difference under {difference}."


def _suggest_seeds(view: _Context, pair: Pair, seeded: Sequence[int]) -> str:
    """Ask for more seeds of those arms of a pair whose result depends on the seed."""
    both = len(seeded) > 1
    whose = "" if both else f" of {view.name(seeded[0])}"
    if not pair.seeds_needed:
        return f"Train more seeds{whose}."
    needed = f"{pair.seeds_needed} of each" if both else str(pair.seeds_needed)
    return f"Train more seeds{whose}: {needed} would show this difference."


def _state_advice(view: _Context, choice: Choice) -> Verdict:
    """Return a verdict that names the best arm, or the cheapest one not distinguishable from it."""
    take, best = choice.advised, choice.best
    assert take is not None
    others = _suggest_missing_runs(view, choice)
    trained = [index for index in choice.comparable if count_epochs(view.arms[index].config)]
    if is_baseline(view.arms[take].config) and trained:
        rival = view.best_of(trained)
        if view.least_gain(take, rival) > -WANTED:
            return _state_train_nothing(view, take, rival, others)
    if choice.alike:
        rival = best if take != best else view.best_of(choice.alike)
        answer = f"No difference shown {view.on_images}: {_describe_both(view, take, rival)}"
        action = f"Use {view.name(take)}{view.describe_saving(take, rival)}.{others}"
        return Verdict(answer, view.describe_difference(take, rival), action)
    rival = view.best_of([index for index in choice.comparable if index != best])
    answer = (
        f"{view.arms[take].title} is best {view.on_images}: {_describe_against(view, take, rival)}"
    )
    return Verdict(answer, view.describe_difference(take, rival), f"Use {view.name(take)}.{others}")


def _state_train_nothing(view: _Context, probe: int, rival: int, others: str) -> Verdict:
    """Return the verdict that nothing trained in epochs is worth more than a linear probe."""
    does = "better" if find_pair(view.pairs, probe, rival).widest.different else "as well"
    plain = view.arms[probe].title == STRATEGIES[BASELINE].title
    name = f"{'a ' if plain else ''}{view.name(probe)}"
    scores = f"{view.score(probe)} {view.metric} against {view.score(rival)} for {view.name(rival)}"
    return Verdict(
        f"Train nothing: {view.on_images} {name} does {does}, {scores}.",
        view.describe_difference(probe, rival),
        f"Use the {view.name(probe)}{view.describe_saving(probe, rival)}.{others}",
    )


def _describe_both(view: _Context, first: int, second: int) -> str:
    scores = [f"{view.score(index)} for {view.name(index)}" for index in (first, second)]
    return f"{view.metric} {', '.join(scores)}."


def _describe_against(view: _Context, first: int, second: int) -> str:
    return (
        f"{view.metric} {view.score(first)}, against {view.score(second)} for {view.name(second)}."
    )


def _suggest_missing_runs(view: _Context, choice: Choice) -> str:
    """Ask for what arms lack that cannot be compared in general; empty if none does."""
    silent = [index for index in range(len(view.arms)) if index not in choice.comparable]
    cut = [view.name(index) for index in silent if view.arms[index].unfinished]
    single = [view.name(index) for index in silent if not view.arms[index].unfinished]
    text = (
        f" Train more seeds of {join_names(single)} to compare {_pronoun(single)}."
        if single
        else ""
    )
    return text + (f" Resume {join_names(cut)} to compare {_pronoun(cut)}." if cut else "")


def _pronoun(names: Sequence[str]) -> str:
    return "it, too" if len(names) == 1 else "them, too"

"""What a comparison says, in words. "Not distinguishable" is a verdict, too."""

from collections.abc import Sequence

from finetune_core.data.splits import VAL
from finetune_core.evaluation.arms import Arm, Pair, Standing
from finetune_core.evaluation.paired import PairedTest
from finetune_core.evaluation.results import evaluation_precision
from finetune_core.words import duration, percent, things

_BLUNT = 0.1  # a comparison that shows only larger differences advises nothing


def points(share: float) -> str:
    """A difference of accuracies, in percentage points: 0.021 -> ``2.1``."""
    return f"{share * 100:.1f}".replace("-", "−")


def quoted(title: str) -> str:
    """A strategy's title within a sentence: one of them is called Everything."""
    return f"“{title}”"


def of_pair(a: str, b: str, test: PairedTest, different: bool, smallest: float, pairs: int) -> str:
    """The verdict on two arms, the better one first."""
    a, b, low, high = quoted(a), quoted(b), test.low, test.high
    if test.difference < 0:
        a, b, low, high = b, a, -high, -low
    images = f"on these {things(test.images, 'image')}"
    span = f"{points(low)} to {points(high)}"
    if different:
        limits = (
            ""
            if test.about == "strategies"
            else " That holds for the networks trained here; one seed says nothing of other seeds."
        )
        return f"{a} beats {b} by {points(abs(test.difference))} points ({span}) {images}.{limits}"
    if smallest >= 1:
        few = "images" if test.about == "networks" else "images and seeds"
        unseen = f"so few {few} can hardly show any difference"
    else:
        unseen = f"a difference under {points(smallest)} points would most likely not have shown"
    luck = ""
    if low > 0 and pairs > 1:
        luck = f" (Alone, {a} would look better by {span} points; but among {pairs} pairs, luck makes one look so.)"
    return f"{a} and {b} are not distinguishable {images}; {unseen}.{luck}"


def overall(arms: Sequence[Arm], pairs: Sequence[Pair], best: int, advised: int, images: int) -> tuple[str, str]:
    """(what to take, in one sentence; what else to know, or nothing)."""
    top, take = quoted(arms[best].title), quoted(arms[advised].title)
    on = f"on these {things(images, 'image')}"
    if len(arms) == 1:
        return f"{top}: {percent(arms[best].accuracy.value)} {on}.", "Add another strategy to compare it with."
    alike = _alike(arms, pairs, best)
    if (shows := _unseen(pairs, best, alike)) > _BLUNT:
        limit = f"Differences under {points(shows)} points" if shows < 1 else "Differences"
        rest = f"{limit} would hardly show. {top} did best; {_more(arms)} would tell whether that was luck."
        return f"Too little to choose by {on}.", rest
    alone = [quoted(arm.title) for arm in arms if len(arm.members) == 1]
    caveat = (
        f"{_listed(alone)} had one seed only: that holds for the networks trained here, not yet for the "
        f"{'strategy' if len(alone) == 1 else 'strategies'}."
        if alone
        else ""
    )
    if not alike:
        return f"Take {take}: it beats every other one {on}.", caveat
    if advised == best:
        others = _listed([quoted(arms[index].title) for index in alike])
        rest = f"{others} cannot be told apart from it, but cost{'s' if len(alike) == 1 else ''} more."
        return f"Take {take}: it did best {on}, and nothing cheaper does as well.", f"{rest} {caveat}".strip()
    return f"Take {take}: the cheapest that cannot be told apart from the best, {top}, {on}.", caveat


def _more(arms: Sequence[Arm]) -> str:
    """What would sharpen the verdict the most: of two seeds, nothing is known of how they spread."""
    fewest = min(len(arm.members) for arm in arms)
    return "more images" if fewest == 1 else "three seeds or more" if fewest == 2 else "more images or more seeds"


def same_but_for_seeds(arms: Sequence[Arm], pairs: Sequence[Pair], images: int) -> tuple[str, str]:
    """Of runs of one strategy, each taken for itself: how far apart luck alone puts them."""
    values = [arm.accuracy.value for arm in arms]
    apart = sum(pair.different for pair in pairs)
    told = f"{apart} of {things(len(pairs), 'pair')} can be told apart" if apart else "no two can be told apart"
    spread = f"{percent(min(values))} to {percent(max(values))} on these {things(images, 'image')}"
    return f"These runs differ in their seeds only: {spread}; {told}.", "Add another strategy to compare it with."


def standings(arms: Sequence[Arm], pairs: Sequence[Pair], best: int, advised: int) -> tuple[Standing, ...]:
    """How each arm stands to the one to take, which comes first, then the more accurate before the less. Where there is too little to
    choose by, to the best."""
    blunt = _unseen(pairs, best, _alike(arms, pairs, best)) > _BLUNT
    first = best if blunt else advised
    order = sorted(range(len(arms)), key=lambda at: (at != first, -arms[at].accuracy.value))
    found = [Standing(first, "best" if blunt else "taken", _did(arms[first]))]
    for at in order[1:]:
        pair = pair_of(pairs, first, at)
        low, high = sorted(abs(value) for value in (pair.test.low, pair.test.high))
        if pair.different:
            how = f"{points(abs(pair.test.difference))} points worse (somewhere from {points(low)} to {points(high)})"
        elif pair.smallest < 1:
            how = f"a difference under {points(pair.smallest)} points would most likely not have shown"
        else:
            how = "so little can hardly show any difference"
        found.append(Standing(at, "worse" if pair.different else "alike", f"{_did(arms[at])}; {how}"))
    return tuple(found)


def _did(arm: Arm) -> str:
    return f"{percent(arm.accuracy.value)} in {duration(arm.cost.seconds)} a run"


def _alike(arms: Sequence[Arm], pairs: Sequence[Pair], best: int) -> list[int]:
    """The arms that cannot be told apart from the best."""
    return [index for index in range(len(arms)) if index != best and not pair_of(pairs, best, index).different]


def _unseen(pairs: Sequence[Pair], best: int, alike: Sequence[int]) -> float:
    """The largest difference to the best that may have gone unseen."""
    return max((pair_of(pairs, best, index).smallest for index in alike), default=0.0)


def notes(split: str, arms: Sequence[Arm], repeats: Sequence[str]) -> tuple[str, ...]:
    """What a reader has to know: how far the numbers go."""
    found = []
    if split == VAL:
        found.append(
            "Judged on the validation images, on which each run's best epoch was chosen: all accuracies are a little optimistic."
        )
    if any(len(arm.members) < 3 for arm in arms):
        found.append("Three seeds or more for each tell a better strategy from a lucky run.")
    early = [
        f"{arm.title}, seed {member.run.config.seed}"
        for arm in arms
        for member in arm.members
        if member.run.status != "finished"
    ]
    if early:
        found.append(f"Did not train to the end: {'; '.join(early)}.")
    live = [
        f"{arm.title}, seed {member.run.config.seed} ({precision})"
        for arm in arms
        for member in arm.members
        if (precision := evaluation_precision(member.run)) not in (None, "fp32")
    ]
    if live:
        found.append(
            f"Judged while training, not in fp32 as finished runs are, so a few answers may differ: {'; '.join(live)}."
        )
    if repeats:
        found.append(f"Left out, because a later run has the same settings and seed: {_listed(repeats)}.")
    return tuple(found)


def errors_in_words(test: PairedTest) -> str:
    """Where the uncertainty comes from, seeds kept apart from images."""
    images = f"± {points(test.image_error)} from the images"
    return images if test.seed_error is None else f"{images}, ± {points(test.seed_error)} from the seeds"


def pair_of(pairs: Sequence[Pair], one: int, other: int) -> Pair:
    """The pair of two arms, whichever comes first."""
    return next(pair for pair in pairs if {pair.a, pair.b} == {one, other})


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

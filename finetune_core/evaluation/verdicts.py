"""What a comparison says, in words. "Not distinguishable" is a verdict, too."""

from collections.abc import Sequence

from finetune_core.data.splits import VAL
from finetune_core.evaluation.arms import Arm, Pair
from finetune_core.evaluation.paired import PairedTest
from finetune_core.words import duration, number, percent, things

_BLUNT = 0.1  # a comparison that shows only larger differences advises nothing


def points(share: float) -> str:
    """A difference of accuracies, in percentage points: 0.021 -> ``2.1``."""
    return f"{share * 100:.1f}".replace("-", "−")


def of_pair(a: str, b: str, test: PairedTest, different: bool, smallest: float, pairs: int) -> str:
    """The verdict on two arms, the better one first."""
    low, high = sorted((test.low, test.high))
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


def overall(arms: Sequence[Arm], pairs: Sequence[Pair], best: int, advised: int, images: int) -> str:
    """One or two sentences on all arms: which one to take, and why."""
    top, take = arms[best], arms[advised]
    on = f"on these {things(images, 'image')}"
    if len(arms) == 1:
        low, high = top.range
        spread = f", {percent(low)} to {percent(high)} over {len(top.members)} seeds" if len(top.members) > 1 else ""
        return f"{top.title}: {percent(top.accuracy.value)} {on}{spread}. Add another strategy to compare it with."
    alike = [index for index in range(len(arms)) if index != best and not _pair(pairs, best, index).different]
    seeds = (
        ""
        if all(len(arm.members) > 1 for arm in arms)
        else " With one seed, this holds for these networks only, not for the strategy."
    )
    each = f"{percent(take.accuracy.value)} in {duration(take.cost.seconds)} a run"
    if not alike:
        return f"Take {top.title}: it beats every other one {on} ({each}).{seeds}"
    shows = max(_pair(pairs, best, index).smallest for index in alike)
    did_best = f"{top.title} did best ({percent(top.accuracy.value)} in {duration(top.cost.seconds)} a run)"
    if shows > _BLUNT:
        cheap = "" if take is top else f" {take.title} is the cheapest that cannot be told from it ({each})."
        return f"Too little to choose by: differences under {points(shows)} points would hardly show {on}. {did_best}.{cheap}{seeds}"
    if take is top:
        others = _listed([arms[index].title for index in alike])
        return f"Take {top.title}: it did best ({each}), and nothing cheaper does as well. {on.capitalize()}, {others} cannot be told from it.{seeds}"
    return f"Take {take.title} ({each}): the cheapest that cannot be told from the best {on}. {did_best}.{seeds}"


def notes(split: str, arms: Sequence[Arm], repeats: Sequence[str]) -> tuple[str, ...]:
    """What a reader has to know: how far the numbers go."""
    found = []
    if split == VAL:
        found.append(
            "Judged on the validation images, on which each run's best epoch was chosen: all accuracies are a little optimistic."
        )
    alone = [arm.title for arm in arms if len(arm.members) == 1]
    if alone:
        found.append(f"One seed only: {_listed(alone)}. Three or more tell a better strategy from a lucky run.")
    early = [member.run.run_id for arm in arms for member in arm.members if member.run.status != "finished"]
    if early:
        found.append(f"Did not train to the end: {_listed(early)}.")
    if repeats:
        found.append(f"Left out, because a later run has the same settings and seed: {_listed(repeats)}.")
    return tuple(found)


def errors_in_words(test: PairedTest) -> str:
    """Where the uncertainty comes from, seeds kept apart from images."""
    images = f"± {points(test.image_error)} points from which {number(test.images)} images these are"
    return images if test.seed_error is None else f"{images}, ± {points(test.seed_error)} from the seeds"


def _pair(pairs: Sequence[Pair], one: int, other: int) -> Pair:
    return next(pair for pair in pairs if {pair.a, pair.b} == {one, other})


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

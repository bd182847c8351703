"""What a comparison says, in words. "Not distinguishable" is a verdict, too.

Two claims are distinguished everywhere: about the strategies (new images, new seeds) and about the networks that were trained (new images).
The headline is always about the strategies. What is known of the networks stands below it, under that name.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_core.data.splits import SHIFTED, VAL
from finetune_core.evaluation.comparison.arms import Arm, ArmVerdict, Standing
from finetune_core.evaluation.comparison.choice import Choice
from finetune_core.evaluation.comparison.measures import ACCURACY
from finetune_core.evaluation.comparison.paired import About
from finetune_core.evaluation.comparison.pairs import Pair, Verdict
from finetune_core.evaluation.comparison.strategies import SeedVariance
from finetune_core.evaluation.single_run.evaluate import evaluation_precision
from finetune_core.formatting import duration, things
from finetune_core.runs.design import features_of, is_baseline
from finetune_core.training.strategies import BASELINE, STRATEGIES, epochs_of

CLAIMS: dict[About, str] = {"strategies": "Strategies", "networks": "Networks"}
CLAIM_HELP: dict[About, str] = {
    "strategies": "Would the same strategies differ on new images, trained again with new seeds?",
    "networks": "Do the networks that were trained here differ on new images? This says nothing of other seeds.",
}


@dataclass(frozen=True)
class PairWords:
    """Each claim about a pair, in one sentence or two."""

    strategies: str
    networks: str

    @property
    def both(self) -> str:
        return f"{CLAIMS['strategies']}: {self.strategies} {CLAIMS['networks']}: {self.networks}"


def quoted(title: str) -> str:
    """A strategy's title within a sentence."""
    return f"“{title}”"


def of_pair(arms: Sequence[Arm], pair: Pair) -> PairWords:
    """The verdict on two arms, in words."""
    first, second = (arms[at] for at in (pair.a, pair.b))
    if pair.strategies:
        names = [(quoted(arm.title), False) for arm in (first, second)]
        about_strategies = _claim(names, pair.strategies, pair) + _settled_by(pair)
    else:
        silent = [arm for arm in (first, second) if not arm.speaks]
        about_strategies = f"cannot be compared yet: {_listed([f'{quoted(arm.title)} {_why_silent(arm)}' for arm in silent])}."
    networks = [(_networks_of(arm), len(arm.members) > 1) for arm in (first, second)]
    return PairWords(about_strategies, _claim(networks, pair.networks, pair))


def _claim(names: Sequence[tuple[str, bool]], verdict: Verdict, pair: Pair) -> str:
    """The better one first. names: (what to call it, whether that is a plural)."""
    (a, many), (b, _), low, high = *names, verdict.claim.low, verdict.claim.high
    if verdict.claim.gain < 0:
        (b, _), (a, many), low, high = *names, -high, -low
    measure = pair.measure
    on, span = (
        f"on these {things(pair.images, 'image')}",
        f"{measure.size(low)} to {measure.size(high)}",
    )
    if verdict.different:
        return f"{a} {'beat' if many else 'beats'} {b} by {measure.size(abs(verdict.claim.gain))} {measure.unit} ({span}) {on}."
    if verdict.smallest >= measure.most:
        few = "images" if verdict.claim.about == "networks" else "images and seeds"
        unseen = f"so few {few} can hardly show any difference"
    else:
        unseen = f"a difference under {measure.size(verdict.smallest)} {measure.unit} would most likely not have shown"
    luck = ""
    if low > 0 and verdict.family > 1:
        luck = f" (Alone, {a} would look better by {span} {measure.unit}; but among {verdict.family} pairs, chance alone makes one look so.)"
    return f"{a} and {b} are not distinguishable {on}; {unseen}.{luck}"


def strategies(
    arms: Sequence[Arm], pairs: Sequence[Pair], choice: Choice, images: int
) -> tuple[str, str]:
    """(what to take, in one sentence; what else to know, or nothing)."""
    on = _on(arms, images)
    silent = [arm for arm in arms if not arm.speaks]
    unheard = (
        f"{_silent(silent)}, so {'this strategy' if len(silent) == 1 else 'these strategies'} cannot be compared yet."
        if silent
        else ""
    )
    if not choice.comparable:
        if len(arms) > 2 and len(silent) == len(arms) and not any(arm.unfinished for arm in arms):
            return (
                f"The strategies cannot be compared yet {on}: each has one seed only.",
                "Train at least one more seed of each, better two.",
            )
        return f"The strategies cannot be compared yet {on}: {_silent(silent)}.", _what_to_train(
            silent
        )
    top, alike = quoted(arms[choice.best].title), choice.alike
    if choice.advised is None:
        measure = arms[0].measure
        limit = (
            f"Differences under {measure.size(choice.unseen)} {measure.unit}"
            if choice.unseen < measure.most
            else "Differences"
        )
        bluntest = max(
            (pair_of(pairs, choice.best, at) for at in alike), key=lambda pair: pair.widest.smallest
        )
        rest = f"{limit} between strategies would hardly show. {top} did best so far. {_advice(bluntest, arms)}"
        return f"Too little evidence to choose {on}.", f"{rest} {unheard}".strip()
    take = quoted(arms[choice.advised].title)
    if not alike:
        return f"Take {take}: it beats every other one {on}.", unheard
    if choice.advised == choice.best:
        others = _listed([quoted(arms[at].title) for at in alike])
        rest = (
            f"{others} cannot be told apart from it, but cost{'s' if len(alike) == 1 else ''} more."
        )
        return (
            f"Take {take}: it did best {on}, and nothing cheaper does as well.",
            f"{rest} {unheard}".strip(),
        )
    return (
        f"Take {take}: the cheapest that cannot be told apart from the best, {top}, {on}.",
        unheard,
    )


def networks(arms: Sequence[Arm], pairs: Sequence[Pair]) -> str:
    """What is known of the networks that were trained; their strategies are another claim."""
    if len(pairs) == 1:
        return f"The networks trained here: {of_pair(arms, pairs[0]).networks}"
    best = max(range(len(arms)), key=lambda at: (arms[at].rank, -arms[at].cost.seconds))
    beaten = [
        at for at in range(len(arms)) if at != best and pair_of(pairs, best, at).networks.different
    ]
    alike = [at for at in range(len(arms)) if at != best and at not in beaten]
    many = len(arms[best].members) > 1
    claims = (
        [
            f"{'beat' if many else 'beats'} those of {_listed([quoted(arms[at].title) for at in beaten])}"
        ]
        if beaten
        else []
    )
    if alike:
        claims.append(
            f"{'are' if many else 'is'} not distinguishable from those of {_listed([quoted(arms[at].title) for at in alike])}"
        )
    it = "they" if many else "it"
    return f"The networks trained here: {_networks_of(arms[best])} did best; {it} {f', and {it} '.join(claims)}."


def baselines(arms: Sequence[Arm], pairs: Sequence[Pair]) -> str:
    """What training in epochs gained over each linear probe on the same features of the same images; empty without one."""
    found = []
    for at, probe in enumerate(arms):
        alike = features_of(probe.config)
        trained = [
            place
            for place, arm in enumerate(arms)
            if epochs_of(arm.config) and features_of(arm.config) == alike
        ]
        if is_baseline(probe.config) and trained:
            found.append(_against(arms, pairs, at, trained))
    return " ".join(found)


def _against(arms: Sequence[Arm], pairs: Sequence[Pair], at: int, trained: Sequence[int]) -> str:
    between = {place: pair_of(pairs, at, place) for place in trained}
    gains = {
        place: pair.networks.claim.gain * (1 if pair.a == place else -1)
        for place, pair in between.items()
    }
    better = [place for place in trained if between[place].widest.different and gains[place] > 0]
    plain, took = arms[at].title == STRATEGIES[BASELINE].title, duration(arms[at].cost.seconds)
    if better:
        best = max(better, key=gains.__getitem__)
        arm, pair = arms[best], between[best]
        about_networks = pair.widest.claim.about == "networks"
        name = _networks_of(arm) if about_networks else quoted(arm.title)
        verb = "beat" if about_networks and len(arm.members) > 1 else "beats"
        probe = "the linear probe" if plain else quoted(arms[at].title)
        return f"{name[0].upper()}{name[1:]} {verb} {probe} by {pair.measure.size(gains[best])} {pair.measure.unit}."
    probe = (
        f"a linear probe that took {took}"
        if plain
        else f"{quoted(arms[at].title)}, which took {took}"
    )
    alike = [place for place in trained if not between[place].widest.different]
    if not alike:
        return f"Everything you trained does worse than {probe}."
    apart = "distinguishable from" if len(alike) == len(trained) else "distinguishably better than"
    return f"Nothing you trained is {apart} {probe}."


def one_strategy(arms: Sequence[Arm], pairs: Sequence[Pair], images: int) -> tuple[str, str]:
    """Runs of one strategy, each on its own: how far apart chance alone puts them."""
    on, more, measure = (
        _on(arms, images),
        "Add another strategy to compare it with.",
        arms[0].measure,
    )
    values = [arm.score.value for arm in arms]
    if len(arms) == 1:
        return f"{quoted(arms[0].title)}: {measure.formatted(values[0])} {on}.", more
    apart = sum(pair.networks.different for pair in pairs)
    differences = (
        f"{apart} of {things(len(pairs), 'pair')} can be told apart"
        if apart
        else "no two can be told apart"
    )
    ended = f" (all {arms[0].unfinished})" if arms[0].unfinished else ""
    spread = f"{measure.formatted(min(values))} to {measure.formatted(max(values))} {on}"
    return f"These runs differ in their seeds only{ended}: {spread}; {differences}.", more


def arm_verdicts(
    arms: Sequence[Arm], pairs: Sequence[Pair], choice: Choice
) -> tuple[ArmVerdict, ...]:
    """How each arm stands to the one to take, which comes first, then the better before the worse. Where there is too little to
    choose by, to the best."""
    first = choice.best if choice.advised is None else choice.advised
    order = sorted(range(len(arms)), key=lambda at: (at != first, -arms[at].rank))
    about: About = "strategies" if choice.comparable else "networks"
    found = [
        ArmVerdict(first, about, "best" if choice.advised is None else "taken", _did(arms[first]))
    ]
    for at in order[1:]:
        pair = pair_of(pairs, first, at)
        verdict, measure = pair.widest, pair.measure
        gained = verdict.claim.gain if pair.a == at else -verdict.claim.gain
        kind: Standing = "alike" if not verdict.different else "better" if gained > 0 else "worse"
        low, high = sorted(abs(value) for value in (verdict.claim.low, verdict.claim.high))
        if verdict.different:
            how = f"{measure.size(abs(gained))} {measure.unit} {kind} (somewhere from {measure.size(low)} to {measure.size(high)})"
        elif verdict.smallest < measure.most:
            how = f"a difference under {measure.size(verdict.smallest)} {measure.unit} would most likely not have shown"
        else:
            how = "this is too little evidence to show any difference"
        found.append(ArmVerdict(at, verdict.claim.about, kind, f"{_did(arms[at])}; {how}"))
    return tuple(found)


def notes(
    split: str,
    arms: Sequence[Arm],
    variances: Sequence[SeedVariance | None],
    repeats: Sequence[str],
) -> tuple[str, ...]:
    """The limits of the numbers."""
    found = []
    if split == VAL and any(epochs_of(arm.config) for arm in arms):
        found.append(
            "Evaluated on the validation images, on which each run's best epoch was chosen: all numbers are a little optimistic."
        )
    early = [
        f"{quoted(arm.title)}, seed {', '.join(str(member.run.config.seed) for member in arm.members)}"
        for arm in arms
        if arm.unfinished
    ]
    if early:
        found.append(
            f"Did not train to the end, so compared as separate networks, not as seeds of their strategy: {'; '.join(early)}."
        )
    live = [
        f"{arm.title}, seed {member.run.config.seed} ({precision})"
        for arm in arms
        for member in arm.members
        if (precision := evaluation_precision(member.run)) not in (None, "fp32")
    ]
    if live and split != SHIFTED:  # those images are predicted in fp32
        found.append(
            f"Evaluated during training, not in fp32 as finished runs are, so a few predictions may differ: {'; '.join(live)}."
        )
    if any(len(arm.members) < 3 for arm in arms):
        found.append("Three seeds or more for each tell a better strategy from a lucky run.")
    apart = [
        quoted(arm.title)
        for arm, one in zip(arms, variances, strict=True)
        if one and not one.pooled and arm.speaks
    ]
    if apart:
        found.append(
            f"The seeds of {_listed(apart)} spread more than those of the others, so {'its' if len(apart) == 1 else 'their'} own spread "
            "counts, not that of all."
        )
    if repeats:
        found.append(
            f"Left out, because a later run has the same settings and seed: {_listed(repeats)}."
        )
    return tuple(found)


def errors_in_words(pair: Pair) -> str:
    """Where the uncertainty comes from, seeds kept apart from images."""
    size = pair.measure.size
    images = f"± {size(pair.image_error)} from the images"
    return (
        images if pair.seed_error is None else f"{images}, ± {size(pair.seed_error)} from the seeds"
    )


def pair_of(pairs: Sequence[Pair], one: int, other: int) -> Pair:
    """The pair of two arms, whichever comes first."""
    return next(pair for pair in pairs if {pair.a, pair.b} == {one, other})


def _on(arms: Sequence[Arm], images: int) -> str:
    """The metric, unless that is accuracy, and the number of images."""
    measure = arms[0].measure
    by = "" if measure is ACCURACY else f"by {measure.of} "
    return f"{by}on these {things(images, 'image')}"


def _did(arm: Arm) -> str:
    score = arm.measure.formatted(arm.score.value)
    text = score if arm.measure is ACCURACY else f"{arm.measure.of} {score}"
    return f"{text} in {duration(arm.cost.seconds)} per run"


def _networks_of(arm: Arm) -> str:
    count = len(arm.members)
    return (
        f"the network of {quoted(arm.title)}"
        if count == 1
        else f"the {count} networks of {quoted(arm.title)}"
    )


def _why_silent(arm: Arm) -> str:
    return "did not train to the end" if arm.unfinished else "has one seed only"


def _silent(arms: Sequence[Arm]) -> str:
    """Which arms cannot speak for their strategies: what they have in common is said once."""
    single = [quoted(arm.title) for arm in arms if not arm.unfinished]
    parts = (
        [f"{_listed(single)} {'has' if len(single) == 1 else 'have'} one seed only"]
        if single
        else []
    )
    cut = [quoted(arm.title) for arm in arms if arm.unfinished]
    parts += [f"{_listed(cut)} did not train to the end"] if cut else []
    return " and ".join(parts)


def _what_to_train(silent: Sequence[Arm]) -> str:
    """Which runs would make the strategies comparable."""
    single = [quoted(arm.title) for arm in silent if not arm.unfinished]
    more = f"Train at least one more seed of {_listed(single)}, better two." if single else ""
    return (
        f"{more} Resume what did not train to the end.".strip()
        if len(single) < len(silent)
        else more
    )


def _settled_by(pair: Pair) -> str:
    """How many seeds would most likely show a difference that has not shown."""
    if pair.seeds_needed is None:
        return ""
    return f" Were the difference as large as it looks, {pair.seeds_needed} seeds of each would most likely show it."


def _advice(pair: Pair, arms: Sequence[Arm]) -> str:
    """What would sharpen a verdict the most: more of what the larger error comes from."""
    size, unit = pair.measure.size, pair.measure.unit
    images, seeds = size(pair.image_error), size(pair.seed_error or 0.0)
    few = min(len(arms[at].members) for at in (pair.a, pair.b))
    if (pair.seed_error or 0.0) > pair.image_error:
        return f"Most of the uncertainty comes from the seeds (± {seeds} {unit}; images: ± {images}): train more seeds.{_settled_by(pair)}"
    more = (
        " Two seeds say little about the spread between seeds: train three or more."
        if few == 2
        else ""
    )
    return f"Most of the uncertainty comes from the images (± {images} {unit}; seeds: ± {seeds}): evaluate on more images.{more}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

"""Text about two arms: both claims about them, and the sources of the uncertainty."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_core.evaluation.comparison.arms import Arm
from finetune_core.evaluation.comparison.measures import Measure
from finetune_core.evaluation.comparison.paired import About
from finetune_core.evaluation.comparison.pairs import Pair, PairVerdict
from finetune_core.formatting import pluralize
from finetune_core.runs.design import depends_on_seed

CLAIMS: dict[About, str] = {
    "strategies": "The method in general",
    "networks": "These trained models",
}


@dataclass(frozen=True)
class PairText:
    """Each claim about a pair in one or two sentences."""

    strategies: str
    networks: str

    @property
    def both(self) -> str:
        """Both claims, each with its heading."""
        return f"{CLAIMS['strategies']}: {self.strategies} {CLAIMS['networks']}: {self.networks}"


def quote(title: str) -> str:
    """Return a strategy's title in quotation marks."""
    return f"“{title}”"


def find_pair(pairs: Sequence[Pair], first: int, second: int) -> Pair:
    """Return the pair of two arms in either order."""
    return next(pair for pair in pairs if {pair.a, pair.b} == {first, second})


def describe_pair(arms: Sequence[Arm], pair: Pair) -> PairText:
    """Describe what is known of two arms."""
    titles = [quote(arms[index].title) for index in (pair.a, pair.b)]
    networks = _describe_claim(titles, pair.networks, pair)
    if pair.strategies:
        return PairText(
            _describe_claim(titles, pair.strategies, pair) + _describe_seeds_needed(arms, pair),
            networks,
        )
    silent = [arm for arm in (arms[pair.a], arms[pair.b]) if not arm.supports_claims]
    if not silent:
        return PairText("not compared: both are the same method, fitted without epochs.", networks)
    reasons = ", ".join(f"{quote(arm.title)} {_explain_silence(arm)}" for arm in silent)
    return PairText(f"not compared yet: {reasons}.", networks)


def difference_text(
    measure: Measure, value: float, low: float, high: float, *, of: bool = True
) -> str:
    """Return ``3.3 points (95 % CI 1.5 to 5.6)``.

    Args:
        measure: the metric.
        value: the difference.
        low: lower end of its interval.
        high: upper end of its interval.
        of: name the metric beside the unit, unless the metric is accuracy.
    """
    unit = measure.unit if of else measure.short_unit
    size = measure.format_difference
    return f"{size(value)} {unit} (95 % CI {size(low)} to {size(high)})"


def undetected_text(measure: Measure, smallest: float) -> str:
    """Describe the differences that a comparison could not have shown."""
    if smallest >= measure.max_difference:
        return "so little evidence can hardly show any difference"
    difference = f"{measure.format_difference(smallest)} {measure.unit}"
    return f"a difference under {difference} would hardly have shown"


def describe_errors(pair: Pair) -> str:
    """Return the standard errors due to images and due to seeds."""
    size = pair.measure.format_difference
    images = f"± {size(pair.image_error)} from the images"
    if pair.seed_error is None:
        return images
    return f"{images}, ± {size(pair.seed_error)} from the seeds"


def _describe_claim(titles: Sequence[str], verdict: PairVerdict, pair: Pair) -> str:
    """Describe a claim; the better arm comes first."""
    (a, b), claim, measure = titles, verdict.claim, pair.measure
    gain, low, high = claim.gain, claim.low, claim.high
    if gain < 0:
        a, b, gain, low, high = b, a, -gain, -high, -low
    on = f"on these {pluralize(pair.images, 'image')}"
    if verdict.different:
        return f"{a} beats {b} by {difference_text(measure, gain, low, high)} {on}."
    unseen = undetected_text(measure, verdict.smallest)
    text = f"{a} and {b} are not distinguishable {on}; {unseen}."
    if low > 0 and verdict.family > 1:
        span = (
            f"{measure.format_difference(low)} to {measure.format_difference(high)} {measure.unit}"
        )
        text += f" Alone, {a} would look better by {span}; "
        text += f"chance does that among {verdict.family} pairs."
    return text


def _explain_silence(arm: Arm) -> str:
    if arm.unfinished:
        return "did not train to the end"
    if arm.is_undertrained:
        return "has not converged"
    return "is one average" if arm.config.averaged else "was trained with a single seed"


def find_seeded_arms(arms: Sequence[Arm], pair: Pair) -> list[int]:
    """Return the indices of those arms of a pair whose result depends on the seed."""
    return [index for index in (pair.a, pair.b) if depends_on_seed(arms[index].config)]


def _describe_seeds_needed(arms: Sequence[Arm], pair: Pair) -> str:
    """Return a sentence on how many seeds would probably show a difference; else empty."""
    seeded = find_seeded_arms(arms, pair)
    if pair.seeds_needed is None or not seeded:
        return ""
    whose = "each" if len(seeded) > 1 else quote(arms[seeded[0]].title)
    seeds = f"{pair.seeds_needed} seeds of {whose}"
    return f" Were it as large as it looks, {seeds} would most likely show it."

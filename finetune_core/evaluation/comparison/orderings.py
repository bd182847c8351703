"""Published orderings of strategies, cited in their help texts, against the user's measurements."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from finetune_core.config.run_config import StrategyName
from finetune_core.data.splits import SHIFTED
from finetune_core.evaluation.comparison.arms import Arm
from finetune_core.evaluation.comparison.measures import ACCURACY
from finetune_core.evaluation.comparison.pair_text import quote
from finetune_core.evaluation.comparison.pairs import Pair
from finetune_core.formatting import pluralize

Axis = Literal["in-distribution", "shifted"]


@dataclass(frozen=True)
class Ordering:
    """Published claim that one strategy is more accurate than another.

    Attributes:
        better: the strategy that is said to be more accurate.
        worse: the other strategy.
        axis: ``in-distribution`` or ``shifted`` images.
        source: authors and year, as one of the two help texts cites them.
        when: conditions of the claim, as the end of a clause; empty if it is general.
    """

    better: StrategyName
    worse: StrategyName
    axis: Axis
    source: str
    when: str = ""


ORDERINGS = (
    Ordering("last_block", "feature_extraction", "in-distribution", "Yosinski et al. 2014"),
    Ordering(
        "last_two_blocks",
        "feature_extraction",
        "in-distribution",
        "Yosinski et al. 2014",
        "where images look unlike ImageNet's",
    ),
    Ordering(
        "full",
        "feature_extraction",
        "in-distribution",
        "Kornblith et al. 2019",
        "with many images, or images very unlike ImageNet's",
    ),
    Ordering("full", "from_scratch", "in-distribution", "Kornblith et al. 2019"),
    Ordering(
        "first_block",
        "full",
        "in-distribution",
        "Lee et al. 2023",
        "where images differ in their pixels, not in what they show",
    ),
    Ordering(
        "bias_only",
        "feature_extraction",
        "in-distribution",
        "Cai et al. 2020",
        "with small data sets",
    ),
    Ordering(
        "gradual_unfreezing",
        "full",
        "in-distribution",
        "Howard & Ruder 2018",
        "with small data sets",
    ),
    Ordering("discriminative", "full", "in-distribution", "Howard & Ruder 2018"),
    Ordering("linear_probe_then_full", "full", "shifted", "Kumar et al. 2022"),
)


def find_contradictions(arms: Sequence[Arm], pairs: Sequence[Pair], split: str) -> tuple[str, ...]:
    """Return one sentence per published ordering that a pair contradicts significantly.

    Only accuracy counts, and only arms that differ in nothing but their strategy.

    Args:
        arms: the arms.
        pairs: their pairs.
        split: the split that the verdicts are on.
    """
    axis: Axis = "shifted" if split == SHIFTED else "in-distribution"
    contradictions = []
    for ordering in ORDERINGS if all(pair.measure is ACCURACY for pair in pairs) else ():
        for pair in pairs:
            if ordering.axis == axis and (
                contradiction := _describe_contradiction(ordering, arms, pair)
            ):
                contradictions.append(contradiction)
    return tuple(contradictions)


def _describe_contradiction(ordering: Ordering, arms: Sequence[Arm], pair: Pair) -> str | None:
    """Describe what was measured against an ordering.

    None if the pair is another one, or nothing significant contradicts the ordering.
    """
    first, second = arms[pair.a], arms[pair.b]
    verdict = pair.widest
    gain, low, high = verdict.claim.gain, verdict.claim.low, verdict.claim.high
    if (first.config.strategy, second.config.strategy) == (ordering.worse, ordering.better):
        first, second, gain, low, high = second, first, -gain, -high, -low
    if (first.config.strategy, second.config.strategy) != (ordering.better, ordering.worse):
        return None
    if not verdict.different or gain > 0 or not _has_same_task(first, second):
        return None
    size, unit, shifted = (
        pair.measure.format_difference,
        pair.measure.unit,
        ordering.axis == "shifted",
    )
    when = (
        f"{' on shifted images' if shifted else ''}{f' {ordering.when}' if ordering.when else ''}"
    )
    claim = f"{quote(first.title)} is said to beat {quote(second.title)}{when} ({ordering.source})"
    networks = "networks are" if len(first.members) > 1 else "network is"
    what = "it is" if verdict.claim.about == "strategies" else f"its {networks}"
    on = f"on these {pluralize(pair.images, 'shifted image' if shifted else 'image')}"
    return f"{claim}; {on} {what} {size(-gain)} {unit} worse ({size(-high)} to {size(-low)})."


def _has_same_task(first: Arm, second: Arm) -> bool:
    """Return whether two arms trained to the end on the same task and are not averaged.

    The same task means as much of the data, with the same network and input.
    """

    def task(arm: Arm) -> str:
        return arm.config.model_dump_json(
            include={"backbone", "from_run", "train_fraction", "epochs", *arm.config.input_settings}
        )

    return task(first) == task(second) and not any(
        arm.unfinished or arm.config.averaged for arm in (first, second)
    )

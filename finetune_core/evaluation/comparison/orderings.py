"""Published orderings of strategies, as their help texts cite them, held against what was measured on the user's images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from finetune_core.config.run_config import StrategyName
from finetune_core.data.splits import SHIFTED
from finetune_core.evaluation.comparison.arms import Arm
from finetune_core.evaluation.comparison.measures import ACCURACY
from finetune_core.evaluation.comparison.pair_text import quote
from finetune_core.evaluation.comparison.pairs import Pair
from finetune_core.formatting import things

Axis = Literal["in-distribution", "shifted"]


@dataclass(frozen=True)
class Ordering:
    """Which of two strategies is said to be the more accurate.

    Attributes:
        axis: on images like those of the training, or on shifted ones.
        source: authors and year, as the help text of one of the two cites them.
        when: the circumstances that it is said of, as the end of a clause; empty where it is said in general.
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


def against_published(arms: Sequence[Arm], pairs: Sequence[Pair], split: str) -> tuple[str, ...]:
    """One sentence per published ordering that the verdict on a pair contradicts: only where that is significant, of accuracy, and
    between arms that differ in their strategy alone.

    Args:
        split: on which images the verdicts are.
    """
    axis: Axis = "shifted" if split == SHIFTED else "in-distribution"
    found = []
    for ordering in ORDERINGS if all(pair.measure is ACCURACY for pair in pairs) else ():
        for pair in pairs:
            if ordering.axis == axis and (contradiction := _contradiction(ordering, arms, pair)):
                found.append(contradiction)
    return tuple(found)


def _contradiction(ordering: Ordering, arms: Sequence[Arm], pair: Pair) -> str | None:
    """What was measured against an ordering, in words; None where the pair is another, or nothing that is significant speaks against it."""
    first, second = arms[pair.a], arms[pair.b]
    verdict = pair.widest
    gain, low, high = verdict.claim.gain, verdict.claim.low, verdict.claim.high
    if (first.config.strategy, second.config.strategy) == (ordering.worse, ordering.better):
        first, second, gain, low, high = second, first, -gain, -high, -low
    if (first.config.strategy, second.config.strategy) != (ordering.better, ordering.worse):
        return None
    if not verdict.different or gain > 0 or not _alike(first, second):
        return None
    size, unit, shifted = pair.measure.size, pair.measure.unit, ordering.axis == "shifted"
    when = (
        f"{' on shifted images' if shifted else ''}{f' {ordering.when}' if ordering.when else ''}"
    )
    said = f"{quote(first.title)} is said to beat {quote(second.title)}{when} ({ordering.source})"
    networks = "networks are" if len(first.members) > 1 else "network is"
    what = "it is" if verdict.claim.about == "strategies" else f"its {networks}"
    on = f"on these {things(pair.images, 'shifted image' if shifted else 'image')}"
    return f"{said}; {on} {what} {size(-gain)} {unit} worse ({size(-high)} to {size(-low)})."


def _alike(first: Arm, second: Arm) -> bool:
    """Whether two arms trained to the end, on as much of the data, with the same network and input, and are not averaged from others."""

    def task(arm: Arm) -> str:
        return arm.config.model_dump_json(
            include={"backbone", "from_run", "train_fraction", "epochs", *arm.config.input_settings}
        )

    return task(first) == task(second) and not any(
        arm.unfinished or arm.config.averaged for arm in (first, second)
    )

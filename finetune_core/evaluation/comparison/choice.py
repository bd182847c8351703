"""Choice of a strategy: the cheapest that no other one beats, if the evidence suffices."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_core.evaluation.comparison.arms import Arm
from finetune_core.evaluation.comparison.pairs import Pair, PairVerdict

# Nothing is advised if only larger differences would have shown: ten points, or, for log loss, a
# probability of the true class that is a tenth lower.
BLUNT = 0.1


@dataclass(frozen=True)
class Choice:
    """Basis of the verdict on all arms; arms are given by their indices.

    Attributes:
        comparable: arms whose strategies can be compared; empty if there are fewer than two.
        best: the best of these by the metric; of all arms if ``comparable`` is empty.
        alike: arms of ``comparable`` that are not distinguishable from the best.
        unseen: largest difference to the best that may have gone unseen among ``alike``.
        advised: the cheapest arm that no other strategy beats; None if the evidence does not
            suffice.
    """

    comparable: tuple[int, ...]
    best: int
    alike: tuple[int, ...]
    unseen: float
    advised: int | None


def choose(arms: Sequence[Arm], pairs: Sequence[Pair]) -> Choice:
    """Choose among the arms by the claims about strategies.

    If an arm has not converged, nothing is chosen: trained longer, that arm might be the best.
    """
    comparable = tuple(
        sorted({index for pair in pairs if pair.strategies for index in (pair.a, pair.b)})
    )
    if any(arm.is_undertrained for arm in arms):
        comparable = ()
    best = max(
        comparable or range(len(arms)),
        key=lambda index: (arms[index].rank, -arms[index].cost.seconds),
    )
    if not comparable:
        return Choice((), best, (), 0.0, None)
    verdicts = {(pair.a, pair.b): pair.strategies for pair in pairs if pair.strategies}
    beaten = {
        b if verdict.claim.gain > 0 else a
        for (a, b), verdict in verdicts.items()
        if verdict.different
    }
    alike = [
        (index, verdict)
        for index in comparable
        if index != best and not (verdict := _find_verdict(verdicts, index, best)).different
    ]
    unseen = max((verdict.smallest for _, verdict in alike), default=0.0)
    advised = min(
        (index for index in comparable if index not in beaten),
        key=lambda index: arms[index].cost.seconds,
    )
    return Choice(
        comparable,
        best,
        tuple(index for index, _ in alike),
        unseen,
        None if unseen > BLUNT else advised,
    )


def _find_verdict(
    verdicts: dict[tuple[int, int], PairVerdict], first: int, second: int
) -> PairVerdict:
    return verdicts[min(first, second), max(first, second)]

"""Ranking of the probes of all networks and stages by accuracy on the same images.

Near-duplicates and images of a group are one unit of every interval and test.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from finetune_core.evaluation.advice.probes import NetworkProbes
from finetune_core.evaluation.advice.simultaneous import simultaneous_intervals
from finetune_core.evaluation.comparison.paired import LEVEL, bootstrap, holm, sign_flip_p
from finetune_core.formatting import format_percent
from finetune_core.inspection.clusters import cluster_sums


@dataclass(frozen=True)
class Candidate:
    """A network up to one of its stages.

    Attributes:
        backbone: name of the network.
        stage: name of the last stage that stays frozen.
        image_size: side of the network's input in pixels.
        accuracy: share of the held-out images that are classified correctly.
        ci_low: lower end of the 95 % interval of the accuracy. The intervals of all candidates hold
            simultaneously, so that of the best candidate holds, too.
        ci_high: upper end of that interval.
        seconds: forecast of training all later stages; None if nothing could be timed.
        images: number of held-out images.
        groups: number of independent images: near-duplicates and images of a group count once.
        behind: accuracy of the best candidate minus this one's.
        p: p-value of no difference to the best candidate: exact sign-flip test over groups
            (McNemar's test if each group is one image), corrected over all pairs of candidates
            (Holm). 1 for the best one.
        like_best: True if no difference to the best candidate is significant.
    """

    backbone: str
    stage: str
    image_size: int
    accuracy: float
    ci_low: float
    ci_high: float
    seconds: float | None
    images: int
    groups: int
    behind: float
    p: float
    like_best: bool

    @property
    def interval(self) -> str:
        """The 95 % interval as text: ``93.0 to 97.1 %``."""
        return f"{format_percent(self.ci_low).removesuffix(' %')} to {format_percent(self.ci_high)}"


def rank_candidates(networks: Sequence[NetworkProbes]) -> tuple[Candidate, ...]:
    """Rank every stage of every network by accuracy on the images that all networks could read.

    Ties are broken by the forecast time, the shortest first.
    """
    places = [(network, index) for network in networks for index in range(len(network.stages))]
    if not places:
        return ()
    shared = reduce(np.intersect1d, [network.ids for network in networks])
    right = np.concatenate([network.right[:, np.isin(network.ids, shared)] for network in networks])
    sets = networks[0].sets[np.isin(networks[0].ids, shared)]
    seconds = [network.after[index] for network, index in places]
    order = np.lexsort(
        ([np.inf if forecast is None else forecast for forecast in seconds], -right.mean(axis=1))
    )
    best = int(order[0])
    sums = cluster_sums(right.astype(np.int64), sets)
    corrected = _correct_for_pairs(sums)[best]
    low, high = simultaneous_intervals(right, sets)
    candidates = []
    for index in order:
        network, stage = places[index]
        p = 1.0 if index == best else float(corrected[index])
        candidates.append(
            Candidate(
                network.backbone,
                network.stages[stage],
                network.image_size,
                float(right[index].mean()),
                float(low[index]),
                float(high[index]),
                network.after[stage],
                right.shape[1],
                sums.shape[1],
                float(right[best].mean() - right[index].mean()),
                p,
                not _is_different(sums[best] - sums[index], p),
            )
        )
    return tuple(candidates)


def best_stages(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return the best stage of each network, in the order of the ranking."""
    first: dict[str, Candidate] = {}
    for candidate in candidates:
        first.setdefault(candidate.backbone, candidate)
    return tuple(first.values())


def _correct_for_pairs(sums: np.ndarray) -> np.ndarray:
    """Return the p-value of each pair of candidates, corrected over all pairs (Holm).

    All pairs count because the best candidate was not known beforehand.

    Args:
        sums: int ``[candidates, groups]``, the number of correctly classified images in each group.
    """
    pairs = np.triu_indices(len(sums), 1)
    corrected = np.ones((len(sums), len(sums)))
    corrected[pairs] = holm([sign_flip_p(sums[a] - sums[b]) for a, b in zip(*pairs, strict=True)])
    return np.minimum(corrected, corrected.T)


def _is_different(gain: np.ndarray, p: float) -> bool:
    """Return whether p is at most 5 % and the bootstrap interval over groups excludes 0."""
    low, high = bootstrap(gain)
    return p <= LEVEL and not low <= 0 <= high

"""The probes of all networks and stages, ranked by accuracy on the same images, and what cannot be distinguished from the best."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from finetune_core.evaluation.advice.probes import NetworkProbes
from finetune_core.evaluation.comparison.paired import (
    answers,
    holm,
    is_different,
    mcnemar_p,
    networks_claim,
)
from finetune_core.evaluation.intervals import accuracy_interval
from finetune_core.formatting import percent


@dataclass(frozen=True)
class Candidate:
    """A network up to one of its stages.

    Attributes:
        image_size: side of the network's input, pixels.
        accuracy, ci_low, ci_high: of the held-out images, with its 95 % interval (Wilson) over images.
        seconds: the forecast of training all that comes after the stage; None where nothing could be timed.
        images: how many were held out.
        behind: by how much the best one is more accurate.
        p: of there being no difference to the best one: exact McNemar test, corrected over all pairs of candidates (Holm); 1 of the best.
        like_best: whether no difference to the best one shows.
    """

    backbone: str
    stage: str
    image_size: int
    accuracy: float
    ci_low: float
    ci_high: float
    seconds: float | None
    images: int
    behind: float
    p: float
    like_best: bool

    @property
    def interval(self) -> str:
        """``93.0 to 97.1 %``."""
        return f"{percent(self.ci_low).removesuffix(' %')} to {percent(self.ci_high)}"


def ranked(networks: Sequence[NetworkProbes]) -> tuple[Candidate, ...]:
    """Every stage of every network, the most accurate first, of equally accurate ones the quickest; on the images that all could read."""
    places = [(network, at) for network in networks for at in range(len(network.stages))]
    if not places:
        return ()
    shared = reduce(np.intersect1d, [network.ids for network in networks])
    right = np.concatenate([network.right[:, np.isin(network.ids, shared)] for network in networks])
    seconds = [network.after[at] for network, at in places]
    order = np.lexsort(([np.inf if one is None else one for one in seconds], -right.mean(axis=1)))
    best = int(order[0])
    corrected = _corrected(right)[best]
    found = []
    for at in order:
        p = 1.0 if at == best else float(corrected[at])
        network, stage = places[at]
        found.append(_candidate(network, stage, right[at], right[best], p))
    return tuple(found)


def best_stages(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Of each network its best stage, in the order of the ranking."""
    first: dict[str, Candidate] = {}
    for one in candidates:
        first.setdefault(one.backbone, one)
    return tuple(first.values())


def _corrected(right: np.ndarray) -> np.ndarray:
    """p of each pair ``[candidates, candidates]``, corrected over all of them: which one is the best was not known before."""
    pairs = np.triu_indices(len(right), 1)
    corrected = np.ones((len(right), len(right)))
    corrected[pairs] = holm(mcnemar_p(right, right)[pairs].tolist())
    return np.minimum(corrected, corrected.T)


def _candidate(
    network: NetworkProbes, at: int, right: np.ndarray, best: np.ndarray, p: float
) -> Candidate:
    accuracy, low, high = accuracy_interval(int(right.sum()), len(right))
    claim = networks_claim(answers(best[None]), answers(right[None]))
    return Candidate(
        network.backbone,
        network.stages[at],
        network.image_size,
        accuracy,
        low,
        high,
        network.after[at],
        len(right),
        claim.gain,
        p,
        not is_different(claim, p),
    )

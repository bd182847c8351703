"""Orders in which unlabelled images are shown: uncertain and diverse, similar, probable.

DropQuery (Gupte et al. 2024, "Revisiting Active Learning in the Era of Vision Foundation Models")
selects images whose prediction changes under dropout of features. From these it takes the image
nearest to each centre of k-means, so that a batch does not hold the same image many times.
"""

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.preprocessing import normalize

from finetune_core.training.heads.logistic import Linear

BATCH = 10  # images between two fits of the linear probe, and clusters
_MASKS = 3  # M of the paper
_DROPPED = 0.75  # share of the features, as in the paper
_ITERATIONS = 20  # of k-means; rough centres suffice


def rank_uncertain_diverse(
    features: np.ndarray, directions: np.ndarray, probe: Linear | None, batch: int, seed: int
) -> np.ndarray:
    """Rank images by DropQuery: an uncertain and diverse batch, then the rest by uncertainty.

    Args:
        features: float32 ``[n, d]``, inputs of the probe.
        directions: float32 ``[n, m]``, the space in which images are clustered.
        probe: the current linear probe; None if fewer than two classes have labels. Then all images
            are equally uncertain.
        batch: number of clusters.
        seed: seed of the dropout masks and of k-means.

    Returns:
        Int ``[n]``: positions, the first to be labelled first.
    """
    if not len(features):
        return np.arange(0)
    changed, margin = _count_disagreements(features, probe, seed), _compute_margin(features, probe)
    # Ties are broken by the gap between the two most likely classes.
    ranked = np.lexsort((margin, -changed))
    candidates = np.flatnonzero(2 * changed > _MASKS)
    # Too few change if the probe is certain of nearly all: fill up with the next most uncertain.
    pool = candidates if len(candidates) >= batch else ranked[:batch]
    first = _find_nearest_to_centres(directions[pool], min(batch, len(pool)), seed)
    chosen = pool[first]
    chosen = chosen[np.lexsort((margin[chosen], -changed[chosen]))]
    return np.concatenate([chosen, ranked[~np.isin(ranked, chosen)]])


def rank_similar(features: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Rank images by cosine similarity to one image, the most similar first.

    Args:
        features: ``[n, d]``.
        query: ``[d]``, features of that image.
    """
    cosine = normalize(features) @ normalize(query[None])[0]
    return np.argsort(-cosine, kind="stable")


def rank_probable(shares: np.ndarray) -> np.ndarray:
    """Rank images by the probability of one class ``[n]``, the most probable first."""
    return np.argsort(-shares, kind="stable")


def _count_disagreements(features: np.ndarray, probe: Linear | None, seed: int) -> np.ndarray:
    """Return the number of dropout masks that change the prediction of each image: int ``[n]``."""
    if probe is None:
        return np.full(len(features), _MASKS)
    generator = torch.Generator().manual_seed(seed)
    values = torch.from_numpy(features)
    predicted = probe.logits(values).argmax(1)
    changed = torch.zeros(len(values), dtype=torch.int64)
    for _ in range(_MASKS):
        mask = torch.rand(values.shape, generator=generator) >= _DROPPED
        changed += probe.logits(values * mask / (1 - _DROPPED)).argmax(1) != predicted
    return changed.numpy()


def _compute_margin(features: np.ndarray, probe: Linear | None) -> np.ndarray:
    """Return the gap between the two highest class probabilities of each image: float ``[n]``."""
    if probe is None:
        return np.zeros(len(features))
    top = probe.logits(torch.from_numpy(features)).softmax(1).topk(2, dim=1).values
    return (top[:, 0] - top[:, 1]).numpy()


def _find_nearest_to_centres(points: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Return the positions of the points nearest to each centre of k-means, without repeats."""
    means = KMeans(clusters, n_init=1, max_iter=_ITERATIONS, random_state=seed)
    distances = means.fit_transform(points)
    positions: list[int] = []
    for cluster in range(clusters):
        order = np.argsort(distances[:, cluster])
        positions.append(int(next(index for index in order if index not in positions)))
    return np.array(positions)

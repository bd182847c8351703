"""Map of a data set by t-SNE (van der Maaten & Hinton 2008): similar images lie side by side."""

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from finetune_core.inspection.background import run_in_background
from finetune_core.work import Work

MOST_MAPPED = 10_000
_DIMENSIONS = 50
_EVERY = 25  # optimisation steps
_STEPS = 750


def lay_out(features: np.ndarray) -> Work[np.ndarray]:
    """Compute positions in the plane for features ``[n, d]``.

    Yields:
        Steps of the phase ``map`` that count optimisation steps.

    Returns:
        Float32 ``[n, 2]``.
    """
    from openTSNE import TSNE  # only a deep inspection needs this import

    steps_done, cancelled = [0], [False]

    def record_progress(steps: int, *_: object) -> bool:
        steps_done[0] += _EVERY
        return cancelled[0]

    def embed() -> np.ndarray:
        scaled = StandardScaler().fit_transform(features)
        reduced = PCA(
            min(_DIMENSIONS, *scaled.shape), svd_solver="randomized", random_state=0
        ).fit_transform(scaled)
        if len(reduced) < 10 or not reduced.any():
            return _project(reduced)
        layout = TSNE(
            perplexity=min(30, (len(reduced) - 1) / 3),
            # The cores that this process may use, not all of the machine.
            n_jobs=torch.get_num_threads(),
            random_state=0,
            callbacks=record_progress,
            callbacks_every_iters=_EVERY,
        ).fit(reduced)
        return np.asarray(layout, dtype=np.float32)

    try:
        return (
            yield from run_in_background("map", embed, lambda: min(steps_done[0], _STEPS), _STEPS)
        )
    finally:
        cancelled[0] = True


def _project(reduced: np.ndarray) -> np.ndarray:
    """Return the first two principal components.

    This replaces t-SNE if there are too few images for neighbourhoods, or all are alike.
    """
    padded = np.zeros((len(reduced), 2), dtype=np.float32)
    padded[:, : min(2, reduced.shape[1])] = reduced[:, :2]
    return padded

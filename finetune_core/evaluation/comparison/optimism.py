"""Selection bias: the best of several arms looks better on the images that chose it."""

import numpy as np

from finetune_core.evaluation.single_run.scores import resampled


def selection_optimism(
    labels: np.ndarray, values: np.ndarray, resamples: int, seed: int = 0
) -> float:
    """Estimate by how much choosing the best arm on these images flatters its mean.

    Bootstrap over images, within their class: the arm that is best in a draw, its mean in that draw
    less its mean on all images, averaged over the draws (Efron & Tibshirani 1993, section 17.6).

    Args:
        labels: int ``[images]``.
        values: float ``[arms, images]``, higher being better.
    """
    overall, flattered = values.mean(1), 0.0
    for weights in resampled(labels, resamples, seed):
        drawn = values @ weights / len(labels)
        best = drawn.argmax(0)
        flattered += float((drawn.max(0) - overall[best]).sum())
    return flattered / resamples

"""Selection bias: the best of several arms looks better on the images that it was chosen on."""

import numpy as np

from finetune_core.evaluation.single_run.scores import draw_bootstrap_weights


def selection_optimism(
    labels: np.ndarray, values: np.ndarray, resamples: int, seed: int = 0
) -> float:
    """Estimate by how much the mean of the best arm is inflated by choosing it on these images.

    Images are bootstrapped within their class. In each resample the best arm is chosen, and its
    mean in the resample minus its mean on all images is averaged over the resamples (Efron &
    Tibshirani 1993, section 17.6).

    Args:
        labels: int ``[images]``.
        values: float ``[arms, images]``, higher being better.
        resamples: number of resamples.
        seed: seed of the resamples.
    """
    overall, flattered = values.mean(1), 0.0
    for weights in draw_bootstrap_weights(labels, resamples, seed):
        drawn = values @ weights / len(labels)
        best = drawn.argmax(0)
        flattered += float((drawn.max(0) - overall[best]).sum())
    return flattered / resamples

"""Ensemble of several networks, computed from their stored predictions."""

import numpy as np

from finetune_core.evaluation.comparison.measures import Measure
from finetune_core.evaluation.comparison.paired import summarize_measure
from finetune_core.evaluation.comparison.strategies import Interval, measure_interval
from finetune_core.models.ensemble import mean_log_probabilities


def ensemble_score(measure: Measure, labels: np.ndarray, logits: np.ndarray) -> Interval:
    """Return the score of the ensemble with its 95 % interval for new images.

    The interval leaves seeds out, because the ensemble is a single network.

    Args:
        measure: the metric.
        labels: int ``[images]``.
        logits: float ``[networks, images, classes]``.
    """
    return measure_interval(
        summarize_measure(measure, labels, [mean_log_probabilities(logits)[None]])[0], None
    )

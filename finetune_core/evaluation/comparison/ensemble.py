"""The ensemble of several networks, from the predictions that they have left: nothing is computed anew."""

import numpy as np

from finetune_core.evaluation.comparison.measures import Measure
from finetune_core.evaluation.comparison.paired import measured
from finetune_core.evaluation.comparison.strategies import Interval, measure_interval
from finetune_core.models.ensemble import mean_log_probabilities


def ensemble_score(measure: Measure, labels: np.ndarray, logits: np.ndarray) -> Interval:
    """What the ensemble of ``[networks, images, classes]`` reaches, in the measure's own sense, with its 95 % interval for new images: it is
    one network."""
    return measure_interval(
        measured(measure, labels, [mean_log_probabilities(logits)[None]])[0], None
    )

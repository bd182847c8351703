"""The ensemble of several networks, from the predictions that they have left: nothing is computed anew."""

import numpy as np
from scipy.special import log_softmax, logsumexp

from finetune_core.evaluation.comparison.measures import Measure
from finetune_core.evaluation.comparison.paired import measured
from finetune_core.evaluation.comparison.strategies import Interval, measure_interval


def ensemble_logits(logits: np.ndarray) -> np.ndarray:
    """Logarithm of the mean probabilities, float ``[images, classes]``, of networks ``[networks, images, classes]``."""
    mean: np.ndarray = logsumexp(log_softmax(logits.astype(np.float64), axis=2), axis=0) - np.log(len(logits))
    return mean


def ensemble_score(measure: Measure, labels: np.ndarray, logits: np.ndarray) -> Interval:
    """What the ensemble reaches, in the measure's own sense, with its 95 % interval for new images: it is one network."""
    return measure_interval(measured(measure, labels, [ensemble_logits(logits)[None]], resamples=1)[0], None)

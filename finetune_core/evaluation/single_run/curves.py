"""Curves of one split: one class against the rest, and accuracy against coverage."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from finetune_core.evaluation.intervals import accuracy_interval
from finetune_core.evaluation.single_run.metrics import Evaluation
from finetune_core.evaluation.single_run.scores import TAILS, draw_bootstrap_weights

BAND_RESAMPLES = 300
_POINTS = 300  # more than a screen shows
_GRID = np.linspace(0, 1, 101)  # points at which bands are computed


@dataclass(frozen=True)
class OneVsRest:
    """Curves of a class against all other classes, by its probability.

    Attributes:
        prevalence: the share of the images that are of the class: precision by chance, at any
            recall.
        roc: ``false_positives, true_positives``, shares.
        recall_precision: ``recall, precision``.
        roc_band: ``false_positives, low, high``: contains the curve of 95 of 100 resamples, point
            by point.
        recall_precision_band: ``recall, low, high``.
    """

    prevalence: float
    roc: pd.DataFrame
    recall_precision: pd.DataFrame
    roc_band: pd.DataFrame
    recall_precision_band: pd.DataFrame


def one_vs_rest(
    result: Evaluation, label: int, resamples: int = BAND_RESAMPLES, seed: int = 0
) -> OneVsRest | None:
    """Return the curves of a class.

    None if they are not defined because all images are of this class, or none is. Bands are
    percentile bootstrap intervals of the vertical axis (Macskassy & Provost 2004: vertical
    averaging). Images are drawn as for the numbers (``scores.score``).
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    labels = result.predictions["label"].to_numpy()
    positive = labels == label
    if positive.all() or not positive.any():
        return None
    probability = np.stack(result.predictions["probabilities"].tolist())[:, label]
    false, true, _ = roc_curve(positive, probability)
    precision, recall, _ = precision_recall_curve(positive, probability, drop_intermediate=True)
    return OneVsRest(
        float(positive.mean()),
        thin_curve(pd.DataFrame({"false_positives": false, "true_positives": true})),
        thin_curve(pd.DataFrame({"recall": recall, "precision": precision})),
        *_compute_bands(labels, positive, probability, resamples, seed),
    )


def _compute_bands(
    labels: np.ndarray, positive: np.ndarray, probability: np.ndarray, resamples: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    order = np.argsort(-probability, kind="stable")
    # Images of equal probability share one point, because one threshold accepts all of them.
    ends = np.flatnonzero(np.append(np.diff(probability[order]) != 0, True))
    found_at, precision_at = [], []
    for weights in draw_bootstrap_weights(labels, resamples, seed):
        weights = weights[order]
        caught = (weights * positive[order, None]).cumsum(0)[ends]
        wrong = weights.cumsum(0)[ends] - caught
        for right, other in zip(caught.T, wrong.T, strict=True):
            found, false = right / right[-1], other / other[-1]
            found_at.append(np.interp(_GRID, np.append(0, false), np.append(0, found)))
            # The precision of a recall is that of the first threshold that reaches it, as in
            # average precision.
            reached = np.searchsorted(found, _GRID[1:] - 1e-9)
            precision_at.append(right[reached] / (right + other)[reached])
    roc, precision = (np.percentile(some, TAILS, axis=0) for some in (found_at, precision_at))
    return (
        pd.DataFrame({"false_positives": _GRID, "low": roc[0], "high": roc[1]}),
        pd.DataFrame({"recall": _GRID[1:], "low": precision[0], "high": precision[1]}),
    )


def coverage_curve(result: Evaluation) -> pd.DataFrame:
    """Return the accuracy on the images with the highest confidence against their share.

    This is selective prediction (El-Yaniv & Wiener 2010).

    Returns:
        ``coverage`` (share of images that get a prediction), ``accuracy`` among those,
        ``threshold`` (the least confidence among them). The most confident come first. Images of
        equal confidence go together.
    """
    rows = result.predictions.sort_values("confidence", ascending=False)
    confidence, selected = rows["confidence"].to_numpy(), np.arange(1, len(rows) + 1)
    last = np.append(confidence[1:] != confidence[:-1], True)
    table = pd.DataFrame(
        {
            "coverage": selected / len(rows),
            "accuracy": rows["correct"].to_numpy().cumsum() / selected,
            "threshold": confidence,
        }
    )
    return thin_curve(table[last].reset_index(drop=True))


@dataclass(frozen=True)
class SelectivePrediction:
    """Images that are classified with at least some confidence.

    Accuracy and interval are NaN if there is none.
    """

    images: int
    share: float
    accuracy: float
    low: float
    high: float


def selective_prediction(result: Evaluation, threshold: float) -> SelectivePrediction:
    """Return the accuracy on the images of at least this confidence, and their number."""
    correct = result.predictions["correct"][result.predictions["confidence"] >= threshold]
    accuracy, low, high = accuracy_interval(int(correct.sum()), len(correct))
    return SelectivePrediction(len(correct), len(correct) / result.images, accuracy, low, high)


def thin_curve(curve: pd.DataFrame, points: int = _POINTS) -> pd.DataFrame:
    """Return at most ``points`` rows of a curve, evenly spread, with the first and the last row."""
    if len(curve) <= points:
        return curve
    return curve.iloc[np.linspace(0, len(curve) - 1, points).round().astype(int)].reset_index(
        drop=True
    )

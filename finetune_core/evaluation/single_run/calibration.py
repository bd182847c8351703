"""Calibration of a network's confidence, before and after temperature scaling."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.special import log_softmax, softmax

from finetune_core.data.splits import VAL
from finetune_core.evaluation.intervals import wilson
from finetune_core.evaluation.single_run.binning import (
    BINS,
    Binning,
    assign_bins,
    ece_interval,
    gap_matrix,
)
from finetune_core.evaluation.single_run.metrics import stack_logits
from finetune_core.evaluation.single_run.scores import RESAMPLES, draw_bootstrap_weights

FEWEST = 30  # images that a temperature is fitted on
_LOWEST, _HIGHEST = 0.05, 20.0


@dataclass(frozen=True)
class Calibration:
    """Confidence compared with accuracy.

    Attributes:
        bins: one row per bin that has images: ``low, high`` (its edges), ``confidence, accuracy``
            (means), ``images``, and the accuracy's 95 % interval ``accuracy_low, accuracy_high``
            (Wilson 1927).
        ece: expected calibration error (Naeini et al. 2015): the mean of ``|accuracy -
            confidence|`` over bins, weighted by images.
        ece_low: lower end of its 95 % interval, from ``binning.ece_interval``; NaN without
            resamples.
        ece_high: upper end of that interval.
        loss: mean cross-entropy in nats.
    """

    bins: pd.DataFrame
    ece: float
    ece_low: float
    ece_high: float
    loss: float


@dataclass(frozen=True)
class Scaling:
    """Temperature scaling (Guo et al. 2017) of a split. The predicted classes do not change.

    Attributes:
        source: images that the temperature was fitted on: ``val``, or ``halves``: each half of the
            split is scaled by the other half's temperature.
        temperatures: one, or one per half. Above 1 the network was overconfident, below 1
            underconfident.
        images: number of images that each temperature was fitted on.
        logits: float64 ``[n, classes]`` of the split, divided by the temperatures.
    """

    source: Literal["val", "halves"]
    temperatures: tuple[float, ...]
    images: tuple[int, ...]
    logits: np.ndarray

    @property
    def is_at_limit(self) -> bool:
        """True if a temperature is at the end of the search range.

        Its images do not determine it then.
        """
        return any(
            not _LOWEST * 1.01 < temperature < _HIGHEST * 0.99 for temperature in self.temperatures
        )


def compute_calibration(
    logits: np.ndarray,
    labels: np.ndarray,
    binning: Binning = "width",
    bins: int = BINS,
    resamples: int = RESAMPLES,
) -> Calibration:
    """Compare the confidence of predictions with their accuracy.

    Args:
        logits: float64 ``[n, classes]``.
        labels: int ``[n]``.
        binning: as for ``assign_bins``.
        bins: number of bins.
        resamples: number of resamples for the interval of the error; images are drawn as for the
            other numbers (``scores.score``).
    """
    probabilities = softmax(logits, axis=1)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    edges, bin_of = assign_bins(confidence, binning, bins)
    rows = pd.DataFrame({"bin": bin_of, "confidence": confidence, "correct": correct})
    table = rows.groupby("bin").agg(
        confidence=("confidence", "mean"), right=("correct", "sum"), images=("correct", "size")
    )
    right = table.pop("right").to_numpy()
    table["accuracy"] = right / table["images"]
    table["accuracy_low"], table["accuracy_high"] = wilson(right, table["images"].to_numpy())
    table.insert(0, "low", edges[table.index])
    table.insert(1, "high", edges[np.minimum(table.index + 1, len(edges) - 1)])
    gaps = gap_matrix(confidence, correct, bin_of)
    of_bins = gaps.sum(1)
    drawn = [gaps @ weights for weights in draw_bootstrap_weights(labels, resamples, 0)]
    low, high = (
        ece_interval(of_bins, np.concatenate(drawn, axis=1))
        if drawn
        else (float("nan"), float("nan"))
    )
    return Calibration(
        table.reset_index(drop=True),
        float(np.abs(of_bins).sum()),
        low,
        high,
        _cross_entropy(logits, labels),
    )


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature between 0.05 and 20 that minimises the cross-entropy of these images.

    The cross-entropy is convex in the inverse temperature.
    """
    from scipy.optimize import minimize_scalar

    result = minimize_scalar(
        lambda inverse: _cross_entropy(logits * inverse, labels),
        bounds=(1 / _HIGHEST, 1 / _LOWEST),
        method="bounded",
    )
    return float(1 / result.x)


def scale_split(table: pd.DataFrame, split: str) -> Scaling | None:
    """Scale the logits of a split by temperatures that were fitted on *other* images.

    These are the validation images if the split is another one, else the other half of the split
    (two-fold cross-fitting). None if there are too few images to fit on, or a single class.

    Args:
        table: predictions of all splits, from ``load_predictions``.
        split: the split to scale.
    """
    rows, others = table[table["split"] == split], table[table["split"] == VAL]
    logits, labels = stack_logits(rows), rows["label"].to_numpy()
    if logits.shape[1] < 2:
        return None
    if split != VAL and len(others) >= FEWEST:
        temperature = fit_temperature(stack_logits(others), others["label"].to_numpy())
        return Scaling("val", (temperature,), (len(others),), logits / temperature)
    if len(rows) < 2 * FEWEST:
        return None
    first = _draw_half(rows["id"])
    temperatures = tuple(fit_temperature(logits[~half], labels[~half]) for half in (first, ~first))
    temperature_by_image = np.where(first, *temperatures)
    return Scaling(
        "halves",
        temperatures,
        (int((~first).sum()), int(first.sum())),
        logits / temperature_by_image[:, None],
    )


def _draw_half(ids: pd.Series) -> np.ndarray:
    """Return bool ``[n]``: half of the images, drawn by their ids regardless of their order."""
    order = np.random.default_rng(0).permutation(len(ids))
    return (order < len(ids) // 2)[ids.argsort().argsort()]


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.take_along_axis(log_softmax(logits, axis=1), labels[:, None], axis=1).mean())

"""Metrics of a split, each with its interval.

Shares of images have Wilson's interval, all other numbers that of a bootstrap. The bootstrap is
vectorised over resamples: one column per resample.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from finetune_core.evaluation.intervals import wilson
from finetune_core.evaluation.single_run.binning import BINS, assign_bins, ece_interval, gap_matrix
from finetune_core.formatting import accuracy_name, format_percent

RESAMPLES = 1000
# With more probabilities a thousand resamples take many seconds, and intervals are narrow anyway.
_MANY, _FEWER_RESAMPLES = 500_000, 200
LEVEL = 0.95
TAILS = (100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2)  # percentiles
_TOP = (3, 5)
# Images times resamples that are held at once. Fastest if they fit into the processor's cache.
_CELLS = 500_000

NAMES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "precision_macro": "Precision (macro)",
    "recall_macro": "Recall (macro)",
    "f1_macro": "F1 (macro)",
    "f1_micro": "F1 (micro)",
    "f1_weighted": "F1 (weighted)",
    "matthews_corrcoef": "Matthews correlation (MCC)",
    "cohen_kappa": "Cohen's kappa",
    **{f"top_{k}_accuracy": f"Top-{k} accuracy" for k in _TOP},
    "roc_auc": "ROC AUC (macro, one-vs-rest)",
    "average_precision": "Average precision (macro)",
    "log_loss": "Log loss",
    "brier": "Brier score",
    "ece": f"Expected calibration error (ECE, {BINS} bins)",
}
NOT_DEFINED = "not defined"
# Shares of all images. For these counts Wilson's interval is better than a bootstrap's if images
# are few. Accuracy and micro F1 are the same number, so they have the same interval.
SHARES = ("accuracy", "f1_micro", *(f"top_{k}_accuracy" for k in _TOP))
_PERCENT = ("f1", "precision", "recall", "ece")  # besides accuracies: shown in percent
INTERVALS = (
    "Wilson's of accuracy, top-k accuracy and micro F1, percentile bootstrap within classes of "
    "the rest"
)
AREAS = {"roc_auc": "ROC AUC", "average_precision": "Average precision"}  # of one class


@dataclass(frozen=True)
class Scores:
    """Metrics of a split. NaN means *not defined*, never 0.

    Attributes:
        table: one row per number: ``name`` (a key of ``NAMES``), ``value, low, high``.
        classes: one row per class: ``roc_auc, average_precision``, and of each ``_low`` and
            ``_high``.
        absent: labels of the classes that the split has no image of; averages over classes leave
            them out.
        resamples: number of resamples that the intervals are computed from.
    """

    table: pd.DataFrame
    classes: pd.DataFrame
    absent: tuple[int, ...]
    resamples: int

    def to_rows(self, split: str) -> tuple[list[str], list[list[str]]]:
        """Return (columns, rows) with one row per number, formatted as text.

        Args:
            split: the split whose images are counted.
        """
        rows = [
            [
                score_name(row["name"], split),
                format_value(row["name"], row["value"]),
                format_range(row["name"], row["low"], row["high"]),
            ]
            for row in self.table.to_dict("records")
        ]
        return ["Metric", "Value", "95 % interval"], rows


def score_name(name: str, split: str) -> str:
    """Return the label of a score (a key of ``NAMES``) on a split."""
    return accuracy_name(split) if name == "accuracy" else NAMES[name]


def count_resamples(probabilities: int) -> int:
    """Return how many resamples an interval is drawn from, given images times classes."""
    return RESAMPLES if probabilities <= _MANY else _FEWER_RESAMPLES


def is_percent(name: str) -> bool:
    """Return whether a score (a key of ``NAMES``) is shown in percent."""
    return name.startswith(_PERCENT) or name.endswith("accuracy")


def format_value(name: str, value: float) -> str:
    """Format a score (a key of ``NAMES``): shares in percent, all others to three digits."""
    return (
        format_percent(value)
        if is_percent(name) and not np.isnan(value)
        else format_fraction(value)
    )


def format_range(name: str, low: float, high: float) -> str:
    """Format the ends of a score's interval; empty where it is not known."""
    return "" if np.isnan(low) else f"{format_value(name, low)} to {format_value(name, high)}"


def format_fraction(value: float) -> str:
    """Format a value to three digits; NaN means *not defined*."""
    return NOT_DEFINED if np.isnan(value) else f"{value:.3f}"


def score(
    labels: np.ndarray,
    probabilities: np.ndarray,
    losses: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Scores:
    """Compute all metrics of a split with 95 % intervals.

    The intervals of ``SHARES`` are Wilson's (1927), all other ones percentiles of a bootstrap
    (Efron 1979). Images are drawn with replacement *within each class*, so that a class never
    vanishes: the intervals are about other images, not about another mix of classes. A class with
    one image adds no spread.

    Args:
        labels: int ``[n]``, at least one.
        probabilities: float ``[n, classes]``.
        losses: float ``[n]``, cross-entropy in nats.
        resamples: 0 for no intervals (they are NaN).
        seed: seed of the resamples.
    """
    parts = _Precomputed(labels, probabilities, losses)
    value, of_class, gaps = parts.compute(np.ones((len(labels), 1)))
    drawn = [parts.compute(weights) for weights in draw_bootstrap_weights(labels, resamples, seed)]
    low, high = _percentiles([one for one, _, _ in drawn], value)
    class_low, class_high = _percentiles([one for _, one, _ in drawn], of_class)
    if drawn:
        place = parts.names.index("ece")
        low[place], high[place] = ece_interval(
            gaps[:, 0], np.concatenate([one for _, _, one in drawn], axis=1)
        )
        shares = [place for place, name in enumerate(parts.names) if name in SHARES]
        right = np.rint(value[shares, 0] * len(labels))
        low[shares], high[shares] = wilson(right, len(labels))
    bounds = {"": of_class[:, :, 0], "_low": class_low, "_high": class_high}
    return Scores(
        pd.DataFrame({"name": parts.names, "value": value[:, 0], "low": low, "high": high}),
        pd.DataFrame(
            {
                f"{name}{suffix}": bound[:, index]
                for index, name in enumerate(AREAS)
                for suffix, bound in bounds.items()
            }
        ),
        tuple(np.flatnonzero(parts.support == 0).tolist()),
        resamples,
    )


def _percentiles(drawn: list[np.ndarray], like: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return percentiles over the last axis.

    NaN if a number is not defined, or nothing was drawn.
    """
    if not drawn:
        nothing = np.full(like.shape[:-1], np.nan)
        return nothing, nothing
    low, high = np.percentile(np.concatenate(drawn, axis=-1), TAILS, axis=-1)
    return low, high


def draw_bootstrap_weights(labels: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each image was drawn, with replacement and within its class.

    Yields:
        Float64 ``[n, resamples]`` for some of the resamples at a time.
    """
    random = np.random.default_rng(seed)
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    starts, sizes = np.repeat(np.cumsum(counts) - counts, counts), np.repeat(counts, counts)
    at_once = max(1, _CELLS // len(labels))
    for first in range(0, resamples, at_once):
        columns = min(at_once, resamples - first)
        picked = order[
            starts[:, None]
            + (random.random((len(labels), columns)) * sizes[:, None]).astype(np.int64)
        ]
        cells = picked * columns + np.arange(columns)
        yield (
            np.bincount(cells.ravel(), minlength=cells.size).reshape(cells.shape).astype(np.float64)
        )


class _Precomputed:
    """Terms that do not change between resamples.

    Every number is then a few products with the weights of the images.
    """

    def __init__(self, labels: np.ndarray, probabilities: np.ndarray, losses: np.ndarray) -> None:
        self.count, self.classes = probabilities.shape
        self.labels = labels
        self.support = np.bincount(labels, minlength=self.classes)
        self.present = self.support > 0
        images = np.arange(self.count)
        predicted = probabilities.argmax(1)
        place = rank_true_class(labels, probabilities)
        tops = [k for k in _TOP if k < self.classes]
        squares = (probabilities**2).sum(1) - 2 * probabilities[images, labels] + 1
        # One row per number that is a mean over images; accuracy comes first.
        self.means = np.stack([place == 0, *(place < k for k in tops), losses, squares]).astype(
            np.float64
        )
        self.mean_names = ["accuracy", *(f"top_{k}_accuracy" for k in tops), "log_loss", "brier"]
        right = images[place == 0]
        shape = (self.classes, self.count)
        self.hits = sparse.csr_array((np.ones(len(right)), (labels[right], right)), shape=shape)
        self.predicted = sparse.csr_array((np.ones(self.count), (predicted, images)), shape=shape)
        confidence = probabilities[images, predicted]
        self.gaps = gap_matrix(confidence, place == 0, assign_bins(confidence)[1])
        self.rankings = [
            _Ranking(labels == label, probabilities[:, label]) for label in range(self.classes)
        ]

    @property
    def names(self) -> list[str]:
        return [name for name in NAMES if name in self.mean_names or not name.startswith("top_")]

    def compute(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compute all numbers for some resamples.

        Args:
            weights: ``[n, resamples]``; the weights of a class sum to its number of images.

        Returns:
            ``[numbers, resamples]`` in the order of ``names``; ``[classes, 2, resamples]``: ROC AUC
            and average precision; ``[bins, resamples]``: contribution of each bin to the
            calibration error, with its sign.
        """
        means = dict(zip(self.mean_names, self.means @ weights / self.count, strict=True))
        hits, predicted = self.hits @ weights, self.predicted @ weights
        support = self.support[:, None].astype(np.float64)
        f1 = (2 * hits / np.maximum(predicted + support, 1))[self.present]
        recall = (hits[self.present] / support[self.present]).mean(0)
        precision = hits[self.present] / np.maximum(predicted[self.present], 1)
        gaps = self.gaps @ weights
        of_class = np.stack([ranking.areas(weights) for ranking in self.rankings])
        values = means | {
            "balanced_accuracy": recall,
            "precision_macro": precision.mean(0),
            "recall_macro": recall,  # the same number
            "f1_macro": f1.mean(0),
            # Equal, because every image has one label and one prediction.
            "f1_micro": means["accuracy"],
            "f1_weighted": (f1 * support[self.present]).sum(0) / self.count,
            **self._agreement(means["accuracy"], predicted),
            "roc_auc": _mean_defined(of_class[:, 0]),
            "average_precision": _mean_defined(of_class[:, 1]),
            "ece": np.abs(gaps).sum(0),
        }
        return np.stack([values[name] for name in self.names]), of_class, gaps

    def _agreement(self, accuracy: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
        """Return agreement beyond chance (Cohen 1960; Gorodkin 2004) from shares.

        It is not defined for a single class.
        """
        true, predicted_share = self.support / self.count, predicted / self.count
        if self.present.sum() < 2:
            return dict.fromkeys(
                ("matthews_corrcoef", "cohen_kappa"), np.full(accuracy.shape, np.nan)
            )
        chance = true @ predicted_share
        spread = np.sqrt((1 - true @ true) * np.maximum(1 - (predicted_share**2).sum(0), 0))
        # A constant prediction contains no information: 0, as in scikit-learn.
        matthews = np.divide(
            accuracy - chance, spread, out=np.zeros_like(accuracy), where=spread > 1e-12
        )
        return {"matthews_corrcoef": matthews, "cohen_kappa": (accuracy - chance) / (1 - chance)}


def _mean_defined(values: np.ndarray) -> np.ndarray:
    """Return the mean over the classes whose value is defined.

    Whether a value is defined does not depend on the resample.
    """
    defined = values[~np.isnan(values[:, 0])]
    return defined.mean(0) if len(defined) else np.full(values.shape[1], np.nan)


class _Ranking:
    """One class against the rest, ranked by its probability.

    Between two neighbouring probabilities of images of the class, the other images need not be
    distinguished. Their weights are added up by one sparse product, and only the images of the
    class are left to sum over.
    """

    def __init__(self, positive: np.ndarray, probability: np.ndarray) -> None:
        self.positives, self.negatives = int(positive.sum()), int((~positive).sum())
        values = np.unique(probability[positive])
        self.steps = len(values)
        inside, outside = np.flatnonzero(positive), np.flatnonzero(~positive)
        step = np.searchsorted(values, probability[inside])
        # 0: below the lowest, 1: equal to it, 2: between it and the next, …
        gap = np.searchsorted(values, probability[outside], "left") + np.searchsorted(
            values, probability[outside], "right"
        )
        self.by_step = sparse.csr_array(
            (np.ones(len(inside)), (step, inside)), shape=(self.steps, len(positive))
        )
        self.by_gap = sparse.csr_array(
            (np.ones(len(outside)), (gap, outside)), shape=(2 * self.steps + 1, len(positive))
        )

    def areas(self, weights: np.ndarray) -> np.ndarray:
        """Return ``[2, resamples]``: area under the ROC curve, and average precision.

        Ties count half. Average precision is a step function, as in scikit-learn.
        """
        columns = weights.shape[1]
        if not self.positives:
            return np.full((2, columns), np.nan)
        positive, negative = self.by_step @ weights, self.by_gap @ weights
        up_to = negative.cumsum(0)
        below, equal = up_to[0 : 2 * self.steps : 2], negative[1::2]
        if self.negatives:
            roc = (positive * (below + equal / 2)).sum(0) / (self.positives * self.negatives)
        else:
            roc = np.full(columns, np.nan)
        caught = positive[::-1].cumsum(0)[::-1]
        predicted_positive = caught + self.negatives - below
        precision = np.divide(
            caught, predicted_positive, out=np.zeros_like(caught), where=predicted_positive > 0
        )
        return np.stack([roc, (positive * precision).sum(0) / self.positives])


def rank_true_class(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return int ``[n]``: how many classes rank before the true one.

    Of equal probabilities the first class ranks first, as in ``argmax``.
    """
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)
    before = np.arange(probabilities.shape[1]) < labels[:, None]
    earlier: np.ndarray = (probabilities > own) | ((probabilities == own) & before)
    return np.asarray(earlier.sum(1))

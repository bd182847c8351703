"""Metrics of a comparison: accuracy, macro F1 or log loss, as one value per image, higher better.

The mean of the values is the metric, or its negative for log loss. Log loss is a mean over images
already. Macro F1 is not: its values are pseudo-values, macro F1 plus the first-order effect of each
image on it (its influence), as in the analysis of areas under ROC curves over cases and readers
(Dorfman, Berbaum & Metz 1992). Their mean is macro F1 itself, so the statistics of means hold for
it: the variance over images, and what a seed adds beyond chance on these images. Intervals of
networks come from a paired bootstrap of the statistic itself.
"""

from dataclasses import dataclass

import numpy as np

from finetune_core.errors import ConfigError
from finetune_core.formatting import accuracy_name, format_percent, format_points


@dataclass(frozen=True)
class Measure:
    """One of ``MEASURES``.

    Attributes:
        name: key of ``MEASURES``.
        title: label at the beginning of a sentence.
        share: True if the values are shares, shown in percent; differences are then shown in
            points.
        lower_is_better: True if gains are differences with the opposite sign.
    """

    name: str
    title: str
    share: bool
    lower_is_better: bool = False

    @property
    def of(self) -> str:
        """The title within a sentence."""
        return self.title[0].lower() + self.title[1:]

    def title_on(self, split: str) -> str:
        """Return the title; for accuracy it names the split."""
        return accuracy_name(split) if self.name == "accuracy" else self.title

    def format_value(self, value: float) -> str:
        """Format a value: ``84.0 %``, ``0.412``."""
        return format_percent(value) if self.share else f"{value:.3f}"

    def format_difference(self, difference: float) -> str:
        """Format a difference without its unit: 0.021 -> ``2.1``; for log loss ``0.021``."""
        return format_points(difference) if self.share else f"{difference:.3f}".replace("-", "−")

    @property
    def short_unit(self) -> str:
        """The unit of a difference if the metric has been named already."""
        return "points" if self.share else "nats"

    @property
    def unit(self) -> str:
        """The unit of a difference: ``points``, ``points of macro F1``."""
        return self.short_unit if self.name == "accuracy" else f"{self.short_unit} of {self.of}"

    @property
    def max_difference(self) -> float:
        """The largest possible difference."""
        return 1.0 if self.share else np.inf

    def to_difference(self, gain: float, low: float, high: float) -> tuple[float, float, float]:
        """Convert a gain with its interval to a difference of the metric itself, or back."""
        return (-gain, -high, -low) if self.lower_is_better else (gain, low, high)


ACCURACY = Measure("accuracy", "Accuracy", share=True)
MEASURES = {
    measure.name: measure
    for measure in (
        ACCURACY,
        Measure("macro_f1", "Macro F1", share=True),
        Measure("log_loss", "Log loss", share=False, lower_is_better=True),
    )
}


def get_measure(name: str) -> Measure:
    """Return the metric of that name.

    Raises:
        ConfigError: if there is none.
    """
    if name not in MEASURES:
        raise ConfigError({"measure": f"must be one of {', '.join(MEASURES)}, not {name!r}"})
    return MEASURES[name]


def f1_pseudo_values(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return pseudo-values of macro F1 over the classes that occur in ``labels``.

    Args:
        labels: int ``[n]``.
        predicted: int ``[networks, n]``.

    Returns:
        Float ``[networks, n]``.
    """
    present, true = np.unique(labels, return_inverse=True)
    values = np.empty(predicted.shape)
    for row, row_predicted in zip(values, predicted, strict=True):
        place = np.clip(np.searchsorted(present, row_predicted), 0, len(present) - 1)
        counted, right = present[place] == row_predicted, row_predicted == labels
        hits, total = (
            _count_classes(right, true, len(present)),
            np.bincount(true, minlength=len(present)),
        )
        total = total + _count_classes(counted, place, len(present))
        f1 = 2 * hits / total
        slope = f1 / total  # loss by one more image of the class, or predicted as the class
        gained = 2 * right / total[true] - slope[true] - np.where(counted, slope[place], 0)
        row[:] = f1.mean() + gained * len(labels) / len(present)
    return values


def resample_f1(labels: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return macro F1 of one network in each resample, over the classes that occur in ``labels``.

    Args:
        labels: int ``[n]``.
        predicted: int ``[n]``.
        weights: float ``[n, resamples]``; the weights of a class sum to its number of images.

    Returns:
        Float ``[resamples]``.
    """
    from scipy import sparse

    present, true = np.unique(labels, return_inverse=True)
    place = np.searchsorted(present, predicted)
    # Predictions of classes without images go into an extra row, which is dropped.
    place[np.take(present, place, mode="clip") != predicted] = len(present)
    shape, images = (len(present) + 1, len(labels)), np.arange(len(labels))
    per_class = (sparse.csr_array((np.ones(len(labels)), (place, images)), shape=shape) @ weights)[
        :-1
    ]
    hits = (
        sparse.csr_array(((predicted == labels).astype(float), (place, images)), shape=shape)
        @ weights
    )[:-1]
    f1: np.ndarray = 2 * hits / (per_class + np.bincount(true)[:, None])
    return np.asarray(f1.mean(0))


def _count_classes(mask: np.ndarray, place: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(place[mask], minlength=classes)

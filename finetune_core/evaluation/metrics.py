"""A run's table of predictions -> what it is worth. scikit-learn and scipy do the arithmetic."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import softmax

from finetune_core.data.splits import TEST, VAL
from finetune_core.errors import RunError


@dataclass(frozen=True)
class Evaluation:
    """How a run did on one split.

    Attributes:
        accuracy, low, high: with its 95 % interval (Wilson 1927).
        loss: mean cross-entropy.
        confusion: int64 ``[classes, classes]``, true class by row.
        per_class: one row a class: ``class, precision, recall, f1, images``.
        predictions: the split's rows with ``predicted, confidence, correct`` (and ``probabilities``).
    """

    split: str
    images: int
    accuracy: float
    low: float
    high: float
    loss: float
    classes: tuple[str, ...]
    confusion: np.ndarray
    per_class: pd.DataFrame
    predictions: pd.DataFrame

    @property
    def mistakes(self) -> pd.DataFrame:
        """Wrong predictions, the most confident first."""
        wrong = self.predictions[~self.predictions["correct"]]
        return wrong.sort_values(["confidence", "id"], ascending=[False, True], ignore_index=True)

    def confusions(self, count: int) -> pd.DataFrame:
        """The most frequent confusions: ``true, predicted, images``."""
        wrong = self.confusion - np.diag(np.diag(self.confusion))
        rows, columns = np.nonzero(wrong)
        order = np.argsort(-wrong[rows, columns], kind="stable")[:count]
        names = np.array(self.classes, dtype=object)
        rows, columns = rows[order], columns[order]
        return pd.DataFrame({"true": names[rows], "predicted": names[columns], "images": wrong[rows, columns]})


def judged_splits(table: pd.DataFrame) -> list[str]:
    """The splits that were predicted, the one to be believed first: choosing the best epoch made validation optimistic."""
    present = set(table["split"])
    return [split for split in (TEST, VAL) if split in present]


def evaluate(table: pd.DataFrame, classes: tuple[str, ...], split: str | None = None) -> Evaluation:
    """Judge one split of a table of predictions.

    Args:
        table: as ``load_predictions`` gives it.
        classes: names; a label is an index into it.
        split: which one; the most trustworthy when None.

    Raises:
        RunError: when the split was not predicted.
    """
    # Here: together they take a second to import, which every start of the program would pay.
    from scipy.stats import binomtest
    from sklearn.metrics import precision_recall_fscore_support

    split = split or judged_splits(table)[0]
    rows = table[table["split"] == split].reset_index(drop=True)
    if rows.empty:
        raise RunError(f"The run has no predictions for {split} images; it has {', '.join(judged_splits(table))}.")
    labels = rows["label"].to_numpy()
    probabilities = softmax(np.stack(rows["logits"].to_numpy()).astype(np.float64), axis=1)
    predicted = probabilities.argmax(1)
    correct = predicted == labels
    interval = binomtest(int(correct.sum()), len(rows)).proportion_ci(method="wilson")
    every = np.arange(len(classes))
    precision, recall, f1, images = precision_recall_fscore_support(labels, predicted, labels=every, zero_division=0)
    return Evaluation(
        split,
        len(rows),
        float(correct.mean()),
        float(interval.low),
        float(interval.high),
        _log_loss(labels, probabilities),
        classes,
        _confusion(labels, predicted, len(classes)),
        pd.DataFrame({"class": classes, "precision": precision, "recall": recall, "f1": f1, "images": images}),
        rows.drop(columns="logits").assign(
            predicted=predicted,
            confidence=probabilities.max(1),
            correct=correct,
            probabilities=list(probabilities),
        ),
    )


def _confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    # scikit-learn's own warns about a single class, which is a legitimate data set here.
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def _log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    from sklearn.metrics import log_loss

    if probabilities.shape[1] == 1:  # a single class is always predicted with certainty
        return 0.0
    return float(log_loss(labels, probabilities, labels=np.arange(probabilities.shape[1])))

"""Metrics from a run's table of predictions, computed by scikit-learn and SciPy."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from finetune_core.data.splits import SHIFTED, TEST, VAL
from finetune_core.errors import RunError
from finetune_core.evaluation.intervals import accuracy_interval, wilson
from finetune_core.evaluation.single_run.scores import AREAS, NOT_DEFINED, format_fraction, score
from finetune_core.formatting import accuracy_name, format_interval, format_percent, pluralize
from finetune_core.markup import paragraphs, table


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a run on one split.

    Attributes:
        split: the split.
        images: number of images.
        accuracy: share of the images that are classified correctly.
        low: lower end of its 95 % interval (Wilson 1927).
        high: upper end of that interval.
        loss: mean cross-entropy.
        classes: names; a label is an index into them.
        confusion: int64 ``[classes, classes]``, true class by row.
        per_class: one row per class: ``class, precision, recall, recall_low, recall_high, f1,
            images, roc_auc, average_precision``; recall with its 95 % interval (Wilson). NaN if a
            number is not defined: the split has no image of the class, or, for precision, none was
            predicted to be of it.
        predictions: the split's rows with ``predicted, confidence, correct``, ``loss`` (nats) and
            ``probabilities``.
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

    def to_text(self) -> str:
        """Return one line: the accuracy with its interval, and the loss."""
        return (
            f"{accuracy_name(self.split)} {format_percent(self.accuracy)} on "
            f"{pluralize(self.images, 'image')} "
            f"(95 % interval {format_interval(self.low, self.high)}), loss {self.loss:.3f}"
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.to_text()}>"

    def _repr_html_(self) -> str:
        return paragraphs(self.to_text()) + table(*self.class_table())

    def class_table(self) -> tuple[list[str], list[list[str]]]:
        """Return (columns, rows) with one row per class, formatted as text."""
        columns = [
            "Class",
            "Precision",
            "Recall",
            "Recall, 95 % interval",
            "F1",
            "Images",
            *AREAS.values(),
        ]
        rows = []
        for row in self.per_class.to_dict("records"):
            interval = (
                f"{_format_percent(row['recall_low'])} to {_format_percent(row['recall_high'])}"
                if row["images"]
                else NOT_DEFINED
            )
            shares = [
                _format_percent(row["precision"]),
                _format_percent(row["recall"]),
                interval,
                _format_percent(row["f1"]),
            ]
            rows.append(
                [
                    row["class"],
                    *shares,
                    f"{row['images']:,}",
                    *(format_fraction(row[area]) for area in AREAS),
                ]
            )
        return columns, rows

    @property
    def mistakes(self) -> pd.DataFrame:
        """Wrong predictions, the most confident first."""
        wrong = self.predictions[~self.predictions["correct"]]
        return wrong.sort_values(["confidence", "id"], ascending=[False, True], ignore_index=True)

    @property
    def top_losses(self) -> pd.DataFrame:
        """All predictions, the highest loss first."""
        return self.predictions.sort_values(
            ["loss", "id"], ascending=[False, True], ignore_index=True
        )

    @property
    def hardest_classes(self) -> pd.DataFrame:
        """``per_class``, sorted by recall; classes without images come last."""
        return self.per_class.sort_values(["recall", "f1", "class"], ignore_index=True)

    def get_cell(self, true: int | None, predicted: int | None) -> pd.DataFrame:
        """Return the images of one cell of the confusion matrix, the most confident first.

        If one of the labels is None, return the whole row or column, the highest loss first.
        """
        rows = self.predictions
        for column, label in (("label", true), ("predicted", predicted)):
            rows = rows if label is None else rows[rows[column] == label]
        by = "loss" if true is None or predicted is None else "confidence"
        return rows.sort_values([by, "id"], ascending=[False, True], ignore_index=True)

    def list_confusions(self, count: int) -> pd.DataFrame:
        """Return the most frequent confusions: ``true, predicted, images``."""
        wrong = self.confusion - np.diag(np.diag(self.confusion))
        rows, columns = np.nonzero(wrong)
        order = np.argsort(-wrong[rows, columns], kind="stable")[:count]
        names = np.array(self.classes, dtype=object)
        rows, columns = rows[order], columns[order]
        return pd.DataFrame(
            {"true": names[rows], "predicted": names[columns], "images": wrong[rows, columns]}
        )


def list_splits(table: pd.DataFrame) -> list[str]:
    """Return the splits that were predicted, the least biased first.

    The best epoch was chosen on the validation images.
    """
    present = set(table["split"])
    return [split for split in (TEST, VAL, SHIFTED) if split in present]


def evaluate(table: pd.DataFrame, classes: tuple[str, ...], split: str | None = None) -> Evaluation:
    """Evaluate one split of a table of predictions.

    Args:
        table: from ``load_predictions``.
        classes: names; a label is an index into them.
        split: the split; the least biased one if None.

    Raises:
        RunError: if the split was not predicted.
    """
    # The import takes a second, which every start of the program would pay.
    from sklearn.metrics import precision_recall_fscore_support

    split = split or list_splits(table)[0]
    # Check the names first: a column of text raises if it is searched for a lone surrogate.
    if split not in list_splits(table):
        raise RunError(
            f"The run has no predictions for {split} images; it has "
            f"{', '.join(list_splits(table))}."
        )
    rows = table[table["split"] == split].reset_index(drop=True)
    labels, probabilities, losses = to_arrays(rows)
    predicted = probabilities.argmax(1)
    correct = predicted == labels
    accuracy, low, high = accuracy_interval(int(correct.sum()), len(rows))
    confusion = _confusion_matrix(labels, predicted, len(classes))
    every = np.arange(len(classes))
    precision, recall, f1, images = precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=np.nan
    )
    recall_low, recall_high = wilson(np.diag(confusion), images)
    columns = {
        "class": classes,
        "precision": precision,
        "recall": recall,
        "recall_low": recall_low,
        "recall_high": recall_high,
        "f1": np.where(images > 0, f1, np.nan),
        "images": images,
        **score(labels, probabilities, losses, resamples=0).classes[[*AREAS]],
    }
    return Evaluation(
        split,
        len(rows),
        accuracy,
        low,
        high,
        float(losses.mean()),
        classes,
        confusion,
        pd.DataFrame(columns),
        rows.drop(columns="logits").assign(
            predicted=predicted,
            confidence=probabilities.max(1),
            correct=correct,
            loss=losses,
            probabilities=list(probabilities),
        ),
    )


def to_arrays(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the arrays in rows of a table of predictions.

    Returns:
        Labels int ``[n]``, probabilities float64 ``[n, classes]`` and cross-entropies ``[n]``.
    """
    labels = rows["label"].to_numpy()
    logs = log_softmax(stack_logits(rows), axis=1)
    # From the logits, because a probability too small for a float still has a finite loss.
    return labels, np.exp(logs), -np.take_along_axis(logs, labels[:, None], axis=1)[:, 0]


def stack_logits(rows: pd.DataFrame) -> np.ndarray:
    """Return the logits in rows of a table of predictions: float64 ``[n, classes]``."""
    return np.stack(rows["logits"].tolist()).astype(np.float64)


def confusion_order(confusion: np.ndarray) -> list[int]:
    """Return an order of the classes that puts confused classes side by side.

    Hierarchical clustering with optimal leaf order (Bar-Joseph et al. 2001); the distance falls
    with the share that is confused.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(confusion) < 3:
        return list(range(len(confusion)))
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    far = 1 - (shares + shares.T) / 2
    np.fill_diagonal(far, 0)
    order: list[int] = leaves_list(
        linkage(squareform(far, checks=False), "average", optimal_ordering=True)
    ).tolist()
    return order


def _format_percent(value: float) -> str:
    return NOT_DEFINED if np.isnan(value) else format_percent(value)


def _confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    # scikit-learn's function warns about a single class, which is a legitimate data set here.
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)

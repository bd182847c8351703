"""Accuracy of an exported file on the images that its run was evaluated on."""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from finetune_core.errors import FinetuneError
from finetune_core.evaluation.run_images import RunImages, load_run_images
from finetune_core.evaluation.single_run.evaluate import evaluation_precision
from finetune_core.evaluation.single_run.metrics import Evaluation, evaluate
from finetune_core.exporters.source import Source
from finetune_core.formatting import accuracy_name, format_number, format_percent, pluralize
from finetune_core.training.data_pipeline.answers import OutputFunction, compute_outputs
from finetune_core.training.predictions import prediction_table
from finetune_core.work import Work

# No paths of this machine: exports are passed on to other people.
_IMAGES_MISSING = (
    "the images that the run was evaluated on are not there any more, or may not be read"
)
_IMAGES_CHANGED = "the images, their labels or their split have changed since the run was trained"


@dataclass(frozen=True)
class Measurement:
    """Evaluation of an exported file.

    Attributes:
        file: name of the file, and of the runtime.
        run: evaluation of the run, from its own predictions.
        precision: precision of the run's predictions. None if unknown.
        evaluation: evaluation of the file on the same images. None if the images have changed or
            cannot be read.
        alike: number of images with the same prediction as in the run.
        reason: why the file was not evaluated. Empty if it was.
    """

    file: str
    run: Evaluation
    precision: str | None
    evaluation: Evaluation | None = None
    alike: int = 0
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the file's accuracy as plain values.

        If the file was not evaluated, return the run's accuracy and the reason.
        """
        evaluation = self.evaluation or self.run
        metrics = {
            "split": evaluation.split,
            "images": evaluation.images,
            "accuracy": evaluation.accuracy,
            "accuracy_95_percent_interval": [evaluation.low, evaluation.high],
            "loss": evaluation.loss,
        }
        run_metrics = {
            "images": self.run.images,
            "accuracy": self.run.accuracy,
            "precision": self.precision,
        }
        if self.evaluation:
            return metrics | {
                "measured_on": self.file,
                "labels_as_in_the_run": self.alike,
                "run": run_metrics,
            }
        return metrics | {
            "measured_on": None,
            "not_measured_because": self.reason,
            "run": run_metrics,
        }

    def to_text(self) -> str:
        """Return the result, or the reason why there is none, as sentences."""
        if self.evaluation is None:
            return (
                f"{self.file} was not evaluated: {self.reason}. The numbers are the run's "
                f"own{_describe_precision(self.precision)}."
            )
        unreadable = self.run.images - self.evaluation.images
        note = (
            f" {pluralize(unreadable, 'image')} could not be read any more." if unreadable else ""
        )
        name = accuracy_name(self.evaluation.split).lower()
        return (
            f"Evaluated with the exported file ({self.file}): {name} "
            f"{format_percent(self.evaluation.accuracy)} on "
            f"{pluralize(self.evaluation.images, 'image')}; {format_number(self.alike)} "
            f"predictions are the same as in the run ({name} {format_percent(self.run.accuracy)} "
            f"on {format_number(self.run.images)}{_describe_precision(self.precision)}).{note}"
        )


def _describe_precision(precision: str | None) -> str:
    return f", computed in {precision}" if precision else ""


def measure(source: Source, file: str, answer: OutputFunction) -> Work[Measurement]:
    """Evaluate an exported file on the images of the run's evaluation.

    Images are decoded and preprocessed as on the page *Predict*.

    Args:
        source: the run.
        file: name of the file and of the runtime, for display.
        answer: function that runs the file.
    """
    precision = evaluation_precision(source.run)
    try:
        images = yield from load_run_images(
            source.run, {source.evaluation.split: sys.maxsize}, source.roots
        )
    except FinetuneError:
        return Measurement(file, source.evaluation, precision, reason=_IMAGES_MISSING)
    if not images.unchanged:
        return Measurement(file, source.evaluation, precision, reason=_IMAGES_CHANGED)
    rows = _find_evaluated_rows(source, images)
    if not len(rows):
        return Measurement(file, source.evaluation, precision, reason=_IMAGES_MISSING)
    logits = yield from compute_outputs(
        images.pixels, rows, source.network.info, source.image_size, answer, "measure"
    )
    table = images.dataset.table.iloc[rows]
    evaluation = evaluate(
        prediction_table(table["id"], source.evaluation.split, table["label"].to_numpy(), logits),
        source.classes,
        source.evaluation.split,
    )
    run_predictions = (
        source.evaluation.predictions.set_index("id")["predicted"].loc[table["id"]].to_numpy()
    )
    num_alike = int((evaluation.predictions["predicted"].to_numpy() == run_predictions).sum())
    return Measurement(file, source.evaluation, precision, evaluation, num_alike)


def _find_evaluated_rows(source: Source, images: RunImages) -> np.ndarray:
    """Return the rows of the run's evaluation whose images can still be read."""
    rows = images.rows[source.evaluation.split]
    is_evaluated: pd.Series = (
        images.dataset.table["id"].iloc[rows].isin(source.evaluation.predictions["id"])
    )
    readable: np.ndarray = rows[is_evaluated.to_numpy()]
    return readable

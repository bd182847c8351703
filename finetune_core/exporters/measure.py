"""What an exported file is worth: it is asked about every image that its run was evaluated on."""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from finetune_core.errors import FinetuneError
from finetune_core.evaluation.run_images import RunImages, run_images
from finetune_core.evaluation.single_run.evaluate import evaluation_precision
from finetune_core.evaluation.single_run.metrics import Evaluation, evaluate
from finetune_core.exporters.source import Source
from finetune_core.formatting import accuracy_name, number, percent, things
from finetune_core.training.answers import Answer, answers
from finetune_core.training.predictions import prediction_table
from finetune_core.work import Work

# The folder's place is left out: exports are handed on.
_NOT_THERE = "the images that the run was evaluated on are not there any more, or may not be read"
_CHANGED = "the images, their labels or their split have changed since the run was trained"


@dataclass(frozen=True)
class Measured:
    """An exported file's answers.

    Attributes:
        file: its name, and what ran it.
        run: how the run did, by its own predictions.
        precision: of those; None where it is not known.
        evaluation: how the file did on the same images; None where that could not be found out.
        alike: how many of those it gives the same label as the run did.
        reason: why it was not measured, in words.
    """

    file: str
    run: Evaluation
    precision: str | None
    evaluation: Evaluation | None = None
    alike: int = 0
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """The file's accuracy, or, where it was not measured, the run's and why; plain values."""
        evaluation = self.evaluation or self.run
        metrics = {
            "split": evaluation.split,
            "images": evaluation.images,
            "accuracy": evaluation.accuracy,
            "accuracy_95_percent_interval": [evaluation.low, evaluation.high],
            "loss": evaluation.loss,
        }
        of_run = {
            "images": self.run.images,
            "accuracy": self.run.accuracy,
            "precision": self.precision,
        }
        if self.evaluation:
            return metrics | {
                "measured_on": self.file,
                "labels_as_in_the_run": self.alike,
                "run": of_run,
            }
        return metrics | {"measured_on": None, "not_measured_because": self.reason, "run": of_run}

    def in_words(self) -> str:
        if self.evaluation is None:
            return f"{self.file} was not evaluated: {self.reason}. The numbers are the run's own{_in(self.precision)}."
        gone = self.run.images - self.evaluation.images
        left = f" {things(gone, 'image')} could not be read any more." if gone else ""
        name = accuracy_name(self.evaluation.split).lower()
        return (
            f"Evaluated with the exported file ({self.file}): {name} "
            f"{percent(self.evaluation.accuracy)} on {things(self.evaluation.images, 'image')}; "
            f"{number(self.alike)} predictions are the same as in the run ({name} "
            f"{percent(self.run.accuracy)} on {number(self.run.images)}{_in(self.precision)}).{left}"
        )


def _in(precision: str | None) -> str:
    return f", computed in {precision}" if precision else ""


def measure(source: Source, file: str, answer: Answer) -> Work[Measured]:
    """Ask an exported file about the images that its run was evaluated on, decoded and prepared as *Predict* does.

    Args:
        file: its name, and what runs it, for people.
    """
    precision = evaluation_precision(source.run)
    try:
        images = yield from run_images(
            source.run, {source.evaluation.split: sys.maxsize}, source.roots
        )
    except FinetuneError:
        return Measured(file, source.evaluation, precision, reason=_NOT_THERE)
    if not images.unchanged:
        return Measured(file, source.evaluation, precision, reason=_CHANGED)
    rows = _evaluated_rows(source, images)
    if not len(rows):
        return Measured(file, source.evaluation, precision, reason=_NOT_THERE)
    logits = yield from answers(
        images.pixels, rows, source.network.info, source.image_size, answer, "measure"
    )
    table = images.dataset.table.iloc[rows]
    evaluation = evaluate(
        prediction_table(table["id"], source.evaluation.split, table["label"].to_numpy(), logits),
        source.classes,
        source.evaluation.split,
    )
    before = source.evaluation.predictions.set_index("id")["predicted"].loc[table["id"]].to_numpy()
    alike = int((evaluation.predictions["predicted"].to_numpy() == before).sum())
    return Measured(file, source.evaluation, precision, evaluation, alike)


def _evaluated_rows(source: Source, images: RunImages) -> np.ndarray:
    """Rows of the data set that the run was evaluated on, and that can still be read."""
    rows = images.rows[source.evaluation.split]
    known: pd.Series = (
        images.dataset.table["id"].iloc[rows].isin(source.evaluation.predictions["id"])
    )
    readable: np.ndarray = rows[known.to_numpy()]
    return readable

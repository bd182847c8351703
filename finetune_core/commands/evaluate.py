"""What the ``evaluate`` command does: evaluates a run by the same numbers as the page, and prints them."""

from collections.abc import Hashable
from typing import Any

import pandas as pd
from rich.markup import escape

from finetune_core.commands.terminal import out, plain_table, progress_bar, show_work
from finetune_core.evaluation.single_run.binning import BINS
from finetune_core.evaluation.single_run.evaluate import evaluation, evaluation_precision, precision_note
from finetune_core.evaluation.single_run.robustness import known_robustness, measure_robustness
from finetune_core.evaluation.single_run.run_evaluation import RunEvaluation, evaluate_run
from finetune_core.evaluation.single_run.scores import AREAS
from finetune_core.runs.store import Run


def evaluated_run(run: Run, split: str | None, *, corrupt: bool) -> RunEvaluation:
    """Evaluate a split; when None, test if there is one, else validation.

    Args:
        corrupt: measure robustness if it is not known yet.

    Raises:
        FinetuneError: when there are no predictions, or no network or images to measure with.
    """
    split = evaluation(run, split).split
    known = known_robustness(run, split)
    if corrupt and known is None:
        with progress_bar() as bar:
            known = show_work(bar, measure_robustness(run, split), "Predicting corrupted images")
    return evaluate_run(run, split, known)


def evaluation_json(result: RunEvaluation) -> dict[str, Any]:
    """What is not defined is null."""
    numbers, confidence = result.scores, result.calibrated
    scaled = confidence.scaling
    return {
        "run_id": result.run.run_id,
        "split": result.split,
        "images": result.images,
        "accuracy": result.accuracy,
        "accuracy_low": result.low,
        "accuracy_high": result.high,
        "loss": result.loss,
        "precision": evaluation_precision(result.run),
        "classes": list(result.classes),
        "confusion": result.confusion.tolist(),
        "per_class": _rows(_with_areas(result)),
        "scores": {row.pop("name"): row for row in _rows(numbers.table)},
        "resamples": numbers.resamples,
        "absent_classes": [result.classes[label] for label in numbers.absent],
        "calibration": {
            "ece": confidence.before.ece,
            "ece_low": confidence.before.ece_low,
            "ece_high": confidence.before.ece_high,
            "binning": f"{BINS} bins of equal width",
            "temperatures": list(scaled.temperatures) if scaled else None,
            "fitted_on": scaled.source if scaled else None,
            "ece_scaled": confidence.after.ece if confidence.after else None,
            "ece_scaled_low": confidence.after.ece_low if confidence.after else None,
            "ece_scaled_high": confidence.after.ece_high if confidence.after else None,
            "loss_scaled": confidence.after.loss if confidence.after else None,
        },
        "slices": _rows(result.slices),
        "robustness": _rows(result.robustness.rows) if result.robustness else None,
    }


def print_evaluation(result: RunEvaluation) -> None:
    """The same for people, with slices only where a difference is clear."""
    for line in (result.in_words(), *result.caveats()):
        out.print(line)
    if precision_note(result.run):
        out.print("To evaluate it in fp32: --fp32.")
    out.print(plain_table(*result.scores.in_rows()))
    if absences := result.absences():
        out.print(escape(absences))
    out.print(plain_table(*result.class_table()))
    for line in result.details():
        out.print(escape(line))
    if result.robustness:
        out.print(plain_table(*result.robustness_rows()))


def _with_areas(result: RunEvaluation) -> pd.DataFrame:
    return pd.concat([result.per_class, result.scores.classes.drop(columns=[*AREAS])], axis=1)


def _rows(table: pd.DataFrame) -> list[dict[Hashable, Any]]:
    return table.astype("object").where(table.notna(), None).to_dict(orient="records")

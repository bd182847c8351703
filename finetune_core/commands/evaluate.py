"""The ``evaluate`` command: evaluate a run with the same numbers as the page, and print them."""

from collections.abc import Hashable
from typing import Any

import pandas as pd
from rich.markup import escape

from finetune_core.commands.terminal import escape_line, out, print_table, progress_bar, show_work
from finetune_core.evaluation.comparison.tta import evaluate_flips, flip_warnings, tta_json
from finetune_core.evaluation.single_run.binning import BINS
from finetune_core.evaluation.single_run.evaluate import evaluation, precision_note
from finetune_core.evaluation.single_run.robustness import measure_robustness
from finetune_core.evaluation.single_run.robustness_files import load_robustness
from finetune_core.evaluation.single_run.run_evaluation import RunEvaluation, evaluate_run
from finetune_core.evaluation.single_run.scores import AREAS
from finetune_core.evaluation.single_run.shift import predict_shifted
from finetune_core.evaluation.single_run.shifted import ShiftedEvaluation, evaluate_shifted
from finetune_core.evaluation.single_run.tta import (
    check_tta,
    load_flip_predictions,
    predict_with_flips,
)
from finetune_core.runs.store import Run


def evaluate_own_images(run: Run, split: str | None, *, corrupt: bool) -> RunEvaluation:
    """Evaluate a split of a run's own images.

    Args:
        run: the run.
        split: the split. None: test if there is one, else validation.
        corrupt: measure robustness if it is not known yet, or only known by accuracies, as earlier
            versions stored it.

    Raises:
        FinetuneError: if there are no predictions, or no network or images to measure with.
    """
    split = evaluation(run, split).split
    known = load_robustness(run, split)
    if corrupt and not (known and known.predicted):
        with progress_bar() as bar:
            known = show_work(bar, measure_robustness(run, split), "Predicting corrupted images")
    return evaluate_run(run, split, known)


def measure_tta(run: Run, how: str) -> None:
    """Measure test-time augmentation if it is not known yet.

    Raises:
        FinetuneError: if there is no such augmentation, or no network or images to measure with.
    """
    check_tta(how)
    if load_flip_predictions(run) is None:
        with progress_bar() as bar:
            show_work(bar, predict_with_flips(run), "Predicting mirror images")


def evaluate_on_shifted(
    run: Run, data: str, split: str | None, *, corrupt: bool
) -> ShiftedEvaluation:
    """Evaluate a run on another data set, beside its own images of a split.

    A run without predictions for that data set predicts it first.

    Args:
        run: the run.
        data: the data set, as a person names it.
        split: split of the run's own images.
        corrupt: measure robustness on the run's own images if it is not known yet.

    Raises:
        FinetuneError: if the data set cannot be used, or there is no network to predict with.
    """
    own = evaluate_own_images(run, split, corrupt=corrupt)
    with progress_bar() as bar:
        fingerprint = show_work(bar, predict_shifted([run], data))
    return evaluate_shifted(run, fingerprint, own.split)


def evaluation_json(result: RunEvaluation) -> dict[str, Any]:
    """Return an evaluation as JSON values. Undefined values are null.

    For another data set, the facts about it, the run's own images and the drops stand beside the
    numbers.
    """
    if not isinstance(result, ShiftedEvaluation):
        known = result.reference_points()
        return _build_json(result) | {"reference_points": known.to_json() if known else None}
    drops = {row.pop("name"): row for row in _to_records(result.drops)}
    own = _build_json(result.own)
    return _build_json(result) | {
        "on": result.shift.to_json(),
        **result.shared.to_json(),
        "in_distribution": own,
        "drops": drops,
    }


def _build_json(result: RunEvaluation) -> dict[str, Any]:
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
        "precision": result.precision,
        "classes": list(result.classes),
        "confusion": result.confusion.tolist(),
        "per_class": _to_records(_per_class_table(result)),
        "scores": {row.pop("name"): row for row in _to_records(numbers.table)},
        "resamples": numbers.resamples,
        "absent_classes": [result.classes[label] for label in numbers.absent],
        "calibration": {
            "ece": confidence.before.ece,
            "ece_low": confidence.before.ece_low,
            "ece_high": confidence.before.ece_high,
            "binning": f"{BINS} bins of equal width",
            "temperatures": list(scaled.temperatures) if scaled else None,
            "fitted_on": scaled.source if scaled else None,
            "temperature_at_limit": scaled.is_at_limit if scaled else None,
            "ece_scaled": confidence.after.ece if confidence.after else None,
            "ece_scaled_low": confidence.after.ece_low if confidence.after else None,
            "ece_scaled_high": confidence.after.ece_high if confidence.after else None,
            "loss_scaled": confidence.after.loss if confidence.after else None,
        },
        "slices": _to_records(result.slices),
        "robustness": _to_records(result.robustness.rows) if result.robustness else None,
        "tta": None if isinstance(result, ShiftedEvaluation) else tta_json(result.run),
        "reference_points": None,  # undefined for another data set or for some of the classes
    }


def print_evaluation(result: RunEvaluation) -> None:
    """Print an evaluation as text, with slices only where a difference is clear."""
    for line in filter(
        None, (result.to_text(), result.describe_reference_points(), *result.list_caveats())
    ):
        out.print(escape(escape_line(line)))
    if precision_note(result.run):
        out.print("To evaluate it in fp32: --fp32.")
    if isinstance(result, ShiftedEvaluation):
        print_table(*result.score_rows())
    else:
        print_table(*result.scores.to_rows(result.split))
    if absences := result.describe_absent_classes():
        out.print(escape(escape_line(absences)))
    print_table(*result.class_table())
    for line in result.list_details():
        out.print(escape(escape_line(line)))
    flips = evaluate_flips(result.run)
    for line in [*(flip_warnings(result.run) if flips else ()), *(one.to_text() for one in flips)]:
        out.print(escape(escape_line(line)))
    known = result.own if isinstance(result, ShiftedEvaluation) else result
    if known.robustness:
        print_table(*known.robustness_rows())


def _per_class_table(result: RunEvaluation) -> pd.DataFrame:
    return pd.concat([result.per_class, result.scores.classes.drop(columns=[*AREAS])], axis=1)


def _to_records(table: pd.DataFrame) -> list[dict[Hashable, Any]]:
    return table.astype("object").where(table.notna(), None).to_dict(orient="records")

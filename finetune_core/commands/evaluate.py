"""What the ``evaluate`` command does: judges a run by the same numbers as the page, and prints them."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

from finetune_core.commands.terminal import out, print_scores, progress_bar, show_work
from finetune_core.evaluation.single_run.binning import BINS
from finetune_core.evaluation.single_run.calibration import Calibration
from finetune_core.evaluation.single_run.evaluate import (
    Calibrated,
    calibrated,
    evaluation,
    evaluation_precision,
    precision_note,
    scores,
    sliced,
)
from finetune_core.evaluation.single_run.metrics import Evaluation
from finetune_core.evaluation.single_run.robustness import CORRUPTIONS, Robustness, known_robustness, measure_robustness
from finetune_core.evaluation.single_run.scores import AREAS, Scores
from finetune_core.formatting import percent, things
from finetune_core.runs.store import Run


@dataclass(frozen=True)
class Judgement:
    """All that is known of one split of a run; ``robustness`` is None where nobody has measured it."""

    run: Run
    result: Evaluation
    scores: Scores
    calibrated: Calibrated
    slices: pd.DataFrame
    robustness: Robustness | None


def judge(run: Run, split: str | None, *, corrupt: bool) -> Judgement:
    """Judge a split, the one to be believed first when None.

    Args:
        corrupt: measure robustness if it is not known yet.

    Raises:
        FinetuneError: when there are no predictions, or no network or images to measure with.
    """
    result = evaluation(run, split)
    split = result.split
    known = known_robustness(run, split)
    if corrupt and known is None:
        with progress_bar() as bar:
            known = show_work(bar, measure_robustness(run, split), "Predicting worse and worse images")
    return Judgement(run, result, scores(run, split), calibrated(run, split), sliced(run, split)[1], known)


def judgement_json(judgement: Judgement) -> dict[str, Any]:
    """What is not defined is null."""
    result, numbers, confidence = judgement.result, judgement.scores, judgement.calibrated
    scaled = confidence.scaling
    return {
        "run_id": judgement.run.run_id,
        "split": result.split,
        "images": result.images,
        "accuracy": result.accuracy,
        "accuracy_low": result.low,
        "accuracy_high": result.high,
        "loss": result.loss,
        "precision": evaluation_precision(judgement.run),
        "classes": list(result.classes),
        "confusion": result.confusion.tolist(),
        "per_class": _rows(_with_areas(result, numbers)),
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
        "slices": _rows(judgement.slices),
        "robustness": _rows(judgement.robustness.rows) if judgement.robustness else None,
    }


def print_judgement(judgement: Judgement) -> None:
    """The same for people, with slices only where a difference is clear."""
    result, confidence = judgement.result, judgement.calibrated
    out.print(
        f"Accuracy {percent(result.accuracy)} on {things(result.images, f'{result.split} image')} "
        f"(95 % interval {percent(result.low)} to {percent(result.high)}), loss {result.loss:.3f}"
    )
    if result.split == "val":
        out.print("The best epoch was chosen on these images, so the numbers are a little optimistic.")
    if note := precision_note(judgement.run):
        out.print(f"{note.replace('*', '')} To evaluate it in fp32: --fp32.")
    print_scores(result, judgement.scores)
    told = f"Expected calibration error (ECE) {_error(confidence.before)}, {BINS} bins of equal width"
    if confidence.after:
        words = " and ".join(f"{one:.2f}" for one in confidence.scaling.temperatures)
        told += f"; {_error(confidence.after)} at temperature {words}, fitted on other images"
    out.print(f"{told}.")
    for row in judgement.slices[judgement.slices["verdict"].isin(["worse", "better"])].itertuples(index=False):
        out.print(
            escape(
                f"{row.by} {row.slice}: accuracy {percent(row.accuracy)}, {row.verdict} than the rest ({things(row.images, 'image')})."
            )
        )
    if judgement.robustness:
        out.print(_robustness_table(judgement.robustness))


def _error(one: Calibration) -> str:
    return f"{percent(one.ece)} (95 % interval {percent(one.ece_low)} to {percent(one.ece_high)})"


def _robustness_table(known: Robustness) -> Table:
    table = Table("Accuracy under", "as they are", "mild", "middle", "strong", box=None)
    right = known.rows.set_index(["corruption", "severity"])["accuracy"]
    for name, corruption in CORRUPTIONS.items():
        table.add_row(corruption.title, *(percent(one) for one in (right["none", 0], *(right[name, n] for n in (1, 2, 3)))))
    return table


def _with_areas(result: Evaluation, numbers: Scores) -> pd.DataFrame:
    bounds = numbers.classes.drop(columns=[*AREAS])
    return pd.concat([result.per_class, bounds], axis=1)


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return table.astype("object").where(table.notna(), None).to_dict(orient="records")

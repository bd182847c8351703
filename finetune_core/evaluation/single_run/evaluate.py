"""Evaluation of a run, cached for each table of predictions, because pages ask often."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from finetune_core.data.splits import TEST
from finetune_core.evaluation.single_run.binning import Binning
from finetune_core.evaluation.single_run.calibration import (
    Calibration,
    Scaling,
    compute_calibration,
    scale_split,
)
from finetune_core.evaluation.single_run.curves import OneVsRest, one_vs_rest
from finetune_core.evaluation.single_run.metrics import (
    Evaluation,
    evaluate,
    list_splits,
    stack_logits,
    to_arrays,
)
from finetune_core.evaluation.single_run.scores import Scores, count_resamples, score
from finetune_core.evaluation.single_run.slices import (
    Facts,
    compute_slices,
    facts_stamp,
    load_image_facts,
)
from finetune_core.files import Stamp
from finetune_core.runs.store import Run
from finetune_core.training.predictions import (
    load_predictions,
    predictions_mtime,
    predictions_precision,
)

HELD_OUT = "held out: used neither for training nor for model selection"


def evaluation(run: Run, split: str | None = None) -> Evaluation:
    """Return the evaluation of a run on a split, or on the least biased one if None.

    Raises:
        RunError: if the run has no predictions for it.
    """
    return _evaluate(run.run_dir, predictions_mtime(run.run_dir), _class_names(run), split)


def list_predicted_splits(run: Run) -> list[str]:
    """Return the splits that the run has predictions for, the least biased first.

    Raises:
        RunError: if it has none.
    """
    return list_splits(
        _load_table(run.run_dir, predictions_mtime(run.run_dir), len(_class_names(run)))
    )


def is_held_out(run: Run, split: str) -> bool:
    """Return whether a split's images were used neither for training nor for model selection.

    A head that is fitted without epochs selects nothing on its validation images either.
    """
    return split == TEST or bool(run.history.fitted)


def evaluation_precision(run: Run) -> str | None:
    """Return the precision that a run's predictions were computed in.

    For runs of earlier versions it is that of the training. None if nothing records it.
    """
    return _load_precision(run.run_dir, predictions_mtime(run.run_dir)) or (
        run.history.started or {}
    ).get("precision")


def precision_note(run: Run) -> str:
    """Return a note if the predictions were not computed in fp32; else empty.

    Networks are applied in fp32.
    """
    precision = evaluation_precision(run)
    if precision in (None, "fp32"):
        return ""
    return (
        f"Computed in {precision}, as the run trained. *Predict* and exported networks compute in "
        "fp32, where a few predictions may differ."
    )


def score_run(run: Run, split: str) -> Scores:
    """Return every number of a split with its interval.

    If images and classes are many, fewer resamples are drawn.

    Raises:
        RunError: if the run has no predictions for it.
    """
    evaluation(run, split)
    return _compute_scores(
        run.run_dir, predictions_mtime(run.run_dir), len(_class_names(run)), split
    )


def score_evaluation(result: Evaluation) -> Scores:
    """Return every number of an evaluation with its interval."""
    rows = result.predictions
    return _score_arrays(
        rows["label"].to_numpy(), np.stack(rows["probabilities"].tolist()), rows["loss"].to_numpy()
    )


def compute_class_curves(run: Run, split: str, label: int) -> OneVsRest | None:
    """Return the curves of one class against the rest; None if they are not defined.

    Raises:
        RunError: if the run has no predictions for the split.
    """
    return _compute_class_curves(
        run.run_dir, predictions_mtime(run.run_dir), _class_names(run), split, label
    )


@dataclass(frozen=True)
class CalibrationPair:
    """Calibration of a split before and after temperature scaling.

    ``scaling`` and ``after`` are None if there are too few other images to fit a temperature on.
    """

    before: Calibration
    scaling: Scaling | None
    after: Calibration | None


def compute_run_calibration(run: Run, split: str, binning: Binning = "width") -> CalibrationPair:
    """Return the calibration of a split before and after temperature scaling.

    Raises:
        RunError: if the run has no predictions for it.
    """
    evaluation(run, split)
    return _calibrate(
        run.run_dir, predictions_mtime(run.run_dir), len(_class_names(run)), split, binning
    )


def slice_run(run: Run, split: str) -> tuple[Facts, pd.DataFrame]:
    """Return facts about a split's images, and the accuracy in slices by these facts.

    Raises:
        RunError: if the run has no predictions for it.
    """
    changed = predictions_mtime(run.run_dir), *facts_stamp(run.config.data)
    return _compute_slices(run.run_dir, changed, _class_names(run), split, run.config.data)


def _class_names(run: Run) -> tuple[str, ...]:
    return tuple((run.history.started or {}).get("classes", ()))


@lru_cache(maxsize=16)
def _load_table(run_dir: Path, _changed: int, classes: int) -> pd.DataFrame:
    # Sorted by id as in comparisons, because a bootstrap depends on the order of the images.
    return load_predictions(run_dir, classes).sort_values("id", ignore_index=True)


@lru_cache(maxsize=256)
def _load_precision(run_dir: Path, _changed: int) -> str | None:
    return predictions_precision(run_dir)


@lru_cache(maxsize=16)
def _evaluate(
    run_dir: Path, changed: int, classes: tuple[str, ...], split: str | None
) -> Evaluation:
    return evaluate(_load_table(run_dir, changed, len(classes)), classes, split)


@lru_cache(maxsize=16)
def _compute_scores(run_dir: Path, changed: int, classes: int, split: str) -> Scores:
    table = _load_table(run_dir, changed, classes)
    return _score_arrays(*to_arrays(table[table["split"] == split]))


def _score_arrays(labels: np.ndarray, probabilities: np.ndarray, losses: np.ndarray) -> Scores:
    return score(labels, probabilities, losses, count_resamples(probabilities.size))


@lru_cache(maxsize=16)
def _compute_slices(
    run_dir: Path,
    changed: tuple[int, Stamp | None, Stamp | None],
    classes: tuple[str, ...],
    split: str,
    data: str,
) -> tuple[Facts, pd.DataFrame]:
    result = _evaluate(run_dir, changed[0], classes, split)
    facts = load_image_facts(data, result.predictions["id"])
    return facts, compute_slices(result, facts.table)


@lru_cache(maxsize=64)
def _compute_class_curves(
    run_dir: Path, changed: int, classes: tuple[str, ...], split: str, label: int
) -> OneVsRest | None:
    return one_vs_rest(_evaluate(run_dir, changed, classes, split), label)


@lru_cache(maxsize=16)
def _calibrate(
    run_dir: Path, changed: int, classes: int, split: str, binning: Binning
) -> CalibrationPair:
    return compute_table_calibration(_load_table(run_dir, changed, classes), split, binning)


def compute_table_calibration(
    table: pd.DataFrame, split: str, binning: Binning = "width"
) -> CalibrationPair:
    """Return the calibration of a table of predictions before and after temperature scaling.

    Args:
        table: predictions of the split, and of other images to fit a temperature on.
        split: the split.
        binning: as for ``assign_bins``.
    """
    rows, scaling = table[table["split"] == split], scale_split(table, split)
    labels, logits = rows["label"].to_numpy(), stack_logits(rows)

    def compute_logits_calibration(logits: np.ndarray) -> Calibration:
        return compute_calibration(logits, labels, binning, resamples=count_resamples(logits.size))

    return CalibrationPair(
        compute_logits_calibration(logits),
        scaling,
        compute_logits_calibration(scaling.logits) if scaling else None,
    )

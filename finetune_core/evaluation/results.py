"""A run -> its evaluation, worked out once for each table of predictions, however often a page asks."""

from functools import lru_cache
from pathlib import Path

import pandas as pd

from finetune_core.evaluation.calibration import Scaling, scale
from finetune_core.evaluation.metrics import Evaluation, evaluate, judged_arrays, judged_splits
from finetune_core.evaluation.scores import Scores, score
from finetune_core.evaluation.slices import Facts, image_facts, slices
from finetune_core.runs.store import Run
from finetune_core.training.predictions import load_predictions, predictions_changed


def evaluation(run: Run, split: str | None = None) -> Evaluation:
    """How a run did on a split; on the one to be believed first when None.

    Raises:
        RunError: when the run has no predictions for it.
    """
    classes = tuple((run.history.started or {}).get("classes", ()))
    return _evaluated(run.run_dir, predictions_changed(run.run_dir), classes, split)


def predicted_splits(run: Run) -> list[str]:
    """The splits that the run has predictions for, the one to be believed first.

    Raises:
        RunError: when it has none.
    """
    return judged_splits(prediction_table(run))


def prediction_table(run: Run) -> pd.DataFrame:
    """The run's table of predictions, as ``load_predictions`` gives it; shared, not to be changed.

    Raises:
        RunError: when it has none.
    """
    return _table(run.run_dir, predictions_changed(run.run_dir))


def scores(run: Run, split: str) -> Scores:
    """Every number of a split, with its interval.

    Raises:
        RunError: when the run has no predictions for it.
    """
    evaluation(run, split)
    return _scores(run.run_dir, predictions_changed(run.run_dir), split)


def scaling(run: Run, split: str) -> Scaling | None:
    """Temperature scaling of a split, by other images than it is judged on; None where there are too few.

    Raises:
        RunError: when the run has no predictions.
    """
    return _scaling(run.run_dir, predictions_changed(run.run_dir), split)


def sliced(run: Run, split: str) -> tuple[Facts, pd.DataFrame]:
    """What is known of a split's images, and its accuracy by that.

    Raises:
        RunError: when the run has no predictions for it.
    """
    result = evaluation(run, split)
    facts = image_facts(run.config.data, result.predictions["id"])
    return facts, slices(result, facts.table)


@lru_cache(maxsize=16)
def _table(run_dir: Path, _changed: int) -> pd.DataFrame:
    return load_predictions(run_dir)


@lru_cache(maxsize=16)
def _evaluated(run_dir: Path, changed: int, classes: tuple[str, ...], split: str | None) -> Evaluation:
    return evaluate(_table(run_dir, changed), classes, split)


@lru_cache(maxsize=16)
def _scores(run_dir: Path, changed: int, split: str) -> Scores:
    table = _table(run_dir, changed)
    return score(*judged_arrays(table[table["split"] == split]))


@lru_cache(maxsize=16)
def _scaling(run_dir: Path, changed: int, split: str) -> Scaling | None:
    return scale(_table(run_dir, changed), split)

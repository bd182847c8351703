"""A run -> its evaluation, worked out once for each table of predictions, however often a page asks."""

from functools import lru_cache
from pathlib import Path

import pandas as pd

from finetune_core.evaluation.metrics import Evaluation, evaluate, judged_splits
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
    return judged_splits(_table(run.run_dir, predictions_changed(run.run_dir)))


@lru_cache(maxsize=16)
def _table(run_dir: Path, _changed: int) -> pd.DataFrame:
    return load_predictions(run_dir)


@lru_cache(maxsize=16)
def _evaluated(run_dir: Path, changed: int, classes: tuple[str, ...], split: str | None) -> Evaluation:
    return evaluate(_table(run_dir, changed), classes, split)

"""Stored predictions for corrupted images: one file per split, beside ``predictions.parquet``.

The files are untrusted input.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from finetune_core.data.splits import SHIFTED
from finetune_core.errors import RunError
from finetune_core.evaluation.intervals import accuracy_interval
from finetune_core.evaluation.single_run.corruptions import CorruptedSplit, list_corruptions
from finetune_core.evaluation.single_run.metrics import stack_logits
from finetune_core.files import Stamp, describe_problem, file_stamp, read_regular
from finetune_core.runs.store import Run
from finetune_core.training.events import Count, Name, Share
from finetune_core.training.predictions import (
    Moment,
    prediction_table,
    predictions_mtime,
    read_fact,
    read_table,
    write_table,
)

_FACT = b"thaw.robustness"  # metadata key: time stamp of the run's own predictions
_COLUMNS = ["corruption", "severity", "accuracy", "low", "high"]
_LARGEST = 2**20  # bytes of a file of earlier versions


class _Row(TypedDict):
    corruption: Name
    severity: Count
    accuracy: Share
    low: Share
    high: Share


class _EarlierFile(TypedDict):
    """Content of the files of earlier versions, which stored accuracies only.

    ``predictions`` is the time stamp of the predictions that the run had then.
    """

    predictions: Moment
    images: Count
    rows: Annotated[list[_Row], Field(max_length=100)]


_EARLIER_FILE = TypeAdapter(_EarlierFile)


@dataclass(frozen=True)
class Robustness:
    """Accuracy under corruption.

    Attributes:
        split: the split.
        images: number of images that were drawn from the split; the same ones for each corruption.
        rows: ``corruption`` (a key of ``CORRUPTIONS``, or ``CLEAN``), ``severity`` (0 for none, 1
            to 3), ``accuracy, low, high`` (95 %, Wilson 1927).
        predicted: True if the predictions are stored (``load_corrupted_predictions``): earlier
            versions stored accuracies only.
    """

    split: str
    images: int
    rows: pd.DataFrame
    predicted: bool


def save_robustness(
    run: Run,
    split: str,
    ids: Sequence[str],
    labels: np.ndarray,
    logits: Sequence[np.ndarray],
    changed: int,
) -> Robustness:
    """Store predictions in the run directory.

    Args:
        run: the run.
        split: the split.
        ids: ids of the images.
        labels: int ``[images]``.
        logits: float ``[images, classes]`` for each of ``list_corruptions(split)``.
        changed: ``predictions_mtime`` from before the network was loaded.

    Raises:
        RunError: if the file cannot be written.
    """
    tables = [
        prediction_table(pd.Series(ids, dtype=object), which.key, labels, way_logits)
        for which, way_logits in zip(list_corruptions(split), logits, strict=True)
    ]
    table = pd.concat(tables, ignore_index=True)
    try:
        write_table(_file_path(run.run_dir, split), table, {_FACT: str(changed).encode()})
    except OSError as error:
        raise RunError(f"The result cannot be kept in {run.run_dir}: {error.strerror}.") from None
    return _summarise(table, split)


def load_robustness(run: Run, split: str) -> Robustness | None:
    """Return the stored robustness.

    None if it was not measured, or the run has been trained on since.
    """
    try:
        return _load_robustness(*_table_key(run.run_dir, split, len(run.started["classes"])))
    except RunError:  # missing or damaged: it can be measured again
        return _load_earlier_version(run, split)


def load_corrupted_predictions(run_dir: Path, which: CorruptedSplit, classes: int) -> pd.DataFrame:
    """Return ``id, split, label, logits``, sorted by id.

    The split is ``SHIFTED``, and a label is an index into the run's classes.

    Args:
        run_dir: the run directory.
        which: the corruption.
        classes: number of classes of the run.

    Raises:
        RunError: if there are no predictions, or they are damaged or of an earlier state of the
            run.
    """
    table = _load_table(*_table_key(run_dir, which.split, classes))
    rows = table[table["split"] == which.key].sort_values("id", ignore_index=True)
    return rows.assign(split=SHIFTED)


def robustness_stamp(run_dir: Path, split: str) -> Stamp | None:
    """Return a stamp that changes with ``load_corrupted_predictions``; None if there are none."""
    return file_stamp(_file_path(run_dir, split))


def _table_key(run_dir: Path, split: str, classes: int) -> tuple[Path, str, int, Stamp | None, int]:
    """Return the arguments of ``_load_table``: all that its result depends on."""
    return run_dir, split, classes, robustness_stamp(run_dir, split), predictions_mtime(run_dir)


@lru_cache(maxsize=64)  # a page asks for all of a comparison's runs whenever it is redrawn
def _load_robustness(
    run_dir: Path, split: str, classes: int, version: Stamp | None, changed: int
) -> Robustness:
    return _summarise(_load_table(run_dir, split, classes, version, changed), split)


@lru_cache(maxsize=64)
def _load_table(
    run_dir: Path, split: str, classes: int, _version: Stamp | None, changed: int
) -> pd.DataFrame:
    """Read the table of predictions for corrupted images.

    Args:
        run_dir: the run directory.
        split: the split.
        classes: number of classes of the run.
        changed: ``predictions_mtime`` of the run in its current state.

    Raises:
        RunError: if the file is missing, damaged, or belongs to other predictions of the run.
    """
    path, ways = _file_path(run_dir, split), [which.key for which in list_corruptions(split)]
    try:
        recorded = read_fact(path, _FACT)
        table = read_table(path, ways, classes)
    except FileNotFoundError:
        raise RunError(
            f"{run_dir.name}: what it predicts for corrupted images is not kept. Measure its "
            "robustness."
        ) from None
    except (OSError, ValueError) as error:
        raise RunError(
            f"{run_dir.name}: {describe_problem(path, error)}. Measure its robustness again."
        ) from None
    if recorded != str(changed).encode():
        raise RunError(
            f"{run_dir.name}: {path.name} is of an earlier state of the run. Measure its "
            "robustness again."
        )
    images = [
        table.loc[table["split"] == way, ["id", "label"]].sort_values("id", ignore_index=True)
        for way in ways
    ]
    if not all(images[0].equals(other) for other in images):
        raise RunError(
            f"{run_dir.name}: {path.name} is damaged: it does not hold the same images everywhere."
        )
    return table


def _summarise(table: pd.DataFrame, split: str) -> Robustness:
    rows = []
    for which in list_corruptions(split):
        part = table[table["split"] == which.key]
        right = int((stack_logits(part).argmax(1) == part["label"].to_numpy()).sum())
        rows.append((which.corruption, which.severity, *accuracy_interval(right, len(part))))
    return Robustness(
        split, len(table) // len(rows), pd.DataFrame(rows, columns=_COLUMNS), predicted=True
    )


def _load_earlier_version(run: Run, split: str) -> Robustness | None:
    try:
        path = run.run_dir / f"robustness-{split}.json"
        stored = _EARLIER_FILE.validate_json(read_regular(path, _LARGEST), strict=True)
    except (OSError, ValueError):
        return None
    rows = pd.DataFrame(stored["rows"], columns=_COLUMNS)
    ways = [(which.corruption, which.severity) for which in list_corruptions(split)]
    if stored["predictions"] != predictions_mtime(run.run_dir) or ways != [
        *zip(rows["corruption"], rows["severity"], strict=True)
    ]:
        return None
    return Robustness(split, stored["images"], rows, predicted=False)


def _file_path(run_dir: Path, split: str) -> Path:
    return run_dir / f"robustness-{split}.parquet"

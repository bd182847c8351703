"""What a run's network predicted for corrupted images: one file for each split, beside ``predictions.parquet``, and input as that is."""

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
from finetune_core.evaluation.single_run.corruptions import Corrupted, corrupted
from finetune_core.evaluation.single_run.metrics import logits_of
from finetune_core.files import Stamp, problem_with, read_regular, stamp
from finetune_core.runs.store import Run
from finetune_core.training.events import Count, Name, Share
from finetune_core.training.predictions import (
    Moment,
    fact_of,
    prediction_table,
    predictions_changed,
    read_table,
    write_table,
)

_FACT = b"thaw.robustness"  # in the file's metadata: of which predictions of the run it is
_COLUMNS = ["corruption", "severity", "accuracy", "low", "high"]
_LARGEST = 2**20  # bytes, of what earlier versions kept


class _Row(TypedDict):
    corruption: Name
    severity: Count
    accuracy: Share
    low: Share
    high: Share


class _Kept(TypedDict):
    """What earlier versions kept: for which predictions it was measured, on how many images, and accuracies."""

    predictions: Moment
    images: Count
    rows: Annotated[list[_Row], Field(max_length=100)]


_KEPT = TypeAdapter(_Kept)


@dataclass(frozen=True)
class Robustness:
    """Accuracy under corruption.

    Attributes:
        images: how many were drawn from the split; the same ones everywhere.
        rows: ``corruption`` (a key of ``CORRUPTIONS``, or ``CLEAN``), ``severity`` (0 for none, 1 to 3), ``accuracy, low, high``
            (95 %, Wilson 1927).
        predicted: whether the predictions are kept (``corrupted_predictions``): earlier versions kept accuracies only.
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
    """Keep what was predicted in the run's folder.

    Args:
        labels: int ``[images]``.
        logits: float ``[images, classes]`` for each of ``corrupted(split)``.
        changed: ``predictions_changed`` of before the network was read.

    Raises:
        RunError: when it cannot be written.
    """
    tables = [
        prediction_table(pd.Series(ids, dtype=object), which.key, labels, one)
        for which, one in zip(corrupted(split), logits, strict=True)
    ]
    table = pd.concat(tables, ignore_index=True)
    try:
        write_table(_file(run.run_dir, split), table, {_FACT: str(changed).encode()})
    except OSError as error:
        raise RunError(f"The result cannot be kept in {run.run_dir}: {error.strerror}.") from None
    return _summed_up(table, split)


def known_robustness(run: Run, split: str) -> Robustness | None:
    """What was measured before, unless the run has been trained on since."""
    try:
        return _known(*_version(run.run_dir, split, len(run.started["classes"])))
    except RunError:  # none, or damaged: it can be measured again
        return _of_earlier_version(run, split)


def corrupted_predictions(run_dir: Path, which: Corrupted, classes: int) -> pd.DataFrame:
    """``id, split, label, logits``, all of the split ``SHIFTED``, by id; a label is an index into the run's classes.

    Args:
        classes: how many the run has.

    Raises:
        RunError: when there are none, they are damaged, or of an earlier state of the run.
    """
    table = _table(*_version(run_dir, which.split, classes))
    rows = table[table["split"] == which.key].sort_values("id", ignore_index=True)
    return rows.assign(split=SHIFTED)


def robustness_changed(run_dir: Path, split: str) -> Stamp | None:
    """Changes when ``corrupted_predictions`` do; None where there are none."""
    return stamp(_file(run_dir, split))


def _version(run_dir: Path, split: str, classes: int) -> tuple[Path, str, int, Stamp | None, int]:
    """All that ``_table`` depends on."""
    return run_dir, split, classes, robustness_changed(run_dir, split), predictions_changed(run_dir)


@lru_cache(maxsize=64)  # a page asks for all of a comparison's runs whenever it is redrawn
def _known(
    run_dir: Path, split: str, classes: int, version: Stamp | None, changed: int
) -> Robustness:
    return _summed_up(_table(run_dir, split, classes, version, changed), split)


@lru_cache(maxsize=64)
def _table(
    run_dir: Path, split: str, classes: int, _version: Stamp | None, changed: int
) -> pd.DataFrame:
    """
    Args:
        changed: ``predictions_changed`` of the run as it is now.

    Raises:
        RunError: when it is missing, damaged, or of other predictions of the run.
    """
    path, ways = _file(run_dir, split), [which.key for which in corrupted(split)]
    try:
        of = fact_of(path, _FACT)
        table = read_table(path, ways, classes)
    except FileNotFoundError:
        raise RunError(
            f"{run_dir.name}: what it predicts for corrupted images is not kept. Measure its "
            "robustness."
        ) from None
    except (OSError, ValueError) as error:
        raise RunError(
            f"{run_dir.name}: {problem_with(path, error)}. Measure its robustness again."
        ) from None
    if of != str(changed).encode():
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


def _summed_up(table: pd.DataFrame, split: str) -> Robustness:
    rows = []
    for which in corrupted(split):
        some = table[table["split"] == which.key]
        right = int((logits_of(some).argmax(1) == some["label"].to_numpy()).sum())
        rows.append((which.corruption, which.severity, *accuracy_interval(right, len(some))))
    return Robustness(
        split, len(table) // len(rows), pd.DataFrame(rows, columns=_COLUMNS), predicted=True
    )


def _of_earlier_version(run: Run, split: str) -> Robustness | None:
    try:
        path = run.run_dir / f"robustness-{split}.json"
        stored = _KEPT.validate_json(read_regular(path, _LARGEST), strict=True)
    except (OSError, ValueError):
        return None
    rows = pd.DataFrame(stored["rows"], columns=_COLUMNS)
    ways = [(which.corruption, which.severity) for which in corrupted(split)]
    if stored["predictions"] != predictions_changed(run.run_dir) or ways != [
        *zip(rows["corruption"], rows["severity"], strict=True)
    ]:
        return None
    return Robustness(split, stored["images"], rows, predicted=False)


def _file(run_dir: Path, split: str) -> Path:
    return run_dir / f"robustness-{split}.parquet"

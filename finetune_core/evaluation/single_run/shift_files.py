"""Stored predictions for other data sets: one file each, beside ``predictions.parquet``.

The files are untrusted input.
"""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field, TypeAdapter

from finetune_core.data.splits import SHIFTED
from finetune_core.errors import RunError
from finetune_core.files import Stamp, describe_problem, file_stamp
from finetune_core.runs.store import Run
from finetune_core.training.averaging.shifted_images import SHIFT_FACTS, SHIFTED_FILE
from finetune_core.training.events import Classes, Count, Name, Text
from finetune_core.training.predictions import (
    Moment,
    predictions_mtime,
    read_fact,
    read_table,
    write_table,
)

MOST_LISTED = 100  # data sets per run
_LARGEST = 2**24  # bytes of the metadata on the data set


@dataclass(frozen=True)
class Copies:
    """Numbers of images of the other data set that the run has used.

    Attributes:
        training: exact copies of training images, which are left out.
        near: near-copies of training images, which are not left out.
        validation: exact copies of validation images, which are left out.
        test: exact copies of test images, which are left out: they are not shifted, and a drop from
            the run's own test images to themselves is none.
        problem: why images could not be read, or not in their former state; empty if they could.
        earlier: exact and near copies of training images of the runs that the run started from,
            which are not left out.
    """

    training: Count | None
    near: Count | None
    validation: Count | None
    test: Count | None = None
    problem: Text = ""
    earlier: Count = 0


@dataclass(frozen=True)
class Shift:
    """Another data set that a run has predicted, and which of its images were left out.

    Attributes:
        data: its folder or manifest.
        fingerprint: hash of the images' names, content and classes.
        predictions: time stamp of the run's own predictions; if it differs, the file is of another
            network.
        classes: classes of the run.
        respelled: name of a class there -> here, if they differ in case or spaces.
        unknown: class that the run does not have -> number of its images, which are left out.
        unreadable: number of images that were left out because they cannot be decoded.
        copies: images that the run has used.
        without_own: True if exact copies of all of the run's own images were left out. Earlier
            versions left out those of training images only.
    """

    data: Name
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    predictions: Moment
    classes: Classes
    respelled: Annotated[dict[Name, Name], Field(max_length=100_000)]
    unknown: Annotated[dict[Name, Count], Field(max_length=100_000)]
    unreadable: Count
    copies: Copies
    without_own: bool = False

    @property
    def name(self) -> str:
        """Label of the data set in a list."""
        return Path(self.data).name or self.data

    @property
    def described(self) -> str:
        """Description of the data set within a sentence."""
        return f"another data set, {self.data}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values: the data set, and what of it was left out."""
        copies = self.copies
        return {
            "data": self.data,
            "fingerprint": self.fingerprint,
            "respelled_classes": self.respelled,
            "unknown_classes": self.unknown,
            "unreadable_images": self.unreadable,
            "training_copies": copies.training,
            "near_copies": copies.near,
            "earlier_copies": copies.earlier,
            "validation_copies": copies.validation,
            "test_copies": copies.test,
            "copies_problem": copies.problem or None,
        }


_SHIFT = TypeAdapter(Shift)


def save_shift(run: Run, shift: Shift, table: pd.DataFrame) -> None:
    """Store a table of predictions (``prediction_table``, split ``SHIFTED``) in the run directory.

    Raises:
        RunError: if the file cannot be written.
    """
    try:
        write_table(
            _file_path(run.run_dir, shift.fingerprint),
            table,
            {SHIFT_FACTS: json.dumps(asdict(shift)).encode()},
        )
    except OSError as error:
        raise RunError(
            f"The predictions cannot be kept in {run.run_dir}: {error.strerror}."
        ) from None


def load_shifts(run: Run) -> tuple[list[Shift], list[str]]:
    """Return the data sets that the run has predictions for, the latest first.

    Returns:
        The data sets, and a description of each file that is of no use.
    """
    shifts: list[tuple[float, Shift]] = []
    problems = []
    for path in _list_files(run):
        try:
            shift = read_shift(run, path.stem.removeprefix("shifted-"))
        except RunError as error:
            problems.append(str(error))
            continue
        with suppress(OSError):
            shifts.append((path.lstat().st_mtime, shift))
    return [
        shift for _, shift in sorted(shifts, key=lambda entry: entry[0], reverse=True)
    ], problems


def read_shift(run: Run, fingerprint: str) -> Shift:
    """Return the data set of a file, without reading its table.

    Raises:
        RunError: if there is no file, it is damaged, or the run was trained on since.
    """
    path = _file_path(run.run_dir, fingerprint)
    try:
        facts = read_fact(path, SHIFT_FACTS)
        if len(facts) > _LARGEST:
            raise ValueError("what it says of its data set is too long")
        shift: Shift = _SHIFT.validate_json(facts, strict=True)
    except FileNotFoundError:
        raise RunError(f"{run.run_id} has not predicted that data set yet.") from None
    except (OSError, ValueError) as error:
        raise RunError(
            f"{run.run_id}: {describe_problem(path, error)}. Evaluate the run on that data set "
            "again."
        ) from None
    if shift.fingerprint != fingerprint or shift.classes != list(run.started["classes"]):
        raise RunError(
            f"{run.run_id}: {path.name} is damaged: it is of another run or data set. Delete it."
        )
    if not shift.without_own:
        raise RunError(
            f"{run.run_id}: {path.name} is of an earlier version of Thaw, which did not leave out "
            f"copies of the run's own test images ({shift.name}). Evaluate the run on that data "
            "set again."
        )
    if shift.predictions != predictions_mtime(run.run_dir):
        raise RunError(
            f"{run.run_id}: {path.name} is of an earlier state of the run ({shift.name}). "
            "Evaluate the run on that data set again."
        )
    return shift


def load_shifted_predictions(run_dir: Path, fingerprint: str, classes: int) -> pd.DataFrame:
    """Return ``id, split, label, logits``, sorted by id.

    The split is ``SHIFTED``, and a label is an index into the run's classes. ``read_shift`` checks
    that the predictions are of the run in its current state.

    Raises:
        RunError: if there are no predictions, or they are damaged.
    """
    path = _file_path(run_dir, fingerprint)
    try:
        return read_table(path, (SHIFTED,), classes).sort_values("id", ignore_index=True)
    except FileNotFoundError:
        raise RunError(f"{run_dir.name} has not predicted that data set yet.") from None


def shift_stamp(run: Run, fingerprint: str) -> Stamp | None:
    """Return a stamp that changes with ``load_shifted_predictions``; None if there are none."""
    return file_stamp(_file_path(run.run_dir, fingerprint))


def list_runs_without_shift(runs: Sequence[Run], fingerprint: str) -> list[Run]:
    """Return the runs that have no usable predictions for a data set."""
    return [run for run in runs if find_shift_problem(run, fingerprint)]


def find_shift_problem(run: Run, fingerprint: str) -> str:
    """Return why a run's predictions for a data set are of no use; empty if they are usable."""
    try:
        classes = len(read_shift(run, fingerprint).classes)
    except RunError as error:
        return str(error)
    return _find_damage(run.run_dir, fingerprint, shift_stamp(run, fingerprint), classes)


@lru_cache(maxsize=1024)  # a page asks again whenever it is redrawn
def _find_damage(run_dir: Path, fingerprint: str, _version: Stamp | None, classes: int) -> str:
    try:
        load_shifted_predictions(run_dir, fingerprint, classes)
    except RunError as error:
        return str(error)
    return ""


def _file_path(run_dir: Path, fingerprint: str) -> Path:
    return run_dir / f"shifted-{fingerprint}.parquet"


def _list_files(run: Run) -> list[Path]:
    try:
        names = sorted(
            entry.name for entry in os.scandir(run.run_dir) if SHIFTED_FILE.fullmatch(entry.name)
        )
    except OSError:
        return []
    return [run.run_dir / name for name in names[:MOST_LISTED]]

"""What a run predicted for the images of other data sets: one file for each, beside ``predictions.parquet``, and input as that is."""

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
from finetune_core.files import Stamp, problem_with, stamp
from finetune_core.runs.store import Run
from finetune_core.training.events import Classes, Count, Name, Text
from finetune_core.training.predictions import (
    Moment,
    fact_of,
    predictions_changed,
    read_table,
    write_table,
)
from finetune_core.training.shifted_images import SHIFT_FACTS, SHIFTED_FILE

MOST_LISTED = 100  # data sets per run
_LARGEST = 2**24  # bytes, of what a file says of its data set


@dataclass(frozen=True)
class Copies:
    """Images of the other data set that the run knows from its own.

    Attributes:
        training: exact copies of training images, which are left out.
        near: near-copies of training images, which are not.
        validation: exact copies of validation images, which are left out.
        test: exact copies of test images, which are left out: they are not shifted, and a drop from the run's own test images to
            themselves is none.
        problem: why images could not be looked at, or not as they were; empty where they could.
        earlier: copies, exact and near ones, of training images of the runs that it started from, which are not left out.
    """

    training: Count | None
    near: Count | None
    validation: Count | None
    test: Count | None = None
    problem: Text = ""
    earlier: Count = 0


@dataclass(frozen=True)
class Shift:
    """What a run predicted for another data set, and what of that set it did not.

    Attributes:
        data: its folder or manifest.
        fingerprint: of the images' names, content and classes.
        predictions: when the run's own predictions were written; of another moment, they are of another network.
        classes: the run's.
        respelled: name of a class there -> here, where they differ in case or spaces.
        unknown: class that the run has not -> its images, which are left out.
        unreadable: images that were left out because they cannot be decoded.
        without_own: whether exact copies of all of the run's own images were left out. Earlier versions left out those of training
            images only.
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
        """The data set as a person would call it, in a list."""
        return Path(self.data).name or self.data

    @property
    def described(self) -> str:
        """Whose images they are, within a sentence."""
        return f"another data set, {self.data}"

    def to_json(self) -> dict[str, Any]:
        """Plain values: which data set, and what of it was left out."""
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
    """Keep a table of predictions (``prediction_table``, of the split ``SHIFTED``) in the run's folder.

    Raises:
        RunError: when it cannot be written.
    """
    try:
        write_table(
            _file(run.run_dir, shift.fingerprint),
            table,
            {SHIFT_FACTS: json.dumps(asdict(shift)).encode()},
        )
    except OSError as error:
        raise RunError(
            f"The predictions cannot be kept in {run.run_dir}: {error.strerror}."
        ) from None


def known_shifts(run: Run) -> tuple[list[Shift], list[str]]:
    """The data sets that the run has predictions for, the latest first; and, in words, which of them are of no use."""
    found: list[tuple[float, Shift]] = []
    problems = []
    for path in _files(run):
        try:
            shift = read_shift(run, path.stem.removeprefix("shifted-"))
        except RunError as error:
            problems.append(str(error))
            continue
        with suppress(OSError):
            found.append((path.lstat().st_mtime, shift))
    return [shift for _, shift in sorted(found, key=lambda one: one[0], reverse=True)], problems


def read_shift(run: Run, fingerprint: str) -> Shift:
    """What is known of one of them, without its table.

    Raises:
        RunError: when there is none, it is damaged, or the run was trained on since.
    """
    path = _file(run.run_dir, fingerprint)
    try:
        said = fact_of(path, SHIFT_FACTS)
        if len(said) > _LARGEST:
            raise ValueError("what it says of its data set is too long")
        shift: Shift = _SHIFT.validate_json(said, strict=True)
    except FileNotFoundError:
        raise RunError(f"{run.run_id} has not predicted that data set yet.") from None
    except (OSError, ValueError) as error:
        raise RunError(
            f"{run.run_id}: {problem_with(path, error)}. Evaluate the run on that data set again."
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
    if shift.predictions != predictions_changed(run.run_dir):
        raise RunError(
            f"{run.run_id}: {path.name} is of an earlier state of the run ({shift.name}). "
            "Evaluate the run on that data set again."
        )
    return shift


def shifted_predictions(run_dir: Path, fingerprint: str, classes: int) -> pd.DataFrame:
    """``id, split, label, logits``, all of the split ``SHIFTED``, by id; a label is an index into the run's classes. Whether they are of
    the run as it is now, ``read_shift`` tells.

    Raises:
        RunError: when there are none, or they are damaged.
    """
    path = _file(run_dir, fingerprint)
    try:
        return read_table(path, (SHIFTED,), classes).sort_values("id", ignore_index=True)
    except FileNotFoundError:
        raise RunError(f"{run_dir.name} has not predicted that data set yet.") from None


def shift_changed(run: Run, fingerprint: str) -> Stamp | None:
    """Changes when ``shifted_predictions`` do; None where there are none."""
    return stamp(_file(run.run_dir, fingerprint))


def lacking_shift(runs: Sequence[Run], fingerprint: str) -> list[Run]:
    """Those that have not predicted that data set, or whose predictions are of no use."""
    return [run for run in runs if shift_problem(run, fingerprint)]


def shift_problem(run: Run, fingerprint: str) -> str:
    """Why a run's predictions for that data set are of no use, in words; empty where they are."""
    try:
        classes = len(read_shift(run, fingerprint).classes)
    except RunError as error:
        return str(error)
    return _damage(run.run_dir, fingerprint, shift_changed(run, fingerprint), classes)


@lru_cache(maxsize=1024)  # a page asks whenever it is redrawn
def _damage(run_dir: Path, fingerprint: str, _version: Stamp | None, classes: int) -> str:
    try:
        shifted_predictions(run_dir, fingerprint, classes)
    except RunError as error:
        return str(error)
    return ""


def _file(run_dir: Path, fingerprint: str) -> Path:
    return run_dir / f"shifted-{fingerprint}.parquet"


def _files(run: Run) -> list[Path]:
    try:
        names = sorted(
            entry.name for entry in os.scandir(run.run_dir) if SHIFTED_FILE.fullmatch(entry.name)
        )
    except OSError:
        return []
    return [run.run_dir / name for name in names[:MOST_LISTED]]

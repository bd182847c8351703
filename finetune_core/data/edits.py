"""Changes that a person made to a data set.

The changes are stored beside the index and applied on top of it. Each can be undone. The files of
the data set stay as they are.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
import pandas as pd
from filelock import FileLock
from pydantic import TypeAdapter

from finetune_core.config import Edit
from finetune_core.config.edit import LONGEST_NAME
from finetune_core.data.entry import entry_folder
from finetune_core.data.splits import SPLITS, TEST, TRAIN
from finetune_core.errors import DataError
from finetune_core.files import (
    Stamp,
    describe_problem,
    file_stamp,
    path_exists,
    read_regular,
    write_bytes,
)
from finetune_core.formatting import SPLIT_TITLES, pluralize

_FILE = "edits.json"
_LARGEST = 2**28  # bytes
_PATIENCE = 30.0  # seconds to wait for another process's lock
_EDITS = TypeAdapter(tuple[Edit, ...])
_LABELS = {"label": TRAIN, "label_test": TEST}  # action -> split of the labelled image
_changing = Lock()  # two sessions of this process must not overwrite each other's changes


def load_edits(data: str | Path) -> tuple[Edit, ...]:
    """Load the changes made to a data set, in order.

    Raises:
        DataError: if the file of changes is damaged. They must not be lost silently.
    """
    file = entry_folder(data) / _FILE
    if not path_exists(file):
        return ()
    try:
        return _read_edits(file, file_stamp(file.resolve()))
    except (OSError, ValueError) as error:
        raise DataError(
            f"The changes to this data set, in {file}, cannot be read: "
            f"{describe_problem(file, error)}. Repair or delete that file."
        ) from None


@lru_cache(maxsize=4)  # read whenever a page is drawn, and there may be a hundred thousand edits
def _read_edits(file: Path, _version: Stamp | None) -> tuple[Edit, ...]:
    return _EDITS.validate_json(read_regular(file.resolve(), _LARGEST))


def change_edits(data: str | Path, change: Callable[[tuple[Edit, ...]], Sequence[Edit]]) -> None:
    """Replace the changes by the result of a function, in one write.

    Changes that another session or process makes at the same time are kept.

    Args:
        data: folder or manifest of the data set.
        change: a function from the known changes to all changes.

    Raises:
        DataError: if the changes cannot be written, or ``check_labelled_moves`` refuses new ones.
    """
    with _lock_edits(data):
        known = load_edits(data)
        made = tuple(change(known))
        if made == known:
            return
        if any(edit.action in ("move", "label") for edit in {*made} - {*known}):
            check_labelled_moves(made)
        save_edits(data, made)


@contextmanager
def _lock_edits(data: str | Path) -> Iterator[None]:
    """Let one session of one process at a time change the edits of a data set."""
    file = entry_folder(data) / _FILE
    lock = FileLock(f"{file}.lock", timeout=_PATIENCE)
    with _changing:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:  # filelock's Timeout is one
            raise DataError(f"The change cannot be kept in {file}: {error}.") from None
        try:
            yield
        finally:
            lock.release()


def add_edits(data: str | Path, edits: Sequence[Edit]) -> None:
    """Add changes. Those that others add at the same time are kept.

    Raises:
        DataError: if the changes cannot be written, or ``check_labelled_moves`` refuses them.
    """
    change_edits(data, lambda known: (*known, *edits))


def remove_edits(data: str | Path, edits: Sequence[Edit]) -> None:
    """Undo changes, the latest of equal ones. Those that have been undone already are ignored.

    Raises:
        DataError: if the result cannot be written.
    """
    change_edits(data, lambda known: _remove(known, edits))


def _remove(known: Sequence[Edit], removed: Iterable[Edit]) -> list[Edit]:
    """Return the changes without some of them, the latest of equal ones."""
    counts = Counter(removed)
    left = []
    for edit in reversed(known):
        if counts[edit]:
            counts[edit] -= 1
        else:
            left.append(edit)
    return left[::-1]


def save_edits(data: str | Path, edits: Sequence[Edit]) -> None:
    """Save the changes. If that fails, the old file remains.

    Raises:
        DataError: if the changes cannot be written.
    """
    file = entry_folder(data) / _FILE
    try:
        write_bytes(file, _EDITS.dump_json(tuple(edits), indent=1))
    except OSError as error:
        raise DataError(f"The change cannot be kept in {file}: {error}.") from None


def apply_edits(table: pd.DataFrame, edits: Iterable[Edit]) -> pd.DataFrame:
    """Apply the edits, one after the other, to a table with columns ``id, class, split``.

    Paths that no longer exist are ignored. A row without a class is an image that labels add; it is
    dropped if no edit labels it.

    Raises:
        DataError: if an image is to move to a split that does not exist, or
            ``check_labelled_moves`` refuses the edits.
    """
    made = select_effective_edits(edits)
    check_labelled_moves(made)
    for edit in made:
        if edit.action == "move" and edit.to not in SPLITS:
            raise DataError(f"Images can move to {', '.join(SPLITS)}, not to {edit.to!r}.")
    table = table.copy()
    unlabelled = (table["class"] == "").to_numpy()
    if not made or table.empty:
        return table[~unlabelled]
    # All edits at once: each by itself would go through the whole table.
    rows = pd.Index(table["id"]).get_indexer([path for edit in made for path in edit.paths])
    counts = [len(edit.paths) for edit in made]
    action, to = (
        np.repeat(np.array(values, dtype=object), counts)
        for values in zip(*((one.action, one.to) for one in made), strict=True)
    )
    labels = (rows >= 0) & unlabelled[rows] & np.isin(action, list(_LABELS))
    kept = ~unlabelled
    kept[rows[labels]] = True
    split = np.array([_LABELS.get(name, "") for name in action], dtype=object)
    for changed, column, values in (
        (labels, "class", to),
        (labels, "split", split),
        ((rows >= 0) & (action == "move"), "split", to),
        ((rows >= 0) & (action == "relabel") & kept[rows], "class", to),
    ):
        if changed.any():
            result = table[column].to_numpy(dtype=object, copy=True)
            result[rows[changed]] = values[changed]  # the last edit of a path wins
            table[column] = pd.Series(result, index=table.index, dtype=table[column].dtype)
    kept[rows[(rows >= 0) & (action == "exclude")]] = False
    return table if kept.all() else table[kept]


def collect_labelled_paths(edits: Iterable[Edit]) -> dict[str, str]:
    """Return the split of every image that the edits add with a label, by id.

    The images are in the order of their first label.
    """
    return {
        path: _LABELS[edit.action]
        for edit in edits
        if edit.action in _LABELS
        for path in edit.paths
    }


def check_labelled_moves(edits: Sequence[Edit]) -> None:
    """Refuse to evaluate on images that the model chose for labelling.

    The model chose images that it finds difficult, or of a class that it expects, so an accuracy on
    them is biased. Images that were set aside at random are labelled by ``label_test`` and may
    move.

    Raises:
        DataError: if such an image is moved to validation or test.
    """
    chosen = {path for edit in edits if edit.action == "label" for path in edit.paths}
    if not chosen:
        return
    moved = {
        path
        for edit in edits
        if edit.action == "move" and edit.to != TRAIN
        for path in edit.paths
        if path in chosen
    }
    if moved:
        raise DataError(
            f"{pluralize(len(moved), 'image')} cannot leave the training images: "
            "the model chose what was labelled, so an accuracy on such images would be biased. "
            "Leave them in training, or choose other images."
        )


def relabel_class(table: pd.DataFrame, name: str, to: str) -> Edit:
    """Return the edit that renames a class. The name of another class merges the two.

    Args:
        table: rows with ``id, class``.
        name: the class to rename.
        to: the new name.

    Raises:
        DataError: if the class does not exist, or cannot have that name.
    """
    paths = tuple(table.loc[table["class"] == name, "id"])
    if not paths:
        raise DataError(
            f"There is no class {name!r} any more. Choose one of the classes that are listed."
        )
    to = to.strip()
    if not to or to == name or len(to) > LONGEST_NAME or not to.isprintable():
        raise DataError(
            f"{name!r} cannot be renamed to {to[:80]!r}. Give it another name, in one line of up "
            f"to {LONGEST_NAME} characters."
        )
    return Edit(action="relabel", paths=paths, to=to)


def collect_ignored_paths(edits: Iterable[Edit]) -> dict[str, frozenset[str]]:
    """Return the paths of the findings that a person has dismissed, by kind of finding."""
    paths: dict[str, set[str]] = {}
    for edit in edits:
        if edit.action == "ignore":
            paths.setdefault(edit.kind, set()).update(edit.paths)
    return {kind: frozenset(seen) for kind, seen in paths.items()}


def select_effective_edits(edits: Iterable[Edit]) -> tuple[Edit, ...]:
    """Return the edits that change the training data, which is what a run records."""
    return tuple(edit for edit in edits if edit.action != "ignore")


def describe_edit(edit: Edit) -> str:
    """Describe one edit, as ``3 images excluded`` or ``1 image relabelled as cat``."""
    images = pluralize(len(edit.paths), "image")
    match edit.action:
        case "label":
            return f"{images} labelled as {edit.to}"
        case "label_test":
            return f"{images} labelled as {edit.to}, for testing"
        case "exclude":
            return f"{images} excluded"
        case "move":
            return f"{images} moved to {SPLIT_TITLES.get(edit.to, edit.to).lower()}"
        case "relabel":
            return f"{images} relabelled as {edit.to}"
    return "finding dismissed"


def name_image(path: str) -> str:
    """Return the id of an image; for an image outside of the data set's folder, its file name."""
    return Path(path).name if Path(path).is_absolute() else path


def describe_edits(edits: Iterable[Edit]) -> str:
    """Describe all edits in one line: ``5 images excluded, 2 images moved, 1 image relabelled``."""
    counts: Counter[str] = Counter()
    for edit in select_effective_edits(edits):
        counts["label" if edit.action in _LABELS else edit.action] += len(edit.paths)
    words = {
        "label": "labelled",
        "exclude": "excluded",
        "move": "moved to another split",
        "relabel": "relabelled",
    }
    return ", ".join(
        f"{pluralize(counts[action], 'image')} {word}"
        for action, word in words.items()
        if counts[action]
    )

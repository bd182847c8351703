"""Changes that a person made to a data set: kept beside the index, applied over it, undone one by one. The files stay as they are."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Lock

import pandas as pd

from finetune_core.config import Edit
from finetune_core.config.edit import LONGEST_NAME
from finetune_core.data.entry import entry_folder
from finetune_core.data.splits import SPLITS
from finetune_core.errors import DataError
from finetune_core.files import write_bytes
from finetune_core.formatting import SPLIT_WORDS, things

_FILE = "edits.json"
_changing = Lock()  # of this process: two sessions must not write over each other


def load_edits(data: str | Path) -> tuple[Edit, ...]:
    """The changes made to a data set, in order.

    Raises:
        DataError: when the file that holds them is damaged: they must not be forgotten silently.
    """
    file = entry_folder(data) / _FILE
    if not file.is_file():
        return ()
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, list):
            raise ValueError("a list was expected")
        return tuple(Edit(**edit) for edit in found)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"The changes to this data set, in {file}, cannot be read: {error}. Repair or delete that file."
        ) from None


def add_edits(data: str | Path, edits: Sequence[Edit]) -> None:
    """Add changes; those that others add at the same time are kept, too.

    Raises:
        DataError: when they cannot be kept.
    """
    with _changing:
        save_edits(data, (*load_edits(data), *edits))


def remove_edits(data: str | Path, edits: Sequence[Edit]) -> None:
    """Take changes back, the latest of equal ones; those that somebody has taken back already are passed over.

    Raises:
        DataError: when that cannot be kept.
    """
    with _changing:
        left = list(load_edits(data))
        for edit in edits:
            if edit in left:
                del left[len(left) - 1 - left[::-1].index(edit)]
        save_edits(data, left)


def save_edits(data: str | Path, edits: Sequence[Edit]) -> None:
    """Keep the changes, all of them or what was there before.

    Raises:
        DataError: when they cannot be written.
    """
    file = entry_folder(data) / _FILE
    try:
        write_bytes(file, json.dumps([edit.model_dump() for edit in edits], indent=1).encode())
    except OSError as error:
        raise DataError(f"The change cannot be kept in {file}: {error}.") from None


def apply_edits(table: pd.DataFrame, edits: Iterable[Edit]) -> pd.DataFrame:
    """Rows with ``id, class, split`` as the edits, one after the other, leave them. Paths that are not there any more are passed over.

    Raises:
        DataError: when an image is to move to a split that does not exist.
    """
    table = table.copy()
    position = pd.Index(table["id"])
    excluded: set[str] = set()
    for edit in edits:
        rows = position.get_indexer(list(edit.paths))
        rows = rows[rows >= 0]
        match edit.action:
            case "exclude":
                excluded.update(edit.paths)
            case "move":
                if edit.to not in SPLITS:
                    raise DataError(f"Images can move to {', '.join(SPLITS)}, not to {edit.to!r}.")
                table.loc[table.index[rows], "split"] = edit.to
            case "relabel":
                table.loc[table.index[rows], "class"] = edit.to
    return table[~table["id"].isin(excluded)] if excluded else table


def relabelled_class(table: pd.DataFrame, name: str, to: str) -> Edit:
    """The change that gives a class another name: that of no class renames it, that of another one merges the two.

    Args:
        table: rows with ``id, class``.

    Raises:
        DataError: when there is no such class, or none can have that name.
    """
    paths = tuple(table.loc[table["class"] == name, "id"])
    if not paths:
        raise DataError(f"There is no class {name!r} any more. Choose one of the classes that are listed.")
    to = to.strip()
    if not to or to == name or len(to) > LONGEST_NAME or not to.isprintable():
        raise DataError(
            f"{name!r} cannot be renamed to {to[:80]!r}. Give it another name, in one line of up to {LONGEST_NAME} characters."
        )
    return Edit(action="relabel", paths=paths, to=to)


def ignored(edits: Iterable[Edit]) -> dict[str, frozenset[str]]:
    """Kind of finding -> the paths that a person has looked at and left as they are."""
    paths: dict[str, set[str]] = {}
    for edit in edits:
        if edit.action == "ignore":
            paths.setdefault(edit.kind, set()).update(edit.paths)
    return {kind: frozenset(seen) for kind, seen in paths.items()}


def effective(edits: Iterable[Edit]) -> tuple[Edit, ...]:
    """Those that change what is trained on: what a run records."""
    return tuple(edit for edit in edits if edit.action != "ignore")


def edit_in_words(edit: Edit) -> str:
    """``3 images excluded``, ``1 image relabelled as cat``."""
    images = things(len(edit.paths), "image")
    match edit.action:
        case "exclude":
            return f"{images} excluded"
        case "move":
            return f"{images} moved to {SPLIT_WORDS.get(edit.to, edit.to).lower()}"
        case "relabel":
            return f"{images} relabelled as {edit.to}"
    return f"{images} left as they are"


def edits_in_words(edits: Iterable[Edit]) -> str:
    """All changes in one line: ``5 images excluded, 2 images moved, 1 image relabelled``."""
    counts: Counter[str] = Counter()
    for edit in effective(edits):
        counts[edit.action] += len(edit.paths)
    words = {"exclude": "excluded", "move": "moved to another split", "relabel": "relabelled"}
    return ", ".join(f"{things(counts[action], 'image')} {word}" for action, word in words.items() if counts[action])

"""Data sets that this process has scanned, the changes to them, and their deep inspections."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import streamlit as st

from finetune_core.config import Edit
from finetune_core.data.dataset import Dataset, Seen, assemble, look_through
from finetune_core.data.decode import CROP
from finetune_core.data.edits import add_edits, load_edits, remove_edits
from finetune_core.data.entry import load_split
from finetune_core.data.recent import remember
from finetune_core.errors import DataError, FinetuneError
from finetune_core.inspection.deep import DeepReport
from pages.shared.account import owner
from pages.shared.data.chosen import chosen_data, data_folder, readable_roots
from pages.shared.jobs import forget, wait_for

Key = TypeVar("Key")
Value = TypeVar("Value")

_MOST_HELD = 4  # data sets


@st.cache_resource(show_spinner=False)
def _looked_through() -> dict[str, Seen]:
    return {}


@st.cache_resource(show_spinner=False)
def _assembled() -> dict[tuple[Any, ...], Dataset]:
    return {}


@st.cache_resource(show_spinner=False)
def _reports() -> dict[tuple[str, str, int, str], DeepReport]:
    """Return the deep inspections by (fingerprint of the data, backbone, image size, fit)."""
    return {}


def current_dataset(settings: dict[str, Any] | None = None, *, again: bool = False) -> Dataset:
    """Return the data set that this session has chosen, with its changes.

    The data set is scanned once per process, with a progress bar.

    Args:
        settings: how to split: arguments of ``index_dataset``. None: as saved with the data set.
        again: whether to look for added or changed files.

    Raises:
        DataError: if the data set is unusable, or may not be read.
    """
    root = chosen_data()
    settings = settings or load_split(root)
    edits = load_edits(root)
    seen = None if again else _looked_through().get(root)
    if seen is not None and not seen.has_labelled(edits):
        seen, again = None, True
    # Always there: otherwise everything below would be drawn anew once the wait is over.
    place = st.container()
    if seen is None:
        job = f"look:{root}"
        if again:
            forget(job)
        with place:
            looking = partial(look_through, root, readable_roots(), edits=edits)
            seen = wait_for(job, "Scanning images", looking)
        if seen is None:
            raise DataError(
                "The scan of these images was stopped; its results so far are kept. Read the "
                "folder again to continue (Dataset page)."
            )
        keep_latest(_looked_through(), root, seen)
        for key in list(_assembled()):
            if key[0] == root:
                _assembled().pop(key, None)
    key = (root, tuple(settings.values()), edits)
    dataset = _assembled().get(key)
    if dataset is None:
        dataset = assemble(root, seen, **settings, edits=edits)
        keep_latest(_assembled(), key, dataset)
    if st.session_state.get("opened_data") != root:
        st.session_state["opened_data"] = root
        remember(root, owner())
    return dataset


def keep_report(dataset: Dataset, report: DeepReport) -> None:
    """Keep a deep inspection for all sessions."""
    key = (dataset.fingerprint, report.backbone, report.image_size, report.fit)
    keep_latest(_reports(), key, report)


def image_fit() -> str:
    """Return how images become squares, as set on Configure."""
    return str(st.session_state.get("form_fit", CROP))


def report_of(dataset: Dataset) -> DeepReport | None:
    """Return the latest deep inspection of these images, fitted as set on Configure, if any."""
    return next(
        (
            report
            for (mark, *_), report in reversed(list(_reports().items()))
            if mark == dataset.fingerprint and report.fit == image_fit()
        ),
        None,
    )


def keep_latest(held: dict[Key, Value], key: Key, value: Value) -> None:
    """Keep a value for all sessions, and drop the oldest ones.

    All sessions share these values. A value that another session has removed meanwhile is no loss.
    """
    while len(held) >= _MOST_HELD:
        held.pop(next(iter(list(held))), None)
    held[key] = value


def change(*edits: Edit) -> None:
    """Add changes to the chosen data set (a callback)."""
    answered(lambda: add_edits(data_folder(), edits))


def undo(edits: Sequence[Edit]) -> None:
    """Take changes back (a callback)."""
    answered(lambda: remove_edits(data_folder(), edits))


def answered(act: Callable[[], None]) -> None:
    """Run the body of a callback. The page that is drawn next shows its error."""
    try:
        act()
    except FinetuneError as error:
        st.session_state["change_problem"] = str(error)

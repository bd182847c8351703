"""Data sets that this process has scanned, the changes to them, and their deep inspections."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import streamlit as st

from finetune_core.config import Edit
from finetune_core.data.dataset import Dataset, IndexedData, assemble_dataset, index_data
from finetune_core.data.decode import CROP
from finetune_core.data.edits import add_edits, load_edits, remove_edits
from finetune_core.data.entry import load_split
from finetune_core.data.recent import remember_source
from finetune_core.errors import DataError, FinetuneError
from finetune_core.inspection.deep import DeepReport
from pages.shared.account import owner
from pages.shared.data.chosen import data_folder, get_chosen_data, readable_roots
from pages.shared.jobs import forget, wait_for

Key = TypeVar("Key")
Value = TypeVar("Value")

_MOST_HELD = 4  # data sets


@st.cache_resource(show_spinner=False)
def _scans() -> dict[str, IndexedData]:
    return {}


@st.cache_resource(show_spinner=False)
def _datasets() -> dict[tuple[Any, ...], Dataset]:
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
    root = get_chosen_data()
    settings = settings or load_split(root)
    edits = load_edits(root)
    scan = None if again else _scans().get(root)
    if scan is not None and not scan.has_labelled(edits):
        scan, again = None, True
    # Always there: otherwise everything below would be drawn anew once the wait is over.
    place = st.container()
    if scan is None:
        job = f"look:{root}"
        if again:
            forget(job)
        with place:
            work = partial(index_data, root, readable_roots(), edits=edits)
            scan = wait_for(job, "Scanning images", work)
        if scan is None:
            raise DataError(
                "The scan of these images was stopped; its results so far are kept. Read the "
                "folder again to continue (Dataset page)."
            )
        keep_latest(_scans(), root, scan)
        for key in list(_datasets()):
            if key[0] == root:
                _datasets().pop(key, None)
    key = (root, tuple(settings.values()), edits)
    dataset = _datasets().get(key)
    if dataset is None:
        dataset = assemble_dataset(root, scan, **settings, edits=edits)
        keep_latest(_datasets(), key, dataset)
    if st.session_state.get("opened_data") != root:
        st.session_state["opened_data"] = root
        remember_source(root, owner())
    return dataset


def cache_report(dataset: Dataset, report: DeepReport) -> None:
    """Keep a deep inspection for all sessions."""
    key = (dataset.fingerprint, report.backbone, report.image_size, report.fit)
    keep_latest(_reports(), key, report)


def image_fit() -> str:
    """Return how images become squares, as set on Configure."""
    return str(st.session_state.get("form_fit", CROP))


def find_report(dataset: Dataset) -> DeepReport | None:
    """Return the latest deep inspection of these images, fitted as set on Configure, if any."""
    return next(
        (
            report
            for (mark, *_), report in reversed(list(_reports().items()))
            if mark == dataset.fingerprint and report.fit == image_fit()
        ),
        None,
    )


def keep_latest(cache: dict[Key, Value], key: Key, value: Value) -> None:
    """Keep a value for all sessions, and drop the oldest ones.

    All sessions share these values. A value that another session has removed meanwhile is no loss.
    """
    while len(cache) >= _MOST_HELD:
        cache.pop(next(iter(list(cache))), None)
    cache[key] = value


def change(*edits: Edit) -> None:
    """Add changes to the chosen data set (a callback)."""
    attempt_change(lambda: add_edits(data_folder(), edits))


def undo(edits: Sequence[Edit]) -> None:
    """Take changes back (a callback)."""
    attempt_change(lambda: remove_edits(data_folder(), edits))


def attempt_change(change_data: Callable[[], None]) -> None:
    """Run the body of a callback. The page that is drawn next shows its error."""
    try:
        change_data()
    except FinetuneError as error:
        st.session_state["change_problem"] = str(error)

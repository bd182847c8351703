"""Dataset → Camera: name a class, hold an object up, record, review the frames, and continue."""

from functools import partial
from pathlib import Path

import streamlit as st

from finetune_core.data.camera import (
    LEAST_OF_CLASS,
    choose_split,
    count_deleted_frames,
    delete_frames,
    list_frames_by_class,
    list_presses,
    list_recordings,
    recordings_folder,
    restore_frames,
    store_frames,
    validate_name,
)
from finetune_core.data.frames import Batch
from finetune_core.errors import DataError, FinetuneError
from finetune_core.formatting import pluralize
from finetune_core.training.strategies.catalogue import BASELINE, STRATEGIES
from pages.shared.account import owner
from pages.shared.camera import draw_camera
from pages.shared.chrome import escape_markdown, go
from pages.shared.configure import settings
from pages.shared.data.chosen import choose_data
from pages.shared.data.datasets import current_dataset
from pages.shared.images import Picture, choose_images, unselect
from pages.shared.jobs import forget, wait_for

_FIRST_NAME = "objects"
_NAME, _CLASS = "recording_name", "recording_class"
_PER_PAGE = 12


@st.fragment
def record() -> None:
    """Record a data set, or continue one."""
    with st.grid("auto", min_column_width=220, gap="small"):
        with st.container():
            name = _choose_data_set()
        with st.container():
            class_name = _choose_class(recordings_folder(owner()) / name) if name else ""
    left, right = st.columns([5, 4], gap="medium")
    with left:
        draw_camera(
            "record-camera",
            {
                "mode": "record",
                "recording": name,
                "class_name": class_name,
                "ready": bool(name) and _is_ready(name),
            },
            _store_frames,
        )
        st.caption(
            "Hold the button (or Space) for a few seconds. All frames of one recording are nearly "
            "alike, so they stay in one split: record at least twice per class, and move the "
            "object in between. Frames are sent only to the machine that Thaw runs on, and stay "
            "there"
            + (f", in {escape_markdown(str(recordings_folder(owner()) / name))}." if name else ".")
        )
    if not name:
        return
    folder = recordings_folder(owner()) / name
    with right:
        _draw_classes(folder, class_name)
        if class_name:
            _draw_frames(folder, class_name)
        _draw_undo(folder)
    _draw_next_steps(folder)


def _choose_data_set() -> str:
    """Draw the field for the data set's name.

    Returns:
        The name; empty if it is not valid: then the page says why.
    """
    known = list_recordings(owner())
    name = st.selectbox(
        "Data set",
        known or [_FIRST_NAME],
        key=_NAME,
        persist_state="session",
        accept_new_options=True,
        help="A new name begins a new data set; an earlier one is continued.",
    )
    return _check_name(name, "data set", known)


def _choose_class(folder: Path) -> str:
    """Draw the field for the class to record next.

    Returns:
        The class; empty if there is none yet, or it is not valid: then the page says why.
    """
    typed = st.text_input(
        "Class",
        key=_CLASS,
        persist_state="session",
        placeholder="mug",
        help="What you hold up.",
        # Without ``live``, pressing the record button while typing would record the earlier class.
        live=True,
    ).strip()
    return _check_name(typed, "class", list(list_frames_by_class(folder)))


def _check_name(name: str, kind: str, known: list[str]) -> str:
    with st.container():
        # Always there: otherwise everything below would be drawn anew.
        try:
            return validate_name(name, kind, known) if name else ""
        except DataError as error:
            st.error(escape_markdown(str(error)), icon=":material/error:")
            return ""


def _store_frames(batch: Batch) -> None:
    store_frames(batch, owner())


def _draw_classes(folder: Path, class_name: str) -> None:
    """Draw the number of frames of each class, and what is still to be recorded."""
    for name, files in list_frames_by_class(folder).items():
        with st.container(horizontal=True, vertical_alignment="center", key=f"recorded-{name}"):
            num_recordings = len(list_presses(files))
            text = (
                f"**{escape_markdown(name)}** · {pluralize(len(files), 'frame')} · "
                f"{pluralize(num_recordings, 'recording')}"
            )
            shortage = (
                f" · {LEAST_OF_CLASS - len(files)} more needed"
                if len(files) < LEAST_OF_CLASS
                else ""
            )
            st.markdown(
                text
                + (
                    shortage
                    or (
                        " · record it once more, or its accuracy will be too high"
                        if num_recordings == 1
                        else ""
                    )
                ),
                width="stretch",
            )
            st.button(
                "Record more",
                key=f"more-{name}",
                disabled=name == class_name,
                on_click=st.session_state.__setitem__,
                args=(_CLASS, name),
            )


def _draw_frames(folder: Path, class_name: str) -> None:
    """Draw the frames of the class being recorded, the latest first, each to be deleted."""
    files = list_frames_by_class(folder).get(class_name, [])[::-1]
    if not files:
        st.caption(escape_markdown(f"No frame of {class_name} yet."))
        return
    ids = [f"{class_name}/{file}" for file in files]
    key = f"recorded-{folder.name}-{class_name}"

    def picture(index: int) -> Picture:
        number = f"Frame {len(ids) - index}"
        return Picture(folder / ids[index], number, f"{number} of {class_name}", ids[index])

    chosen = sorted(choose_images(ids, picture, key=key, per_page=_PER_PAGE))
    with st.container(horizontal=True):
        text = f"Delete {pluralize(len(chosen), 'frame')}" if chosen else "Delete selected frames"
        st.button(
            text,
            key="delete-frames",
            icon=":material/delete:",
            disabled=not chosen,
            on_click=_delete,
            args=(folder, chosen, key),
        )
        st.button(
            escape_markdown(f"Delete all of {class_name}"),
            key="delete-class",
            type="tertiary",
            icon=":material/delete_sweep:",
            on_click=_delete,
            args=(folder, ids, key),
        )


def _delete(folder: Path, ids: list[str], key: str) -> None:
    """Delete frames (a callback)."""
    try:
        delete_frames(folder, ids)
    except FinetuneError as error:
        st.session_state["recording_problem"] = str(error)
        return
    unselect(key, ids)
    st.session_state["frames_deleted_from"] = folder


def _draw_undo(folder: Path) -> None:
    """Draw the session's latest deletion, with *Undo*."""
    with st.container():
        if problem := st.session_state.pop("recording_problem", None):
            st.error(escape_markdown(problem), icon=":material/error:")
        if st.session_state.get("frames_deleted_from") == folder and (
            count := count_deleted_frames(folder)
        ):
            with st.container(horizontal=True, vertical_alignment="center"):
                st.markdown(
                    f":material/delete: {pluralize(count, 'frame')} deleted.", width="content"
                )
                st.button(
                    "Undo",
                    key="undo-delete",
                    icon=":material/undo:",
                    on_click=_restore,
                    args=(folder,),
                )


def _restore(folder: Path) -> None:
    """Restore the deleted frames (a callback)."""
    try:
        restore_frames(folder)
    except FinetuneError as error:
        st.session_state["recording_problem"] = str(error)


def _draw_next_steps(folder: Path) -> None:
    """Draw the next steps, which are enabled once there are two classes."""
    is_ready = _is_ready(folder.name)
    reason = (
        None
        if is_ready
        else f"Record two classes with at least {LEAST_OF_CLASS} frames each first."
    )
    with st.container(horizontal=True):
        train = st.button(
            "Train on it",
            type="primary",
            key="train-on-recording",
            icon=":material/arrow_forward:",
            disabled=not is_ready,
            help=reason or f"{STRATEGIES[BASELINE].title}: an answer in seconds.",
            on_click=settings.set_fields,
            args=({"strategy": BASELINE},),
        )
        compare = st.button(
            "Compare with fine-tuning",
            key="compare-recording",
            icon=":material/compare_arrows:",
            disabled=not is_ready,
            help=reason,
            on_click=settings.propose_comparison,
            args=(settings.FINE_TUNING,),
        )
        inspect = st.button(
            "Inspect the images",
            key="use-recording",
            icon=":material/photo_library:",
            disabled=not is_ready,
            help=reason,
        )
    if not (train or compare or inspect):
        return
    try:
        _choose_recording(folder)
    except FinetuneError as error:
        st.error(escape_markdown(str(error)), icon=":material/error:")
        return
    if inspect:
        st.rerun()
    go("pages/configure.py" if train else "pages/compare.py")


def _is_ready(name: str) -> bool:
    """Return whether two classes of a data set have enough frames to train and to evaluate."""
    found = list_frames_by_class(recordings_folder(owner()) / name)
    return sum(len(files) >= LEAST_OF_CLASS for files in found.values()) >= 2


def _choose_recording(folder: Path) -> None:
    """Choose the recorded data set as it is now.

    Raises:
        FinetuneError: if it cannot be used.
    """
    key = f"recorded:{folder}"
    manifest = wait_for(key, "Looking at the frames", partial(choose_split, folder))
    if manifest is None:
        forget(key)
        raise DataError("This was stopped. Press again.")
    choose_data(str(manifest))
    current_dataset(again=True)

"""Dataset, Label: sources of images without labels: folder, archive, upload, or camera."""

import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path

import streamlit as st

from finetune_core.data.archives import ARCHIVE_SUFFIXES
from finetune_core.data.camera import store_unlabelled_frames
from finetune_core.data.decode import EXTENSIONS
from finetune_core.data.entry import unlabelled_folder
from finetune_core.data.listing import image_root
from finetune_core.data.sources import resolve_path
from finetune_core.errors import FinetuneError
from finetune_core.formatting import pluralize
from finetune_core.labelling.pool import Unlabelled, add_folder, add_images, add_uploads
from finetune_core.work import Work
from pages.shared.camera import draw_camera
from pages.shared.chrome import escape_markdown
from pages.shared.data.chosen import check_access, make_data_key, readable_roots
from pages.shared.data.datasets import attempt_change
from pages.shared.jobs import wait_for_whole

_SOURCES = {"folder": "On this computer", "upload": "Upload", "camera": "Camera"}


def add_unlabelled(data: str, unlabelled: Unlabelled) -> None:
    """Draw the ways to add images, and before the first ones whether to set some aside."""
    if not unlabelled.folders:
        st.checkbox(
            "Set a tenth aside for testing",
            key=_set_aside_key(),
            help="These images are drawn at random and labelled first, without a proposal. All "
            "others only train: the model chooses them, so an accuracy on them would be biased.",
        )
    source = st.segmented_control(
        "Unlabelled images",
        list(_SOURCES),
        format_func=_SOURCES.__getitem__,
        default="folder",
        required=True,
        key="label_source",
        persist_state="session",
        label_visibility="collapsed",
    )
    # Each addition has its own fields, so that they are empty after an addition.
    turn = len(unlabelled.folders)
    try:
        {"folder": _draw_folder, "upload": _draw_upload, "camera": _draw_camera}[source](data, turn)
    except FinetuneError as error:
        st.error(escape_markdown(str(error)), icon=":material/error:")


def _draw_folder(data: str, turn: int) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        text = st.text_input(
            "Folder or archive of images",
            key=make_data_key(f"label-folder-{turn}"),
            width=360,
            help="A folder of this computer, whose subfolders are searched, too; its files stay "
            "where they are. Or a ZIP or TAR, which is unpacked.",
        ).strip()
        pressed = st.button("Add images", key="label-add", icon=":material/add:")
    if pressed and text:
        check_access(resolve_path(text))
        _add(data, text, partial(add_images, data, text))


def _draw_upload(data: str, turn: int) -> None:
    files = st.file_uploader(
        "Images, or a ZIP or TAR of images",
        accept_multiple_files=True,
        type=[*sorted(EXTENSIONS), *ARCHIVE_SUFFIXES],
        key=make_data_key(f"label-upload-{turn}"),
    )
    if files:
        named_files = [(file.name, file) for file in files]
        _add(
            data, ",".join(file.file_id for file in files), partial(add_uploads, data, named_files)
        )


def _add(data: str, source: str, make: Callable[..., Work[Unlabelled]]) -> None:
    """Add images, with a progress bar, and redraw the page with them."""
    set_aside = bool(st.session_state.get(_set_aside_key()))
    work = partial(make, set_aside=set_aside, roots=readable_roots())
    wait_for_whole(f"unlabelled:{data}:{source}", "Adding images", work)
    st.rerun()


@st.fragment
def _draw_camera(data: str, turn: int) -> None:
    """Record frames, and add them once there are some."""
    # Each addition and session has its own folder, because its images are listed once.
    key = make_data_key(f"label-frames-{turn}")
    name = st.session_state.setdefault(key, f"camera-{secrets.token_hex(4)}")
    folder = unlabelled_folder(image_root(data)) / name
    num_frames = len(list(folder.iterdir())) if folder.is_dir() else 0
    draw_camera(
        make_data_key(f"label-camera-{turn}"),
        {"mode": "record", "recording": name, "class_name": "images", "ready": num_frames > 0},
        partial(store_unlabelled_frames, folder=folder),
    )
    st.caption(
        "Hold the button (or Space) while you show one object after the other. Frames are sent "
        "only to the machine that Thaw runs on, and stay there."
    )
    if st.button(
        f"Label {pluralize(num_frames, 'frame')}",
        key="label-frames",
        icon=":material/add:",
        disabled=not num_frames,
        on_click=_add_frames,
        args=(data, folder),
    ):
        # Redraw the whole page, not only this fragment.
        st.rerun()


def _add_frames(data: str, folder: Path) -> None:
    """Add the recorded frames (a callback)."""
    set_aside = bool(st.session_state.get(_set_aside_key()))
    roots = readable_roots()

    def add() -> None:
        add_folder(data, str(folder), set_aside=set_aside, roots=roots)

    attempt_change(add)


def _set_aside_key() -> str:
    return make_data_key("label-aside")

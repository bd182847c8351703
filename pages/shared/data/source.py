"""Sources of images: the sample, a local folder, an upload, a public data set, or a camera."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import streamlit as st

from finetune_core.data.archives import ARCHIVE_SUFFIXES, import_archive, import_files, is_archive
from finetune_core.data.camera import CAMERA
from finetune_core.data.decode import EXTENSIONS
from finetune_core.data.listing import is_data
from finetune_core.data.public import PUBLIC_SETS, fetch_public, is_fetched, public_set_folder
from finetune_core.data.recent import remember_source
from finetune_core.data.sample import SAMPLE_NAME
from finetune_core.data.sources import list_imported_folders, resolve_path
from finetune_core.errors import DataError, FinetuneError
from finetune_core.formatting import format_bytes, format_number
from finetune_core.work import Work
from pages.shared.account import is_sign_in_required, owner
from pages.shared.chrome import escape_markdown
from pages.shared.data.browse import choose_folder
from pages.shared.data.chosen import check_access, choose_data, data_folder, offer_data
from pages.shared.data.datasets import attempt_change
from pages.shared.data.recording import record
from pages.shared.jobs import begin, forget, take_outcome, wait_for_whole

_SOURCES = {
    "folder": "On this computer",
    "upload": "Upload",
    "public": "Public data sets",
    "camera": "Camera",
}
_KINDS = {"archive": "A ZIP or TAR", "directory": "A folder"}
FOLDERS = (
    "One subfolder of images per class; or train/ and val/ (and test/, if you like) with such "
    "subfolders."
)


def choose_source() -> None:
    """Draw the ways to choose a data set (``chosen.data_folder``)."""
    chosen = data_folder()
    # Each data set has its own box, so that the box is closed once a data set is chosen.
    box = st.expander(
        "Choose other images" if chosen else "Choose images",
        expanded=not chosen,
        icon=":material/add_photo_alternate:",
        key=f"source-{chosen}",
        on_change="rerun",
    )
    if not box.open:
        # A closed box walks no folders and takes no uploads.
        return
    with box:
        offer_data()
        try:
            _draw_source()
        except FinetuneError as error:
            # The earlier choice stays.
            st.error(escape_markdown(str(error)), icon=":material/error:")


def _draw_source() -> None:
    """Draw the choice among a local folder, an upload, a public data set, and a camera.

    Raises:
        FinetuneError: if the chosen data cannot be used.
    """
    st.segmented_control(
        "Images",
        list(_SOURCES),
        format_func=_SOURCES.__getitem__,
        default="folder",
        required=True,
        key="data_source",
        persist_state="session",
        label_visibility="collapsed",
    )
    {"folder": _draw_folder, "upload": _draw_upload, "public": _draw_public, "camera": record}[
        st.session_state["data_source"]
    ]()


def _choose(data: Path) -> NoReturn:
    """Choose the data set that was just found, and redraw the page with it."""
    choose_data(str(data))
    st.rerun()


def _draw_folder() -> None:
    if st.session_state.pop("data_named", False):
        st.session_state["data_folder"] = ""
    text = st.text_input(
        "Folder, archive or manifest",
        key="data_folder",
        persist_state="session",
        placeholder="~/pictures",
        help=f"{FOLDERS} Or a .zip or .tar of that; or a .csv or .parquet table with the columns "
        "path and label, and, if you like, split and group.",
    ).strip()
    if not text:
        choose_folder(_choose)
        return
    path = resolve_path(text)
    check_access(path)
    if is_archive(path.name) and path.is_file():
        archive = path
        path = wait_for_whole(
            f"import:{path}:{path.stat().st_mtime_ns}",
            "Unpacking",
            lambda: import_archive(archive, archive.name),
        )
        remember_source(path, owner())
    elif not is_data(path):
        raise DataError(f"There is no folder, archive or manifest {path}.")
    st.session_state["data_named"] = True
    _choose(path)


def _draw_upload() -> None:
    kind = st.segmented_control(
        "What to upload",
        list(_KINDS),
        format_func=_KINDS.__getitem__,
        default="archive",
        required=True,
        key="upload_kind",
        persist_state="session",
    )
    if kind == "archive":
        upload = st.file_uploader(
            "A ZIP or TAR with your images", type=list(ARCHIVE_SUFFIXES), help=FOLDERS
        )
        if upload is not None:
            _import_once(
                f"import:{upload.file_id}", lambda: import_archive(upload, upload.name), "Unpacking"
            )
    else:
        files = st.file_uploader(
            "A folder with your images",
            accept_multiple_files="directory",
            type=sorted(EXTENSIONS),
            help=FOLDERS,
        )
        if files:
            name = files[0].name.replace("\\", "/").split("/")[0]
            named_files = [(file.name, file) for file in files]
            key = "import:" + ",".join(file.file_id for file in files)
            _import_once(key, lambda: import_files(named_files, name, len(named_files)), "Storing")
    _draw_previous_uploads()


def _draw_previous_uploads() -> None:
    """Draw the earlier uploads in the app's own folder.

    On a server with sign-in, each person has their own uploads among the recent data sets instead.
    """
    uploads = {
        str(folder): folder.name
        for folder in list_imported_folders()
        if folder.name not in (SAMPLE_NAME, CAMERA) and folder.name not in PUBLIC_SETS
    }
    if not uploads or is_sign_in_required():
        return

    def choose_again() -> None:
        if path := st.session_state["uploaded_before"]:
            attempt_change(lambda: choose_data(path))

    st.selectbox(
        "Previous uploads",
        list(uploads),
        index=None,
        format_func=uploads.__getitem__,
        placeholder="Choose one",
        key="uploaded_before",
        on_change=choose_again,
    )


def _draw_public() -> None:
    names = list(PUBLIC_SETS)
    name = st.selectbox(
        "Public data set",
        names,
        format_func=lambda public_set: PUBLIC_SETS[public_set].title,
        key="public_name",
        persist_state="session",
    )
    public_set = PUBLIC_SETS[name]
    st.markdown(
        f"{escape_markdown(public_set.about)} {format_number(public_set.images)} images, "
        f"{format_number(public_set.classes)} classes. [Source]({public_set.source}). **Licence:** "
        f"{escape_markdown(public_set.licence)}"
    )
    key = f"fetch:{name}"
    if is_fetched(name):
        if st.button("Use it", icon=":material/check:", key="use-public"):
            _choose(public_set_folder(name))
    else:
        text = (
            f"Download ({format_bytes(public_set.download_bytes)}, "
            f"{format_bytes(public_set.disk_bytes)} on the disk)"
        )
        download = (key, public_set.title, partial(fetch_public, name))
        st.button(
            text, icon=":material/download:", on_click=begin, args=download, kwargs={"kept": False}
        )
    if take_outcome(key):
        forget(key)
        _choose(public_set_folder(name))


def _import_once(key: str, make: Callable[[], Work[Path]], text: str) -> None:
    """Import an upload and choose it, once per session.

    The browser's widget hands the same upload over at every rerun.

    Args:
        key: key of the job.
        make: makes the work of importing.
        text: text of the progress bar.

    Raises:
        DataError: if the import was stopped.
    """
    imported = st.session_state.setdefault("imported", set())
    if key not in imported:
        folder = wait_for_whole(key, text, make)
        remember_source(folder, owner())
        imported.add(key)
        _choose(folder)

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
from finetune_core.data.public import PUBLIC_SETS, fetch_public, is_fetched, public_folder
from finetune_core.data.recent import remember
from finetune_core.data.sample import SAMPLE_NAME
from finetune_core.data.sources import imported_folders, whole_path
from finetune_core.errors import DataError, FinetuneError
from finetune_core.formatting import number, size
from finetune_core.work import Work
from pages.shared.account import owner, sign_in_asked
from pages.shared.chrome import plain
from pages.shared.data.browse import choose_folder
from pages.shared.data.chosen import check_open, choose_data, data_folder, offer_data
from pages.shared.data.datasets import answered
from pages.shared.data.recording import record
from pages.shared.jobs import begin, forget, outcome, wait_for_whole

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
            _ways()
        except FinetuneError as error:
            # The earlier choice stays.
            st.error(plain(str(error)), icon=":material/error:")


def _ways() -> None:
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
    {"folder": _folder, "upload": _upload, "public": _public, "camera": record}[
        st.session_state["data_source"]
    ]()


def _chosen(data: Path) -> NoReturn:
    """Choose the data set that was just found, and redraw the page with it."""
    choose_data(str(data))
    st.rerun()


def _folder() -> None:
    if st.session_state.pop("data_named", False):
        st.session_state["data_folder"] = ""
    named = st.text_input(
        "Folder, archive or manifest",
        key="data_folder",
        persist_state="session",
        placeholder="~/pictures",
        help=f"{FOLDERS} Or a .zip or .tar of that; or a .csv or .parquet table with the columns "
        "path and label, and, if you like, split and group.",
    ).strip()
    if not named:
        choose_folder(_chosen)
        return
    path = whole_path(named)
    check_open(path)
    if is_archive(path.name) and path.is_file():
        packed = path
        path = wait_for_whole(
            f"import:{path}:{path.stat().st_mtime_ns}",
            "Unpacking",
            lambda: import_archive(packed, packed.name),
        )
        remember(path, owner())
    elif not is_data(path):
        raise DataError(f"There is no folder, archive or manifest {path}.")
    st.session_state["data_named"] = True
    _chosen(path)


def _upload() -> None:
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
        given = st.file_uploader(
            "A ZIP or TAR with your images", type=list(ARCHIVE_SUFFIXES), help=FOLDERS
        )
        if given is not None:
            _once(f"import:{given.file_id}", lambda: import_archive(given, given.name), "Unpacking")
    else:
        files = st.file_uploader(
            "A folder with your images",
            accept_multiple_files="directory",
            type=sorted(EXTENSIONS),
            help=FOLDERS,
        )
        if files:
            name = files[0].name.replace("\\", "/").split("/")[0]
            named = [(file.name, file) for file in files]
            key = "import:" + ",".join(file.file_id for file in files)
            _once(key, lambda: import_files(named, name, len(named)), "Storing")
    _uploaded_before()


def _uploaded_before() -> None:
    """Draw the earlier uploads in the app's own folder.

    On a server with sign-in, each person has their own uploads among the recent data sets instead.
    """
    before = {
        str(folder): folder.name
        for folder in imported_folders()
        if folder.name not in (SAMPLE_NAME, CAMERA) and folder.name not in PUBLIC_SETS
    }
    if not before or sign_in_asked():
        return

    def chosen() -> None:
        if again := st.session_state["uploaded_before"]:
            answered(lambda: choose_data(again))

    st.selectbox(
        "Previous uploads",
        list(before),
        index=None,
        format_func=before.__getitem__,
        placeholder="Choose one",
        key="uploaded_before",
        on_change=chosen,
    )


def _public() -> None:
    names = list(PUBLIC_SETS)
    name = st.selectbox(
        "Public data set",
        names,
        format_func=lambda one: PUBLIC_SETS[one].title,
        key="public_name",
        persist_state="session",
    )
    one = PUBLIC_SETS[name]
    st.markdown(
        f"{plain(one.about)} {number(one.images)} images, {number(one.classes)} classes. "
        f"[Source]({one.source}). **Licence:** {plain(one.licence)}"
    )
    key = f"fetch:{name}"
    if is_fetched(name):
        if st.button("Use it", icon=":material/check:", key="use-public"):
            _chosen(public_folder(name))
    else:
        words = f"Download ({size(one.download_bytes)}, {size(one.disk_bytes)} on the disk)"
        download = (key, one.title, partial(fetch_public, name))
        st.button(
            words, icon=":material/download:", on_click=begin, args=download, kwargs={"kept": False}
        )
    if outcome(key):
        forget(key)
        _chosen(public_folder(name))


def _once(key: str, make: Callable[[], Work[Path]], words: str) -> None:
    """Import an upload and choose it, once per session.

    The browser's widget hands the same upload over at every rerun.

    Args:
        key: key of the job.
        make: makes the work of importing.
        words: text of the progress bar.

    Raises:
        DataError: if the import was stopped.
    """
    made = st.session_state.setdefault("imported", set())
    if key not in made:
        folder = wait_for_whole(key, words, make)
        remember(folder, owner())
        made.add(key)
        _chosen(folder)

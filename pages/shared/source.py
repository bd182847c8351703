"""Where the images come from: the sample, a folder of the server, an upload, or a public set."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import streamlit as st

from finetune_core.data.archives import ARCHIVE_SUFFIXES, import_archive, import_files, is_archive
from finetune_core.data.decode import EXTENSIONS
from finetune_core.data.public import PUBLIC_SETS, fetch_public, is_fetched, public_folder
from finetune_core.data.sample import SAMPLE_NAME
from finetune_core.data.sources import check_roots, imported_folders, whole_path
from finetune_core.errors import DataError, FinetuneError
from finetune_core.jobs import Work
from finetune_core.words import number, size
from pages.shared.chrome import plain
from pages.shared.jobs import begin, forget, outcome, wait_for
from pages.shared.state import readable_roots

_SOURCES = {SAMPLE_NAME: "Sample: handwritten digits", "folder": "On the server", "upload": "Upload", "public": "Public sets"}
_KINDS = {"archive": "A ZIP or TAR", "directory": "A folder"}
FOLDERS = "One subfolder of images for each class; or train/ and val/ (and test/, if you like) with such subfolders."


def choose_source() -> None:
    """Draw the choice; the chosen folder is in the session's state (``state.data_folder``).

    Raises:
        FinetuneError: when what was chosen cannot be had.
    """
    st.segmented_control(
        "Images",
        list(_SOURCES),
        format_func=_SOURCES.get,
        default=SAMPLE_NAME,
        required=True,
        key="data_source",
        persist_state="session",
    )
    draw = {"folder": _folder, "upload": _upload, "public": _public}.get(st.session_state["data_source"])
    if draw:
        draw()


def _folder() -> None:
    st.text_input(
        "Folder, archive or manifest",
        key="data_folder",
        persist_state="session",
        placeholder="~/pictures",
        help=f"{FOLDERS} Or a .zip or .tar of that; or a .csv or .parquet table with the columns path and label, and, if you like, "
        "split and group.",
    )
    named = st.session_state["data_folder"].strip()
    if not named:
        return
    path = whole_path(named)
    if is_archive(named) and path.is_file():
        check_roots(path, readable_roots())
        packed = path
        path = _once(f"import:{path}:{path.stat().st_mtime_ns}", lambda: import_archive(packed, packed.name), "Unpacking")
        st.session_state["data_unpacked"] = {named: str(path)}


def _upload() -> None:
    kind = st.segmented_control("What to upload", list(_KINDS), format_func=_KINDS.get, default="archive", required=True)
    if kind == "archive":
        given = st.file_uploader("A ZIP or TAR with your images", type=list(ARCHIVE_SUFFIXES), help=FOLDERS)
        if given is not None:
            st.session_state["data_upload"] = str(
                _once(f"import:{given.file_id}", lambda: import_archive(given, given.name), "Unpacking")
            )
    else:
        files = st.file_uploader(
            "A folder with your images", accept_multiple_files="directory", type=sorted(EXTENSIONS), help=FOLDERS
        )
        if files:
            name = files[0].name.replace("\\", "/").split("/")[0]
            key = "import:" + ",".join(file.file_id for file in files)
            given = [(file.name, file) for file in files]
            st.session_state["data_upload"] = str(_once(key, lambda: import_files(given, name, len(given)), "Storing"))
    before = {
        str(folder): folder.name
        for folder in imported_folders()
        if folder.name != SAMPLE_NAME and folder.name not in PUBLIC_SETS
    }
    if before:
        current = st.session_state.get("data_upload")
        at = list(before).index(current) if current in before else None
        st.session_state["data_upload"] = st.selectbox(
            "Uploaded before", list(before), index=at, format_func=before.get, placeholder="Choose one", key=f"before-{current}"
        )


def _public() -> None:
    names = list(PUBLIC_SETS)
    name = st.selectbox(
        "Public set", names, format_func=lambda one: PUBLIC_SETS[one].title, key="public_name", persist_state="session"
    )
    one = PUBLIC_SETS[name]
    st.markdown(
        f"{plain(one.about)} {number(one.images)} images, {number(one.classes)} classes. [Its page]({one.source}). "
        f"**Licence:** {plain(one.licence)}"
    )
    fetched = is_fetched(name)
    st.session_state["data_public"] = str(public_folder(name)) if fetched else ""
    key = f"fetch:{name}"
    if not fetched:
        words = f"Download ({size(one.download_bytes)}, {size(one.disk_bytes)} on the disk)"
        download = (key, one.title, partial(fetch_public, name))
        st.button(words, icon=":material/download:", on_click=begin, args=download, kwargs={"kept": False})
    outcome(key)


def _once(key: str, make: Callable[[], Work], words: str) -> Path:
    """What was made of an upload, made once a session: the browser's widget hands the same one over at every rerun.

    Raises:
        DataError: when it was stopped.
    """
    made: dict[str, Path] = st.session_state.setdefault("imported", {})
    if key in made and made[key].is_dir():
        return made[key]
    folder = wait_for(key, words, make, kept=False)
    if folder is None:
        st.button("Try again", icon=":material/replay:", on_click=forget, args=(key,))
        raise DataError(f"{words} was stopped; nothing of it was kept.")
    made[key] = folder
    return folder


def chosen_or_stop() -> None:
    """Draw the choice; end the page in words where it cannot be used."""
    try:
        choose_source()
    except FinetuneError as error:
        st.error(plain(str(error)), icon=":material/error:")
        st.stop()

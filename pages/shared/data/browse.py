"""Folder browser: from the readable folders down to the one with the images."""

from collections.abc import Callable
from pathlib import Path

import streamlit as st

from finetune_core import paths
from finetune_core.data.browse import FolderView, Subfolder, view_folder
from finetune_core.data.listing import is_within
from finetune_core.errors import DataError
from finetune_core.formatting import number, things
from pages.shared.account import sign_in_asked
from pages.shared.chrome import plain
from pages.shared.data.chosen import readable_roots

_KEPT = 20  # seconds: each click redraws the page


def choose_folder(take: Callable[[Path], None]) -> None:
    """Draw the folder that is open, the way up, and the way down.

    On a server with sign-in, the app's own folder is left out, because it holds the uploads of all
    users.

    Args:
        take: called with the folder that is chosen.

    Raises:
        DataError: if the open folder cannot be read any more.
    """
    hidden = (paths.data_dir(),) if sign_in_asked() else ()
    roots = tuple(
        root for root in readable_roots() if root.is_dir() and not is_within(root, hidden)
    )
    if not roots:
        return
    with st.container(border=True, key="folder-browser"):
        # The app's own folder comes first.
        st.session_state.setdefault("browse_at", str(roots[-1]))
        try:
            here = _viewed(st.session_state["browse_at"], roots, hidden)
        except DataError:
            st.session_state["browse_at"] = str(roots[-1])
            raise
        _head(here, roots, take)
        if here.subfolders:
            _way_down(here)


def _head(here: FolderView, roots: tuple[Path, ...], take: Callable[[Path], None]) -> None:
    others = [root for root in roots if root != here.path]
    with st.container(horizontal=True, vertical_alignment="center"):
        up, at = here.up, str(here.path)
        st.button(
            "Up",
            icon=":material/arrow_upward:",
            key="browse-up",
            disabled=up is None,
            on_click=_go,
            args=(str(up),),
        )
        st.markdown(
            f":material/folder_open: **{plain(at)}** · {things(here.images, 'image')}, "
            f"{things(len(here.subfolders), 'subfolder')}",
            width="stretch",
        )
        for root in others if up is None else []:
            st.button(
                plain(str(root)),
                icon=":material/folder:",
                key=f"browse-root-{root}",
                on_click=_go,
                args=(str(root),),
            )
        if st.button(
            "Use this folder",
            icon=":material/check:",
            key="browse-take",
            disabled=not (here.images or here.subfolders),
        ):
            take(here.path)


def _way_down(here: FolderView) -> None:
    below = {str(one.path): one for one in here.subfolders}
    key = f"browse-down-{here.path}"

    def down() -> None:
        if chosen := st.session_state[key]:
            _go(chosen)

    st.selectbox(
        "Open a subfolder",
        list(below),
        index=None,
        format_func=lambda path: _in_words(below[path]),
        placeholder="Open a subfolder",
        label_visibility="collapsed",
        filter_mode="contains",
        key=key,
        on_change=down,
    )


def _in_words(one: Subfolder) -> str:
    if one.counted:
        return f"{one.name} · {things(one.images, 'image')}"
    return f"{one.name} · at least {number(one.images)} images" if one.images else one.name


def _go(folder: str) -> None:
    st.session_state["browse_at"] = folder


@st.cache_data(ttl=_KEPT, max_entries=100, show_spinner=False)
def _viewed(folder: str, roots: tuple[Path, ...], hidden: tuple[Path, ...]) -> FolderView:
    return view_folder(Path(folder), roots, hidden)

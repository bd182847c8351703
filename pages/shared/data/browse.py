"""Folder browser: from the readable folders down to the one with the images."""

from collections.abc import Callable
from pathlib import Path

import streamlit as st

from finetune_core import paths
from finetune_core.data.browse import FolderView, Subfolder, view_folder
from finetune_core.data.listing import is_within
from finetune_core.errors import DataError
from finetune_core.formatting import format_number, pluralize
from pages.shared.account import is_sign_in_required
from pages.shared.chrome import escape_markdown
from pages.shared.data.chosen import readable_roots

_CACHE_SECONDS = 20  # seconds: each click redraws the page


def choose_folder(on_choice: Callable[[Path], None]) -> None:
    """Draw the folder that is open, the way up, and the way down.

    On a server with sign-in, the app's own folder is left out, because it holds the uploads of all
    users.

    Args:
        on_choice: called with the folder that is chosen.

    Raises:
        DataError: if the open folder cannot be read any more.
    """
    hidden = (paths.data_dir(),) if is_sign_in_required() else ()
    roots = tuple(
        root for root in readable_roots() if root.is_dir() and not is_within(root, hidden)
    )
    if not roots:
        return
    with st.container(border=True, key="folder-browser"):
        # The app's own folder comes first.
        st.session_state.setdefault("browse_at", str(roots[-1]))
        try:
            view = _view_folder(st.session_state["browse_at"], roots, hidden)
        except DataError:
            st.session_state["browse_at"] = str(roots[-1])
            raise
        _draw_head(view, roots, on_choice)
        if view.subfolders:
            _draw_subfolders(view)


def _draw_head(
    view: FolderView, roots: tuple[Path, ...], on_choice: Callable[[Path], None]
) -> None:
    other_roots = [root for root in roots if root != view.path]
    with st.container(horizontal=True, vertical_alignment="center"):
        up, path = view.up, str(view.path)
        st.button(
            "Up",
            icon=":material/arrow_upward:",
            key="browse-up",
            disabled=up is None,
            on_click=_open_folder,
            args=(str(up),),
        )
        st.markdown(
            f":material/folder_open: **{escape_markdown(path)}** · "
            f"{pluralize(view.images, 'image')}, {pluralize(len(view.subfolders), 'subfolder')}",
            width="stretch",
        )
        for root in other_roots if up is None else []:
            st.button(
                escape_markdown(str(root)),
                icon=":material/folder:",
                key=f"browse-root-{root}",
                on_click=_open_folder,
                args=(str(root),),
            )
        if st.button(
            "Use this folder",
            icon=":material/check:",
            key="browse-take",
            disabled=not (view.images or view.subfolders),
        ):
            on_choice(view.path)


def _draw_subfolders(view: FolderView) -> None:
    subfolders = {str(one.path): one for one in view.subfolders}
    key = f"browse-down-{view.path}"

    def open_chosen() -> None:
        if chosen := st.session_state[key]:
            _open_folder(chosen)

    st.selectbox(
        "Open a subfolder",
        list(subfolders),
        index=None,
        format_func=lambda path: _describe_subfolder(subfolders[path]),
        placeholder="Open a subfolder",
        label_visibility="collapsed",
        filter_mode="contains",
        key=key,
        on_change=open_chosen,
    )


def _describe_subfolder(subfolder: Subfolder) -> str:
    if subfolder.counted:
        return f"{subfolder.name} · {pluralize(subfolder.images, 'image')}"
    return (
        f"{subfolder.name} · at least {format_number(subfolder.images)} images"
        if subfolder.images
        else subfolder.name
    )


def _open_folder(folder: str) -> None:
    st.session_state["browse_at"] = folder


@st.cache_data(ttl=_CACHE_SECONDS, max_entries=100, show_spinner=False)
def _view_folder(folder: str, roots: tuple[Path, ...], hidden: tuple[Path, ...]) -> FolderView:
    return view_folder(Path(folder), roots, hidden)

"""Data set of this session: an id in the address that stands for a folder or manifest."""

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from finetune_core.data.recent import (
    Source,
    check_private,
    data_id,
    list_recent_sources,
    remember_source,
    resolve_source,
)
from finetune_core.data.sample import SAMPLE_NAME
from finetune_core.data.sources import check_roots, list_data_roots
from finetune_core.errors import DataError
from pages.shared.account import is_sign_in_required, owner
from pages.shared.chrome import escape_markdown, go

MOST_RECENT = 5


def readable_roots() -> tuple[Path, ...]:
    """Return the folders that this server may read.

    The home folder of the server's owner is among them only on a server without sign-in.
    """
    return list_data_roots(home_too=not is_sign_in_required())


def check_access(path: str | Path) -> None:
    """Check that this session's person may open a path, by any way of naming it.

    Raises:
        DataError: if the path lies outside the readable folders, or another person has brought it.
    """
    check_roots(path, readable_roots())
    if is_sign_in_required():
        check_private(path, owner())


def get_chosen_data() -> str:
    """Return the folder or manifest that is chosen; empty if none is.

    Raises:
        DataError: if the data set is not known, or may not be read.
    """
    chosen_id = st.session_state.get("data_id")
    if not chosen_id:
        return ""
    # The path is kept beside its id, so that it is there even if nothing can be written to disk.
    cached = st.session_state.get("data_path")
    path = cached[1] if cached and cached[0] == chosen_id else resolve_source(chosen_id)
    check_access(path)
    st.session_state["data_path"] = (chosen_id, path)
    return path


def data_folder() -> str:
    """Return ``get_chosen_data``, or an empty string if it is unusable: then the page says why."""
    try:
        return get_chosen_data()
    except DataError:
        return ""


def choose_data(data: str) -> None:
    """Choose a folder or manifest, which may be opened from then on under its id.

    Raises:
        DataError: if it may not be read.
    """
    check_access(data)
    st.session_state["data_id"] = remember_source(data, owner())
    st.session_state["data_path"] = (st.session_state["data_id"], data)


def choose_id(chosen_id: str) -> None:
    """Choose a known data set (a callback)."""
    st.session_state["data_id"] = chosen_id


def make_data_key(name: str) -> str:
    """Return the key of a session value that each data set has separately."""
    return f"{name}-{st.session_state.get('data_id', '')}"


def data_name(data: str) -> str:
    """Return the name of a data set in words."""
    return "the sample of handwritten digits" if data_id(data) == SAMPLE_NAME else data


def recent_data() -> Sequence[Source]:
    """Return the data sets opened lately; on a server with sign-in, those opened by this person."""
    return list_recent_sources(
        readable_roots(), MOST_RECENT, owner() if is_sign_in_required() else None
    )


def offer_data() -> None:
    """Offer recent data sets and the sample."""
    draw_recent(recent_data())
    with st.container(horizontal=True):
        st.button(
            "Use the sample",
            icon=":material/bolt:",
            key="use-sample",
            on_click=choose_id,
            args=(SAMPLE_NAME,),
            help="1,797 real handwritten digits in ten classes (UCI, as in scikit-learn).",
        )


def draw_recent(sources: Sequence[Source], *, lead_to: str | None = None) -> None:
    """Draw one line per data set, each with a button that opens it.

    Args:
        sources: the data sets.
        lead_to: page that the button leads to.
    """
    for source in sources:
        path = Path(source.path)
        with st.container(
            horizontal=True,
            vertical_alignment="center",
            border=True,
            key=f"recent-{source.data_id}",
        ):
            st.markdown(
                f":material/photo_library: **{escape_markdown(path.name)}** · "
                f"{escape_markdown(str(path.parent))}",
                width="stretch",
            )
            pressed = st.button(
                "Open", key=f"open-{source.data_id}", on_click=choose_id, args=(source.data_id,)
            )
        if pressed and lead_to:
            go(lead_to)

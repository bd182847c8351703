"""The data set that this session has chosen: an id in the address, which stands for a folder or manifest."""

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from finetune_core.data.recent import (
    Source,
    check_private,
    data_id,
    recent_sources,
    remember,
    source_of,
)
from finetune_core.data.sample import SAMPLE_NAME
from finetune_core.data.sources import check_roots, data_roots
from finetune_core.errors import DataError
from pages.shared.account import owner, sign_in_asked
from pages.shared.chrome import go, plain

MOST_RECENT = 5


def readable_roots() -> tuple[Path, ...]:
    """The folders that this server may read; its owner's home only where nobody has to sign in."""
    return data_roots(home_too=not sign_in_asked())


def check_open(path: str | Path) -> None:
    """Refuse what this session's person may not open, by whichever way it was named.

    Raises:
        DataError: when it lies outside the readable folders, or is what another person has brought.
    """
    check_roots(path, readable_roots())
    if sign_in_asked():
        check_private(path, owner())


def chosen_data() -> str:
    """The folder or manifest that is chosen; empty where none is.

    Raises:
        DataError: when it is not known, or may not be read.
    """
    wanted = st.session_state.get("data_id")
    if not wanted:
        return ""
    held = st.session_state.get("data_path")  # beside its id: also where nothing can be written
    path = held[1] if held and held[0] == wanted else source_of(wanted)
    check_open(path)
    st.session_state["data_path"] = (wanted, path)
    return path


def data_folder() -> str:
    """``chosen_data``, or an empty string where it cannot be used: the page says why."""
    try:
        return chosen_data()
    except DataError:
        return ""


def choose_data(data: str) -> None:
    """Choose a folder or manifest, which may be looked at from then on under its id.

    Raises:
        DataError: when it may not be read.
    """
    check_open(data)
    st.session_state["data_id"] = remember(data, owner())
    st.session_state["data_path"] = (st.session_state["data_id"], data)


def choose_id(wanted: str) -> None:
    """Choose a data set that is known (a callback)."""
    st.session_state["data_id"] = wanted


def key_for_data(name: str) -> str:
    """The key of something that this session has for each data set apart: what is chosen in one says nothing of another."""
    return f"{name}-{st.session_state.get('data_id', '')}"


def data_name(data: str) -> str:
    """A data set as a person would call it."""
    return "the sample of handwritten digits" if data_id(data) == SAMPLE_NAME else data


def recent_data() -> Sequence[Source]:
    """The data sets opened lately; where people sign in, by this person."""
    return recent_sources(readable_roots(), MOST_RECENT, owner() if sign_in_asked() else None)


def offer_data() -> None:
    """Recent data sets, and the sample, to be chosen."""
    recent_list(recent_data())
    with st.container(horizontal=True):
        st.button(
            "Use the sample",
            icon=":material/bolt:",
            key="use-sample",
            on_click=choose_id,
            args=(SAMPLE_NAME,),
            help="1,797 real handwritten digits in ten classes (UCI, as in scikit-learn).",
        )


def recent_list(sources: Sequence[Source], *, lead_to: str | None = None) -> None:
    """One line per data set, each with a button to open it.

    Args:
        lead_to: the page that opens.
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
                f":material/photo_library: **{plain(path.name)}** · {plain(str(path.parent))}",
                width="stretch",
            )
            pressed = st.button(
                "Open", key=f"open-{source.data_id}", on_click=choose_id, args=(source.data_id,)
            )
        if pressed and lead_to:
            go(lead_to)

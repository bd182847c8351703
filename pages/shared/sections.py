"""Folded sections of a page. The content of a section is computed once it is open."""

from collections.abc import Callable
from typing import TypeVar

import streamlit as st

T = TypeVar("T")


def draw_section(label: str, key: str, icon: str, draw: Callable[[], T]) -> T | None:
    """Draw a folded section.

    Args:
        label: title of the section.
        key: names the section's state in the session and, while it is open, in the page's address.
        icon: icon of the title.
        draw: draws the content. Called only while the section is open.

    Returns:
        The result of ``draw``; None while the section is folded.
    """
    open_keys: set[str] = st.session_state.setdefault("open_sections", set())
    # Streamlit drops a widget's state with its page: restore it when the page is opened again.
    if key in open_keys and key not in st.session_state and key not in st.query_params:
        st.session_state[key] = True
    box = st.expander(label, icon=icon, key=key, bind="query-params")
    (open_keys.add if box.open else open_keys.discard)(key)
    if not box.open:
        return None
    with box:
        return draw()

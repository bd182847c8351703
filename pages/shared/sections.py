"""Folded sections of a page, whose content is computed once they are open."""

from collections.abc import Callable
from typing import TypeVar

import streamlit as st

T = TypeVar("T")


def section(label: str, key: str, icon: str, draw: Callable[[], T]) -> T | None:
    """Draw a folded section.

    Args:
        key: names its state in the session and, while it is open, in the page's address.
        draw: draws the content; called only while the section is open.

    Returns:
        The result of ``draw``; None while the section is folded.
    """
    kept: set[str] = st.session_state.setdefault("open_sections", set())
    # The state of a widget ends with its page: this brings it back when the page is opened again.
    if key in kept and key not in st.session_state and key not in st.query_params:
        st.session_state[key] = True
    box = st.expander(label, icon=icon, key=key, bind="query-params")
    (kept.add if box.open else kept.discard)(key)
    if not box.open:
        return None
    with box:
        return draw()

"""Data set that the form was filled in for. Settings do not silently follow to another one."""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from finetune_core.config import all_settings
from pages.shared.chrome import escape_markdown
from pages.shared.configure import settings
from pages.shared.data.chosen import data_name

_DATA = "settings_for"


def warn_of_other_data(data: str | None) -> None:
    """Say that the form was filled in for another data set, and offer the defaults.

    Args:
        data: folder of the current data set; None if none can be read.
    """
    previous = st.session_state.get(_DATA)
    changed = settings.list_changed()
    if data is None:
        return
    if previous in (None, data) or not changed:
        st.session_state[_DATA] = data
        return
    names = ", ".join(all_settings()[name].label.lower() for name in changed)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(
            f":material/history: Filled in for **{escape_markdown(data_name(previous))}**: "
            f"{escape_markdown(names)}.",
            width="content",
        )
        st.button(
            "Use defaults",
            type="tertiary",
            icon=":material/restart_alt:",
            key="settings-default",
            on_click=settings.use_defaults,
        )
        st.button(
            "Keep",
            type="tertiary",
            icon=":material/check:",
            key="settings-keep",
            on_click=_keep,
            args=(data,),
        )


def set_fields_for(data: str, values: Mapping[str, Any]) -> None:
    """Set some of the form's fields for a data set (a callback)."""
    if not settings.list_changed():
        _keep(data)
    settings.set_fields(values)


def _keep(data: str) -> None:
    st.session_state[_DATA] = data

"""Parameters of every page's address: the chosen data set, and the settings of the next run."""

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from finetune_core.errors import ConfigError
from pages.shared.configure import COMPARISON_PREFIX, FIELD_PREFIX

_MOST = 100  # characters of an id


def sync_address() -> None:
    """Synchronize this session with the page's address.

    The address wins when a page is opened or reloaded, and when the browser goes back or forth.
    Otherwise the session wins, because the browser may lag behind the latest choice.
    """
    context = get_script_run_ctx()
    state = st.session_state
    if "address_read" not in state or getattr(context, "is_history_navigation", False):
        state["address_read"] = True
        if requested := st.query_params.get("data"):
            state["data_id"] = requested[:_MOST]
        if (requested := st.query_params.get("settings")) and requested != state.get("settings_id"):
            state["settings_problem"] = _restore_settings(requested[:_MOST])
    state["settings_id"] = _save_settings()
    parameters = link_parameters()
    if any(st.query_params.get(name) != value for name, value in parameters.items()):
        st.query_params.update(parameters)
    if "settings" in st.query_params and "settings" not in parameters:
        del st.query_params["settings"]


def link_parameters() -> dict[str, str]:
    """Return the query parameters that every link to a page takes along."""
    parameters = {
        "data": st.session_state.get("data_id"),
        "settings": st.session_state.get("settings_id"),
    }
    return {name: value for name, value in parameters.items() if value}


def get_settings_problem() -> str:
    """Return why the settings in the address were rejected; empty once settings are chosen."""
    return (
        "" if st.session_state.get("settings_id") else st.session_state.get("settings_problem", "")
    )


def _save_settings() -> str:
    """Save the settings of this session.

    Returns:
        The id of the saved settings; empty if nothing is set yet.
    """
    if not any(
        str(name).startswith((FIELD_PREFIX, COMPARISON_PREFIX)) for name in st.session_state
    ):
        return ""
    # Importing it imports torch, which takes seconds on a new server.
    from pages.shared.configure import settings

    return settings.save()


def _restore_settings(settings_id: str) -> str:
    """Restore saved settings; return a problem in words, or an empty string."""
    from pages.shared.configure import settings

    try:
        settings.restore(settings_id)
    except ConfigError as error:
        return (
            f"The settings in this address cannot be used: {'; '.join(error.problems.values())}. "
            "These are the defaults."
        )
    return ""

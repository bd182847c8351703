"""The box that chooses a run; the choice is in the page's address."""

from collections.abc import Sequence
from datetime import datetime

import streamlit as st

from finetune_core.runs.store import Damaged, Run
from finetune_core.training.strategies import STRATEGIES
from pages.shared.chrome import plain


def run_label(run: Run) -> str:
    """A run in a list: when, what, and the end of its name. Not how it stands: a browser says what it has chosen by its label, and one
    that lags behind would choose something that is no longer there."""
    return f"{run_title(run)} · {run.run_id[-4:]}"


def run_title(run: Run) -> str:
    """Its name, when, and what."""
    try:
        when = f"{datetime.strptime(run.run_id[:15], '%Y%m%d-%H%M%S'):%d %b %H:%M}"
    except ValueError:  # a folder that was renamed
        when = run.run_id
    named = f"{run.name} · " if run.name else ""
    return f"{named}{when} · {run.config.backbone} · {STRATEGIES[run.config.strategy].title}"


def choose_run(runs: list[Run], damaged: Sequence[Damaged] = (), *, prefer_active: bool = False) -> Run:
    """A box to choose one of ``runs`` (at least one); the choice is in the page's address, and taken to other pages.

    Args:
        damaged: to say so where the address names one of them.
        prefer_active: without an address, show the run that is going on, whatever was looked at elsewhere.
    """
    by_id = {run.run_id: run for run in runs}
    asked = st.query_params.get("run")
    # Always drawn: a click in a fragment is dropped where that is no longer the same element of its page.
    with st.container():
        if asked is not None and asked not in by_id:
            reason = next((f": it is damaged, {one.reason}" for one in damaged if one.run_id == asked), "")
            st.warning(
                plain(f"There is no run {asked} to show here{reason}; this is the latest one instead."),
                icon=":material/link_off:",
            )
    active = next((run.run_id for run in reversed(runs) if run.active), None) if prefer_active else None
    current = asked or active or st.session_state.get("selected_run")
    # The address wins, so that a link, a reload and the back button all show what they say.
    st.session_state["run_box"] = current if current in by_id else runs[0].run_id
    chosen = st.selectbox(
        "Run",
        list(by_id),
        format_func=lambda run_id: run_label(by_id[run_id]),
        key="run_box",
        on_change=_choice_to_address,
        args=(set(by_id),),
        label_visibility="collapsed",
    )
    st.session_state["selected_run"] = chosen
    if asked != chosen:
        st.query_params["run"] = chosen
    return by_id[chosen]


def _choice_to_address(known: set[str]) -> None:
    """A label that has changed since (a run was renamed) is no choice of the person's."""
    if st.session_state["run_box"] in known:
        st.query_params["run"] = st.session_state["run_box"]

"""Boxes that choose one run or several. The choice is in the page's address."""

from collections.abc import Iterable, Sequence

import streamlit as st

from finetune_core.runs.store import DamagedRun, Run
from pages.shared.chrome import escape_markdown
from pages.shared.runs.labels import resolve_run_ids, run_labels


def choose_run(
    runs: list[Run], damaged: Sequence[DamagedRun] = (), *, prefer_active: bool = False
) -> Run:
    """Draw the box that chooses one of ``runs`` (at least one).

    The choice is in the page's address, and is taken along to other pages.

    Args:
        runs: the runs to choose from.
        damaged: damaged runs, to say so if the address names one of them.
        prefer_active: without an address, choose the active run even if another one was chosen
            before.
    """
    by_id = {run.run_id: run for run in runs}
    requested = st.query_params.get("run")
    # Always drawn: a click in a fragment is dropped if the fragment has become another element of
    # its page.
    with st.container():
        if requested is not None and requested not in by_id:
            reason = next(
                (f": it is damaged, {one.reason}" for one in damaged if one.run_id == requested), ""
            )
            st.warning(
                escape_markdown(
                    f"There is no run {requested} to show here{reason}; this is the latest one "
                    "instead."
                ),
                icon=":material/link_off:",
            )
    active = (
        next((run.run_id for run in reversed(runs) if run.is_active), None)
        if prefer_active
        else None
    )
    current = requested or active or st.session_state.get("selected_run")
    # The address wins, so that links, reloads and the back button show what they name.
    st.session_state["run_box"] = current if current in by_id else runs[0].run_id
    labels = run_labels(runs)
    chosen = st.selectbox(
        "Run",
        list(labels),
        format_func=lambda run_id: labels.get(run_id, run_id),
        key="run_box",
        on_change=_write_to_address,
        label_visibility="collapsed",
    )
    st.session_state["selected_run"] = chosen
    if requested != chosen:
        st.query_params["run"] = chosen
    return by_id[chosen]


def choose_runs(
    label: str,
    runs: Iterable[Run],
    parameter: str,
    *,
    chosen: Sequence[str] | None = None,
    most: int | None = None,
    placeholder: str | None = None,
) -> list[Run]:
    """Draw the box that chooses several of ``runs``.

    Args:
        label: text for screen readers.
        runs: the runs to choose from.
        parameter: parameter of the page's address that holds the choice.
        chosen: ids of the initial choice, all among the runs. None: those in the address.
        most: largest number of runs.
        placeholder: text of the empty box.
    """
    by_id, key = {run.run_id: run for run in runs}, f"{parameter}_box"
    if chosen is None:
        chosen = [run_id for run_id in st.query_params.get_all(parameter) if run_id in by_id][:most]
    # The address wins, as for a single run.
    st.session_state[key] = list(chosen)

    def write_to_address() -> None:
        st.query_params[parameter] = resolve_run_ids(st.session_state[key])

    labels = run_labels(by_id.values())
    selected = st.multiselect(
        label,
        list(labels),
        format_func=lambda run_id: labels.get(run_id, run_id),
        max_selections=most,
        key=key,
        on_change=write_to_address,
        placeholder=placeholder,
        label_visibility="collapsed",
        disabled=not by_id,
    )
    return [by_id[run_id] for run_id in selected]


def _write_to_address() -> None:
    for run_id in resolve_run_ids([st.session_state["run_box"]]):
        st.query_params["run"] = run_id

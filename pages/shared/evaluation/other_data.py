"""Evaluation of runs on another data set, and the choice among such evaluations."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import streamlit as st

from finetune_core.data.recent import check_private, remember_source
from finetune_core.data.sources import resolve_path
from finetune_core.errors import FinetuneError
from finetune_core.evaluation.single_run.shift import predict_shifted
from finetune_core.evaluation.single_run.shift_files import read_shift
from finetune_core.runs.store import Run
from finetune_core.work import Work
from pages.shared.account import is_sign_in_required, owner
from pages.shared.chrome import escape_markdown
from pages.shared.data.chosen import readable_roots, recent_data
from pages.shared.jobs import begin, forget, jobs, take_outcome

PARAMETER = "shifted"  # parameter of the page's address: fingerprint of the data set on show
_FIELD = "other_data"
_HELP = (
    "One subfolder of images per class, with or without train/, val/ and test/ above them: all of "
    "its images are predicted. Or a .zip or .tar of that; or a .csv or .parquet table with the "
    "columns path and label. Class names are matched with the run's; changes made to the data set "
    "on the Dataset page count."
)


def draw_other_data(runs: Sequence[Run]) -> None:
    """Draw the box that names another data set, and the button that has the runs predict it.

    ``take_result`` draws the progress and takes the result.
    """
    st.text_input(
        "Other folder, archive or manifest",
        key=_FIELD,
        persist_state="session",
        placeholder="~/other-pictures",
        help=_HELP,
    )
    own_data = {os.path.abspath(run.config.data) for run in runs}
    others = [source.path for source in recent_data() if source.path not in own_data]
    if others:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption("Recent:", width="content")
            for path in others:
                st.button(
                    escape_markdown(Path(path).name),
                    key=f"other-{path}",
                    type="tertiary",
                    help=escape_markdown(path),
                    on_click=_fill_in,
                    args=(path,),
                )
    st.button(
        "Evaluate on these images",
        icon=":material/photo_library:",
        key="evaluate_on_other",
        on_click=_predict_typed,
        args=(runs,),
        disabled=is_predicting(runs),
    )


def begin_prediction(runs: Sequence[Run], data: str) -> None:
    """Have runs predict another data set (a callback).

    Runs that have predicted it as it is now are left out.
    """
    key = f"shift:{data}:{_runs_mark(runs)}"
    st.session_state[_runs_mark(runs)] = key
    begin(
        key,
        "Predicting other images",
        partial(_predict, runs, data, readable_roots(), owner() if is_sign_in_required() else None),
        kept=len(runs) > 1,
    )


def _predict(
    runs: Sequence[Run], data: str, roots: Sequence[Path], person: str | None
) -> Work[str]:
    if person is not None and (path := resolve_path(data)).exists():
        check_private(path, person)
    return (yield from predict_shifted(runs, data, roots))


def is_predicting(runs: Sequence[Run]) -> bool:
    """Return whether these runs are predicting another data set on behalf of this session."""
    return jobs().find(st.session_state.get(_runs_mark(runs), "")) is not None


def take_result(runs: Sequence[Run]) -> None:
    """Draw progress or error of the work that was asked for, or show its data set from now on."""
    mark = _runs_mark(runs)
    with st.container():
        # Always there: otherwise everything below would be drawn anew.
        key = st.session_state.get(mark)
        if not key:
            return
        try:
            fingerprint = take_outcome(key)
            if fingerprint is None:
                return
            remember_source(read_shift(runs[0], fingerprint).data, owner())
        except FinetuneError as error:
            st.error(escape_markdown(str(error)), icon=":material/error:")
            return
        forget(key)
        del st.session_state[mark]
        st.query_params[PARAMETER] = fingerprint


def choose_shift(titles: Mapping[str, str]) -> str:
    """Draw the choice of the shifted data to show. The choice is in the page's address.

    Args:
        titles: title of each shift by its fingerprint; at least one.

    Returns:
        The fingerprint of the chosen shift.
    """
    requested = st.query_params.get(PARAMETER)
    # The address wins, so that links, reloads and the back button show what they name.
    st.session_state["shift_box"] = requested if requested in titles else next(iter(titles))
    chosen = st.selectbox(
        "Shifted data",
        list(titles),
        format_func=titles.__getitem__,
        key="shift_box",
        on_change=_write_to_address,
    )
    if requested != chosen:
        st.query_params[PARAMETER] = chosen
    return chosen


def make_unique(names: Mapping[str, str]) -> dict[str, str]:
    """Make the names of data sets unique.

    Args:
        names: fingerprint -> name.

    Returns:
        Fingerprint -> name. Names that occur several times are followed by a part of the
        fingerprint.
    """
    repeated = [name for name in names.values() if list(names.values()).count(name) > 1]
    return {
        mark: f"{name} ({mark[:6]})" if name in repeated else name for mark, name in names.items()
    }


def _predict_typed(runs: Sequence[Run]) -> None:
    if text := st.session_state[_FIELD].strip():
        begin_prediction(runs, text)


def _fill_in(path: str) -> None:
    st.session_state[_FIELD] = path


def _runs_mark(runs: Sequence[Run]) -> str:
    """Return a mark of these runs, so that work of different runs is kept apart."""
    return f"shift-{','.join(run.run_id for run in runs)}"


def _write_to_address() -> None:
    st.query_params[PARAMETER] = st.session_state["shift_box"]

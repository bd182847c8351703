"""What the whole process shares (runs, worker, indexed folders), and what one session has chosen."""

from datetime import datetime
from pathlib import Path

import streamlit as st

from finetune_core import paths
from finetune_core.config import DEMO_RECIPE, make_config
from finetune_core.data.dataset import Dataset, index_dataset
from finetune_core.data.sample import SAMPLE_NAME, digits_folder
from finetune_core.errors import FinetuneError
from finetune_core.runs.store import Run, RunStore
from finetune_core.runs.worker import Worker
from finetune_core.training.strategies import STRATEGIES
from pages.shared.chrome import go, plain

_MOST_INDEXED = 4
STATUS_WORDS = {
    "queued": ("Waiting for the run before it", "gray", ":material/hourglass_empty:"),
    "running": ("Training", "orange", ":material/local_fire_department:"),
    "finished": ("Finished", "green", ":material/check_circle:"),
    "stopped": ("Stopped", "blue", ":material/stop_circle:"),
    "failed": ("Failed", "red", ":material/error:"),
    "interrupted": ("Interrupted", "violet", ":material/power_off:"),
}


@st.cache_resource(show_spinner=False)
def store() -> RunStore:
    """All runs on disk."""
    return RunStore(paths.runs_dir())


@st.cache_resource(show_spinner=False)
def worker() -> Worker:
    """The process's one worker."""
    return Worker(paths.runs_dir())


@st.cache_resource(show_spinner=False)
def _indexed() -> dict[tuple, Dataset]:
    return {}


def data_folder() -> str:
    """The folder that this session has chosen, or an empty string."""
    if st.session_state.get("data_source") == "folder":
        named = str(st.session_state.get("data_folder", "")).strip()
        return str(Path(named).expanduser().resolve()) if named else ""
    return str(digits_folder()) if st.session_state.get("data_source", SAMPLE_NAME) == SAMPLE_NAME else ""


def indexed_dataset(root: str, val_fraction: float, test_fraction: float, split_seed: int, *, again: bool = False) -> Dataset:
    """The data set in a folder, indexed once a process; a bar shows the reading.

    Raises:
        DataError: when the folder cannot be used.
    """
    key = (root, val_fraction, test_fraction, split_seed)
    if again or key not in _indexed():
        while len(_indexed()) >= _MOST_INDEXED:
            _indexed().pop(next(iter(_indexed())), None)
        _indexed()[key] = with_bar(
            index_dataset(root, val_fraction=val_fraction, test_fraction=test_fraction, split_seed=split_seed),
            "Reading image headers",
        )
    return _indexed()[key]


def with_bar(work, text: str):
    """Drain a generator of (done, total) into a progress bar; its result."""
    bar = st.progress(0.0, text)
    try:
        while True:
            try:
                done, total = next(work)
            except StopIteration as finished:
                return finished.value
            if total < 50 or done % 50 == 0 or done == total:
                bar.progress(done / max(1, total), f"{text}: {done:,} of {total:,}")
    finally:
        bar.empty()


def run_label(run: Run) -> str:
    """A run in a list: when, what, how it stands, and the end of its name."""
    return f"{run_title(run)} · {run.status} · {run.run_id[-4:]}"


def run_title(run: Run) -> str:
    """When, and what."""
    try:
        when = f"{datetime.strptime(run.run_id[:15], '%Y%m%d-%H%M%S'):%d %b %H:%M}"
    except ValueError:  # a folder that was renamed
        when = run.run_id
    return f"{when} · {run.config.backbone} · {STRATEGIES[run.config.strategy].title.lower()}"


def choose_run(runs: list[Run], *, prefer_active: bool = False) -> Run:
    """A box to choose one of ``runs`` (at least one); the choice is in the page's address, and taken to other pages.

    Args:
        prefer_active: without an address, show the run that is going on, whatever was looked at elsewhere.
    """
    by_id = {run.run_id: run for run in runs}
    asked = st.query_params.get("run")
    if asked is not None and asked not in by_id:
        st.warning(f"There is no run {plain(asked)} to show here; this is the latest one instead.", icon=":material/link_off:")
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
        label_visibility="collapsed",
    )
    st.session_state["selected_run"] = chosen
    if asked != chosen:
        st.query_params["run"] = chosen
    return by_id[chosen]


def _choice_to_address() -> None:
    st.query_params["run"] = st.session_state["run_box"]


def nothing_yet(what: str) -> None:
    """An empty page: says what to do first, and offers the sample."""
    st.info(what, icon=":material/info:")
    try_it_now("secondary")


def try_it_now(kind: str = "primary") -> None:
    """The button that trains on the bundled sample, without a question."""
    if st.button("Try it now", type=kind, icon=":material/bolt:", key="try"):
        try:
            with st.spinner("Writing the sample's images"):
                run = start_demo()
        except FinetuneError as error:
            st.error(plain(str(error)))
            return
        go("pages/train.py", run)


def start_demo() -> str:
    """Queue the demo run; returns its id."""
    return worker().submit(make_config(DEMO_RECIPE | {"data": str(digits_folder())}))

"""What the whole process shares (runs, worker, indexed folders), and what one session has chosen."""

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import streamlit as st

from finetune_core import paths
from finetune_core.config import Edit, RunConfig, make_config
from finetune_core.data.dataset import Dataset, Seen, assemble, look_through
from finetune_core.data.edits import add_edits, load_edits, remove_edits
from finetune_core.data.entry import load_split
from finetune_core.data.recent import remember
from finetune_core.data.sample import digits_folder
from finetune_core.errors import DataError, FinetuneError
from finetune_core.export.mlflow import report_to_mlflow
from finetune_core.inspection.deep import DeepReport
from finetune_core.recipes import DEMO_RECIPE
from finetune_core.runs.store import Damaged, Run, RunStore
from finetune_core.runs.worker import Worker
from finetune_core.training.strategies import STRATEGIES
from pages.shared.account import owner
from pages.shared.chosen import chosen_data, data_folder, readable_roots
from pages.shared.chrome import go, plain
from pages.shared.jobs import forget, jobs, wait_for

_MOST_HELD = 4  # data sets
STATUS_WORDS = {
    "queued": ("Queued", "gray", ":material/hourglass_empty:"),
    "waiting": ("Waiting for the device", "gray", ":material/hourglass_empty:"),
    "running": ("Training", "orange", ":material/local_fire_department:"),
    "finished": ("Finished", "green", ":material/check_circle:"),
    "stopped": ("Stopped", "blue", ":material/stop_circle:"),
    "paused": ("Paused", "blue", ":material/pause_circle:"),
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
    return Worker(paths.runs_dir(), readable_roots(), report_to_mlflow)


@st.cache_resource(show_spinner=False)
def _looked_through() -> dict[str, Seen]:
    return {}


@st.cache_resource(show_spinner=False)
def _assembled() -> dict[tuple, Dataset]:
    return {}


@st.cache_resource(show_spinner=False)
def _reports() -> dict[tuple[str, str, int], DeepReport]:
    """Deep inspections of this process by (fingerprint of the data, backbone, image size)."""
    return {}


def current_dataset(settings: dict[str, Any] | None = None, *, again: bool = False) -> Dataset:
    """The data set that this session has chosen, with the changes made to it; looked through once a process, with a bar.

    Args:
        settings: how to split: arguments of ``index_dataset``; as it is kept with the data set when not given.
        again: look for files that were added or changed.

    Raises:
        DataError: when it cannot be used, or may not be read.
    """
    root = chosen_data()
    settings = settings or load_split(root)
    edits = load_edits(root)
    seen = None if again else _looked_through().get(root)
    if seen is None:
        job = f"look:{root}"
        if again:
            forget(job)
        seen = wait_for(job, "Looking at images", partial(look_through, root, readable_roots()))
        if seen is None:
            raise DataError(
                "Looking at these images was stopped; what was seen is kept. Read the folder again to go on (Dataset page)."
            )
        _keep(_looked_through(), root, seen)
        for key in list(_assembled()):
            if key[0] == root:
                _assembled().pop(key, None)
    key = (root, tuple(settings.values()), edits)
    dataset = _assembled().get(key)
    if dataset is None:
        dataset = assemble(root, seen, **settings, edits=edits)
        _keep(_assembled(), key, dataset)
    if st.session_state.get("opened_data") != root:
        st.session_state["opened_data"] = root
        remember(root, owner())
    return dataset


def keep_report(dataset: Dataset, report: DeepReport) -> None:
    """Hold a deep inspection for every session."""
    _keep(_reports(), (dataset.fingerprint, report.backbone, report.image_size), report)


def report_of(dataset: Dataset) -> DeepReport | None:
    """The latest deep inspection of these images, if this process has made one."""
    return next((report for (mark, *_), report in reversed(list(_reports().items())) if mark == dataset.fingerprint), None)


def _keep(held: dict, key: Any, value: Any) -> None:
    """Sessions share these: what another one has taken out meanwhile is no loss."""
    while len(held) >= _MOST_HELD:
        held.pop(next(iter(list(held))), None)
    held[key] = value


def change(*edits: Edit) -> None:
    """Add changes to the chosen data set (a callback)."""
    answered(lambda: add_edits(data_folder(), edits))


def undo(edits: Sequence[Edit]) -> None:
    """Take changes back (a callback)."""
    answered(lambda: remove_edits(data_folder(), edits))


def answered(act: Callable[[], None]) -> None:
    """Do what a callback is for; what is wrong with it is said by the page that is drawn next."""
    try:
        act()
    except FinetuneError as error:
        st.session_state["change_problem"] = str(error)


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
    return f"{named}{when} · {run.config.backbone} · {STRATEGIES[run.config.strategy].title.lower()}"


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


def why_not_timed() -> str | None:
    """Why nothing can be timed now, in words; None where nothing else works on this machine."""
    going = ["A run"] if any(run.active for run in store().runs()) else [f"“{job.text}”" for job in jobs().all()]
    return f"{going[0]} is going on: it would slow the timing down, and the timing it." if going else None


def start_demo() -> str:
    """Queue the demo run; returns its id."""
    return submit(make_config(DEMO_RECIPE | {"data": str(digits_folder())}))


def submit(config: RunConfig) -> str:
    """Queue a run of this session; returns its id.

    Raises:
        ConfigError: when it cannot work.
    """
    return worker().submit(config, owner())

"""Panel with the queue of a comparison while it trains."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from statistics import median
from typing import Any

import streamlit as st

from finetune_core.errors import FinetuneError, RunError
from finetune_core.evaluation.comparison.arms import arm_sort_key, arm_titles
from finetune_core.evaluation.comparison.costs import config_depth
from finetune_core.figures.curves import CURVE_HEIGHT, plot_live_comparison
from finetune_core.formatting import format_percent, format_time_left, pluralize
from finetune_core.runs.design import arm_key, forecast_arm
from finetune_core.runs.stop_request import read_stop_request
from finetune_core.runs.store import Run, summarize_run
from finetune_core.training.devices.speed_book import SpeedBook
from finetune_core.training.strategies.catalogue import count_epochs
from pages.shared.account import can_change
from pages.shared.data.chosen import data_folder
from pages.shared.data.datasets import current_dataset
from pages.shared.runs.backend import describe_status, store, worker
from pages.shared.runs.controls import attempt, show_problem

REFRESH = 2.0  # seconds


def forecast_seconds(runs: Sequence[Run]) -> dict[str, float]:
    """Return the expected seconds of each run by its id.

    Returns:
        An empty dict if other data are chosen, or speeds were not measured.
    """
    first = runs[0].config
    if data_folder() != first.data:
        return {}
    try:
        dataset = current_dataset(first.split_settings)
    except FinetuneError:
        # The run that meets the problem reports it.
        return {}
    book = SpeedBook()
    found: dict[str, float] = {}
    for arm_runs in _group_by_arm(runs).values():
        seconds = forecast_arm([run.config for run in arm_runs], dataset, book)
        found |= zip([run.run_id for run in arm_runs], seconds, strict=True) if seconds else {}
    return found


def draw_queue(run_ids: Sequence[str], expected: dict[str, float]) -> None:
    """Draw the progress of the queue; redraw the page when all runs are done."""
    runs = _load_remaining(run_ids)
    active = [run for run in runs if run.is_active]
    if not active:
        st.rerun()
    seconds_left = _estimate_seconds_left(runs, expected)
    text = f"{len(runs) - len(active)} of {pluralize(len(runs), 'run')} done" + (
        f", {format_time_left(seconds_left)}" if seconds_left else ""
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.progress(_compute_progress(runs, expected), text)
        own = [run for run in active if can_change(run)]
        is_stopping = all(read_stop_request(run.run_dir) for run in own)
        st.button(
            "Stop all",
            icon=":material/stop:",
            key="stop_all",
            disabled=is_stopping,
            on_click=_stop_runs,
            args=(own,),
        )
        if len(own) < len(active):
            st.caption(f"{pluralize(len(active) - len(own), 'run')} of others")
    show_problem()
    arms = _group_by_arm(runs)
    titles = dict(
        zip(arms, arm_titles([arm_runs[0].config for arm_runs in arms.values()]), strict=True)
    )
    if any(run.history.epochs for run in runs):
        st.markdown("**Validation accuracy by epoch**")
        lines = [
            (titles[arm], run.history.epochs) for arm, arm_runs in arms.items() for run in arm_runs
        ]
        st.altair_chart(
            plot_live_comparison("accuracy", lines, max(run.config.epochs for run in runs)),
            key="live-accuracy",
            height=CURVE_HEIGHT,
            alt="Validation accuracy of each run as it trains",
        )
    st.dataframe(
        [
            _make_row(
                titles[arm_key(run.config)],
                run,
                has_placement=any(one.history.places for one in runs),
            )
            for run in runs
        ],
        hide_index=True,
    )
    st.caption("Close the tab if you like: the queue goes on, and this address shows it again.")


def _load_remaining(run_ids: Sequence[str]) -> list[Run]:
    """Load the runs that have not been deleted or damaged since the page was drawn."""
    found = []
    for run_id in run_ids:
        with suppress(RunError):
            found.append(store().get_run(run_id))
    return found


def _make_row(title: str, run: Run, *, has_placement: bool) -> dict[str, Any]:
    """Return the table's row of a run.

    Args:
        title: title of the run's arm.
        run: the run.
        has_placement: whether to say where the run trains. On one machine, all runs train on the
            same device.
    """
    epochs, accuracy = run.history.epochs, summarize_run(run)["val_accuracy"]
    return {
        "Strategy": title,
        "Seed": str(run.config.seed),
        "Status": describe_status(run)[0],
        "Epochs": f"{len(epochs)} of {num_epochs}"
        if (num_epochs := count_epochs(run.config))
        else "none",
        "Validation accuracy": "–" if accuracy is None else format_percent(accuracy),
    } | ({"Trains on": run.history.where or "–"} if has_placement else {})


def _group_by_arm(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs by ``arm_key``, in the order of the later comparison: arms keep their colours."""
    arms: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: arm_sort_key(run.config, config_depth(run.config))):
        arms.setdefault(arm_key(run.config), []).append(run)
    return arms


def _compute_progress(runs: Sequence[Run], expected: dict[str, float]) -> float:
    """Return the finished share of the total time, or of the runs if the time is not known."""
    weights = [expected.get(run.run_id, 1.0) if expected else 1.0 for run in runs]
    done = [
        weight * (run.history.fraction if run.is_active else 1.0)
        for run, weight in zip(runs, weights, strict=True)
    ]
    return min(1.0, sum(done) / sum(weights))


def _estimate_seconds_left(runs: Sequence[Run], expected: dict[str, float]) -> float | None:
    """Return the remaining seconds of all active runs.

    A waiting run takes as long as other runs of its arm did, or as was forecast, or as all runs
    did.

    Returns:
        None if nothing is known.
    """
    durations = {
        run.run_id: run.history.end["seconds"]
        for run in runs
        if run.status == "finished" and run.history.end
    }
    total = 0.0
    for arm in _group_by_arm(runs).values():
        arm_durations = [durations[run.run_id] for run in arm if run.run_id in durations]
        for run in arm:
            if not run.is_active:
                continue
            forecast = (
                median(arm_durations)
                if arm_durations
                else expected.get(run.run_id) or (median(durations.values()) if durations else None)
            )
            seconds = run.history.seconds_left or forecast
            if seconds is None:
                return None
            total += seconds
    return total


def _stop_runs(active: Sequence[Run]) -> None:
    """Stop runs; waiting runs first, so that none of them begins when the training one stops."""
    for run in sorted(active, key=lambda run: worker().find_position(run.run_id) is None):
        attempt(partial(worker().stop, run.run_id))

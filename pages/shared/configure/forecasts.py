"""Forecasts of the next run, timed beside the page, and of all strategies on request."""

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import streamlit as st

from finetune_core.config import RunConfig
from finetune_core.data.dataset import Dataset
from finetune_core.formatting import format_bytes, format_duration, format_number
from finetune_core.models.catalogue import backbone_info
from finetune_core.training.forecast.forecast import list_comparable_configs
from finetune_core.training.forecast.timing import calibrate
from finetune_core.training.strategies.catalogue import STRATEGIES
from pages.shared.configure import form
from pages.shared.configure.choices import ChoiceContext
from pages.shared.configure.weights import count_parameters
from pages.shared.jobs import REFRESH, begin, jobs, show_outcome
from pages.shared.runs.backend import why_not_timed, worker

_LARGEST = 30_000_000  # parameters: steps of larger networks are timed on request only
_TIMED = "timed_unasked"
_NOTES = {
    "Total": "The whole run when nothing is cached yet; less after a run with the same frozen "
    "stages.",
    "Per epoch": "The mean, if stages thaw during the run.",
    "Memory": "Weights, optimizer, decoded images, cache, and activations of a step, as far as "
    "they are not on a GPU; in addition to the program itself.",
    "GPU memory": "Weights, optimizer, and activations of a step.",
    "Cache": "The frozen stages' output for each image, computed once.",
}


def time_in_background(config: RunConfig, context: ChoiceContext) -> bool:
    """Time a few steps of a run that has no forecast yet, beside the page.

    The page is redrawn once the job has ended. Each run is timed once per session, because timing
    may fail: the network may be too large for this machine.

    Returns:
        Whether the timing goes on.
    """
    dataset = context.dataset
    if dataset is None or not context.timed or context.forecast(config):
        return False
    key = _timing_key([config], dataset)
    if not jobs().find(key):
        timed: set[str] = st.session_state.setdefault(_TIMED, set())
        # The job would wait behind a training run, and hold back the jobs that a person starts.
        if key in timed or not _is_small(config) or why_not_timed() or worker().list_queues():
            return False
        timed.add(key)
        begin(key, "Timing a few steps", partial(calibrate, [config], dataset, context.book))
    st.fragment(_redraw_when_done, run_every=REFRESH)(key)
    return True


def _redraw_when_done(key: str) -> None:
    if not jobs().find(key):
        st.rerun()


def _is_small(config: RunConfig) -> bool:
    parameters = count_parameters(backbone_info(config.backbone))
    return parameters is not None and parameters <= _LARGEST


def _timing_key(configs: Sequence[RunConfig], dataset: Dataset) -> str:
    """Return the key of the job that times these configs."""
    settings = "".join(one.model_dump_json() for one in configs)
    return f"timing:{hashlib.sha256(settings.encode()).hexdigest()[:16]}-{dataset.fingerprint}"


def forecast_all(config: RunConfig, context: ChoiceContext, dataset: Dataset) -> None:
    """Offer to time every strategy, and draw the table of the timed strategies."""
    configs = list_comparable_configs(config, context.num_images)
    is_complete = all(context.forecast(one) for one in configs)
    key = f"forecast:{_timing_key(configs, dataset)}"
    reason = why_not_timed()
    st.button(
        "Measure again" if is_complete else "Forecast all strategies",
        icon=":material/timer:",
        disabled=reason is not None,
        help=reason
        or "Times a few steps of every strategy on this machine and extrapolates; "
        "each finished run refines the forecast.",
        key="forecast",
        on_click=begin,
        args=(
            key,
            "Timing a few steps of each strategy",
            partial(calibrate, configs, dataset, context.book, again=is_complete),
        ),
    )
    show_outcome(key)
    if any(context.forecast(one) for one in configs):
        _draw_table(config, configs, context)


def _draw_table(config: RunConfig, configs: Sequence[RunConfig], context: ChoiceContext) -> None:
    rows = [_make_row(one, config, context) for one in configs if context.forecast(one)]
    columns = {name: st.column_config.TextColumn(help=note) for name, note in _NOTES.items()}
    st.dataframe(rows, hide_index=True, column_config=columns)
    form.draw_forecast_note()


def _make_row(config: RunConfig, chosen: RunConfig, context: ChoiceContext) -> dict[str, Any]:
    forecast = context.forecast(config)
    assert forecast
    return {
        "Strategy": "▸ " * (config.strategy == chosen.strategy) + STRATEGIES[config.strategy].title,
        "Trainable": format_number(forecast.trainable_parameters),
        "Total": format_duration(forecast.seconds),
        "Per epoch": format_duration(forecast.epoch_seconds) if forecast.epoch_seconds else "none",
        "Memory": format_bytes(forecast.memory_bytes),
        **(
            {}
            if forecast.device_bytes is None
            else {"GPU memory": format_bytes(forecast.device_bytes)}
        ),
        "Cache": format_bytes(forecast.cache_bytes) if forecast.cache_bytes else "none",
    }

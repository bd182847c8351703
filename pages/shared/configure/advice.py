"""*Compare backbones*: probe networks before training, rank them, and queue the two proposed."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import streamlit as st

from finetune_core.config import RunConfig
from finetune_core.data.dataset import Dataset
from finetune_core.data.splits import TRAIN
from finetune_core.errors import FinetuneError
from finetune_core.evaluation.advice.advise import (
    BUDGET,
    FEWEST,
    IMAGES,
    MOST,
    UNKNOWN,
    Advice,
    advise,
    make_comparison_configs,
)
from finetune_core.figures.advice import MOST as MOST_DRAWN
from finetune_core.figures.advice import plot_probes_by_stage
from finetune_core.formatting import format_duration, pluralize
from finetune_core.models.catalogue import backbone_info, list_ready_backbones
from finetune_core.work import Work
from pages.shared.chrome import escape_markdown, go
from pages.shared.configure import settings
from pages.shared.configure.comparison_form import queue_runs
from pages.shared.configure.networks import list_networks
from pages.shared.configure.weights import format_download_size
from pages.shared.jobs import begin, show_outcome
from pages.shared.runs.backend import why_not_timed

_OPEN, _ASKED, _FOUND = "advice_open", "advice_asked", "advice_found"
_NETWORKS, _SIZE = "advice_networks", "advice_size"
_OWN, _FORM = "own", "form"


def draw_backbone_advice(config: RunConfig | None, dataset: Dataset | None) -> None:
    """Draw the box that compares backbones, with its ranking and proposals once there are some.

    Args:
        config: settings of the form; None if they are invalid.
        dataset: the chosen data set; None without one.
    """
    with st.expander("Compare backbones", icon=":material/compare:", key=_OPEN, on_change="rerun"):
        if not st.session_state.get(_OPEN):
            return
        if config is None or dataset is None:
            st.info("Choose data, and settings that can be used, first.", icon=":material/info:")
            return
        _draw_options(config, dataset)
        with st.container():
            _keep_outcome(dataset)
        fingerprint, advice = st.session_state.get(_FOUND, ("", None))
        if advice and fingerprint == dataset.fingerprint:
            _draw_ranking(advice)
            _offer_comparison(advice, config, dataset)
            _draw_details(advice)


def _draw_options(config: RunConfig, dataset: Dataset) -> None:
    """Draw the options, and the button that starts probing."""
    st.caption(
        "Before anything is trained: fits a linear probe to the frozen features of every stage, "
        "cross-validated on training images only, and forecasts what training would take with the "
        "settings of this page."
    )
    ready = list_ready_backbones()
    selected = st.multiselect(
        "Networks",
        list_networks(config.backbone, *st.session_state.get(_NETWORKS, [])),
        key=_NETWORKS,
        persist_state="session",
        placeholder=f"All on this machine ({len(ready)})",
        help="The networks to probe. Empty: all whose weights are on this machine. *Find a "
        "network* adds others to this list.",
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        images = st.number_input(
            "Training images",
            FEWEST,
            MOST,
            IMAGES,
            step=100,
            key="advice_images",
            persist_state="session",
            width=150,
            help="At most so many are drawn, of each class its share. More make the intervals "
            "narrower.",
        )
        budget = st.number_input(
            "Time budget (minutes)",
            min_value=1,
            value=round(BUDGET),
            step=5,
            key="advice_budget",
            persist_state="session",
            width=190,
            help="What fine-tuning the last block of one network may take; the proposal by "
            "published accuracy keeps to it.",
        )
        size = st.segmented_control(
            "Image size",
            [_OWN, _FORM],
            default=_OWN,
            required=True,
            format_func={
                _OWN: "Each network's own",
                _FORM: f"{config.image_size} pixels",
            }.__getitem__,
            key=_SIZE,
            persist_state="session",
        )
    # Unknown networks are explained by the outcome.
    missing = [
        info
        for info in map(backbone_info, filter(settings.is_known, selected))
        if not info.is_ready
    ]
    if missing:
        names, download = (
            ", ".join(escape_markdown(info.name) for info in missing),
            format_download_size(missing),
        )
        st.caption(
            f":material/download: The weights of {names} are downloaded "
            f"first{f' (about {download})' if download else ''}."
        )
    networks = selected or ready
    work = partial(
        advise, dataset, config, networks, int(images), float(budget), own_sizes=size == _OWN
    )
    question = f"{config.model_dump_json()}{networks}{images}{budget}{size}"
    key = f"advice:{hashlib.sha256(question.encode()).hexdigest()[:16]}-{dataset.fingerprint}"
    reason = why_not_timed()
    st.button(
        f"Probe {pluralize(len(networks), 'network')}",
        icon=":material/lightbulb:",
        key="advice_ask",
        disabled=reason is not None,
        help=reason,
        on_click=_begin_probing,
        args=(key, work),
    )


def _begin_probing(key: str, work: Callable[[], Work[Any]]) -> None:
    """Start probing (a callback)."""
    st.session_state[_ASKED] = key
    begin(key, "Probing networks", work)


def _keep_outcome(dataset: Dataset) -> None:
    """Draw the progress of the latest probing, and keep its result."""
    key = st.session_state.get(_ASKED)
    if key is None:
        return
    advice = show_outcome(key)
    if advice and key.endswith(dataset.fingerprint):
        st.session_state[_FOUND] = (dataset.fingerprint, advice)


def _draw_ranking(advice: Advice) -> None:
    """Draw the ranking, and the networks that could not be probed."""
    for one in advice.failed:
        st.warning(
            f"**{escape_markdown(one.backbone)}** was left out: {escape_markdown(one.reason)}",
            icon=":material/block:",
        )
    if advice.candidates:
        _draw_table(*advice.network_rows(), key="advice_ranking")
        st.caption(escape_markdown(advice.to_text()))


def _draw_details(advice: Advice) -> None:
    """Draw the probes by stage, and the forecasts."""
    if not advice.candidates:
        return
    drawn, forecasts, every = st.tabs(["Probes by stage", "Forecasts", "All stages"])
    stages = {one.backbone: one.stages for one in advice.networks}
    drawn.plotly_chart(
        plot_probes_by_stage(advice.candidates, stages),
        key="advice_stages",
        alt="Accuracy of the linear probe at each stage, one line per network",
    )
    if len(stages) > MOST_DRAWN:
        drawn.caption(f"The {MOST_DRAWN} best networks.")
    with forecasts:
        _draw_table(*advice.forecast_rows(), key="advice_forecasts")
    with every:
        _draw_table(*advice.stage_rows(), key="advice_every_stage")


def _draw_table(columns: Sequence[str], rows: Sequence[Sequence[str]], key: str) -> None:
    notes = {
        "Stage": "The one whose features the probe classifies best, or each.",
        "Probe": "Share of the held-out images that the linear probe classifies correctly.",
        "95 % interval": "Wilson's, over images.",
        "Against the best": (
            "On the same images: exact McNemar tests, with Holm's correction over all pairs of "
            "networks and stages."
        ),
        "ImageNet": "Published accuracy of these weights, where their source states it.",
        "Training what follows": "The forecast of training all stages after this one.",
    }
    st.dataframe(
        [dict(zip(columns, row, strict=True)) for row in rows],
        hide_index=True,
        key=key,
        column_config={
            name: st.column_config.TextColumn(help=notes[name]) for name in columns if name in notes
        },
    )


def _offer_comparison(advice: Advice, config: RunConfig, dataset: Dataset) -> None:
    """Draw the proposals with their reasons, and the button that queues them."""
    if not advice.suggested:
        return
    for number, one in enumerate(advice.suggested, 1):
        st.markdown(f"**{number}. {escape_markdown(one.backbone)}**: {escape_markdown(one.reason)}")
    st.info(UNKNOWN, icon=":material/help:")
    num_seeds = st.session_state[settings.comparison_key("seeds")]
    num_images = dataset.split_counts.get(TRAIN, 0)
    try:
        configs = make_comparison_configs(
            advice.suggested, config, range(config.seed, config.seed + num_seeds), num_images
        )
    except FinetuneError as error:
        st.error(escape_markdown(str(error)), icon=":material/error:")
        return
    has_two = len(advice.suggested) > 1
    pressed = st.button(
        "Queue both with their linear probes" if has_two else "Queue it with its linear probe",
        type="primary",
        icon=":material/playlist_add:",
        key="advice_queue",
    )
    durations = [one.seconds for one in advice.suggested]
    total = sum(filter(None, durations)) * num_seeds
    in_all = (
        f" Fine-tuning takes about {format_duration(total)} in all."
        if None not in durations
        else ""
    )
    st.caption(
        f"{pluralize(len(configs), 'run')}: last block with {pluralize(num_seeds, 'seed')} (set on "
        f"*Compare*), beside the linear probe.{in_all}"
    )
    if pressed and (ids := queue_runs(configs)):
        go("pages/compare.py", runs=ids)

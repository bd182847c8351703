"""The box on Compare that names the next experiment, and opens Configure with it filled in; a missing baseline is fitted from here."""

import hashlib
from collections.abc import Sequence
from functools import partial

import streamlit as st

from finetune_core.config import RunConfig
from finetune_core.data.dataset import Dataset
from finetune_core.errors import FinetuneError
from finetune_core.evaluation.comparison.compare import Comparison
from finetune_core.evaluation.comparison.next_experiment import (
    HELP,
    Experiment,
    evidence_of,
    explain_none,
    forecast_in_words,
    forecast_of,
    next_experiment,
)
from finetune_core.evaluation.comparison.shift import ShiftComparison
from finetune_core.training.speed_book import SpeedBook
from finetune_core.training.strategies import BASELINE, STRATEGIES
from finetune_core.training.timing import calibrate
from pages.shared.chrome import plain
from pages.shared.data.chosen import data_folder
from pages.shared.data.datasets import current_dataset
from pages.shared.jobs import offer
from pages.shared.runs.again import differs_now, use_settings
from pages.shared.runs.backend import submit, why_not_timed


def draw_next(comparison: Comparison, shift: ShiftComparison | None) -> list[str]:
    """Draw it, with its reason and its forecast. Nothing is started from here but a linear probe, which has nothing to be set.

    Args:
        shift: the same runs on the other images that are chosen on the page.

    Returns:
        The ids of the linear probes that were queued at a press just now.
    """
    evidence = evidence_of(comparison, shift)
    experiment = next_experiment(evidence)
    with st.container(border=True):
        st.markdown("**Next experiment**", help=HELP)
        if experiment is None:
            st.markdown(explain_none(evidence))
            return []
        what = experiment.what[0].upper() + experiment.what[1:]
        st.markdown(f":material/science: **{plain(what)}**. {plain(experiment.reason)}")
        if experiment.inferred:
            st.caption(
                "Inferred from features and gradients, not measured: confirm it with a comparison."
            )
        if experiment.configs:
            _forecast(experiment)
            if experiment.kind == "baseline":
                return _fit(experiment.configs)
            _fill_in(experiment.configs[0])
            if changed := differs_now(comparison.arms[0].runs[0]):
                st.caption(plain(changed))
    return []


def _fit(configs: Sequence[RunConfig]) -> list[str]:
    pressed = st.button(
        "Fit the linear probe as the baseline",
        icon=":material/flag:",
        key="fit_baseline",
        help=f"{STRATEGIES[BASELINE].help} The verdict then says what training gained over it.",
    )
    with st.container():  # always there, so that nothing below is drawn anew
        if pressed:
            try:
                with st.spinner("Queueing"):
                    return [submit(config) for config in configs]
            except FinetuneError as error:
                st.error(plain(str(error)), icon=":material/error:")
    return []


def _fill_in(config: RunConfig) -> None:
    if st.button(
        "Fill in on Configure",
        icon=":material/tune:",
        key="next_experiment",
        help="Puts its settings into the form, with the first of its seeds. Nothing is started.",
    ):
        use_settings(config)


def _forecast(experiment: Experiment) -> None:
    """Time and memory where they are known; where they are not, what measures them."""
    first = experiment.configs[0]
    if data_folder() != first.data:
        st.caption("Its time is not known while other data are chosen: Configure has it.")
        return
    try:
        dataset = current_dataset(first.split_settings)
        found = forecast_of(experiment, dataset, SpeedBook())
        if found:
            st.caption(f"Forecast: {forecast_in_words(found)}.")
        else:
            _offer_timing(first, dataset)
    except FinetuneError as error:
        st.error(plain(str(error)), icon=":material/error:")


def _offer_timing(config: RunConfig, dataset: Dataset) -> None:
    mark = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:16]
    job, reason = f"forecast:{mark}-{dataset.fingerprint}", why_not_timed()
    offer(
        "Forecast",
        job,
        "Timing a few steps",
        partial(calibrate, [config], dataset, SpeedBook()),
        button_key="forecast_next",
        icon=":material/timer:",
        disabled=reason is not None,
        help=reason or "Times a few steps of it.",
    )

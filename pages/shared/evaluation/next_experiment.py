"""The box on Compare that names the next experiment, and opens Configure with it filled in."""

import streamlit as st

from finetune_core.errors import FinetuneError
from finetune_core.evaluation.comparison.compare import Comparison
from finetune_core.evaluation.comparison.next_experiment import (
    HELP,
    Experiment,
    evidence_of,
    forecast_in_words,
    forecast_of,
    next_experiment,
)
from finetune_core.evaluation.comparison.shift import ShiftComparison
from finetune_core.training.speed_book import SpeedBook
from pages.shared.chrome import plain
from pages.shared.data.chosen import data_folder
from pages.shared.data.datasets import current_dataset
from pages.shared.runs.again import differs_now, use_settings


def draw_next(comparison: Comparison, shift: ShiftComparison | None) -> None:
    """Draw it, with its reason and its forecast; nothing is started from here.

    Args:
        shift: the same runs on the data set that is chosen on the page.
    """
    evidence = evidence_of(comparison, shift.shifted if shift else None)
    experiment = next_experiment(evidence)
    with st.container(border=True):
        st.markdown("**Next experiment**", help=HELP)
        if experiment is None:
            st.markdown(_nothing(measured=any(evidence.layers)))
            return
        st.markdown(
            f":material/science: **{plain(experiment.what[0].upper() + experiment.what[1:])}**. {plain(experiment.reason)}"
        )
        takes = _forecast(experiment)
        inferred = "Inferred from features and gradients: confirm it with a comparison." if experiment.inferred else ""
        st.caption(plain(" ".join(part for part in (takes, inferred) if part)))
        if experiment.configs and st.button(
            "Fill in on Configure",
            icon=":material/tune:",
            key="next_experiment",
            help="Puts its settings into the form, with the first of its seeds. Nothing is started.",
        ):
            use_settings(experiment.configs[0])
        if experiment.configs and (changed := differs_now(comparison.arms[0].runs[0])):
            st.caption(plain(changed))


def _nothing(*, measured: bool) -> str:
    if measured:
        return "None stands out: neither the verdicts nor the layer diagnostics ask for one."
    return "None stands out from the verdicts. The layer diagnostics below, once measured, say whether to thaw another stage."


def _forecast(experiment: Experiment) -> str:
    """In words; empty where nothing trains."""
    if not experiment.configs:
        return ""
    first = experiment.configs[0]
    unknown = "Its time is not known here yet: Configure measures it."
    if data_folder() != first.data:
        return unknown
    try:
        found = forecast_of(experiment, current_dataset(first.split_settings), SpeedBook())
    except FinetuneError:  # the page that would train it says so
        return unknown
    return f"Forecast: {forecast_in_words(found)}." if found else unknown

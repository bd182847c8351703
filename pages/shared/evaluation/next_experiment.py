"""Next experiment on Compare: start it, or fill it in on Configure."""

import hashlib
from functools import partial

import streamlit as st

from finetune_core.config import RunConfig
from finetune_core.data.dataset import Dataset
from finetune_core.errors import FinetuneError
from finetune_core.evaluation.comparison.compare import Comparison
from finetune_core.evaluation.comparison.experiment import (
    Evidence,
    Experiment,
    describe_forecast,
    forecast_experiment,
)
from finetune_core.evaluation.comparison.next_experiment import HELP, explain_none, next_experiment
from finetune_core.formatting import pluralize
from finetune_core.runs.design import arm_key, depends_on_seed, run_key
from finetune_core.runs.extend import extend_run, suggest_epochs, why_not_extended
from finetune_core.runs.store import Run
from finetune_core.training.devices.speed_book import SpeedBook
from finetune_core.training.forecast.timing import calibrate
from pages.shared.account import owner
from pages.shared.chrome import escape_markdown
from pages.shared.data.chosen import data_folder
from pages.shared.data.datasets import current_dataset
from pages.shared.jobs import offer
from pages.shared.runs.again import describe_differences, use_settings
from pages.shared.runs.backend import count_resume_devices, store, submit, why_not_timed, worker
from pages.shared.runs.profile import offer_profile

_ICONS = {"baseline": ":material/flag:", "seeds": ":material/casino:"}


def draw_next(comparison: Comparison, evidence: Evidence) -> list[str]:
    """Draw the next experiment, with its reason and its forecast.

    One press starts all runs of an experiment that follows from measurements. An inferred
    experiment is filled in on Configure.

    Args:
        comparison: the comparison.
        evidence: evidence on the comparison.

    Returns:
        The ids of the runs to compare once a press has queued some of them; empty without one.
    """
    experiment = next_experiment(evidence)
    if experiment is None and len(comparison.arms) == 1:
        # The verdict already asks for another strategy.
        return []
    with st.container(border=True):
        st.markdown("**Next experiment**", help=HELP)
        if experiment is None:
            st.markdown(explain_none(evidence))
            return []
        if experiment.kind != "converge":
            # The verdict already says so in this case.
            title = experiment.what[0].upper() + experiment.what[1:]
            st.markdown(
                f":material/science: **{escape_markdown(title)}**. "
                f"{escape_markdown(experiment.reason)}"
            )
        if experiment.inferred:
            st.caption(
                "Inferred from features and gradients, not measured: confirm it with a comparison."
            )
        if experiment.kind == "profile":
            _offer_profile(comparison)
        if experiment.configs:
            _draw_forecast(experiment)
            if experiment.kind == "converge":
                extended = _offer_longer(comparison)
                return [
                    extended.get(run_id, run_id) for run_id in _list_run_ids(comparison) if extended
                ]
            if not experiment.inferred:
                queued = _offer_start(experiment, comparison)
                return [*_list_run_ids(comparison), *queued] if queued else []
            _offer_fill_in(experiment.configs[0])
            if changed := describe_differences(comparison.arms[0].runs[0]):
                st.caption(escape_markdown(changed))
    return []


def _offer_profile(comparison: Comparison) -> None:
    """Offer the profile of the compared data set and backbone."""
    config = comparison.arms[0].config
    if data_folder() != config.data:
        st.caption("It can be started while these data are chosen on Dataset.")
        return
    try:
        dataset = current_dataset(config.split_settings)
    except FinetuneError as error:
        st.error(escape_markdown(str(error)), icon=":material/error:")
        return
    offer_profile(comparison.arms[comparison.best].config, dataset, button_key="start_profile")


def _offer_start(experiment: Experiment, comparison: Comparison) -> list[str]:
    """Offer to queue the runs of an experiment.

    A finished run that computes the same on the same data replaces a new run.

    Returns:
        The ids of the runs once they are queued.
    """
    pressed = st.button(
        experiment.what[0].upper() + experiment.what[1:],
        icon=_ICONS.get(experiment.kind, ":material/play_arrow:"),
        key=f"start_{experiment.kind}",
        help="Everything else is as in the runs that are compared. The verdict then counts "
        + ("it." if len(experiment.configs) == 1 else "them."),
    )
    with st.container():
        # Always there: otherwise everything below would be drawn anew.
        if pressed:
            try:
                with st.spinner("Queueing"):
                    finished = _find_finished(comparison.arms[0].runs[0].started["fingerprint"])
                    return [
                        finished.get(_result_key(one)) or submit(one) for one in experiment.configs
                    ]
            except FinetuneError as error:
                st.error(escape_markdown(str(error)), icon=":material/error:")
    return []


def _find_finished(fingerprint: str) -> dict[str, str]:
    """Return the id of each finished run on a data set, by the result that the run computes."""
    return {
        _result_key(run.config): run.run_id
        for run in store().list_all()[0]
        if run.status == "finished" and run.started["fingerprint"] == fingerprint
    }


def _result_key(config: RunConfig) -> str:
    """Return a key that is equal for runs that end with the same network."""
    return run_key(config) if depends_on_seed(config) else arm_key(config)


def _offer_longer(comparison: Comparison) -> dict[str, str]:
    """Offer more epochs for each run that has not converged.

    Returns:
        Old id -> new id of each run that was queued.
    """
    runs = [run for arm in comparison.arms if arm.is_undertrained for run in arm.runs]
    reasons = {run.run_id: reason for run in runs if (reason := why_not_extended(run))}
    extendable = [run for run in runs if run.run_id not in reasons]
    pressed = st.button(
        f"Train {pluralize(len(extendable), 'run')} further",
        icon=":material/fast_forward:",
        key="train_further",
        disabled=not extendable,
        help="From where they ended, to twice their epochs, as new runs. A cosine's learning rate "
        "rises once more to where a cosine of that length would stand. Runs that early stopping "
        "ended train to their last epoch.",
    )
    if reasons:
        skipped = "; ".join(f"{run_id}: {reason}" for run_id, reason in reasons.items())
        st.caption(
            escape_markdown(f"Not trained further: {skipped}. Give them a larger learning rate.")
        )
    with st.container():
        # Always there: otherwise everything below would be drawn anew.
        if pressed:
            try:
                with st.spinner("Queueing"):
                    return {run.run_id: _queue_longer(run) for run in extendable}
            except FinetuneError as error:
                st.error(escape_markdown(str(error)), icon=":material/error:")
    return {}


def _queue_longer(run: Run) -> str:
    """Queue a copy of a run with twice the epochs; return its id."""
    executor = worker().executor
    run_id = extend_run(run, suggest_epochs(run), owner(), remote=executor.remote)
    worker().resume(run_id, count_resume_devices(run))
    return run_id


def _list_run_ids(comparison: Comparison) -> list[str]:
    return [run.run_id for arm in comparison.arms for run in arm.runs]


def _offer_fill_in(config: RunConfig) -> None:
    if st.button(
        "Fill in on Configure",
        icon=":material/tune:",
        key="next_experiment",
        help="Puts its settings into the form. Nothing is started.",
    ):
        use_settings(config)


def _draw_forecast(experiment: Experiment) -> None:
    """Draw the forecast of time and memory, or a button that measures it."""
    first = experiment.configs[0]
    if data_folder() != first.data:
        st.caption("Its time is not known while other data are chosen: Configure has it.")
        return
    try:
        dataset = current_dataset(first.split_settings)
        forecast = forecast_experiment(experiment, dataset, SpeedBook())
        if forecast:
            st.caption(f"Forecast: {describe_forecast(forecast)}.")
        else:
            _offer_timing(first, dataset)
    except FinetuneError as error:
        st.error(escape_markdown(str(error)), icon=":material/error:")


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

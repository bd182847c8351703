"""Averages on Compare: a run that averages the weights or probabilities of several runs.

The run is queued like any other one.
"""

from collections.abc import Sequence

import streamlit as st

from finetune_core.config.averaged import AveragingMethod
from finetune_core.errors import FinetuneError
from finetune_core.evaluation.comparison.arms import arm_titles, run_titles
from finetune_core.formatting import pluralize
from finetune_core.runs.design import arm_key
from finetune_core.runs.store import Run
from finetune_core.training.checkpoints.parents import make_averaged_config
from finetune_core.training.strategies.catalogue import count_epochs
from pages.shared.chrome import escape_markdown
from pages.shared.runs.backend import submit

WAYS: dict[AveragingMethod, str] = {
    "greedy_soup": "Greedy soup",
    "soup": "Soup",
    "ensemble": "Ensemble",
    "wise": "WiSE-FT",
}
_HELP = (
    "Greedy soup: the mean of the weights of those networks that do not lower the validation "
    "accuracy, the best first. Soup: of all of them (both Wortsman et al. 2022, Model soups). "
    "Ensemble: the mean of their probabilities; all networks stay, so it predicts as slowly as "
    "all of them. WiSE-FT: between one network and what it started from, with its linear probe; "
    "the mix is chosen on validation images (Wortsman et al. 2022, Robust fine-tuning of "
    "zero-shot models)."
)
_ALL = "All of these runs"
_BUTTONS: dict[AveragingMethod, str] = {
    "wise": "Average its weights",
    "ensemble": "Average their probabilities",
}
_TOO_FEW: dict[AveragingMethod, str] = {
    "wise": "WiSE-FT takes a run that has trained in epochs.",
    "ensemble": "An ensemble takes two runs or more.",
}


def can_average(runs: Sequence[Run]) -> bool:
    """Return whether these runs can be averaged in any way."""
    return len(_select_single(runs)) > 1 or bool(_select_with_epochs(runs))


def offer_averages(runs: Sequence[Run]) -> str | None:
    """Draw the form that averages runs.

    Args:
        runs: the compared runs.

    Returns:
        The id of the run that was queued; None without one.
    """
    trained, single = _select_with_epochs(runs), _select_single(runs)
    st.caption(
        "One run from several, without training: it takes a moment. A soup predicts as fast as "
        "one of its networks, and takes runs that began with the same head: give *Seed of the "
        "head* a number before you train several seeds. An ensemble takes any runs that have "
        "predicted the same images."
    )
    method: AveragingMethod = st.segmented_control(
        "How",
        list(WAYS),
        format_func=WAYS.__getitem__,
        default="greedy_soup",
        required=True,
        key="average_how",
        persist_state="session",
        help=_HELP,
    )
    options = (
        _group_single(trained)
        if method == "wise"
        else _group_by_arm(single if method == "ensemble" else trained)
    )
    if not options:
        st.caption(_TOO_FEW.get(method, "A soup takes two runs or more."))
        return None
    chosen = st.selectbox("Of", list(options), key=f"average_of_{method}")
    pressed = st.button(_BUTTONS.get(method, "Average their weights"), key="average")
    with st.container():
        return _queue_average(method, options[chosen]) if pressed else None


def _select_with_epochs(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if count_epochs(run.config)]


def _select_single(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if not run.config.is_ensemble]


def _queue_average(method: AveragingMethod, runs: Sequence[Run]) -> str | None:
    """Queue a run that averages some runs.

    Returns:
        The id of the run; None, with the reasons on the page, if these runs cannot be averaged.
    """
    try:
        with st.spinner("Comparing the runs"):
            return submit(make_averaged_config(method, [run.run_dir for run in runs]))
    except FinetuneError as error:
        problems = getattr(error, "problems", {"": str(error)})
        st.error(
            escape_markdown(f"These runs cannot be averaged. {'; '.join(problems.values())}."),
            icon=":material/error:",
        )
        return None


def _group_single(runs: Sequence[Run]) -> dict[str, list[Run]]:
    return {title: [run] for title, run in zip(run_titles(runs), runs, strict=True)}


def _group_by_arm(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs of each arm that has several, and all runs if there are several arms."""
    arms: dict[str, list[Run]] = {}
    for run in runs:
        arms.setdefault(arm_key(run.config), []).append(run)
    titles = arm_titles([arm_runs[0].config for arm_runs in arms.values()])
    found = {
        f"{title} ({pluralize(len(arm_runs), 'run')})": arm_runs
        for title, arm_runs in zip(titles, arms.values(), strict=True)
        if len(arm_runs) > 1
    }
    return found | ({_ALL: list(runs)} if len(arms) > 1 else {})

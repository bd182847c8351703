"""Compare: start strategies against each other, and read which stages were worth training."""

from functools import partial

import streamlit as st

from finetune_core.errors import RunError
from finetune_core.evaluation.comparison.arms import run_titles
from finetune_core.evaluation.comparison.compare import Comparison, compare_runs
from finetune_core.evaluation.comparison.layer_diagnostics import representative_run
from finetune_core.evaluation.comparison.measures import ACCURACY, MEASURES
from finetune_core.evaluation.comparison.next_experiment import collect_evidence
from finetune_core.evaluation.comparison.shift import ShiftComparison
from finetune_core.formatting import format_number, pluralize
from finetune_core.reports.build import build_report
from finetune_core.runs.design import find_profiled_stage
from finetune_core.runs.store import Run
from pages.shared.chrome import draw_next_step, escape_markdown, start_page
from pages.shared.configure import settings
from pages.shared.configure.comparison_form import draw_start_form
from pages.shared.data.chosen import data_folder, readable_roots
from pages.shared.evaluation.averages import can_average, offer_averages
from pages.shared.evaluation.costs import draw_costs, draw_curves
from pages.shared.evaluation.diagnostics import draw_disagreements, draw_layer_diagnostics
from pages.shared.evaluation.next_experiment import draw_next
from pages.shared.evaluation.other_data import PARAMETER
from pages.shared.evaluation.profile import draw_profile
from pages.shared.evaluation.shift_axis import draw_distribution_shift
from pages.shared.evaluation.verdict import draw_arms, draw_details, draw_verdict
from pages.shared.runs.backend import store
from pages.shared.runs.damaged import draw_damaged_runs
from pages.shared.runs.first_run import draw_empty_page
from pages.shared.runs.picker import choose_runs
from pages.shared.runs.queue import REFRESH, draw_queue, forecast_seconds
from pages.shared.sections import draw_section

MOST_AT_FIRST = 12  # runs


def choose_compared(runs: list[Run]) -> list[Run]:
    """Draw the box that chooses the runs to compare, and return the chosen runs.

    The runs named in the address come first, then the runs chosen before, then the latest runs of
    the current data set. When another data set has been chosen meanwhile, the earlier choice is
    dropped.
    """
    by_id = {run.run_id: run for run in runs}
    data, requested = data_folder(), st.query_params.get_all("runs")
    previous = st.session_state.get("compared_runs", [])
    if data != st.session_state.get("compared_data", data) and requested in ([], previous):
        requested, previous = [], []
    st.session_state["compared_data"] = data
    missing = [run_id for run_id in requested if run_id not in by_id]
    with st.container():
        # Always there: otherwise the box below would be drawn anew.
        if missing:
            st.warning(
                escape_markdown(f"There is no run {', '.join(missing)} here any more."),
                icon=":material/link_off:",
            )
    default = [run_id for run_id in requested or previous if run_id in by_id]
    # The number stands inside the box, because a label that changes would close the box.
    with st.expander("Which runs", icon=":material/checklist:"):
        chosen = choose_runs("Runs", runs, "runs", chosen=default or find_comparable(runs, data))
        st.caption(f"{format_number(len(chosen))} of {pluralize(len(runs), 'run')} chosen")
    remember([run.run_id for run in chosen])
    return chosen


def find_comparable(runs: list[Run], data: str) -> list[str]:
    """Return the latest evaluated run of a data set, and earlier runs on the same images.

    Args:
        data: folder or manifest of the data set. An empty string means any data set.
    """
    judged = [run for run in runs if run.is_evaluable and data in ("", run.config.data)]
    comparable = [
        run for run in judged if run.started["fingerprint"] == judged[0].started["fingerprint"]
    ]
    return [run.run_id for run in comparable[:MOST_AT_FIRST]]


def remember(run_ids: list[str]) -> None:
    """Keep the chosen runs in the session and in the address."""
    st.session_state["compared_runs"] = run_ids
    if st.query_params.get_all("runs") != run_ids:
        st.query_params["runs"] = run_ids


def draw_start_box(*, expanded: bool) -> bool:
    """Draw the box with the form that starts a comparison; return whether the box is open.

    Args:
        expanded: whether the box is open at first.
    """
    box = st.expander(
        "Start a comparison",
        expanded=expanded,
        icon=":material/play_arrow:",
        key=settings.comparison_box_key(),
        on_change="rerun",
    )
    if not box.open:
        return False
    with box:
        queued = draw_start_form()
    if queued:
        st.session_state["comparisons_started"] = st.session_state.get("comparisons_started", 0) + 1
        remember(queued)
        st.rerun()
    return True


def draw_report_button(comparison: Comparison, shift: ShiftComparison | None) -> None:
    """Draw the button that downloads the report."""
    st.download_button(
        "Report, one HTML file",
        lambda: build_report(comparison, readable_roots(), shift),
        "comparison.html",
        "text/html",
        icon=":material/download:",
        # Redrawing the page would drop the file that is being downloaded.
        on_click="ignore",
        help="Verdict, tables, figures, shifted data if evaluated, layer diagnostics if measured, "
        "and the clearest disagreements of the two best networks. It opens offline, without Thaw.",
    )


def choose_measure() -> str:
    """Draw the choice of the metric to compare by, and return the chosen metric.

    The metric in the address comes first, then the one chosen before.
    """
    requested = st.query_params.get("judged_by")
    if requested in MEASURES:
        st.session_state["judged_by"] = requested
    chosen = st.segmented_control(
        "Metric",
        list(MEASURES),
        default=None if "judged_by" in st.session_state else ACCURACY.name,
        required=True,
        format_func=lambda name: MEASURES[name].title,
        key="judged_by",
        persist_state="session",
        on_change=write_measure_to_address,
        help="The metric of the verdict, the intervals and the pairs. Accuracy: share of images "
        "classified correctly. Macro F1: every class counts the same. Log loss: also measures the "
        "quality of the probabilities; lower is better.",
    )
    measure = chosen or ACCURACY.name
    if measure != (requested or ACCURACY.name):
        st.query_params["judged_by"] = measure
    return measure


def write_measure_to_address() -> None:
    """Write the chosen metric into the address (a callback)."""
    st.query_params["judged_by"] = st.session_state["judged_by"]


def draw_comparison(runs: list[Run]) -> None:
    """Draw the verdict first, then the evidence for the verdict; the rest is folded."""
    left_out = [run for run in runs if not run.is_evaluable]
    if left_out:
        names = "; ".join(
            f"{title} ({run.run_id})"
            for title, run in zip(run_titles(left_out), left_out, strict=True)
        )
        st.warning(
            escape_markdown(f"Left out, because they have not finished an epoch: {names}."),
            icon=":material/block:",
        )
    judged = [run for run in runs if run.is_evaluable]
    # Filled once the metric below is known.
    answer = st.container()
    measure = choose_measure()
    try:
        comparison = compare_runs(judged, measure)
    except RunError as error:
        answer.error(escape_markdown(str(error)), icon=":material/error:")
        return
    draw_arms(comparison)
    shift = draw_sections(comparison, judged) if len(judged) > 1 else None
    evidence = collect_evidence(comparison, shift, store().list_runs())
    with answer:
        draw_verdict(comparison)
        if compared_now := draw_next(comparison, evidence):
            remember(compared_now)
            st.rerun()
    draw_report_button(comparison, evidence.shift)


def draw_sections(comparison: Comparison, judged: list[Run]) -> ShiftComparison | None:
    """Draw the folded sections.

    Returns:
        The comparison on shifted images; None while that section is folded.
    """
    arms = comparison.arms
    draw_section("Details", "details", ":material/list:", partial(draw_details, comparison))
    draw_section("Cost", "cost", ":material/payments:", partial(draw_costs, comparison))
    if any(run.history.epochs for arm in arms for run in arm.runs):
        draw = partial(draw_curves, comparison)
        draw_section("Learning curves", "curves", ":material/show_chart:", draw)
    if len(arms) > 1:
        # One run per arm, with its first seed: equal seeds saw the same images in the same order.
        first_runs = [arms[index].members[0].run for index in comparison.order]
        draw = partial(draw_disagreements, first_runs)
        draw_section("Disagreements", "disagree", ":material/call_split:", draw)
    draw_shift = partial(draw_distribution_shift, comparison)
    if PARAMETER in st.query_params:
        # The address is a link to the section's content.
        st.session_state.setdefault("shift", True)
    shift = draw_section("Distribution shift", "shift", ":material/photo_library:", draw_shift)
    draw = partial(draw_layer_diagnostics, [representative_run(arm.runs) for arm in arms])
    draw_section("Layer diagnostics", "layers", ":material/stacked_bar_chart:", draw)
    if can_average(judged):
        average = partial(offer_averages, judged)
        if queued := draw_section(
            "Model soups and ensembles", "averages", ":material/blender:", average
        ):
            remember([*(run.run_id for run in compared), queued])
            st.rerun()
    return shift


start_page(
    "pages/compare.py",
    "Compare strategies on the same images, and see which stages were worth training.",
)
runs, damaged = store().list_all()
if not runs:
    draw_empty_page("No run yet. Start a comparison here, or see a single run on the sample first.")
    draw_damaged_runs(damaged)
    draw_start_box(expanded=True)
    st.stop()
compared = choose_compared(runs)
is_active = any(run.is_active for run in compared)
is_form_open = draw_start_box(expanded=not is_active and len(compared) < 2)
has_profile_runs = any(find_profiled_stage(run.config) for run in compared)
if has_profile_runs:
    # For runs of a profile, the answer of the profile comes first.
    draw_profile(runs)
if is_active:
    st.fragment(draw_queue, run_every=REFRESH)(
        [run.run_id for run in compared], forecast_seconds(compared)
    )
elif compared:
    draw_comparison(compared)
else:
    st.info(
        f"Choose two runs or more ({pluralize(len(runs), 'run')} to choose from), or start a "
        "comparison.",
        icon=":material/info:",
    )
if not has_profile_runs:
    draw_profile(runs, folded=True)
draw_damaged_runs(damaged)
draw_next_step("pages/predict.py", "Try a run on new images", primary=not is_form_open)

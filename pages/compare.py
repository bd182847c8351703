"""Compare: start strategies against each other, and read which stages were worth training."""

from collections.abc import Sequence

import streamlit as st

from finetune_core.errors import RunError
from finetune_core.evaluation.comparison.arms import run_titles
from finetune_core.evaluation.comparison.compare import Comparison, compare_runs
from finetune_core.evaluation.comparison.layer_diagnostics import measured_run
from finetune_core.evaluation.comparison.measures import ACCURACY, MEASURES
from finetune_core.evaluation.comparison.pair_text import CLAIMS
from finetune_core.evaluation.comparison.pairs import Pair
from finetune_core.evaluation.comparison.report import (
    arms_table,
    detail_lines,
    footnotes,
    pairs_table,
)
from finetune_core.evaluation.comparison.shift import ShiftComparison
from finetune_core.figures.comparison import (
    COSTS,
    Axis,
    Kind,
    accuracies,
    by_data,
    by_depth,
    learning_curves,
    offered_costs,
    pareto,
)
from finetune_core.figures.report import whole_report
from finetune_core.formatting import SPLIT_WORDS, accuracy_name, number, things
from finetune_core.runs.design import profiled_stage
from finetune_core.runs.store import Run
from pages.shared.chrome import next_step, page, plain
from pages.shared.configure import form, settings
from pages.shared.configure.comparison_form import start_form
from pages.shared.data.chosen import readable_roots
from pages.shared.evaluation.averages import offer_averages
from pages.shared.evaluation.claims import pair_markdown
from pages.shared.evaluation.diagnostics import disagreements, what_moved
from pages.shared.evaluation.next_experiment import draw_next
from pages.shared.evaluation.profile import draw_profile
from pages.shared.evaluation.shift_axis import distribution_shift
from pages.shared.runs.backend import store
from pages.shared.runs.damaged import damaged_runs
from pages.shared.runs.first_run import nothing_yet
from pages.shared.runs.picker import choose_runs
from pages.shared.runs.queue import REFRESH, expected_seconds, queue_panel

MOST_AT_FIRST = 12  # runs
MOST_PAIRS = 6  # described in words
AXES: dict[Axis, str] = {"epoch": "By epoch", "seconds": "By time"}  # of the learning curves
HOW = (
    "All runs are evaluated on the same images; two questions are kept apart. **The method in general**: would the same strategies differ on new "
    "images, trained again with new seeds? That needs two seeds or more of each, better three, because images and seeds are both random. The "
    "variance between seeds is pooled over all strategies, except those that clearly vary more. **These trained models**: do the models that were "
    "trained here differ on new images? One seed is enough, but it says nothing about other seeds. For either question, at most one in twenty "
    "comparisons of equally good strategies finds a difference, no matter how many there are (Holm's correction). *No difference shown* does not "
    "mean equal: a difference smaller than the one given may well exist. **Macro F1** and **log loss** are compared in the same way: intervals of "
    "trained models come from a paired bootstrap over images, their p from random sign flips; for the method, each image counts by its log loss, "
    "or by what it adds to macro F1 (pseudo-values)."
)
COLUMN_HELP = {
    **{accuracy_name(split): "Mean over the seeds." for split in SPLIT_WORDS},
    "Macro F1": "F1 of each class, averaged over the classes; mean over the seeds.",
    "Log loss": "Mean cross-entropy in nats; mean over the seeds. Lower is better.",
    "95 % interval": "For new images and, with several seeds, new seeds.",
    "Over seeds": "The worst and the best seed, and the standard deviation over seeds: variation that has nothing to do with the images.",
    "Ensemble of the seeds": "The mean of the seeds' probabilities, with its 95 % interval for new images. It takes as long to predict as all of them together.",
    "Time": "Of the median run. The first of several also computes the activation cache that the others reuse.",
    "Without the cache": "The time of the same run if its frozen stages ran in every epoch. A little too low where the cache was computed from that of another strategy.",
    "Trainable": "Parameters that are trained.",
    "Memory": "Memory of a run in addition to the program itself: weights, optimizer, decoded images, cache, and activations of a step, as far as they are not on a GPU.",
    "GPU memory": "The most of a GPU's memory that a run has held.",
    "Verdict": "Against the strategy to use, or where there is none, against the best: for the method in general where the seeds allow that.",
    "On disk": "The best checkpoint, which holds only the trained weights.",
    **{
        f"Difference ({one.unit})": f"{one.title} of the first minus that of the second{', in percentage points' if one.share else ''}."
        for one in MEASURES.values()
    },
    CLAIMS["strategies"]: "95 % interval of the difference, for new images and new seeds.",
    "p, Holm": "For the method in general: over images and seeds, corrected for the number of pairs. At most 0.05 counts as a difference.",
    CLAIMS[
        "networks"
    ]: "95 % interval of the difference between the models trained here, for new images.",
    "p, Holm (models)": "For these trained models: over images, corrected for the number of pairs.",
    "McNemar p": "For accuracy, regardless of the metric chosen: exact test on the images that only one of two networks classifies correctly; every network of one arm against every network of the other, combined (Rüger).",
    "Uncertainty": "Standard errors, from the images and, with several seeds, from the seeds.",
}


def choose(runs: list[Run]) -> list[Run]:
    """The runs to compare: those in the address, else those chosen before, else the latest on the same data."""
    by_id = {run.run_id: run for run in runs}
    asked = st.query_params.get_all("runs")
    gone = [run_id for run_id in asked if run_id not in by_id]
    with st.container():  # always there, so that the box below is not drawn anew
        if gone:
            st.warning(
                plain(f"There is no run {', '.join(gone)} here any more."),
                icon=":material/link_off:",
            )
    before = [
        run_id for run_id in asked or st.session_state.get("compared_runs", []) if run_id in by_id
    ]
    # The number stands inside: a label that changes with it would close the box.
    with st.expander("Which runs", icon=":material/checklist:"):
        chosen = choose_runs("Runs", runs, "runs", chosen=before or latest(runs))
        st.caption(f"{number(len(chosen))} of {things(len(runs), 'run')} chosen")
    remember([run.run_id for run in chosen])
    return chosen


def latest(runs: list[Run]) -> list[str]:
    """The latest judged run, and those before it on the same data."""
    judged = [run for run in runs if run.judged]
    same = [run for run in judged if run.started["fingerprint"] == judged[0].started["fingerprint"]]
    return [run.run_id for run in same[:MOST_AT_FIRST]]


def remember(run_ids: list[str]) -> None:
    st.session_state["compared_runs"] = run_ids
    if st.query_params.get_all("runs") != run_ids:
        st.query_params["runs"] = run_ids


def start(*, expanded: bool) -> bool:
    """The form that starts one, in a box; returns whether that is open."""
    box = st.expander(
        "Start a comparison",
        expanded=expanded,
        icon=":material/play_arrow:",
        key=settings.comparison_box(),
        on_change="rerun",
    )
    if not box.open:
        return False
    with box:
        queued = start_form()
    if queued:
        st.session_state["comparisons_started"] = st.session_state.get("comparisons_started", 0) + 1
        remember(queued)
        st.rerun()
    return True


def verdict(comparison: Comparison) -> None:
    """Draw the answer, its size, and what to do; all else is folded below."""
    answer, size, action = comparison.verdict.lines
    with st.container(border=True):
        st.header(plain(answer), anchor=False)
        st.markdown(plain(size))
        st.markdown(f":material/arrow_forward: **{plain(action)}**")
    with st.expander("Details", icon=":material/list:"):
        details(comparison)


def details(comparison: Comparison) -> None:
    for line in detail_lines(comparison):
        st.markdown(plain(line))
    if comparison.differing:
        names = ", ".join(form.label(name).lower() for name in comparison.differing)
        st.markdown(f"Besides the strategy, these settings differ: {names}.")
    pairs(comparison)
    with st.popover("Method", icon=":material/help:", type="tertiary"):
        st.markdown(HOW)


def table(columns: list[str], rows: list[list[str]], key: str) -> None:
    st.dataframe(
        [dict(zip(columns, row, strict=True)) for row in rows],
        hide_index=True,
        key=key,
        column_config={
            name: st.column_config.TextColumn(help=COLUMN_HELP[name])
            for name in columns
            if name in COLUMN_HELP
        },
    )


def arms(comparison: Comparison) -> None:
    measure, split = comparison.measure, comparison.split
    title = measure.title_on(split)
    st.header(
        title,
        anchor=False,
        help="Large: mean over the seeds, with its 95 % interval. Small: each seed.",
    )
    st.plotly_chart(
        accuracies(comparison.arms, split),
        key=f"accuracies-{comparison.measure.name}",
        alt=f"{title} of each strategy with its interval, a small dot for each seed",
    )
    table(*arms_table(comparison), key="arms")
    for footnote in footnotes(comparison):
        st.caption(plain(footnote))


def pairs(comparison: Comparison) -> None:
    """Describe each pair; of many, those of the first arm in words and all in the table."""
    if not comparison.pairs:
        return
    drawn: Sequence[Pair] = comparison.pairs
    if len(drawn) > MOST_PAIRS and comparison.arm_verdicts:
        first = comparison.arm_verdicts[0].arm
        drawn = [pair for pair in drawn if first in (pair.a, pair.b)]
    for pair in drawn:
        st.markdown(pair_markdown(comparison.arms, pair))
    table(*pairs_table(comparison), key="pairs")


@st.fragment
def costs(comparison: Comparison) -> None:
    name = accuracy_name(comparison.split)
    st.header(
        f"{name} against cost",
        anchor=False,
        help="Dotted line: Pareto front. No run is both better and cheaper than one on it. Hollow: "
        "the same runs without the cache of the frozen stages' output.",
    )
    offered, reason = offered_costs(comparison.arms)
    if st.session_state.get("measure") not in (None, *offered):
        del st.session_state["measure"]
    measure = st.segmented_control(
        "Cost",
        offered,
        default="seconds",
        required=True,
        format_func=lambda name: COSTS[name][0],
        key="measure",
        persist_state="session",
        label_visibility="collapsed",
    )
    st.plotly_chart(
        pareto(measure, comparison.arms, comparison.split),
        key=f"pareto-{measure}",
        alt=f"{name} against {COSTS[measure][0].lower()}",
    )
    if reason:
        st.caption(reason)


def shapes(comparison: Comparison) -> None:
    """Depth and amount of data, where the runs differ in them."""
    name = accuracy_name(comparison.split)
    drawn = [
        (
            f"{name} by first stage that trains",
            "depth",
            by_depth(comparison.arms, comparison.split),
            f"{name} against the first stage that trains",
        ),
        (
            f"{name} by training set size",
            "data",
            by_data(comparison.arms, comparison.split),
            f"{name} against the number of training images",
        ),
    ]
    drawn = [one for one in drawn if one[2]]
    for column, (heading, key, figure, alt) in zip(
        st.columns(len(drawn)) if drawn else [], drawn, strict=True
    ):
        with column:
            st.header(heading, anchor=False)
            st.plotly_chart(figure, key=key, alt=alt)


@st.fragment
def curves(comparison: Comparison) -> None:
    if not any(run.history.epochs for arm in comparison.arms for run in arm.runs):
        return
    st.header("Learning curves", anchor=False)
    axis = st.segmented_control(
        "Axis",
        list(AXES),
        default="epoch",
        required=True,
        format_func=AXES.__getitem__,
        key="axis",
        persist_state="session",
        label_visibility="collapsed",
    )
    kinds: tuple[Kind, Kind] = ("loss", "accuracy")
    for column, kind in zip(st.columns(2), kinds, strict=True):
        figure = learning_curves(kind, axis, comparison.arms)
        column.plotly_chart(
            figure,
            key=f"curves-{kind}-{axis}",
            alt=f"Validation {kind} of every run on shared axes",
        )


def share(comparison: Comparison, shift: ShiftComparison | None) -> None:
    st.download_button(
        "Report, one HTML file",
        lambda: whole_report(comparison, readable_roots(), shift),
        "comparison.html",
        "text/html",
        icon=":material/download:",
        on_click="ignore",  # redrawing the page would let go of the very file that is asked for
        help="Verdict, tables, figures, the shifted data that are chosen below, layer diagnostics if measured, and the clearest disagreements of the two best networks, in one file that opens offline, without Thaw. Anyone who can reach this server sees the same under the address of this page.",
    )


def judged_by() -> str:
    """The metric to compare by: that of the address, else the one chosen before."""
    asked = st.query_params.get("judged_by")
    if asked in MEASURES:
        st.session_state["judged_by"] = asked
    chosen = st.segmented_control(
        "Metric",
        list(MEASURES),
        default=None if "judged_by" in st.session_state else ACCURACY.name,
        required=True,
        format_func=lambda name: MEASURES[name].title,
        key="judged_by",
        persist_state="session",
        on_change=measure_to_address,
        help="The metric of the verdict, the intervals and the pairs. Accuracy: share of images classified correctly. Macro F1: every class counts the same. Log loss: also measures the quality of the probabilities; lower is better.",
    )
    measure = chosen or ACCURACY.name
    if measure != (asked or ACCURACY.name):
        st.query_params["judged_by"] = measure
    return measure


def measure_to_address() -> None:
    st.query_params["judged_by"] = st.session_state["judged_by"]


def judged_together(runs: list[Run]) -> None:
    left_out = [run for run in runs if not run.judged]
    if left_out:
        names = "; ".join(
            f"{title} ({run.run_id})"
            for title, run in zip(run_titles(left_out), left_out, strict=True)
        )
        st.warning(
            plain(f"Left out, because they have not finished an epoch: {names}."),
            icon=":material/block:",
        )
    measure = judged_by()
    try:
        comparison = compare_runs([run for run in runs if run.judged], measure)
    except RunError as error:
        st.error(plain(str(error)), icon=":material/error:")
        return
    verdict(comparison)
    sharing = st.container()  # above what the report holds, and drawn once that is known
    if queued := offer_averages([run for run in runs if run.judged]):
        remember([*(run.run_id for run in runs), queued])
        st.rerun()
    arms(comparison)
    costs(comparison)
    shift = distribution_shift(comparison)
    with sharing:
        if compared_now := draw_next(comparison, shift):
            remember(compared_now)
            st.rerun()
        share(comparison, shift)
    shapes(comparison)
    curves(comparison)
    # One run an arm, each with its first seed: equal seeds saw the same images in the same order.
    firsts = [arm.members[0].run for arm in comparison.arms]
    disagreements([firsts[at] for at in comparison.order])
    what_moved([measured_run(arm.runs) for arm in comparison.arms])


page(
    "pages/compare.py",
    "Compare strategies on the same images, and see which stages were worth training.",
)
runs, damaged = store().all()
if not runs:
    nothing_yet("No run yet. Start a comparison here, or see a single run on the sample first.")
    damaged_runs(damaged)
    start(expanded=True)
    st.stop()
compared = choose(runs)
going_on = any(run.active for run in compared)
starting = start(expanded=not going_on and len(compared) < 2)
of_profile = any(profiled_stage(run.config) for run in compared)
if of_profile:  # whoever looks at its runs wants its answer first
    draw_profile(runs)
if going_on:
    st.fragment(queue_panel, run_every=REFRESH)(
        [run.run_id for run in compared], expected_seconds(compared)
    )
elif compared:
    judged_together(compared)
else:
    st.info(
        f"Choose two runs or more ({things(len(runs), 'run')} to choose from), or start a comparison.",
        icon=":material/info:",
    )
if not of_profile:
    draw_profile(runs)
damaged_runs(damaged)
next_step("pages/predict.py", "Try a run on new images", primary=not starting)

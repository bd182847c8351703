"""Calibration on Evaluate: reliability diagram, calibration error, and selective prediction."""

from math import isnan

import streamlit as st

from finetune_core.evaluation.single_run.binning import BINS, Binning
from finetune_core.evaluation.single_run.calibration import FEWEST, Calibration, Scaling
from finetune_core.evaluation.single_run.curves import coverage_curve, selective_prediction
from finetune_core.evaluation.single_run.evaluate import compute_run_calibration
from finetune_core.evaluation.single_run.metrics import Evaluation
from finetune_core.figures.calibration import plot_coverage, plot_reliability_diagram
from finetune_core.formatting import format_interval, format_number, format_percent, pluralize
from finetune_core.runs.store import Run
from pages.shared.evaluation.numbers import draw_share

_BINNINGS: dict[Binning, str] = {
    "width": f"{BINS} of equal width",
    "mass": f"{BINS} of equally many images",
}
_PER_BIN = 20  # images: with fewer, a calibration error is mostly chance
_ECE = (
    "Expected calibration error: mean gap between confidence and accuracy over the bins above, "
    "weighted by their number of images. It depends on the bins."
)


def draw_calibration(run: Run, result: Evaluation) -> None:
    """Draw calibration and selective prediction."""
    if len(result.classes) < 2:
        st.info(
            "With a single class, confidence is always 100 %: there is nothing to calibrate.",
            icon=":material/info:",
        )
        return
    st.markdown(
        "**Reliability diagram**",
        help="Of the predictions with 80 % confidence, 80 % should be correct. Points below the "
        "dotted line: overconfident.",
    )
    _draw_reliability(run, result)
    st.markdown(
        "**Selective prediction**",
        help="Predictions of low confidence are deferred to a person: the lower the coverage, the "
        "higher the accuracy of the rest.",
    )
    _draw_coverage(result)


def _draw_reliability(run: Run, result: Evaluation) -> None:
    binning = st.segmented_control(
        "Bins",
        list(_BINNINGS),
        format_func=_BINNINGS.__getitem__,
        default="width",
        required=True,
        key="binning",
        persist_state="session",
        help="Images are binned by the confidence of their prediction.",
    )
    found = compute_run_calibration(run, result.split, binning)
    before, scaling, after = found.before, found.scaling, found.after
    if scaling and scaling.is_at_limit:
        # The images do not determine a temperature, so scaled numbers would mean nothing.
        after = None
    _draw_numbers(before, scaling, after)
    st.plotly_chart(
        plot_reliability_diagram(
            {"unscaled": before.bins} | ({"scaled": after.bins} if after else {})
        ),
        key="reliability",
        alt="Reliability diagram: accuracy against confidence",
    )
    caption = (
        "Bars: 95 % intervals (Wilson) of the unscaled points; of the ECE: bootstrap, corrected "
        "for its bias. "
    )
    caption += _describe_scaling(scaling)
    if result.images < BINS * _PER_BIN:
        caption += (
            " With so few images, the calibration error is overestimated: chance alone moves "
            "points off the line."
        )
    st.caption(caption)


def _draw_numbers(before: Calibration, scaling: Scaling | None, after: Calibration | None) -> None:
    """Draw calibration errors before and after temperature scaling, and the temperature if any."""
    with st.container(horizontal=True):
        _draw_error("ECE", before, _ECE)
        if after and scaling:
            _draw_error("ECE, scaled", after, f"{_ECE} After temperature scaling.")
            text = " and ".join(f"{one:.2f}" for one in scaling.temperatures)
            note = (
                "What logits are divided by (Guo et al. 2017). Above 1: the network was "
                "overconfident. The predicted classes stay the same."
            )
            st.metric("Temperature", text, help=note, border=True, height="stretch")
            st.metric(
                "Loss, scaled",
                f"{after.loss:.3f}",
                delta=f"{after.loss - before.loss:+.3f}",
                delta_color="inverse",
                help="Mean cross-entropy after scaling, and what scaling changed.",
                border=True,
                height="stretch",
            )


def _draw_error(label: str, calibration: Calibration, meaning: str) -> None:
    """Draw a calibration error with its interval."""
    draw_share(label, calibration.ece, calibration.ece_low, calibration.ece_high, meaning)


def _describe_scaling(scaling: Scaling | None) -> str:
    if scaling is None:
        return (
            f"Too few images to fit a temperature on: it takes {FEWEST} other than those it is "
            "evaluated on."
        )
    if scaling.is_at_limit:
        return (
            "No temperature is shown, because the images to fit one on do not determine it: nearly "
            "all are classified correctly, or the logits carry no information."
        )
    if scaling.source == "val":
        return (
            f"The temperature was fitted on the {format_number(scaling.images[0])} validation "
            "images, none of which are in this figure."
        )
    return (
        "A temperature must not be evaluated on the images it was fitted on, so each half of "
        "these was scaled with the temperature of the other half "
        f"({format_number(scaling.images[0])} and {format_number(scaling.images[1])} images)."
    )


def _draw_coverage(result: Evaluation) -> None:
    threshold = st.slider(
        "Confidence threshold",
        0,
        100,
        80,
        format="%d %%",
        key="threshold",
        persist_state="session",
        help="Predictions below it are deferred to a person.",
    )
    selected = selective_prediction(result, threshold / 100)
    with st.container(horizontal=True):
        st.metric(
            "Coverage",
            format_percent(selected.share),
            help=f"{pluralize(selected.images, 'image')} of {format_number(result.images)}",
            border=True,
        )
        st.metric(
            "Selective accuracy",
            "–" if isnan(selected.accuracy) else format_percent(selected.accuracy),
            border=True,
        )
        interval = "–" if isnan(selected.accuracy) else format_interval(selected.low, selected.high)
        st.metric(
            "95 % interval", interval, help="Of the selective accuracy (Wilson).", border=True
        )
    st.plotly_chart(
        plot_coverage(coverage_curve(result), selected.share, selected.accuracy),
        key="coverage",
        alt="Selective accuracy against coverage",
    )
    if result.split == "test":
        st.caption(
            "Choose the threshold on the validation images and evaluate it here: one chosen on "
            "these images looks better than it is."
        )

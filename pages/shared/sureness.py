"""The tab of Evaluate on how sure the network is: calibration, and accuracy against coverage."""

from math import isnan

import streamlit as st

from finetune_core.evaluation.calibration import BINS, FEWEST, Scaling
from finetune_core.evaluation.curves import coverage_curve, named_at
from finetune_core.evaluation.metrics import Evaluation
from finetune_core.evaluation.results import calibrated
from finetune_core.figures.sureness import coverage_figure, reliability_diagram
from finetune_core.runs.store import Run
from finetune_core.words import number, percent, things

_PER_BIN = 20  # images: with fewer, what is called an error is chance for the most part


def how_sure(run: Run, result: Evaluation) -> None:
    """Calibration, and accuracy against coverage."""
    if len(result.classes) < 2:
        st.info("With a single class a network is always sure.", icon=":material/info:")
        return
    st.markdown(
        "**Is it as sure as it is right?**",
        help="Calibration: of the images that it is 80 % sure of, 80 % should be right. Points below the dotted line: too sure.",
    )
    _reliability(run, result)
    st.markdown(
        "**Leave the unsure ones to a person**",
        help="Selective prediction: the network names only what it is sure of. Fewer images are named, more of them right.",
    )
    _coverage(result)


def _reliability(run: Run, result: Evaluation) -> None:
    binning = st.segmented_control(
        "Bins",
        ["width", "mass"],
        format_func={"width": f"{BINS} of equal width", "mass": f"{BINS} of equally many images"}.get,
        default="width",
        required=True,
        key="binning",
        help="Images are put together by how sure the network is of what it names.",
    )
    found = calibrated(run, result.split, binning)
    before, scaled, after = found.before, found.scaling, found.after
    what = "Expected calibration error: how far confidence and accuracy are apart, in the mean over the bins above, each counting by its "
    what += "images. It depends on the bins."
    with st.container(horizontal=True):
        st.metric("ECE", percent(before.ece), help=what, border=True, height="stretch")
        if after:
            st.metric(
                "ECE, scaled", percent(after.ece), help=f"{what} After temperature scaling.", border=True, height="stretch"
            )
            words = " and ".join(f"{one:.2f}" for one in scaled.temperatures)
            note = (
                "What logits are divided by (Guo et al. 2017). Above 1: the network was too sure. What is named stays the same."
            )
            st.metric("Temperature", words, help=note, border=True, height="stretch")
            st.metric(
                "Loss, scaled",
                f"{after.loss:.3f}",
                delta=f"{after.loss - before.loss:+.3f}",
                delta_color="inverse",
                help="Mean cross-entropy after scaling, and what scaling changed.",
                border=True,
            )
    st.plotly_chart(
        reliability_diagram({"as it is": before.bins} | ({"scaled": after.bins} if after else {})),
        key="reliability",
        alt="Reliability diagram: how often right against how sure",
    )
    told = "Bars: 95 % intervals (Wilson) of the points as they are. " + _scaling_in_words(scaled)
    if result.images < BINS * _PER_BIN:
        told += " With so few images the calibration error comes out too large: chance alone moves points off the line."
    st.caption(told)


def _scaling_in_words(scaled: Scaling | None) -> str:
    if scaled is None:
        return f"Too few images to fit a temperature on: it takes {FEWEST} that are not the ones it is judged on."
    if scaled.source == "val":
        told = (
            f"The temperature was fitted on the {number(scaled.images[0])} validation images, none of which are in this figure."
        )
    else:
        told = (
            f"A temperature must not be judged on the images that it was fitted on, so each half of these was scaled by the temperature of the "
            f"other half ({number(scaled.images[0])} and {number(scaled.images[1])} images)."
        )
    if scaled.at_limit:
        told += " Those images do not settle it (nearly all of them are right, or the logits say nothing): it is at the end of its range."
    return told


def _coverage(result: Evaluation) -> None:
    least = st.slider(
        "Name only images it is at least so sure of",
        0,
        100,
        80,
        format="%d %%",
        key="threshold",
        help="The rest would go to a person.",
    )
    named = named_at(result, least / 100)
    with st.container(horizontal=True):
        st.metric(
            "Named", percent(named.share), help=f"{things(named.images, 'image')} of {number(result.images)}", border=True
        )
        st.metric("Right among those", "–" if isnan(named.accuracy) else percent(named.accuracy), border=True)
        interval = "–" if isnan(named.accuracy) else f"{percent(named.low)} to {percent(named.high)}"
        st.metric("95 % interval", interval, help="Wilson's interval.", border=True)
    st.plotly_chart(
        coverage_figure(coverage_curve(result), named.share, named.accuracy),
        key="coverage",
        alt="Accuracy among the named images against the share that is named",
    )
    if result.split == "test":
        st.caption(
            "Choose how sure on the validation images, and read here what it is worth: a choice made on these images flatters itself."
        )

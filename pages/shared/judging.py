"""What the tabs of Evaluate show of one split of one run. Each is drawn only while it is open."""

from math import isnan

import streamlit as st

from finetune_core.errors import FinetuneError
from finetune_core.evaluation.calibration import BINS, FEWEST, Scaling, calibration
from finetune_core.evaluation.curves import coverage_curve, named_at, one_vs_rest
from finetune_core.evaluation.metrics import Evaluation, logits_of
from finetune_core.evaluation.results import prediction_table, scaling, scores, sliced
from finetune_core.evaluation.robustness import CORRUPTIONS, MOST_IMAGES, known_robustness, measure_robustness
from finetune_core.evaluation.scores import NAMES
from finetune_core.evaluation.slices import FEW
from finetune_core.figures.judged import (
    coverage_figure,
    recall_precision_curves,
    reliability_diagram,
    robustness_lines,
    roc_curves,
    slice_dots,
)
from finetune_core.runs.store import Run
from finetune_core.words import number, percent, things
from pages.shared.chrome import plain
from pages.shared.state import with_bar

_MEANINGS = {
    "accuracy": "Share of images that are named right.",
    "balanced_accuracy": "Mean over classes of the share found: every class counts alike, however few images it has.",
    "f1_macro": "Precision and recall in one number, for each class; then the mean over classes.",
    "f1_micro": "The same over all images at once. Where every image has one class, it equals accuracy.",
    "f1_weighted": "The mean over classes, each counting by its images.",
    "top_3_accuracy": "Share of images whose class is among the three likeliest.",
    "top_5_accuracy": "Share of images whose class is among the five likeliest.",
    "roc_auc": "How often an image of a class gets a higher probability for it than others do. 0.5 is a guess.",
    "average_precision": "Area under the precision-recall curve of a class; mean over classes.",
    "log_loss": "Mean cross-entropy: what the true class was not given. 0 is best.",
    "brier": "Squared distance between the probabilities and the truth: 0 is best, 2 worst.",
}
_SHARES = ("accuracy", "f1", "top_")
_VERDICTS = {"worse": "worse than the rest", "better": "better than the rest"}
_CURVES_AT_FIRST = 4


def all_scores(run: Run, result: Evaluation) -> None:
    found = scores(run, result.split)
    rows = [
        {
            "Number": NAMES[row.name],
            "Value": _value(row.name, row.value),
            "95 % interval": _range(row.name, row.low, row.high),
            "What it says": _MEANINGS[row.name],
        }
        for row in found.table.itertuples(index=False)
    ]
    st.dataframe(rows, hide_index=True, height="content")
    if found.absent:
        names = ", ".join(result.classes[label] for label in found.absent[:8]) + (", …" if len(found.absent) > 8 else "")
        st.caption(
            plain(
                f"There are no images of {things(len(found.absent), 'class', 'classes')} here ({names}): means leave them out."
            )
        )
    st.caption(
        f"Intervals: {number(found.resamples)} times as many images were drawn from these, with replacement, within each class (percentile "
        "bootstrap). They say what other images could have shown, not what another training could have. The interval at the top is Wilson's, "
        "which is the better one where images are few."
    )


def _value(name: str, value: float) -> str:
    if isnan(value):
        return "not defined"
    return percent(value) if any(part in name for part in _SHARES) else f"{value:.3f}"


def _range(name: str, low: float, high: float) -> str:
    return "" if isnan(low) else f"{_value(name, low)} to {_value(name, high)}"


def curves(result: Evaluation) -> None:
    defined = result.per_class.dropna(subset=["roc_auc", "average_precision"])
    if defined.empty:
        st.info("These curves set one class against the others: here all images are of one class.", icon=":material/info:")
        return
    hardest = defined.sort_values("average_precision").index.tolist()
    chosen = st.multiselect(
        "Classes",
        hardest,
        default=hardest[:_CURVES_AT_FIRST],
        format_func=lambda one: result.classes[one],
        key=f"curves-{_mark(result)}",
        help="Each against all others. The hardest come first.",
        max_selections=12,
    )
    drawn = {one: one_vs_rest(result, one) for one in chosen}
    if not drawn:
        st.caption("Choose a class.")
        return
    # Named by number and name: two long names may begin alike.
    names = {one: result.classes[one] for one in drawn}
    left, right = st.columns(2)
    with left:
        st.markdown(
            "**ROC**",
            help="Every point is one threshold on the probability of the class. The nearer to the top left, the better.",
        )
        st.plotly_chart(
            roc_curves({names[one]: curve.roc for one, curve in drawn.items()}),
            key="roc",
            alt="ROC curves of the chosen classes",
        )
    with right:
        st.markdown(
            "**Precision and recall**", help="More telling than ROC for rare classes. The nearer to the top right, the better."
        )
        st.plotly_chart(
            recall_precision_curves({names[one]: curve.recall_precision for one, curve in drawn.items()}),
            key="recall-precision",
            alt="Precision against recall for the chosen classes",
        )
    few = [names[one] for one in drawn if result.per_class.at[one, "images"] < FEW]
    if few:
        st.caption(plain(f"Few images of {', '.join(few)}: the curve could look very different on others."))


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
    table = prediction_table(run)
    rows = table[table["split"] == result.split]
    labels = rows["label"].to_numpy()
    before, scaled = calibration(logits_of(rows), labels, binning), scaling(run, result.split)
    after = calibration(scaled.logits, labels, binning) if scaled else None
    what = "Expected calibration error: how far confidence and accuracy are apart, in the mean over the bins above. Depends on them."
    with st.container(horizontal=True):
        st.metric("ECE", percent(before.ece), help=what, border=True)
        if after:
            st.metric("ECE, scaled", percent(after.ece), help=f"{what} After temperature scaling.", border=True)
            words = " and ".join(f"{one:.2f}" for one in scaled.temperatures)
            note = (
                "What logits are divided by (Guo et al. 2017). Above 1: the network was too sure. What is named stays the same."
            )
            st.metric("Temperature", words, help=note, border=True)
            st.metric(
                "Loss, scaled",
                f"{after.loss:.3f}",
                delta=f"{after.loss - before.loss:+.3f}",
                delta_color="inverse",
                border=True,
            )
    st.plotly_chart(
        reliability_diagram({"as it is": before.bins} | ({"scaled": after.bins} if after else {})),
        key="reliability",
        alt="Reliability diagram: how often right against how sure",
    )
    st.caption(_scaling_in_words(scaled))


def _scaling_in_words(scaled: Scaling | None) -> str:
    if scaled is None:
        return f"Too few images to fit a temperature on: it takes {FEWEST} that are not the ones it is judged on."
    if scaled.source == "val":
        told = (
            f"The temperature was fitted on the {number(scaled.images[0])} validation images, none of which are in this figure."
        )
    else:
        told = (
            f"There are no other images to fit a temperature on, so each half of these was scaled by the temperature that was fitted on the "
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


def by_slice(run: Run, result: Evaluation) -> None:
    facts, table = sliced(run, result.split)
    if table.empty:
        st.info(
            "Nothing is known that tells these images apart. Open the data on the Dataset page once, or add columns to the manifest.",
            icon=":material/info:",
        )
        return
    clear = table[table["verdict"].isin(_VERDICTS)]
    for row in clear.itertuples(index=False):
        st.markdown(
            f"- {plain(row.by)} **{plain(row.slice)}**: {percent(row.accuracy)} right, {_VERDICTS[row.verdict]} ({things(row.images, 'image')})"
        )
    if clear.empty:
        st.markdown("No part of these images is clearly better or worse than the rest.")
    by = st.selectbox(
        "Accuracy by",
        list(dict.fromkeys([*clear["by"], *facts.own, *table["by"]])),
        key=f"by-{_mark(result)}",
        help="What was seen of each image when the data were looked at, and the columns of a manifest. Numbers are cut into quarters.",
    )
    shown = table[table["by"] == by]
    st.plotly_chart(slice_dots(shown, result.accuracy), key="slices", alt=f"Accuracy by {by}, with 95 % intervals")
    few = (shown["images"] < FEW).any()
    st.caption(
        "The dotted line is the accuracy on all images; the number behind a name is how many there are. "
        + (f"Parts with fewer than {FEW} images are shown, but not compared. " if few else "")
        + "Better and worse are said only where chance is an unlikely reason (Fisher's exact test against the rest; of such findings one in "
        "twenty is expected to be false)."
    )


def robustness(run: Run, result: Evaluation) -> None:
    st.markdown("The same images, made worse step by step: blurred, noisy, compressed, brighter, turned.")
    place = st.empty()
    known = known_robustness(run, result.split)
    images = min(MOST_IMAGES, result.images)
    words = "Measure again" if known else f"Measure on {things(images, 'image')}"
    if st.button(words, icon=":material/blur_on:", type="tertiary" if known else "secondary", key="measure"):
        try:
            with_bar(measure_robustness(run, result.split), "Naming worse and worse images", place, kept=False)
        except FinetuneError as error:
            st.error(plain(str(error)), icon=":material/error:")
            return
        st.rerun()
    if known is None:
        return
    st.plotly_chart(
        robustness_lines(known.rows, {name: one.title for name, one in CORRUPTIONS.items()}),
        key="robustness",
        alt="Accuracy by kind and severity of corruption",
    )
    amounts = "; ".join(
        f"{one.title.lower()} {', '.join(f'{amount:g}' for amount in one.severities)} ({one.unit})"
        for one in CORRUPTIONS.values()
    )
    st.caption(
        f"{things(known.images, 'image')} of {number(result.images)}, drawn once by a fixed seed: the same ones everywhere. The bars are 95 % "
        f"intervals. Mild, middle and strong: {amounts}; in the manner of Hendrycks & Dietterich 2019. The result is kept with the run."
    )


def _mark(result: Evaluation) -> str:
    """Tells apart what widgets with choices of their own belong to."""
    return f"{result.split}-{len(result.classes)}"

"""Views of one split of one run on Evaluate: metrics, slices, robustness."""

from functools import partial
from math import isnan

import pandas as pd
import streamlit as st

from finetune_core.evaluation.single_run.corruptions import CLEAN, CORRUPTIONS
from finetune_core.evaluation.single_run.curves import BAND_RESAMPLES, OneVsRest
from finetune_core.evaluation.single_run.evaluate import compute_class_curves, score_run, slice_run
from finetune_core.evaluation.single_run.metrics import Evaluation
from finetune_core.evaluation.single_run.robustness import MOST_IMAGES, measure_robustness
from finetune_core.evaluation.single_run.robustness_files import load_robustness
from finetune_core.evaluation.single_run.scores import (
    AREAS,
    INTERVALS,
    Scores,
    format_range,
    format_value,
    score_name,
)
from finetune_core.evaluation.single_run.slices import FEW
from finetune_core.figures.evaluation import (
    plot_precision_recall_curves,
    plot_robustness,
    plot_roc_curves,
    plot_slices,
)
from finetune_core.formatting import (
    accuracy_name,
    format_interval,
    format_number,
    format_percent,
    pluralize,
)
from finetune_core.runs.store import Run
from pages.shared.chrome import escape_markdown
from pages.shared.data.chosen import readable_roots
from pages.shared.jobs import offer

_MEANINGS = {
    "accuracy": "Share of images that are classified correctly.",
    "balanced_accuracy": "Mean of the classes' recalls: every class counts the same.",
    "precision_macro": (
        "Mean of the classes' precisions. A class that is never predicted counts as 0."
    ),
    "recall_macro": "Mean of the classes' recalls: the same number as balanced accuracy.",
    "f1_macro": "Harmonic mean of precision and recall for each class; then the mean over classes.",
    "f1_micro": (
        "The same over all images at once. Where every image has one class, it equals accuracy."
    ),
    "f1_weighted": "The mean of the classes' F1, each weighted by its number of images.",
    "matthews_corrcoef": (
        "Correlation of true and predicted classes. 1 is perfect, 0 is chance level; robust to "
        "unequal class sizes."
    ),
    "cohen_kappa": (
        "Accuracy beyond what chance would give with the same class sizes. 1 is perfect, 0 is "
        "chance level."
    ),
    "top_3_accuracy": "Share of images whose class is among the three most likely.",
    "top_5_accuracy": "Share of images whose class is among the five most likely.",
    "roc_auc": (
        "How often an image of a class gets a higher probability for it than an image of another "
        "class; mean over classes. 0.5 is chance level."
    ),
    "average_precision": (
        "Area under the precision-recall curve of a class; mean over classes. Chance level is the "
        "prevalence of the class."
    ),
    "log_loss": "Mean cross-entropy of the true class, in nats. 0 is best.",
    "brier": "Squared distance between the probabilities and the truth: 0 is best, 2 worst.",
    "ece": "Mean gap between confidence and accuracy over the bins of Calibration. 0 is best.",
}
_VERDICTS = {"worse": "worse than the rest", "better": "better than the rest"}
_CURVES_AT_FIRST, _MOST_CURVES = 3, 12
_MOST_ROWS = 12  # rows of a table that is shown in full


def draw_metrics(run: Run, result: Evaluation) -> None:
    """Draw all metrics, the metrics by class, and, unfolded, the curves."""
    left, right = st.columns([5, 4], gap="medium")
    with left:
        st.header("All metrics", anchor=False)
        _draw_all_scores(run, result)
    with right:
        _draw_per_class(result)
    box = st.expander(
        "ROC and precision-recall curves",
        icon=":material/show_chart:",
        key="curves_box",
        on_change="rerun",
    )
    if box.open:
        with box:
            _draw_curves(run, result)


def _draw_all_scores(run: Run, result: Evaluation) -> None:
    with st.spinner("Bootstrapping the intervals"):
        found = score_run(run, result.split)
    rows = [
        {
            "Metric": score_name(row["name"], result.split),
            "Value": format_value(row["name"], row["value"]),
            "95 % interval": format_range(row["name"], row["low"], row["high"]),
            "Meaning": _MEANINGS[row["name"]],
        }
        for row in found.table.to_dict("records")
    ]
    st.dataframe(rows, hide_index=True, height="content")
    if found.absent:
        names = ", ".join(result.classes[label] for label in found.absent[:8]) + (
            ", …" if len(found.absent) > 8 else ""
        )
        st.caption(
            escape_markdown(
                f"There are no images of {pluralize(len(found.absent), 'class', 'classes')} here "
                f"({names}): means leave them out."
            )
        )
    st.caption(
        f"Intervals: {INTERVALS}: images were drawn with replacement "
        f"{format_number(found.resamples)} times (that of the ECE is corrected for its bias). "
        "They say what other images could have shown, not what another training run could have."
    )


def _draw_per_class(result: Evaluation) -> None:
    st.header("By class", anchor=False, help="The least recalled class comes first.")
    found = result.hardest_classes
    table = found[["class", "recall", "precision", "f1", "images"]]
    table[["recall", "precision", "f1"]] *= 100
    table.insert(
        2,
        "interval",
        [
            None if isnan(low) else format_interval(low, high)
            for low, high in zip(found["recall_low"], found["recall_high"], strict=True)
        ],
    )
    share = "%.1f %%"
    st.dataframe(
        table.rename(columns={"class": "Class", "images": "Images"}),
        hide_index=True,
        height="content" if len(table) <= _MOST_ROWS else "auto",
        placeholder="–",
        column_config={
            "recall": st.column_config.ProgressColumn(
                "Recall",
                help="The share of the images of this class that were predicted as this class.",
                min_value=0,
                max_value=100,
                format=share,
            ),
            "interval": st.column_config.TextColumn(
                "95 % interval",
                help="Of the recall (Wilson). The fewer images of a class, the wider: small "
                "differences between classes are often chance.",
            ),
            "precision": st.column_config.NumberColumn(
                "Precision",
                help="The share of the images predicted as this class that are of this class.",
                format=share,
            ),
            "f1": st.column_config.NumberColumn(
                "F1", help="Precision and recall in one number (harmonic mean).", format=share
            ),
        },
    )
    if table.isna().any(axis=None):
        st.caption(
            "–: not defined, because no image here is of this class, or none was predicted as it."
        )


def _draw_curves(run: Run, result: Evaluation) -> None:
    """Draw ROC and precision-recall curves, one class against the others."""
    defined = result.per_class.dropna(subset=["roc_auc", "average_precision"])
    if defined.empty:
        st.info(
            "These curves are one-vs-rest: here all images are of one class.",
            icon=":material/info:",
        )
        return
    hardest = defined.sort_values("average_precision").index.tolist()
    chosen = st.multiselect(
        "Classes",
        hardest,
        default=hardest[:_CURVES_AT_FIRST],
        format_func=lambda label: result.classes[label],
        key=f"curves-{_widget_mark(run, result)}",
        persist_state="session",
        help="One-vs-rest. The hardest come first.",
        max_selections=_MOST_CURVES,
    )
    if not chosen:
        st.caption("Choose a class.")
        return
    with st.spinner("Bootstrapping the intervals"):
        curves = {
            label: curve
            for label in chosen
            if (curve := compute_class_curves(run, result.split, label))
        }
        areas = score_run(run, result.split)
    _draw_two_curves({result.classes[label]: curve for label, curve in curves.items()})
    st.dataframe(
        _make_area_table(result, areas),
        hide_index=True,
        height="content" if len(hardest) <= _MOST_CURVES else 320,
    )
    text = (
        "Shaded: pointwise 95 % intervals (percentile bootstrap within classes, "
        f"{format_number(BAND_RESAMPLES)} resamples)."
    )
    rare_classes = [
        result.classes[label] for label in curves if result.per_class["images"].loc[label] < FEW
    ]
    if rare_classes:
        text += f" Few images of {', '.join(rare_classes)}: even the intervals are rough."
    st.caption(escape_markdown(text))


def _draw_two_curves(curves: dict[str, OneVsRest]) -> None:
    """Draw both kinds of curves side by side.

    Args:
        curves: curves by name of the class.
    """
    left, right = st.columns(2)
    with left:
        st.markdown(
            "**ROC**",
            help="Each point is one threshold on the probability of the class: true positive rate "
            "against false positive rate. The nearer to the top left, the better.",
        )
        st.plotly_chart(plot_roc_curves(curves), key="roc", alt="ROC curves of the chosen classes")
    with right:
        st.markdown(
            "**Precision-recall**",
            help="More informative than ROC for rare classes. The nearer to the top right, the "
            "better. Dotted: the prevalence of the class (its share of the images), which is the "
            "precision at chance level.",
        )
        st.plotly_chart(
            plot_precision_recall_curves(curves),
            key="recall-precision",
            alt="Precision against recall for the chosen classes",
        )


def _make_area_table(result: Evaluation, found: Scores) -> pd.DataFrame:
    """Return the areas under both curves by class, the hardest class first."""
    rows = found.classes.assign(
        Class=result.classes, Images=result.per_class["images"]
    ).sort_values("average_precision")
    table = rows[["Class", "Images"]].copy()
    table["Prevalence"] = [format_percent(share) for share in table["Images"] / result.images]
    for name, title in AREAS.items():
        table[title] = [format_value(name, one) for one in rows[name]]
        bounds = zip(rows[f"{name}_low"], rows[f"{name}_high"], strict=True)
        table[f"{title}, 95 % interval"] = [format_range(name, low, high) for low, high in bounds]
    return table


def draw_slices(run: Run, result: Evaluation) -> None:
    """Draw the accuracy by slice of the images' metadata."""
    facts, table = slice_run(run, result.split)
    if table.empty:
        st.info(
            "There is no metadata to slice these images by. Open the data on the Dataset page "
            "once, or add columns to the manifest.",
            icon=":material/info:",
        )
        return
    significant, name = table[table["verdict"].isin(_VERDICTS)], accuracy_name(result.split)
    for row in significant.to_dict("records"):
        st.markdown(
            f"- {escape_markdown(row['by'])} **{escape_markdown(row['slice'])}**: "
            f"{name.lower()} {format_percent(row['accuracy'])}, "
            f"{_VERDICTS[row['verdict']]} "
            f"({pluralize(row['images'], 'image')})"
        )
    if significant.empty:
        st.markdown("No slice is clearly better or worse than the rest.")
    by = st.selectbox(
        f"{name} by",
        list(dict.fromkeys([*significant["by"], *facts.own, *table["by"]])),
        key=f"by-{_widget_mark(run, result)}",
        persist_state="session",
        help="Metadata of each image, and the columns of a manifest. Numbers are binned by "
        "quartile.",
    )
    visible = table[table["by"] == by]
    st.plotly_chart(
        plot_slices(visible, result.accuracy, name),
        key="slices",
        alt=f"{name} by {by}, with 95 % intervals",
    )
    has_few = (visible["images"] < FEW).any()
    st.caption(
        "The dotted line is the accuracy on all of these images; the number behind a name is how "
        "many there are. "
        + (f"Slices with fewer than {FEW} images are shown, but not compared. " if has_few else "")
        + "Better and worse: significant by Fisher's exact test against the rest (false discovery "
        "rate 5 %)."
    )


def draw_robustness(run: Run, result: Evaluation) -> None:
    """Draw the accuracy on corrupted images, measured on request."""
    st.markdown(
        "The same images, corrupted with increasing severity: blur, noise, JPEG, brightness, "
        "rotation."
    )
    known = load_robustness(run, result.split)
    images = min(MOST_IMAGES, result.images)
    text = "Measure again" if known else f"Measure on {pluralize(images, 'image')}"
    offer(
        text,
        f"robustness:{_widget_mark(run, result)}",
        "Predicting corrupted images",
        partial(measure_robustness, run, result.split, roots=readable_roots()),
        kept=False,
        button_key="measure",
        icon=":material/blur_on:",
        type="tertiary" if known else "secondary",
    )
    if known is None:
        return
    lowest = known.rows.groupby("corruption")["accuracy"].min()
    worst = str(lowest.drop(CLEAN).idxmin())
    st.markdown(
        f"Clean {accuracy_name(result.split).lower()}: {format_percent(lowest[CLEAN])}. Most "
        f"harmful: **{CORRUPTIONS[worst].title}**, down to {format_percent(lowest[worst])}."
    )
    st.plotly_chart(
        plot_robustness(
            known.rows,
            {name: one.title for name, one in CORRUPTIONS.items()},
            accuracy_name(result.split),
        ),
        key="robustness",
        alt=f"{accuracy_name(result.split)} by kind and severity of corruption",
    )
    amounts = "; ".join(
        f"{one.title} {', '.join(f'{amount:g}' for amount in one.severities)} ({one.unit})"
        for one in CORRUPTIONS.values()
    )
    st.caption(
        f"{pluralize(known.images, 'image')} of {format_number(result.images)}, drawn with a "
        "fixed seed. Computed in fp32. Bars: 95 % intervals (Wilson). Mild, middle and strong: "
        f"{amounts}; in the manner of Hendrycks & Dietterich 2019. The result is kept with the "
        "run."
    )


def _widget_mark(run: Run, result: Evaluation) -> str:
    """Return a mark of the evaluation, so that each one has its own widgets."""
    return f"{run.run_id}-{result.split}"

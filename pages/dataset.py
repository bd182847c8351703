"""Dataset: choose the images, look at them, and correct them before training."""

from contextlib import suppress

import streamlit as st

from finetune_core.data.dataset import Dataset
from finetune_core.data.edits import load_edits
from finetune_core.data.findings import select_open_findings
from finetune_core.data.splits import SPLITS
from finetune_core.errors import FinetuneError
from finetune_core.figures.data import plot_class_counts, plot_probe_curve
from finetune_core.formatting import (
    SPLIT_TITLES,
    format_number,
    format_percent,
    lower_first,
    pluralize,
)
from finetune_core.inspection.deep import DeepReport
from finetune_core.training.strategies.catalogue import STRATEGIES
from pages.shared.chrome import PLAIN, draw_next_step, escape_markdown, go, start_page
from pages.shared.configure import form, settings
from pages.shared.data.analysis import PROBES, VIEW, analyze, compare_layers, has_outdated_report
from pages.shared.data.changes import draw_changes, draw_last_change, draw_rename_form
from pages.shared.data.chosen import data_name, get_chosen_data
from pages.shared.data.datasets import current_dataset, find_report
from pages.shared.data.findings import list_findings
from pages.shared.data.galleries import draw_examples, draw_images, draw_map
from pages.shared.data.labelling import label_images
from pages.shared.data.network_view import draw_preprocessing
from pages.shared.data.source import choose_source

start_page(
    "pages/dataset.py",
    "Choose the images to learn from, inspect them, and correct them before training.",
)


def draw_overview(dataset: Dataset) -> None:
    """Draw the data set in one line, its classes, and some of its images."""
    table, counts = dataset.table, dataset.count_images()
    facts = [
        pluralize(len(table), "image"),
        pluralize(len(dataset.classes), "class", "classes"),
        ", ".join(
            f"{format_number(counts[split].sum())} {SPLIT_TITLES[split].lower()}"
            for split in SPLITS
            if split in counts and counts[split].any()
        ),
        _describe_sizes(dataset),
    ]
    st.markdown(" · ".join(facts))
    left, right = st.columns([2, 3], gap="medium")
    with left:
        st.plotly_chart(
            plot_class_counts(
                {split: counts[split].tolist() for split in counts.columns}, dataset.classes
            ),
            key="class-counts",
            alt="Bar chart: images per class, by split",
            config=PLAIN,
        )
    with right:
        draw_examples(dataset)


def _describe_sizes(dataset: Dataset) -> str:
    """Return the image size in words: ``320 × 240 pixels``, or a range from smallest to largest."""
    table = dataset.table
    (left, top), (right, bottom) = (
        (table["width"].agg(which), table["height"].agg(which)) for which in ("min", "max")
    )
    largest = f"{right} × {bottom} pixels"
    return largest if (left, top) == (right, bottom) else f"{left} × {top} to {largest}"


def draw_findings(dataset: Dataset) -> None:
    """Draw the findings that have not been answered yet."""
    report = find_report(dataset)
    found = [*dataset.findings, *(report.findings if report else ())]
    list_findings(dataset, select_open_findings(found, dataset.edits))
    if has_outdated_report(dataset):
        st.caption(
            ":material/history: Label errors, outliers and shift are not known for the data set as "
            "it is now. Press *Compare layers* again to find them."
        )


def draw_next_steps(dataset: Dataset) -> None:
    """Draw the button of the main question about the data, and the button to Configure.

    The next step is the primary button: Configure, once the question has been answered.
    """
    is_answered = find_report(dataset) is not None
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.button(
            "Compare layers",
            type="secondary" if is_answered else "primary",
            icon=":material/layers:",
            key="compare-layers",
            on_click=compare_layers,
            args=(dataset,),
            help="Runs every image once through a pretrained network and fits a linear probe to "
            "the features of each layer: from which one on to train. Also finds possible label "
            "errors, outliers and shift between splits.",
        )
        draw_next_step("pages/configure.py", "Configure the training", primary=is_answered)


def draw_classes_and_splits(dataset: Dataset, data: str) -> None:
    """Draw tables of counts and sizes, the form that renames classes, and the split."""
    with st.expander("Counts and image sizes as tables"):
        st.dataframe(dataset.count_images().rename(columns=SPLIT_TITLES))
        sizes = (
            dataset.table.groupby(["width", "height"]).size().sort_values(ascending=False).head(50)
        )
        st.dataframe(sizes.rename("images").reset_index(), hide_index=True)
    shorter = dataset.table[["width", "height"]].min(axis=1)
    st.caption(
        f"Half of the images have at least {int(shorter.median())} pixels on the shorter side."
    )
    draw_rename_form(dataset)
    st.header("The split", anchor=False)
    if dataset.given_splits:
        st.markdown("The split is part of the data. Single images can be moved.")
    else:
        st.markdown(
            "Thaw makes the split, class by class. Images that have been split once stay where "
            "they are when files are added."
        )
        form.draw_split_fields(data)
    _draw_shift(dataset)
    st.download_button(
        "Download the data set as a table",
        lambda: dataset.to_manifest().to_csv(index=False).encode(),
        file_name="manifest.csv",
        mime="text/csv",
        icon=":material/download:",
        # Redrawing the page would drop the file that is being downloaded.
        on_click="ignore",
        help="path, label, split: with your changes. Put it into the folder of the images, and "
        "Thaw reads it as a manifest: the same split on any machine.",
    )


def _draw_shift(dataset: Dataset) -> None:
    """Say how far apart the splits are, if the analysis has measured that."""
    report = find_report(dataset)
    if report and report.auc:
        by_split = ", ".join(
            f"{SPLIT_TITLES[split].lower()} {auc:.2f}" for split, auc in report.auc.items()
        )
        st.caption(
            f"AUC of a linear model that separates a split from the training images: {by_split}.",
            help="Evaluated on images that the linear model has not seen. 0.5: chance level, no "
            "shift; 1: perfectly separated.",
        )


def draw_linear_probes(dataset: Dataset) -> None:
    """Draw the accuracy of the linear probe at each stage, and the suggestion."""
    report = find_report(dataset)
    if report is None:
        analyze(dataset, "probes")
        return
    suggestion = report.suggestion
    if suggestion is None:
        st.info(
            "There are too few validation images, or too few classes, for a linear probe.",
            icon=":material/info:",
        )
        return
    with st.container(border=True):
        st.markdown(f"**{_describe_suggestion(report)}.** {escape_markdown(suggestion.reason)}")
        if report.strategy and st.button(
            "Configure it",
            icon=":material/tune:",
            on_click=settings.set_strategy,
            args=(report.strategy, suggestion.cut, report.backbone),
        ):
            go("pages/configure.py")
    st.plotly_chart(
        plot_probe_curve(report.probes, suggestion.cut),
        key="probes",
        alt="Accuracy of a linear model on each stage's frozen features: "
        + ", ".join(f"{one.stage} {format_percent(one.accuracy)}" for one in report.probes),
        config=PLAIN,
    )
    st.caption(
        f"For each stage of {report.backbone}: the validation accuracy of a linear model on the "
        "features of that frozen stage. Where the curve stops rising, pretraining stops helping. "
        "The bars are ± one standard error."
    )


def _describe_suggestion(report: DeepReport) -> str:
    if report.strategy is None:
        return "No suggestion"
    if report.strategy == "custom" and report.suggestion:
        return f"Suggested: train from {report.suggestion.cut} on"
    return f"Suggested: {lower_first(STRATEGIES[report.strategy].title)}"


def draw_views(dataset: Dataset, data: str) -> None:
    """Draw one of the other views at a time, once it is chosen."""
    bodies = {
        "Images": draw_images,
        "Label": label_images,
        "Classes and splits": lambda one: draw_classes_and_splits(one, data),
        "Map": draw_map,
        PROBES: draw_linear_probes,
        "Preprocessing": draw_preprocessing,
    }
    view = st.segmented_control(
        "Details", list(bodies), key=VIEW, persist_state="session", label_visibility="collapsed"
    )
    with st.container():
        if view:
            bodies[view](dataset)


def draw_dataset(dataset: Dataset, data: str) -> None:
    """Draw the whole page of a data set."""
    draw_overview(dataset)
    with st.container():
        # Always there: otherwise the first change would redraw everything below.
        draw_changes(dataset.edits)
    draw_last_change(dataset.edits)
    draw_findings(dataset)
    draw_next_steps(dataset)
    draw_views(dataset, data)


choose_source()
with st.container():
    if problem := st.session_state.pop("change_problem", None):
        st.error(escape_markdown(problem), icon=":material/error:")
try:
    root = get_chosen_data()
except FinetuneError as error:
    st.error(escape_markdown(str(error)), icon=":material/error:")
    st.stop()
if not root:
    st.info("Choose images above, or use the sample.", icon=":material/info:")
    st.stop()
with st.container(horizontal=True, vertical_alignment="center"):
    st.markdown(f":material/photo_library: **{escape_markdown(data_name(root))}**", width="stretch")
    again = st.button("Read the folder again", icon=":material/refresh:", type="tertiary")
try:
    found = current_dataset(again=again)
except FinetuneError as error:
    st.error(escape_markdown(str(error)), icon=":material/error:")
    with suppress(FinetuneError):
        # The changes may be the problem: offer to undo them.
        draw_changes(load_edits(root))
    st.stop()
try:
    draw_dataset(found, root)
except FinetuneError as error:
    st.error(escape_markdown(str(error)), icon=":material/error:")
    st.stop()

"""Dataset: choose the images, look at what is in them, and correct it, before training."""

from contextlib import suppress

import streamlit as st

from finetune_core.data.dataset import Dataset
from finetune_core.data.edits import load_edits
from finetune_core.data.findings import unanswered
from finetune_core.data.splits import SPLITS
from finetune_core.errors import FinetuneError
from finetune_core.figures.data import class_counts, probe_curve
from finetune_core.formatting import SPLIT_WORDS, mid_sentence, number, percent
from finetune_core.inspection.deep import DeepReport
from finetune_core.training.strategies import STRATEGIES
from pages.shared.chrome import go, next_step, page, plain
from pages.shared.configure import form, settings
from pages.shared.data.analysis import analyze
from pages.shared.data.changes import changes, last_change, rename_class
from pages.shared.data.chosen import chosen_data, data_name
from pages.shared.data.datasets import current_dataset, report_of
from pages.shared.data.findings import cards
from pages.shared.data.galleries import images, map_of_images
from pages.shared.data.network_view import fed_to_network
from pages.shared.data.source import choose_source

page(
    "pages/dataset.py",
    "Choose the images to learn from, inspect them, and correct them before training.",
)


def overview(dataset: Dataset) -> None:
    counts = dataset.table["split"].value_counts()
    with st.container(horizontal=True):
        st.metric("Images", number(len(dataset.table)), border=True)
        st.metric("Classes", number(len(dataset.classes)), border=True)
        for split in SPLITS:
            if split in counts:
                st.metric(SPLIT_WORDS[split], number(counts[split]), border=True)


def findings(dataset: Dataset) -> None:
    report = report_of(dataset)
    found = unanswered([*dataset.findings, *(report.findings if report else ())], dataset.edits)
    if not found:
        st.success("Nothing looks wrong.", icon=":material/check_circle:")
    if report is None:
        analyze(dataset, "findings")
    cards(dataset, found)
    if report:
        by_split = ", ".join(
            f"{SPLIT_WORDS[split].lower()} {auc:.2f}" for split, auc in report.auc.items()
        )
        if by_split:
            st.caption(
                f"How well embeddings separate a split from the training images (AUC; 0.5: chance level, 1: perfectly): {by_split}.",
                help="A linear model is trained to separate the two, and evaluated on images it has not seen.",
            )


def classes_and_splits(dataset: Dataset, data: str) -> None:
    counts = dataset.counts()
    st.plotly_chart(
        class_counts({split: counts[split].tolist() for split in counts.columns}, dataset.classes),
        key="class-counts",
        alt="Bar chart: images per class, by split",
    )
    with st.expander("Counts and image sizes as tables"):
        st.dataframe(counts.rename(columns=SPLIT_WORDS))
        sizes = (
            dataset.table.groupby(["width", "height"]).size().sort_values(ascending=False).head(50)
        )
        st.dataframe(sizes.rename("images").reset_index(), hide_index=True)
    widths, heights = dataset.table["width"], dataset.table["height"]
    shorter = dataset.table[["width", "height"]].min(axis=1)
    st.caption(
        f"Image sizes: {widths.min()} × {heights.min()} to {widths.max()} × {heights.max()} pixels, "
        f"half of them at least {int(shorter.median())} pixels on the shorter side."
    )
    rename_class(dataset)
    st.header("The split", anchor=False)
    if dataset.given_splits:
        st.markdown("The split is part of the data. Single images can be moved.")
    else:
        st.markdown(
            "Thaw makes the split, class by class. Images that have been split once stay where they are when files are added."
        )
        form.split_fields(data)
    st.download_button(
        "Download the data set as a table",
        lambda: dataset.manifest().to_csv(index=False).encode(),
        file_name="manifest.csv",
        mime="text/csv",
        icon=":material/download:",
        on_click="ignore",  # redrawing the page would let go of the very file that is asked for
        help="path, label, split: with your changes. Put it into the folder of the images, and Thaw reads it as a manifest: the same "
        "split on any machine.",
    )


def linear_probes(dataset: Dataset) -> None:
    report = report_of(dataset)
    if report is None:
        analyze(dataset, "probes")
        return
    best = report.suggestion
    if best is None:
        st.info(
            "There are too few validation images, or too few classes, for a linear probe.",
            icon=":material/info:",
        )
        return
    with st.container(border=True):
        st.markdown(f"**{_suggested(report)}.** {plain(best.reason)}")
        if report.strategy and st.button(
            "Configure it",
            icon=":material/tune:",
            on_click=settings.set_strategy,
            args=(report.strategy, best.cut, report.backbone),
        ):
            go("pages/configure.py")
    st.plotly_chart(
        probe_curve(report.probes, best.cut),
        key="probes",
        alt="Accuracy of a linear model on each stage's frozen features: "
        + ", ".join(f"{one.stage} {percent(one.accuracy)}" for one in report.probes),
    )
    st.caption(
        f"For each stage of {report.backbone}: the validation accuracy of a linear model on the features of that frozen stage. "
        "Where the curve stops rising, pretraining stops helping. The bars are ± one standard error."
    )


def _suggested(report: DeepReport) -> str:
    if report.strategy is None:
        return "No suggestion"
    if report.strategy == "custom" and report.suggestion:
        return f"Suggested: train from {report.suggestion.cut} on"
    return f"Suggested: {mid_sentence(STRATEGIES[report.strategy].title)}"


def views(dataset: Dataset, data: str) -> None:
    """Numbers, changes, and the tabs, of which only the open one is drawn."""
    overview(dataset)
    with st.container():  # always there, so that the tabs are not drawn anew with the first change
        changes(dataset.edits)
    last_change(dataset.edits)
    bodies = {
        "Findings": findings,
        "Images": images,
        "Classes and splits": lambda one: classes_and_splits(one, data),
        "Map": map_of_images,
        "Linear probe by layer": linear_probes,
        "Preprocessing": fed_to_network,
    }
    for tab, body in zip(
        st.tabs(list(bodies), on_change="rerun", key="dataset_view"), bodies.values(), strict=True
    ):
        if tab.open:
            with tab:
                body(dataset)


choose_source()
with st.container():
    if problem := st.session_state.pop("change_problem", None):
        st.error(plain(problem), icon=":material/error:")
try:
    root = chosen_data()
except FinetuneError as error:
    st.error(plain(str(error)), icon=":material/error:")
    st.stop()
if not root:
    st.info("Choose images above, or use the sample.", icon=":material/info:")
    st.stop()
with st.container(horizontal=True, vertical_alignment="center"):
    st.markdown(f":material/photo_library: **{plain(data_name(root))}**", width="stretch")
    again = st.button("Read the folder again", icon=":material/refresh:", type="tertiary")
try:
    found = current_dataset(again=again)
except FinetuneError as error:
    st.error(plain(str(error)), icon=":material/error:")
    with suppress(FinetuneError):  # changes may be what is wrong: they can be undone
        changes(load_edits(root))
    st.stop()
try:
    views(found, root)
except FinetuneError as error:
    st.error(plain(str(error)), icon=":material/error:")
    st.stop()
next_step("pages/configure.py", "Configure the training")

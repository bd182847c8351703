"""Dataset: choose the images, look at what is in them, and correct it, before training."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import numpy as np
import streamlit as st

from finetune_core.data.dataset import Dataset
from finetune_core.data.edits import load_edits
from finetune_core.data.findings import unanswered
from finetune_core.data.splits import SPLITS
from finetune_core.errors import FinetuneError
from finetune_core.figures.data import class_counts, feature_map, probe_curve
from finetune_core.formatting import SPLIT_WORDS, number, percent, things
from finetune_core.inspection.deep import DeepReport, inspect_deeply
from finetune_core.models.catalogue import PACKAGED, backbone_info, backbone_names, default_backbone
from finetune_core.training.preview import augmented_versions, network_input
from finetune_core.training.strategies import STRATEGIES
from finetune_core.work import Work
from pages.shared.chrome import go, next_step, page, plain
from pages.shared.configure import form, settings
from pages.shared.data.changes import changes, last_change, rename_class, tools
from pages.shared.data.chosen import chosen_data, data_name
from pages.shared.data.datasets import current_dataset, keep_report, report_of
from pages.shared.data.findings import cards
from pages.shared.data.source import choose_source
from pages.shared.images import Picture, chooser
from pages.shared.jobs import begin, jobs, outcome

VERSIONS = 5

page("pages/dataset.py", "Choose the images to learn from, inspect them, and correct them before training.")


def overview(dataset: Dataset) -> None:
    counts = dataset.table["split"].value_counts()
    with st.container(horizontal=True):
        st.metric("Images", number(len(dataset.table)), border=True)
        st.metric("Classes", number(len(dataset.classes)), border=True)
        for split in SPLITS:
            if split in counts:
                st.metric(SPLIT_WORDS[split], number(counts[split]), border=True)


def backbone_and_size() -> tuple[str, int]:
    """As Configure has them, where they can be used."""
    backbone = st.session_state.get("form_backbone", default_backbone())
    size = st.session_state.get("form_image_size", settings.defaults()["image_size"])
    if backbone not in backbone_names() or not isinstance(size, int) or not 32 <= size <= 1024:
        return PACKAGED, settings.defaults()["image_size"]
    return backbone, size


def analyze(dataset: Dataset, key: str) -> None:
    """The button that computes features; a report of a data set that was changed since is not shown any more."""
    _, image_size = backbone_and_size()
    ready = [name for name in backbone_names() if backbone_info(name).ready]
    begun = st.session_state.get(f"embeddings-{dataset.fingerprint}", "")  # the tabs' boxes may say something else since
    going = jobs().find(begun) is not None
    with st.container(horizontal=True, vertical_alignment="bottom"):
        place = st.empty()
        backbone = ready[0]
        if len(ready) > 1:
            backbone = st.selectbox("Embeddings of", ready, key=f"embeddings-backbone-{key}", width=260)
        work = partial(inspect_deeply, dataset, backbone, image_size)
        place.button(
            "Analyze with embeddings",
            icon=":material/troubleshoot:",
            key=f"embeddings-{key}",
            on_click=begin_analysis,
            args=(dataset.fingerprint, f"embeddings:{dataset.fingerprint}:{backbone}:{image_size}", work),
            disabled=going,
        )
    st.caption(
        f"Runs every image once through {backbone} at {image_size} pixels: finds possible label errors, outliers, shift between splits and similar images, draws a map, and fits a linear probe by layer. What is computed is kept, so it goes on where it was stopped."
    )
    try:
        report = outcome(begun)
    except FinetuneError as error:
        st.error(plain(str(error)), icon=":material/error:")
        return
    if report:
        keep_report(dataset, report)
        st.rerun()


def begin_analysis(fingerprint: str, key: str, work: Callable[[], Work[DeepReport]]) -> None:
    """A callback."""
    st.session_state[f"embeddings-{fingerprint}"] = key
    begin(key, "Computing features", work)


def findings(dataset: Dataset) -> None:
    report = report_of(dataset)
    found = unanswered([*dataset.findings, *(report.findings if report else ())], dataset.edits)
    if not found:
        st.success("Nothing looks wrong.", icon=":material/check_circle:")
    if report is None:
        analyze(dataset, "findings")
    cards(dataset, found)
    if report:
        by_split = ", ".join(f"{SPLIT_WORDS[split].lower()} {auc:.2f}" for split, auc in report.auc.items())
        if by_split:
            st.caption(
                f"How well embeddings separate a split from the training images (AUC; 0.5: chance level, 1: perfectly): {by_split}.",
                help="A linear model is trained to separate the two, and evaluated on images it has not seen.",
            )


def images(dataset: Dataset) -> None:
    in_use = [split for split in SPLITS if (dataset.table["split"] == split).any()]
    with st.container(horizontal=True):
        split = st.selectbox("Split", ["all", *in_use], format_func=lambda s: SPLIT_WORDS.get(s, "All"), width=180)
        label = st.selectbox(
            "Class",
            [-1, *range(len(dataset.classes))],
            format_func=lambda index: "All" if index < 0 else dataset.classes[index],
            width=260,
        )
        part = st.text_input("Name contains", width=220)
    rows = dataset.table
    rows = rows if split == "all" else rows[rows["split"] == split]
    rows = rows if label < 0 else rows[rows["label"] == label]
    rows = rows[rows["id"].str.contains(part, regex=False, case=False)] if part else rows
    rows = rows.iloc[rows.groupby("label").cumcount().argsort(kind="stable")]  # all classes on the first page
    st.caption(things(len(rows), "image"))
    place = st.container()
    chosen = picture_gallery(dataset, rows["id"].to_numpy(), "browse", 24)
    with place:
        tools(dataset, chosen, "browse")


def picture_gallery(dataset: Dataset, ids: np.ndarray, key: str, per_page: int) -> set[str]:
    rows = dataset.by_id

    def picture(index: int) -> Picture:
        sample = ids[index]
        name, split = rows.at[sample, "class"], SPLIT_WORDS[rows.at[sample, "split"]].lower()
        return Picture(dataset.root / sample, f"{name} · {split}", f"{sample}, class {name}", sample)

    return chooser(ids, picture, key=key, per_page=per_page)


def classes_and_splits(dataset: Dataset, data: str) -> None:
    counts = dataset.counts()
    st.plotly_chart(
        class_counts({split: counts[split].tolist() for split in counts.columns}, dataset.classes),
        key="class-counts",
        alt="Bar chart: images per class, by split",
    )
    with st.expander("Counts and image sizes as tables"):
        st.dataframe(counts.rename(columns=SPLIT_WORDS))
        sizes = dataset.table.groupby(["width", "height"]).size().sort_values(ascending=False).head(50)
        st.dataframe(sizes.rename("images").reset_index(), hide_index=True)
    widths, heights = dataset.table["width"], dataset.table["height"]
    st.caption(
        f"Image sizes: {widths.min()} × {heights.min()} to {widths.max()} × {heights.max()} pixels, "
        f"half of them at least {int(np.minimum(widths, heights).median())} pixels on the shorter side."
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


def map_of_images(dataset: Dataset) -> None:
    report = report_of(dataset)
    if report is None:
        analyze(dataset, "map")
        return
    by = st.segmented_control("Colour", ["class", "split"], format_func=str.capitalize, default="class", required=True)
    places = report.places.merge(dataset.table[["id", "class", "split"]], on="id")
    st.caption(
        f"{things(len(places), 'image')}: images with similar features of {report.backbone} are close together. Click a point, or draw around some "
        "(box or lasso, at the top right), to see the images. Distances between distant groups mean little."
    )
    names = SPLIT_WORDS if by == "split" else {name: name for name in dataset.classes}
    event = st.plotly_chart(
        feature_map(places, by, names),
        key=f"map-{by}",
        on_select="rerun",
        selection_mode=("points", "box", "lasso"),
        alt=f"Map of the images by their features, coloured by {by}",
    )
    picked = np.array([point["customdata"][0] for point in event["selection"]["points"]], dtype=object)
    if len(picked):
        place = st.container()
        chosen = picture_gallery(dataset, picked, "map", 12)
        with place:
            st.markdown(f"**{things(len(picked), 'image')}** picked")
            tools(dataset, chosen, "map")


def linear_probes(dataset: Dataset) -> None:
    report = report_of(dataset)
    if report is None:
        analyze(dataset, "probes")
        return
    if not report.probes:
        st.info("There are too few validation images, or too few classes, for a linear probe.", icon=":material/info:")
        return
    best = report.suggestion
    title = STRATEGIES[best.strategy].title if best.strategy != "custom" else f"Train from {best.cut} on"
    with st.container(border=True):
        st.markdown(f"**Suggested: {title}.** {plain(best.reason)}")
        if st.button(
            "Configure it",
            icon=":material/tune:",
            on_click=settings.set_strategy,
            args=(best.strategy, best.cut, report.backbone),
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


def fed_to_network(dataset: Dataset) -> None:
    backbone, size = backbone_and_size()
    some = dataset.table.groupby("label").head(3)["id"].head(300).tolist()
    chosen = st.selectbox("Image", some, help="Three images of each class to choose from.")
    try:
        fed = network_input(dataset.root / chosen, backbone, size)
    except FinetuneError as error:
        st.error(plain(str(error)))
        return
    picture, words = st.columns([1, 3], vertical_alignment="center")
    with picture:
        st.image(fed.image, width=224, alt=f"{chosen}, network input")
    with words:
        st.markdown(
            f"Shorter side resized, centre cut out: **{size} × {size} pixels, 3 colours**. Then each colour is shifted and scaled as "
            f"`{backbone}` was trained; the numbers here go from **{fed.low:.2f}** to **{fed.high:.2f}**. "
            "The image is those numbers turned back into colours. Backbone and size are set on the Configure page."
        )
    st.header("Augmentation", anchor=False)
    settings.fill_in()
    with st.container(width=320):
        form.setting_field("augmentation", {})
    kind = st.session_state["form_augmentation"]
    if kind == "none":
        st.caption("Training images are not augmented. Choose another augmentation to see it.")
        return
    seed = st.session_state["form_seed"]
    seed = seed if isinstance(seed, int) and 0 <= seed < 2**31 else 0
    others = [sample for sample in dataset.table.groupby("label").head(1)["id"] if sample != chosen][:3]
    for sample in (chosen, *others):
        try:
            versions = augmented_versions(dataset.root / sample, sample, kind, seed, VERSIONS, size)
        except FinetuneError as error:
            st.error(plain(str(error)))
            continue
        with st.grid("auto", min_column_width=110, gap="small"):
            for number_, version in enumerate(versions, start=1):
                with st.container():
                    st.image(
                        version, width="stretch", alt=f"{sample}, augmented version {number_}", caption=f"version {number_}"
                    )
    st.caption("Exactly these images are used by a run with this seed: one version per epoch, or in turn.")


choose_source()
if problem := st.session_state.pop("change_problem", None):
    st.error(plain(problem), icon=":material/error:")
try:
    root = chosen_data()
except FinetuneError as error:
    st.error(plain(str(error)), icon=":material/error:")
    st.stop()
if not root:
    st.info("Choose images above, or take the sample.", icon=":material/info:")
    st.stop()
with st.container(horizontal=True, vertical_alignment="center"):
    st.markdown(f":material/photo_library: **{plain(data_name(root))}**", width="stretch")
    again = st.button("Read the folder again", icon=":material/refresh:", type="tertiary")
try:
    found = current_dataset(again=again)
    overview(found)
    changes(found.edits)
    last_change(found.edits)
    names = ["Findings", "Images", "Classes and splits", "Map", "Linear probe by layer", "Preprocessing"]
    tabs = st.tabs(names, on_change="rerun", key="dataset_view")
    bodies = [findings, images, lambda one: classes_and_splits(one, root), map_of_images, linear_probes, fed_to_network]
    for tab, body in zip(tabs, bodies, strict=True):
        if tab.open:
            with tab:
                body(found)
except FinetuneError as error:
    st.error(plain(str(error)), icon=":material/error:")
    with suppress(FinetuneError):  # changes may be what is wrong: they can be undone
        changes(load_edits(root))
    st.stop()
next_step("pages/configure.py", "Configure the training")

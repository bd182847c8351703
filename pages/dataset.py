"""Dataset: choose the images and look at what is in them before training."""

import numpy as np
import streamlit as st

from finetune_core import figures
from finetune_core.data.dataset import Dataset, check_pixels
from finetune_core.data.splits import SPLITS
from finetune_core.errors import FinetuneError
from finetune_core.models.catalogue import PACKAGED, backbone_names, default_backbone
from finetune_core.training.preview import network_input
from finetune_core.words import SPLIT_WORDS, number, things
from pages.shared.chrome import next_step, page, plain
from pages.shared.form import DEFAULTS, split_settings
from pages.shared.images import Picture, gallery
from pages.shared.state import data_folder, indexed_dataset, with_bar

SEVERITY = {
    "error": (st.error, ":material/error:"),
    "warning": (st.warning, ":material/warning:"),
    "info": (st.info, ":material/info:"),
}

page("pages/dataset.py", "Choose the images to learn from, and see what is in them before you train on them.")


def choose() -> str:
    st.segmented_control(
        "Images",
        ["digits", "folder"],
        format_func={"digits": "Sample: handwritten digits", "folder": "A folder on the server"}.get,
        default="digits",
        required=True,
        key="data_source",
        persist_state="session",
    )
    if st.session_state["data_source"] == "folder":
        st.text_input(
            "Folder",
            key="data_folder",
            persist_state="session",
            placeholder="/home/me/pictures",
            help="One subfolder of images for each class; or train/ and val/ (and test/, if you like) with such subfolders.",
        )
    return data_folder()


def overview(dataset: Dataset) -> None:
    table = dataset.table
    counts = table["split"].value_counts()
    with st.container(horizontal=True):
        st.metric("Images", number(len(table)), border=True)
        st.metric("Classes", number(len(dataset.classes)), border=True)
        for split in SPLITS:
            if split in counts:
                st.metric(SPLIT_WORDS[split], number(counts[split]), border=True)
    if dataset.given_splits:
        st.caption("The folder itself says which images are for training and which for validation.")
    else:
        val, test, _ = split_settings()
        st.caption(
            f"Thaw sets {val:.0%} of each class aside for validation and {test:.0%} for the final test; the same images every time."
        )


def findings(dataset: Dataset) -> None:
    checked = st.session_state.setdefault("damaged", {})
    found = [*dataset.findings, *checked.get(dataset.fingerprint, [])]
    for finding in found:
        show, icon = SEVERITY[finding.severity]
        show(plain(finding.message), icon=icon)
        if len(finding.paths) > 1:
            with st.expander(f"Show all {number(len(finding.paths))}"):
                st.dataframe({"Path": list(finding.paths)}, hide_index=True)
    if not found:
        st.success("Nothing looks wrong.", icon=":material/check_circle:")
    if dataset.fingerprint in checked:
        st.caption("Every image was decoded to its last row.")
    elif st.button("Decode every image to find damaged ones", icon=":material/healing:"):
        checked[dataset.fingerprint] = with_bar(check_pixels(dataset), "Decoding images")
        st.rerun()


def classes(dataset: Dataset) -> None:
    counts = dataset.counts()
    st.plotly_chart(
        figures.class_counts({split: counts[split].tolist() for split in counts.columns}, dataset.classes),
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


def browse(dataset: Dataset) -> None:
    st.subheader("Images", anchor=False)
    in_use = [split for split in SPLITS if (dataset.table["split"] == split).any()]
    with st.container(horizontal=True):
        split = st.selectbox("Split", ["all", *in_use], format_func=lambda s: SPLIT_WORDS.get(s, "All"), width=180)
        label = st.selectbox(
            "Class",
            [-1, *range(len(dataset.classes))],
            format_func=lambda index: "All" if index < 0 else dataset.classes[index],
            width=260,
        )
    rows = dataset.table
    rows = rows if split == "all" else rows[rows["split"] == split]
    rows = rows if label < 0 else rows[rows["label"] == label]
    rows = rows.iloc[rows.groupby("label").cumcount().argsort(kind="stable")]  # all classes on the first page
    st.caption(things(len(rows), "image"))

    def picture(index: int) -> Picture:
        row = rows.iloc[index]
        name = dataset.classes[row["label"]]
        caption = f"{name} · {SPLIT_WORDS[row['split']].lower()}"
        return Picture(dataset.root / row["id"], caption, f"{row['id']}, class {name}")

    gallery(len(rows), picture, key=f"browse-{split}-{label}")


def fed_to_network(dataset: Dataset) -> None:
    st.subheader("What the network is fed", anchor=False)
    backbone = st.session_state.get("form_backbone", default_backbone())
    size = st.session_state.get("form_image_size", DEFAULTS["image_size"])
    if backbone not in backbone_names() or not isinstance(size, int) or not 32 <= size <= 1024:
        backbone, size = PACKAGED, DEFAULTS["image_size"]
    some = dataset.table.groupby("label").head(3)["id"].head(300).tolist()
    chosen = st.selectbox("Image", some, help="Three images of each class to choose from.")
    try:
        fed = network_input(dataset.root / chosen, backbone, size)
    except FinetuneError as error:
        st.error(plain(str(error)))
        return
    picture, words = st.columns([1, 3], vertical_alignment="center")
    with picture:
        st.image(fed.shown, width=224, alt=f"{chosen} as the network sees it")
    with words:
        st.markdown(
            f"Shorter side resized, centre cut out: **{size} × {size} pixels, 3 colours**. Then each colour is shifted and scaled as "
            f"`{backbone}` was trained; the numbers here go from **{fed.low:.2f}** to **{fed.high:.2f}**. "
            "The picture is those numbers turned back into colours. Backbone and size are set on the Configure page."
        )


root = choose()
if not root:
    st.info("Name a folder above, or take the sample.", icon=":material/info:")
    st.stop()
again = st.button("Read the folder again", icon=":material/refresh:", type="tertiary")
try:
    found = indexed_dataset(root, *split_settings(), again=again)
except FinetuneError as error:
    st.error(plain(str(error)), icon=":material/error:")
    st.stop()
overview(found)
findings(found)
classes(found)
browse(found)
fed_to_network(found)
next_step("pages/configure.py", "Configure the training")

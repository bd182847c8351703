"""Galleries of a data set: all images, images picked on the map, and images similar to another."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from finetune_core.data.dataset import Dataset
from finetune_core.data.splits import SPLITS
from finetune_core.figures.data import plot_embedding_map
from finetune_core.formatting import SPLIT_TITLES, format_percent, pluralize
from pages.shared.chrome import escape_markdown
from pages.shared.data.analysis import analyze
from pages.shared.data.changes import draw_tools
from pages.shared.data.chosen import make_data_key
from pages.shared.data.datasets import find_report
from pages.shared.images import Picture, choose_images, draw_picture_gallery

_ORDERS = ("class", "name")
_BY_CONFIDENCE = ("unsure", "sure")
_TITLES = {
    "class": "Class, in turn",
    "name": "Name",
    "unsure": "Label confidence, lowest first",
    "sure": "Label confidence, highest first",
}
_HELP = (
    "Label confidence: the probability of an image's label, predicted by a linear model that has "
    "seen neither the image nor its near-duplicates. It is known after *Compare layers*."
)
_NEAREST = 8
_EXAMPLES, _EXAMPLE_WIDTH = 12, 96  # images; pixels, at least


def draw_examples(dataset: Dataset) -> None:
    """Draw a few images, all classes in turn; a click opens one."""
    rows = dataset.table.groupby("label").head(_EXAMPLES)
    ids = _sort_ids(rows, "class", None)[:_EXAMPLES]
    classes = dataset.by_id["class"]

    def picture(index: int) -> Picture:
        sample = ids[index]
        name = classes.loc[sample]
        return Picture(dataset.root / sample, name, f"{sample}, class {name}", sample)

    draw_picture_gallery(
        len(ids), picture, key="examples", per_page=_EXAMPLES, width=_EXAMPLE_WIDTH
    )


def draw_images(dataset: Dataset) -> None:
    """Draw all images, to be filtered, sorted, selected and changed."""
    report = find_report(dataset)
    splits = [split for split in SPLITS if (dataset.table["split"] == split).any()]
    orders = [*_ORDERS, *(_BY_CONFIDENCE if report else ())]
    with st.container(horizontal=True):
        split = st.selectbox(
            "Split",
            ["", *splits],
            format_func=lambda s: SPLIT_TITLES.get(s, "All"),
            width=180,
            **_filter_options("split"),
        )
        name = st.selectbox(
            "Class",
            ["", *dataset.classes],
            format_func=lambda s: s or "All",
            width=260,
            **_filter_options("class"),
        )
        name_part = st.text_input("Name contains", width=220, **_filter_options("name"))
        order = st.selectbox(
            "Sort by",
            orders,
            format_func=_TITLES.__getitem__,
            width=260,
            help=_HELP,
            **_filter_options("order"),
        )
    rows = dataset.table
    rows = rows[rows["split"] == split] if split else rows
    rows = rows[rows["class"] == name] if name else rows
    rows = rows[rows["id"].str.contains(name_part, regex=False, case=False)] if name_part else rows
    predictions = report.predictions if report and order in _BY_CONFIDENCE else None
    ids = _sort_ids(rows, order, predictions)
    st.caption(pluralize(len(rows), "image"))
    place = st.container()
    chosen = _draw_selection(dataset, ids, "browse", 24, predictions)
    with place:
        draw_tools(dataset, chosen, "browse")
    _draw_similar(dataset, chosen, "browse")


def _filter_options(filtered_by: str) -> dict[str, Any]:
    """Return the key of a filter. Each data set has its own filters, which persist across pages."""
    return {"key": make_data_key(f"filter-{filtered_by}"), "persist_state": "session"}


def _sort_ids(rows: pd.DataFrame, order: str, predictions: pd.DataFrame | None) -> list[str]:
    """Return the ids in the chosen order; images without a prediction come last."""
    ids = rows["id"]
    if predictions is not None:
        confidence = ids.map(predictions["label_confidence"])
        ids = ids.loc[
            confidence.sort_values(
                ascending=order == "unsure", kind="stable", na_position="last"
            ).index
        ]
    elif order == "class":
        # Show all classes on the first page.
        ids = ids.iloc[rows.groupby("label").cumcount().argsort(kind="stable")]
    return ids.tolist()


def _draw_selection(
    dataset: Dataset,
    ids: Sequence[str],
    key: str,
    per_page: int,
    predictions: pd.DataFrame | None = None,
) -> set[str]:
    """Draw a gallery to select from.

    Args:
        predictions: predictions to show with each image; None to show only its class.
    """
    classes, splits = dataset.by_id["class"], dataset.by_id["split"]

    def picture(index: int) -> Picture:
        sample = ids[index]
        name, split = classes.loc[sample], SPLIT_TITLES[splits.loc[sample]].lower()
        text = f"{name} · {split}"
        if predictions is not None and sample in predictions.index:
            likeliest, sure, own = (
                predictions[one].loc[sample]
                for one in ("predicted", "confidence", "label_confidence")
            )
            other = (
                "" if likeliest == name else f", predicted {likeliest} ({format_percent(sure, 0)})"
            )
            text = f"{name} ({format_percent(own, 0)}){other} · {split}"
        return Picture(dataset.root / sample, text, f"{sample}, class {name}", sample)

    return choose_images(ids, picture, key=key, per_page=per_page)


def _draw_similar(dataset: Dataset, chosen: set[str], key: str) -> None:
    """Draw the nearest neighbours of a selected image; of several, the user chooses one."""
    if not chosen:
        return
    report, samples = find_report(dataset), sorted(chosen)
    if report is None:
        st.caption("Similar images are shown after *Compare layers*.")
        return
    sample: str | None = samples[0]
    if len(samples) > 1:
        sample = st.selectbox(
            "Similar images to",
            samples,
            index=None,
            key=f"similar-to-{key}",
            placeholder="Choose a selected image",
        )
    if sample is None:
        return
    neighbours = report.embeddings.find_nearest(sample, _NEAREST)
    classes, splits = dataset.by_id["class"], dataset.by_id["split"]

    def picture(index: int) -> Picture:
        other, distance = neighbours[index]
        name, split = classes.loc[other], SPLIT_TITLES[splits.loc[other]].lower()
        alt = f"Similar image {other}, class {name}, distance {distance:.2f}"
        return Picture(
            dataset.root / other, f"{name} · {split} · distance {distance:.2f}", alt, other
        )

    with st.container(border=True):
        st.markdown(
            f"**Similar to {escape_markdown(sample)}** ({escape_markdown(classes.loc[sample])})",
            help="Nearest neighbours by cosine distance (0 to 2) between the embeddings of "
            f"{report.backbone}.",
        )
        draw_picture_gallery(len(neighbours), picture, key=f"similar-{key}", per_page=_NEAREST)


def draw_map(dataset: Dataset) -> None:
    """Draw the embeddings in the plane, and the images of the points that are picked."""
    report = find_report(dataset)
    if report is None:
        analyze(dataset, "map")
        return
    colour = st.segmented_control(
        "Colour",
        ["class", "split"],
        format_func=str.capitalize,
        default="class",
        required=True,
        key="map-colour",
        persist_state="session",
    )
    points = report.places.merge(dataset.table[["id", "class", "split"]], on="id")
    st.caption(
        f"{pluralize(len(points), 'image')}: images with similar features of {report.backbone} are "
        "close together. Click a point, or draw around some (box or lasso, at the top right), to "
        "see the images. Distances between distant groups mean little."
    )
    names = (
        {split: SPLIT_TITLES[split] for split in SPLITS}
        if colour == "split"
        else {name: name for name in dataset.classes}
    )
    event = st.plotly_chart(
        plot_embedding_map(points, colour, names),
        key=f"map-{colour}",
        on_select="rerun",
        selection_mode=("points", "box", "lasso"),
        alt=f"Map of the images by their features, coloured by {colour}",
    )
    picked = [point["customdata"][0] for point in event["selection"]["points"]]
    if picked:
        place = st.container()
        chosen = _draw_selection(dataset, picked, "map", 12)
        with place:
            st.markdown(f"**{pluralize(len(picked), 'image')}** picked")
            draw_tools(dataset, chosen, "map")
        _draw_similar(dataset, chosen, "map")

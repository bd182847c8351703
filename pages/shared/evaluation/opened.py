"""Dialog of one predicted image: large, with its probabilities and its Grad-CAM."""

from pathlib import Path

import pandas as pd
import streamlit as st

from finetune_core.data.decode import read_scaled
from finetune_core.errors import FinetuneError
from finetune_core.evaluation.prediction.explain import Explanation
from finetune_core.evaluation.run_images import resolve_image
from finetune_core.evaluation.single_run.metrics import Evaluation
from finetune_core.evaluation.single_run.shifted import get_data
from finetune_core.figures.evaluation import plot_probabilities
from finetune_core.formatting import format_percent
from finetune_core.runs.store import Run
from pages.shared.chrome import PLAIN, escape_markdown
from pages.shared.data.chosen import readable_roots
from pages.shared.evaluation.networks import get_explanation

_SIDE = 640  # pixels of the image
_HEAT_WIDTH = 150  # least width of a Grad-CAM picture in pixels
_BARS = 5  # classes


def open_image(run: Run, result: Evaluation, row: pd.Series) -> None:
    """Open a dialog on one row of ``result.predictions``."""
    st.dialog(escape_markdown(Path(row["id"]).name), width="large")(_draw_body)(run, result, row)


def _draw_body(run: Run, result: Evaluation, row: pd.Series) -> None:
    sample = row["id"]
    try:
        image = read_scaled(resolve_image(get_data(run, result), sample, readable_roots()), _SIDE)
    except FinetuneError as error:
        st.error(escape_markdown(str(error)), icon=":material/error:")
        return
    names, probabilities = result.classes, row["probabilities"]
    left, right = st.columns([2, 3], gap="medium")
    with left:
        st.image(
            image,
            caption=escape_markdown(sample),
            width="stretch",
            output_format="JPEG",
            alt=sample,
        )
        st.markdown(
            f"True class: **{escape_markdown(names[row['label']])}** "
            f"({format_percent(probabilities[row['label']])})  \nPredicted class: "
            f"**{escape_markdown(names[row['predicted']])}** ({format_percent(row['confidence'])})"
        )
    with right:
        _draw_probabilities(result, row)
        _draw_grad_cam(run, result, row)


def _draw_probabilities(result: Evaluation, row: pd.Series) -> None:
    names, probabilities, true = result.classes, row["probabilities"], int(row["label"])
    likeliest = list(probabilities.argsort()[::-1][:_BARS])
    listed = likeliest if true in likeliest else [*likeliest[:-1], true]
    st.plotly_chart(
        plot_probabilities([names[one] for one in listed], probabilities[listed]),
        key=f"opened-bars-{row['id']}",
        config=PLAIN,
        alt=f"Probabilities of the most likely classes of {row['id']}",
    )


def _draw_grad_cam(run: Run, result: Evaluation, row: pd.Series) -> None:
    """Draw the Grad-CAM of the true class and of the predicted one; if equal, of the runner-up."""
    st.header(
        "Grad-CAM",
        anchor=False,
        help="The regions of an image that support a class (Selvaraju et al. 2017). It shows "
        "where, not why, and coarsely.",
    )
    likeliest = row["probabilities"].argsort()[::-1][:2]
    classes = tuple(
        dict.fromkeys([int(row["label"]), int(row["predicted"]), *map(int, likeliest)])
    )[:2]
    try:
        data = get_data(run, result)
        explained = get_explanation(run, row["id"], classes, data=data)
        layer = _choose_layer(run, explained)
        if layer != explained.layer:
            explained = get_explanation(run, row["id"], classes, layer, data)
    except FinetuneError as error:
        st.error(escape_markdown(str(error)), icon=":material/error:")
        return
    with st.grid(1 + len(classes), min_column_width=_HEAT_WIDTH, gap="small"):
        st.image(
            explained.picture,
            caption="Network input",
            width="stretch",
            alt=f"{row['id']}, network input",
        )
        for one in classes:
            name = result.classes[one]
            role = (
                "True class"
                if one == row["label"]
                else "Predicted"
                if one == row["predicted"]
                else "Second"
            )
            text = f"{role}: {name} ({format_percent(row['probabilities'][one], 0)})"
            st.image(
                explained.overlays[one],
                caption=escape_markdown(text),
                width="stretch",
                alt=f"{row['id']}: regions that support {name}",
            )
    dark = [result.classes[one] for one in classes if not explained.heat[one].any()]
    if dark:
        st.caption(escape_markdown(f"No evidence in the image for {' or '.join(dark)}."))
    st.caption(
        f"Bright regions support this class. Computed on a map of {explained.cells} × "
        f"{explained.cells} cells; finer detail is interpolation."
    )


def _choose_layer(run: Run, explained: Explanation) -> str:
    """Draw the choice of the stage to explain, and return the chosen stage."""
    *_, last = layers = list(explained.layers)

    def format_layer(name: str) -> str:
        return (
            f"{name}, {explained.layers[name]} × "
            f"{explained.layers[name]}{' (last)' if name == last else ''}"
        )

    chosen = st.selectbox(
        "Layer",
        layers,
        index=layers.index(explained.layer),
        key=f"layer-{run.run_id}",
        persist_state="session",
        format_func=format_layer,
        width=300,
        help="The stage whose output is explained, and the size of its map. Later stages carry "
        "more class information, earlier ones more spatial detail. Stages whose map is a single "
        "cell are left out.",
    )
    if explained.is_coarse and explained.layer != last:
        side = explained.layers[last]
        st.caption(
            f"The last of these maps has {side} × {side} cells: too few to localize, so "
            f"{explained.layer} is the default."
        )
    return chosen

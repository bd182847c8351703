"""Predicted images: galleries of them, what went wrong, and what the network looked at."""

from collections.abc import Callable

import pandas as pd
import streamlit as st

from finetune_core.errors import FinetuneError
from finetune_core.evaluation.single_run.metrics import Evaluation
from finetune_core.formatting import percent, things
from finetune_core.runs.store import Run
from pages.shared.chrome import plain
from pages.shared.evaluation.networks import explanation
from pages.shared.images import Picture, gallery, run_picture

_MOST_TO_EXPLAIN = 200
_SIDE = 220  # pixels of a picture with heat


def mistakes(run: Run, result: Evaluation) -> None:
    by = st.segmented_control(
        "Order",
        ["confidence", "loss"],
        format_func={"confidence": "Mistakes, most confident first", "loss": "All images, highest loss first"}.get,
        default="confidence",
        required=True,
        key="mistakes-by",
        help="Loss: how little probability the true class was given. It also finds images that are classified correctly, but barely.",
    )
    mark = f"{run.run_id}-{result.split}"
    if by == "loss":
        pictures(run, result, result.top_losses, f"losses-{mark}", lambda row: f"{_named(result, row)}, loss {row['loss']:.2f}")
        return
    wrong = result.mistakes
    if wrong.empty:
        st.success("No mistakes on these images.", icon=":material/check_circle:")
        return
    st.caption(f"{things(len(wrong), 'mistake')}. A confident mistake is often a wrong label.")
    pictures(run, result, wrong, f"mistakes-{mark}")


def pictures(
    run: Run,
    result: Evaluation,
    rows: pd.DataFrame,
    key: str,
    caption: Callable[[pd.Series], str] | None = None,
    per_page: int = 12,
) -> None:
    """A gallery of predictions, and a way to ask why.

    Args:
        rows: of ``result.predictions``.
        caption: of a row; true class, predicted class and confidence when None.
    """
    caption = caption or (lambda row: _in_words(result, row))

    def picture(index: int) -> Picture:
        row = rows.iloc[index]
        return run_picture(run, row["id"], caption(row), f"{row['id']}: {_in_words(result, row)}")

    gallery(len(rows), picture, key=key, per_page=per_page)
    _why(run, result, rows.head(_MOST_TO_EXPLAIN).set_index("id"), key)


def _named(result: Evaluation, row: pd.Series) -> str:
    true = result.classes[row["label"]]
    return true if row["correct"] else f"{true}, predicted {result.classes[row['predicted']]}"


def _in_words(result: Evaluation, row: pd.Series) -> str:
    return f"{_named(result, row)} ({percent(row['confidence'], 0)})"


def _why(run: Run, result: Evaluation, rows: pd.DataFrame, key: str) -> None:
    """Grad-CAM of one of the images: its class against the predicted one, or against the runner-up."""
    sample = st.selectbox(
        "Why?",
        rows.index,
        index=None,
        key=f"why-{key}",
        format_func=lambda one: f"{one}: {_in_words(result, rows.loc[one])}",
        placeholder="Choose an image to see what the network looked at",
        help="Grad-CAM (Selvaraju et al. 2017): the parts of an image that speak for a class. It shows where, not why, and coarsely.",
    )
    if sample is None:
        return
    row = rows.loc[sample]
    likeliest = row["probabilities"].argsort()[::-1][:2]
    classes = tuple(dict.fromkeys([int(row["label"]), int(row["predicted"]), *map(int, likeliest)]))[:2]
    try:
        seen = explanation(run, sample, classes)
    except FinetuneError as error:
        st.error(plain(str(error)), icon=":material/error:")
        return
    with st.container(horizontal=True):
        st.image(seen.picture, caption="As the network sees it", width=_SIDE, alt=f"{sample} as the network sees it")
        for one in classes:
            name = result.classes[one]
            role = "True class" if one == row["label"] else "Predicted" if one == row["predicted"] else "Second"
            words = f"{role}: {name} ({percent(row['probabilities'][one], 0)})"
            st.image(seen.overlays[one], caption=plain(words), width=_SIDE, alt=f"{sample}: what speaks for {name}")
    dark = [result.classes[one] for one in classes if not seen.heat[one].any()]
    if dark:
        st.caption(plain(f"Nothing in the image speaks for {' or '.join(dark)}."))
    st.caption(
        f"Bright: speaks for the class. Computed on a map of {seen.cells} × {seen.cells} cells; anything finer is smoothing."
    )

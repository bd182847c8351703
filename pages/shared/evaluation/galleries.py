"""Galleries of predicted images: mistakes, and the images of a cell of the confusion matrix."""

from collections.abc import Callable

import pandas as pd
import streamlit as st

from finetune_core.evaluation.single_run.metrics import Evaluation
from finetune_core.evaluation.single_run.shifted import ShiftedEvaluation, get_data
from finetune_core.formatting import format_percent, pluralize
from finetune_core.runs.store import Run
from pages.shared.evaluation.opened import open_image
from pages.shared.images import Picture, draw_gallery, make_data_picture


def draw_mistakes(run: Run, result: Evaluation) -> None:
    """Draw the mistakes of an evaluation, on the run's own images or on another data set's."""
    by = st.segmented_control(
        "Show",
        ["confidence", "loss"],
        format_func={
            "confidence": "Mistakes, most confident first",
            "loss": "All images, highest loss first",
        }.__getitem__,
        default="confidence",
        required=True,
        key="mistakes-by",
        persist_state="session",
        help="Loss: how little probability the true class was given. It also ranks images that "
        "are classified correctly, but barely.",
    )
    source = result.shift.fingerprint if isinstance(result, ShiftedEvaluation) else result.split
    mark = f"{run.run_id}-{source}"
    if by == "loss":
        draw_predictions(
            run,
            result,
            result.top_losses,
            f"losses-{mark}",
            lambda row: f"{_name_classes(result, row)}, loss {row['loss']:.2f}",
        )
        return
    wrong = result.mistakes
    if wrong.empty:
        st.success("No mistakes on these images.", icon=":material/check_circle:")
        return
    st.caption(f"{pluralize(len(wrong), 'mistake')}. A confident mistake is often a label error.")
    draw_predictions(run, result, wrong, f"mistakes-{mark}")


def draw_predictions(
    run: Run,
    result: Evaluation,
    rows: pd.DataFrame,
    key: str,
    caption: Callable[[pd.Series], str] | None = None,
    per_page: int = 12,
) -> None:
    """Draw a gallery of predictions. A click opens an image.

    Args:
        run: the evaluated run.
        result: its evaluation.
        rows: rows of ``result.predictions``.
        key: key of the gallery.
        caption: returns the caption of a row. None: true class, predicted class and confidence.
        per_page: images on a page.
    """
    caption = caption or (lambda row: _describe_prediction(result, row))

    def picture(index: int) -> Picture:
        row = rows.iloc[index]
        return make_data_picture(
            get_data(run, result),
            row["id"],
            caption(row),
            f"{row['id']}: {_describe_prediction(result, row)}",
        )

    st.caption("Click an image to see it large, with its probabilities and Grad-CAM.")
    opened = draw_gallery(len(rows), picture, key=key, per_page=per_page, can_open=True)
    if opened is not None:
        open_image(run, result, rows.loc[rows["id"] == opened].iloc[0])


def _name_classes(result: Evaluation, row: pd.Series) -> str:
    true = result.classes[row["label"]]
    return true if row["correct"] else f"{true}, predicted {result.classes[row['predicted']]}"


def _describe_prediction(result: Evaluation, row: pd.Series) -> str:
    return f"{_name_classes(result, row)} ({format_percent(row['confidence'], 0)})"

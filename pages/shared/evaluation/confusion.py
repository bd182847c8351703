"""Mistakes on Evaluate: the confusion matrix, and beside it the images behind it."""

import streamlit as st

from finetune_core.evaluation.single_run.metrics import Evaluation, confusion_order
from finetune_core.figures.evaluation import Shares, plot_confusion_matrix
from finetune_core.formatting import format_percent, pluralize
from finetune_core.runs.store import Run
from pages.shared.chrome import PLAIN, escape_markdown
from pages.shared.evaluation.galleries import draw_mistakes, draw_predictions

_MOST_CLASSES_DRAWN = 100
_NUMBERS: dict[Shares, str] = {
    "images": "Images",
    "true": "% of true class",
    "predicted": "% of predicted class",
}
_ORDERS = {"name": "By name", "confusion": "By confusion"}
_CLICKED, _SHOWN, _FORGOTTEN = "cells_clicked", "cells_shown", "rows_forgotten"

# Scrolls only if the place is out of view: below the matrix on a phone, not beside it on a wide
# screen.
_INTO_VIEW = st.components.v2.component(
    "thaw_into_view",
    html='<div class="place"></div>',
    js="""
export default function ({ data, parentElement }) {
  if (!data.wanted) return
  const place = parentElement.querySelector(".place")
  const { top } = place.getBoundingClientRect()
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches
  if (top < 0 || top > 0.6 * innerHeight)
    place.scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" })
}
""",
)


def draw_confusions(run: Run, result: Evaluation) -> None:
    """Draw the confusion matrix, and the images of the chosen cell, or all mistakes."""
    mark = f"{run.run_id}-{result.split}"
    left, right = st.columns(2, gap="medium")
    with left:
        st.header("Confusion matrix", anchor=False)
        if len(result.classes) > _MOST_CLASSES_DRAWN:
            _draw_frequent_confusions(result, mark)
        else:
            _draw_matrix(result, mark)
    with right:
        st.header("Images", anchor=False)
        _draw_images(run, result, mark)


def _draw_images(run: Run, result: Evaluation, mark: str) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        true = _draw_class_box("True class", f"true-{mark}", result)
        predicted = _draw_class_box("Predicted class", f"predicted-{mark}", result)
        st.button(
            "All mistakes",
            icon=":material/close:",
            key="all-mistakes",
            disabled=true is None and predicted is None,
            on_click=_forget_cell,
            args=(mark,),
        )
    _scroll_into_view()
    if true is None and predicted is None:
        draw_mistakes(run, result)
        return
    rows = result.get_cell(true, predicted)
    count = pluralize(len(rows), "image") if len(rows) else "no image"
    st.markdown(f"**{escape_markdown(_describe_cell(result, true, predicted))}**: {count}")
    if len(rows):
        caption = (
            None
            if true is None or predicted is None
            else lambda row: f"confidence {format_percent(row['confidence'], 0)}"
        )
        draw_predictions(run, result, rows, f"cell-{mark}-{true}-{predicted}", caption)


def _scroll_into_view() -> None:
    """Scroll here if a cell has been clicked since the last drawing."""
    clicks, seen = (st.session_state.get(key, 0) for key in (_CLICKED, _SHOWN))
    _INTO_VIEW(data={"wanted": clicks > seen, "clicks": clicks}, key="into-view")
    st.session_state[_SHOWN] = clicks


def _describe_cell(result: Evaluation, true: int | None, predicted: int | None) -> str:
    if true is not None and predicted is not None:
        how = "correctly" if true == predicted else f"as {result.classes[predicted]}"
        return f"{result.classes[true]}, predicted {how}"
    sides = (("of", true), ("predicted as", predicted))
    (text,) = (f"{how} {result.classes[label]}" for how, label in sides if label is not None)
    return f"All {text}, the highest loss first"


def _draw_class_box(text: str, key: str, result: Evaluation) -> int | None:
    return st.selectbox(
        text,
        range(len(result.classes)),
        index=None,
        key=key,
        format_func=lambda one: result.classes[one],
        placeholder="any",
        width=180,
        on_change=_forget_row,
    )


def _forget_row() -> None:
    """Have the table drawn afresh, so that its marked row does not differ from the boxes."""
    st.session_state[_FORGOTTEN] = st.session_state.get(_FORGOTTEN, 0) + 1


def _forget_cell(mark: str) -> None:
    st.session_state[f"true-{mark}"] = st.session_state[f"predicted-{mark}"] = None
    _forget_row()


def _choose_cell(mark: str, true: int, predicted: int) -> None:
    st.session_state[f"true-{mark}"] = true
    st.session_state[f"predicted-{mark}"] = predicted
    st.session_state[_CLICKED] = st.session_state.get(_CLICKED, 0) + 1


def _draw_matrix_options(result: Evaluation) -> tuple[Shares, str]:
    """Draw the options of the matrix.

    Returns:
        The numbers in the cells (a key of ``_NUMBERS``) and the order of the classes (a key of
        ``_ORDERS``).
    """
    with st.container(horizontal=True, vertical_alignment="bottom"):
        shares = st.segmented_control(
            "Numbers",
            list(_NUMBERS),
            format_func=_NUMBERS.__getitem__,
            default="images",
            required=True,
            key="shares",
            persist_state="session",
            help="Normalized by row, the diagonal is recall; by column, it is precision. "
            "One colour scale holds for the whole matrix. Of images it follows the square root, "
            "so that a single mistake is visible.",
        )
        order = "name"
        if len(result.classes) > 2:
            order = st.segmented_control(
                "Order",
                list(_ORDERS),
                format_func=_ORDERS.__getitem__,
                default="name",
                required=True,
                key="order",
                persist_state="session",
                help="By confusion: classes that are often confused are adjacent.",
            )
    return shares, order


def _draw_matrix(result: Evaluation, mark: str) -> None:
    shares, order = _draw_matrix_options(result)
    key = f"confusion-{mark}-{shares}-{order}"

    def choose() -> None:
        if points := st.session_state[key]["selection"]["points"]:
            _choose_cell(mark, *divmod(int(points[0]["customdata"]), len(result.classes)))

    st.plotly_chart(
        plot_confusion_matrix(
            result.confusion,
            result.classes,
            shares,
            confusion_order(result.confusion) if order == "confusion" else None,
            # Taken from the boxes, because plotly loses its own selection when the figure changes.
            chosen=(
                st.session_state.get(f"true-{mark}"),
                st.session_state.get(f"predicted-{mark}"),
            ),
            dark=st.context.theme.type == "dark",
        ),
        key=key,
        on_select=choose,
        selection_mode="points",
        config=PLAIN,
        alt="Confusion matrix: true classes by row, predicted classes by column",
    )
    st.caption("Click a cell to see its images.")


def _draw_frequent_confusions(result: Evaluation, mark: str) -> None:
    st.caption("Too many classes for a matrix: these are the most frequent confusions.")
    table = result.list_confusions(50)
    key = f"confusions-{mark}-{st.session_state.get(_FORGOTTEN, 0)}"

    def choose_row() -> None:
        rows = st.session_state[key]["selection"]["rows"]
        if rows:
            names = list(result.classes)
            sides = (table.at[rows[0], column] for column in ("true", "predicted"))
            _choose_cell(mark, *(names.index(str(side)) for side in sides))

    st.dataframe(
        table.rename(columns=str.capitalize),
        hide_index=True,
        key=key,
        on_select=choose_row,
        selection_mode="single-row",
        height=320,
    )

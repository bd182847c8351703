"""*Shifted data* on Evaluate: a run on the images of another data set, beside its own images."""

import streamlit as st

from finetune_core.errors import RunError
from finetune_core.evaluation.single_run.metrics import Evaluation
from finetune_core.evaluation.single_run.scores import INTERVALS
from finetune_core.evaluation.single_run.shift_files import load_shifts
from finetune_core.evaluation.single_run.shifted import (
    ShiftedEvaluation,
    describe_left_out,
    evaluate_shifted,
)
from finetune_core.formatting import SPLIT_TITLES, format_points, pluralize
from finetune_core.runs.store import Run
from pages.shared.chrome import escape_markdown
from pages.shared.evaluation.galleries import draw_mistakes
from pages.shared.evaluation.numbers import draw_share, draw_value
from pages.shared.evaluation.other_data import (
    begin_prediction,
    choose_shift,
    draw_other_data,
    is_predicting,
    make_unique,
    take_result,
)

_DROP = (
    "How much worse it is on the shifted data, on images of the same classes: in-distribution "
    "less shifted; of log loss, Brier score and ECE, what they rise by. Its interval is that of "
    "two samples that share no image (Newcombe; MOVER for the other metrics): exact copies of the "
    "run's own images are left out. Where one side holds the other's images, made worse, it is "
    "wider than need be."
)


def draw_shifted_data(run: Run, result: Evaluation) -> None:
    """Draw the choice of another data set, and the run's evaluation on it."""
    st.markdown(
        "All images of another data set with the same classes: another camera, place or season. "
        "They are predicted once, in fp32, and the predictions are kept with the run."
    )
    draw_other_data([run])
    take_result([run])
    known, problems = load_shifts(run)
    for problem in problems:
        st.warning(escape_markdown(problem), icon=":material/broken_image:")
    if not known:
        return
    shifts = {shift.fingerprint: shift for shift in known}
    chosen = choose_shift(make_unique({mark: shift.name for mark, shift in shifts.items()}))
    try:
        with st.spinner("Bootstrapping the intervals"):
            found = evaluate_shifted(run, chosen, result.split)
    except RunError as error:
        st.error(escape_markdown(str(error)), icon=":material/broken_image:")
        st.button(
            "Evaluate again",
            icon=":material/refresh:",
            on_click=begin_prediction,
            args=([run], shifts[chosen].data),
            disabled=is_predicting([run]),
        )
        return
    _draw_headline(found)
    draw_left_out(found)
    st.markdown("**All metrics**")
    _draw_table(*found.score_rows(), key="shifted-scores")
    st.markdown("**By class**, the least recalled first")
    _draw_table(*found.class_rows(), key="shifted-classes")
    st.caption(f"Intervals: {INTERVALS}; Wilson's of recall.")
    st.markdown("**Mistakes**")
    draw_mistakes(run, found)


def draw_left_out(found: ShiftedEvaluation) -> None:
    """Say which classes are compared, and what was left out on either side."""
    st.caption(escape_markdown(found.shift.data))
    lines = [
        *found.shared.to_sentences(),
        *describe_left_out(found.shift),
        found.describe_absent_classes(),
    ]
    for line in filter(None, lines):
        st.markdown(f"- {escape_markdown(line)}")


def _draw_headline(found: ShiftedEvaluation) -> None:
    own, (drop, low, high) = found.own, found.drop
    with st.container(horizontal=True):
        for label, one in (("In-distribution accuracy", own), ("Shifted accuracy", found)):
            images = pluralize(one.images, f"{SPLIT_TITLES[one.split].lower()} image")
            draw_share(label, one.accuracy, one.low, one.high, f"On {images}. Interval: Wilson's.")
        note = f"95 % interval {format_points(low)} to {format_points(high)}"
        draw_value("Drop", f"{format_points(drop)} points", note, _DROP)


def _draw_table(columns: list[str], rows: list[list[str]], key: str) -> None:
    help_ = {name: st.column_config.TextColumn(help=_DROP) for name in columns if name == "Drop"}
    st.dataframe(
        [dict(zip(columns, row, strict=True)) for row in rows],
        hide_index=True,
        height="content" if len(rows) <= 20 else 400,
        key=key,
        column_config=help_,
    )

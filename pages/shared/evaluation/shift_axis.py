"""Distribution shift on Compare: strategies on another data set, or on corrupted own images."""

from collections.abc import Sequence

import streamlit as st

from finetune_core.errors import FinetuneError
from finetune_core.evaluation.comparison.compare import Comparison
from finetune_core.evaluation.comparison.measures import ACCURACY
from finetune_core.evaluation.comparison.shift import (
    ShiftComparison,
    compare_shift,
    compute_corrupted_accuracies,
    list_common_corruptions,
    list_runs_without_predictions,
    list_shifts,
    make_axes_table,
)
from finetune_core.evaluation.comparison.strategies import Interval
from finetune_core.evaluation.single_run.corruptions import CorruptedSplit
from finetune_core.evaluation.single_run.shift_files import Shift, find_shift_problem
from finetune_core.figures.comparison import plot_shift
from finetune_core.formatting import pluralize
from finetune_core.reports.html import pairs_table
from finetune_core.runs.store import Run
from pages.shared.chrome import escape_markdown
from pages.shared.evaluation.claims import format_pair
from pages.shared.evaluation.other_data import (
    begin_prediction,
    choose_shift,
    draw_other_data,
    is_predicting,
    make_unique,
    take_result,
)

_HELP = (
    "Strategies that do as well as each other on images like those they were trained on may "
    "differ on other ones. Shifted images are those of another data set with the same classes, or "
    "the runs' own test images made worse (Evaluate, Robustness)."
)
_MOST_PAIRS = 6  # described in words


def draw_distribution_shift(comparison: Comparison) -> ShiftComparison | None:
    """Draw in-distribution against shifted scores, with the verdicts on either.

    Returns:
        The comparison on the chosen images; None without one.
    """
    st.caption("Scores on images unlike the training images.", help=_HELP)
    runs = [member.run for arm in comparison.arms for member in arm.members]
    take_result(runs)
    shifts = list_shifts(runs)
    corrupted = {
        f"corrupted-{corruption.key}": corruption
        for corruption in list_common_corruptions(comparison)
    }
    titles = make_unique({mark: shift.name for mark, shift in shifts.items()})
    titles |= {mark: corruption.name for mark, corruption in corrupted.items()}
    found = None
    if titles:
        chosen = choose_shift(titles)
        corruption = corrupted.get(chosen)
        found = (
            _draw_corrupted(comparison, corruption)
            if corruption
            else _draw_shifted(comparison, runs, shifts[chosen])
        )
    else:
        st.markdown("None of these runs was evaluated on shifted images yet.")
    st.markdown("**Evaluate on another data set**")
    draw_other_data(runs)
    return found


def _draw_shifted(
    comparison: Comparison, runs: Sequence[Run], shift: Shift
) -> ShiftComparison | None:
    problems = {
        run.run_id: problem
        for run in runs
        if (problem := find_shift_problem(run, shift.fingerprint))
    }
    if problems:
        st.markdown(
            f"{pluralize(len(problems), 'run')} of {len(runs)} cannot be compared on "
            f"{escape_markdown(shift.data)} yet."
        )
        for problem in problems.values():
            st.caption(escape_markdown(problem))
        st.button(
            f"Evaluate the missing {pluralize(len(problems), 'run')}",
            icon=":material/photo_library:",
            key="evaluate_missing",
            on_click=begin_prediction,
            args=(runs, shift.data),
            disabled=is_predicting(runs),
        )
        return None
    return _draw_comparison(comparison, shift.fingerprint)


def _draw_corrupted(comparison: Comparison, corruption: CorruptedSplit) -> ShiftComparison | None:
    if earlier_runs := list_runs_without_predictions(comparison):
        _draw_accuracies_only(comparison, corruption, earlier_runs)
        return None
    return _draw_comparison(comparison, corruption)


def _draw_comparison(
    comparison: Comparison, shifted_data: str | CorruptedSplit
) -> ShiftComparison | None:
    """Draw both axes with the verdicts on either.

    Returns:
        The comparison; None if the runs cannot be compared on these images.
    """
    runs = [run for arm in comparison.arms for run in arm.runs]
    try:
        found = compare_shift(runs, shifted_data, comparison.measure.name)
    except FinetuneError as error:
        st.error(escape_markdown(str(error)), icon=":material/error:")
        return None
    _draw_scatter(found.matched, [arm.score for arm in found.shifted.arms], found.other.name)
    _draw_verdicts(found)
    _draw_table(*found.to_rows(), key="shift-arms")
    for line in found.describe_left_out():
        st.caption(escape_markdown(line))
    _draw_pairs(found.shifted)
    return found


def _draw_verdicts(found: ShiftComparison) -> None:
    """Draw the verdict on the shifted images, and on the runs' own images of the shared classes.

    The verdict on all of their own images stands at the top of the page.
    """
    sides = {} if found.matched is found.own else {"Own images of these classes": found.matched}
    with st.container(border=True):
        for title, side in (sides | {"Shifted images": found.shifted}).items():
            answer, *others = side.verdict.lines
            lines = [
                f"**{title}**",
                f"**{escape_markdown(answer)}**",
                *map(escape_markdown, others),
            ]
            st.markdown("  \n".join(lines))
        for contradiction in found.shifted.published:
            st.markdown(f":material/history_edu: {escape_markdown(contradiction)}")


def _draw_pairs(shifted: Comparison) -> None:
    if not shifted.pairs:
        return
    st.markdown("**Pairs on the shifted images**")
    for pair in shifted.pairs[:_MOST_PAIRS]:
        st.markdown(format_pair(shifted.arms, pair))
    _draw_table(*pairs_table(shifted), key="shift-pairs")


def _draw_accuracies_only(
    comparison: Comparison, corruption: CorruptedSplit, earlier_runs: Sequence[Run]
) -> None:
    """Draw accuracies without a verdict, because an earlier version measured the robustness."""
    if comparison.measure is ACCURACY:
        found, images = compute_corrupted_accuracies(comparison, corruption)
        _draw_scatter(comparison, found, corruption.name)
        _draw_table(*make_axes_table(comparison.arms, found), key="shift-corrupted")
        st.caption(
            f"On {pluralize(images, 'image')}. Intervals of the corrupted accuracy are over images "
            "(Wilson)."
        )
    names = ", ".join(run.run_id for run in earlier_runs)
    st.info(
        escape_markdown(
            f"No verdict: an earlier version of Thaw measured the robustness of {names} and kept "
            "accuracies only. Measure it again (Evaluate, Robustness) for intervals, a paired "
            "verdict and other metrics."
        ),
        icon=":material/info:",
    )


def _draw_scatter(comparison: Comparison, shifted: Sequence[Interval], title: str) -> None:
    name = comparison.measure.title
    st.plotly_chart(
        plot_shift(comparison.arms, shifted, title),
        key=f"shift-{comparison.measure.name}-{title}",
        alt=f"{name} of each strategy on its own images against that on {title}, with intervals",
    )
    st.caption("Bars: 95 % intervals. On the dotted line nothing is lost.")


def _draw_table(columns: list[str], rows: list[list[str]], key: str) -> None:
    st.dataframe([dict(zip(columns, row, strict=True)) for row in rows], hide_index=True, key=key)

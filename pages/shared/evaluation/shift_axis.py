"""Distribution shift on Compare: strategies on another data set, or on corrupted own images."""

from collections.abc import Sequence

import streamlit as st

from finetune_core.errors import FinetuneError
from finetune_core.evaluation.comparison.compare import Comparison
from finetune_core.evaluation.comparison.measures import ACCURACY
from finetune_core.evaluation.comparison.report import pairs_table
from finetune_core.evaluation.comparison.shift import (
    ShiftComparison,
    both_axes,
    compare_shift,
    corrupted_accuracies,
    corruptions_of,
    of_accuracies_only,
    shifts_of,
)
from finetune_core.evaluation.comparison.strategies import Interval
from finetune_core.evaluation.single_run.corruptions import Corrupted
from finetune_core.evaluation.single_run.shift_files import Shift, shift_problem
from finetune_core.figures.comparison import against_shifted
from finetune_core.formatting import things
from finetune_core.runs.store import Run
from pages.shared.chrome import plain
from pages.shared.evaluation.claims import pair_markdown
from pages.shared.evaluation.other_data import (
    ask,
    chosen_shift,
    evaluate_on_other,
    going_on,
    named_apart,
    taken,
)

_HELP = (
    "Strategies that do as well as each other on images like those they were trained on may "
    "differ on other ones. Shifted images are those of another data set with the same classes, or "
    "the runs' own test images made worse (Evaluate, Robustness)."
)
_MOST_PAIRS = 6  # described in words


def distribution_shift(comparison: Comparison) -> ShiftComparison | None:
    """Draw in-distribution against shifted scores, with the verdicts on either.

    Returns:
        The comparison on the chosen images; None without one.
    """
    st.caption("Scores on images unlike the training images.", help=_HELP)
    runs = [member.run for arm in comparison.arms for member in arm.members]
    taken(runs)
    shifts = shifts_of(runs)
    corrupted = {f"corrupted-{which.key}": which for which in corruptions_of(comparison)}
    titles = named_apart({mark: shift.name for mark, shift in shifts.items()})
    titles |= {mark: which.name for mark, which in corrupted.items()}
    found = None
    if titles:
        chosen = chosen_shift(titles)
        which = corrupted.get(chosen)
        found = (
            _corrupted(comparison, which) if which else _shifted(comparison, runs, shifts[chosen])
        )
    else:
        st.markdown("None of these runs was evaluated on shifted images yet.")
    st.markdown("**Evaluate on another data set**")
    evaluate_on_other(runs)
    return found


def _shifted(comparison: Comparison, runs: Sequence[Run], shift: Shift) -> ShiftComparison | None:
    problems = {
        run.run_id: problem for run in runs if (problem := shift_problem(run, shift.fingerprint))
    }
    if problems:
        st.markdown(
            f"{things(len(problems), 'run')} of {len(runs)} cannot be compared on "
            f"{plain(shift.data)} yet."
        )
        for problem in problems.values():
            st.caption(plain(problem))
        st.button(
            f"Evaluate the missing {things(len(problems), 'run')}",
            icon=":material/photo_library:",
            key="evaluate_missing",
            on_click=ask,
            args=(runs, shift.data),
            disabled=going_on(runs),
        )
        return None
    return _compared(comparison, shift.fingerprint)


def _corrupted(comparison: Comparison, which: Corrupted) -> ShiftComparison | None:
    if earlier := of_accuracies_only(comparison):
        _accuracies_only(comparison, which, earlier)
        return None
    return _compared(comparison, which)


def _compared(comparison: Comparison, on: str | Corrupted) -> ShiftComparison | None:
    """Draw both axes with the verdicts on either.

    Returns:
        The comparison; None if the runs cannot be compared on these images.
    """
    runs = [run for arm in comparison.arms for run in arm.runs]
    try:
        found = compare_shift(runs, on, comparison.measure.name)
    except FinetuneError as error:
        st.error(plain(str(error)), icon=":material/error:")
        return None
    _scatter(found.matched, [arm.score for arm in found.shifted.arms], found.other.name)
    _verdicts(found)
    _table(*found.in_rows(), key="shift-arms")
    for line in found.left_out():
        st.caption(plain(line))
    _pairs(found.shifted)
    return found


def _verdicts(found: ShiftComparison) -> None:
    """Draw the verdict on the shifted images, and on the runs' own images of the shared classes.

    The verdict on all of their own images stands at the top of the page.
    """
    sides = {} if found.matched is found.own else {"Own images of these classes": found.matched}
    with st.container(border=True):
        for title, side in (sides | {"Shifted images": found.shifted}).items():
            answer, *others = side.verdict.lines
            lines = [f"**{title}**", f"**{plain(answer)}**", *map(plain, others)]
            st.markdown("  \n".join(lines))
        for contradiction in found.shifted.published:
            st.markdown(f":material/history_edu: {plain(contradiction)}")


def _pairs(shifted: Comparison) -> None:
    if not shifted.pairs:
        return
    st.markdown("**Pairs on the shifted images**")
    for pair in shifted.pairs[:_MOST_PAIRS]:
        st.markdown(pair_markdown(shifted.arms, pair))
    _table(*pairs_table(shifted), key="shift-pairs")


def _accuracies_only(comparison: Comparison, which: Corrupted, earlier: Sequence[Run]) -> None:
    """Draw accuracies without a verdict, because an earlier version measured the robustness."""
    if comparison.measure is ACCURACY:
        found, images = corrupted_accuracies(comparison, which)
        _scatter(comparison, found, which.name)
        _table(*both_axes(comparison.arms, found), key="shift-corrupted")
        st.caption(
            f"On {things(images, 'image')}. Intervals of the corrupted accuracy are over images "
            "(Wilson)."
        )
    names = ", ".join(run.run_id for run in earlier)
    st.info(
        plain(
            f"No verdict: an earlier version of Thaw measured the robustness of {names} and kept "
            "accuracies only. Measure it again (Evaluate, Robustness) for intervals, a paired "
            "verdict and other metrics."
        ),
        icon=":material/info:",
    )


def _scatter(comparison: Comparison, shifted: Sequence[Interval], title: str) -> None:
    name = comparison.measure.title
    st.plotly_chart(
        against_shifted(comparison.arms, shifted, title),
        key=f"shift-{comparison.measure.name}-{title}",
        alt=f"{name} of each strategy on its own images against that on {title}, with intervals",
    )
    st.caption("Bars: 95 % intervals. On the dotted line nothing is lost.")


def _table(columns: list[str], rows: list[list[str]], key: str) -> None:
    st.dataframe([dict(zip(columns, row, strict=True)) for row in rows], hide_index=True, key=key)

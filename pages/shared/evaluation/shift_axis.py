"""The second axis of Compare: what the strategies are worth on shifted images, which are another data set or their own made worse."""

from collections.abc import Sequence

import streamlit as st

from finetune_core.errors import FinetuneError
from finetune_core.evaluation.comparison.compare import Comparison
from finetune_core.evaluation.comparison.measures import ACCURACY
from finetune_core.evaluation.comparison.report import pairs_table
from finetune_core.evaluation.comparison.shift import (
    Corrupted,
    ShiftComparison,
    both_axes,
    compare_shift,
    corrupted_accuracies,
    corrupted_title,
    corruptions_of,
    shifts_of,
)
from finetune_core.evaluation.comparison.strategies import Interval
from finetune_core.evaluation.comparison.verdicts import CLAIMS, of_pair
from finetune_core.evaluation.single_run.shift_files import Shift, shift_problem
from finetune_core.figures.comparison import against_shifted
from finetune_core.formatting import things
from finetune_core.runs.store import Run
from pages.shared.chrome import plain
from pages.shared.evaluation.claims import claim_badge
from pages.shared.evaluation.other_data import ask, chosen_shift, evaluate_on_other, going_on, named_apart, taken

_HELP = (
    "Strategies that do as well as each other on images like those they were trained on may differ on other ones. Shifted images are those of "
    "another data set with the same classes, or the runs' own test images made worse (Evaluate, Robustness)."
)
_MOST_PAIRS = 6  # described in words


def distribution_shift(comparison: Comparison) -> ShiftComparison | None:
    """Draw in-distribution against shifted scores, with the verdicts on either.

    Returns:
        The comparison on the data set that is chosen; None where there is none.
    """
    st.header("Distribution shift", anchor=False, help=_HELP)
    runs = [member.run for arm in comparison.arms for member in arm.members]
    taken(runs)
    shifts = shifts_of(runs)
    corrupted = {f"corrupted-{name}-{severity}": (name, severity) for name, severity in corruptions_of(comparison)}
    titles = named_apart({mark: shift.name for mark, shift in shifts.items()})
    titles |= {mark: corrupted_title(which) for mark, which in corrupted.items()}
    found = None
    if titles:
        chosen = chosen_shift(titles)
        if chosen in corrupted:
            _corrupted(comparison, corrupted[chosen])
        else:
            found = _shifted(comparison, runs, shifts[chosen])
    else:
        st.markdown("None of these runs was evaluated on shifted images yet.")
    with st.expander("Evaluate on another data set", icon=":material/add_photo_alternate:"):
        evaluate_on_other(runs)
    return found


def _shifted(comparison: Comparison, runs: Sequence[Run], shift: Shift) -> ShiftComparison | None:
    problems = {run.run_id: problem for run in runs if (problem := shift_problem(run, shift.fingerprint))}
    if problems:
        st.markdown(f"{things(len(problems), 'run')} of {len(runs)} cannot be compared on {plain(shift.data)} yet.")
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
    try:
        found = compare_shift(runs, shift.fingerprint, comparison.measure.name)
    except FinetuneError as error:
        st.error(plain(str(error)), icon=":material/error:")
        return None
    _scatter(found.own, [arm.score for arm in found.shifted.arms], shift.name)
    _verdicts(found)
    _table(*found.in_rows(), key="shift-arms")
    for line in found.left_out():
        st.caption(plain(line))
    _pairs(found.shifted)
    return found


def _verdicts(found: ShiftComparison) -> None:
    """One line per claim, of either axis."""
    sides = {"In-distribution": found.own, f"Shifted, {things(found.shifted.images, 'image')}": found.shifted}
    with st.container(border=True):
        for title, side in sides.items():
            lines = [f"**{title}**", f"{claim_badge('strategies')} {plain(f'{side.headline} {side.caveat}'.strip())}"]
            lines += [f"{claim_badge('networks')} {plain(side.networks)}"] if side.networks else []
            st.markdown("  \n".join(lines))
        for contradiction in found.shifted.published:
            st.markdown(f":material/history_edu: {plain(contradiction)}")


def _pairs(shifted: Comparison) -> None:
    if not shifted.pairs:
        return
    with st.expander("Pairs, tests and intervals on the shifted images"):
        for pair in shifted.pairs[:_MOST_PAIRS]:
            words = of_pair(shifted.arms, pair)
            st.markdown("  \n".join(f"{claim_badge(claim)} {plain(getattr(words, claim))}" for claim in CLAIMS))
        _table(*pairs_table(shifted), key="shift-pairs")


def _corrupted(comparison: Comparison, which: Corrupted) -> None:
    if comparison.measure is not ACCURACY:
        st.info("Of corrupted images only accuracies are kept: choose accuracy as the metric.", icon=":material/info:")
        return
    found, images = corrupted_accuracies(comparison, which)
    _scatter(comparison, found, corrupted_title(which))
    _table(*both_axes(comparison.arms, found), key="shift-corrupted")
    st.caption(
        f"{things(images, 'image')} of the runs' own, corrupted. Only accuracies are kept of them, so there is no paired verdict; intervals of "
        "the corrupted accuracy are over images (Wilson)."
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

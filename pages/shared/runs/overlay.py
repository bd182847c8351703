"""Curves of other runs over those of the current run.

The other runs are in the page's address, as ``with``.
"""

from collections.abc import Sequence

import streamlit as st

from finetune_core.evaluation.comparison.arms import run_titles
from finetune_core.figures.curves import CURVE_HEIGHT, MOST_OVERLAID, Kind, plot_runs
from finetune_core.runs.store import Run
from pages.shared.runs.picker import choose_runs


def choose_overlaid(run: Run, runs: Sequence[Run]) -> list[Run]:
    """Draw the box that chooses other runs to overlay, and return the chosen runs."""
    others = [one for one in runs if one.run_id != run.run_id and one.history.epochs]
    placeholder = "Overlay the curves of other runs"
    return choose_runs(
        "Overlay other runs", others, "with", most=MOST_OVERLAID - 1, placeholder=placeholder
    )


def draw_overlaid(runs: list[Run]) -> None:
    """Draw loss and accuracy of each run by epoch, side by side."""
    titles = run_titles(runs)
    lines = [(title, run.history.epochs) for title, run in zip(titles, runs, strict=True)]
    kinds: tuple[Kind, Kind] = ("loss", "accuracy")
    for column, kind in zip(st.columns(2), kinds, strict=True):
        with column:
            st.altair_chart(
                plot_runs(kind, lines),
                height=CURVE_HEIGHT,
                alt=f"{kind} by epoch of {', '.join(titles)}, for training and validation images",
            )

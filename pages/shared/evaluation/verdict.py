"""Verdict of a comparison on Compare: three lines, one chart, one table, and the details."""

from collections.abc import Sequence

import streamlit as st

from finetune_core.evaluation.comparison.compare import Comparison
from finetune_core.evaluation.comparison.measures import MEASURES
from finetune_core.evaluation.comparison.pair_text import CLAIMS
from finetune_core.evaluation.comparison.pairs import Pair
from finetune_core.figures.comparison import plot_accuracies
from finetune_core.formatting import SPLIT_TITLES, accuracy_name
from finetune_core.reports.html import (
    arms_table,
    detail_lines,
    footnotes,
    pairs_table,
)
from pages.shared.chrome import PLAIN, escape_markdown
from pages.shared.configure import form
from pages.shared.evaluation.claims import format_pair

_MOST_PAIRS = 6  # described in words
_WIDTHS = {"Verdict": 460}  # pixels: a sentence
_HOW = (
    "All runs are evaluated on the same images; two questions are kept apart. **The method in "
    "general**: would the same strategies differ on new images, trained again with new seeds? "
    "That needs two seeds or more of each, better three, because images and seeds are both "
    "random. The variance between seeds is pooled over all strategies, except those that clearly "
    "vary more. **These trained models**: do the models that were trained here differ on new "
    "images? One seed is enough, but it says nothing about other seeds. For either question, at "
    "most one in twenty comparisons of equally good strategies finds a difference, no matter how "
    "many there are (Holm's correction). *No difference shown* does not mean equal: a difference "
    "smaller than the one given may well exist. **Macro F1** and **log loss** are compared in the "
    "same way: intervals of trained models come from a paired bootstrap over images, their p from "
    "random sign flips; for the method, each image counts by its log loss, or by what it adds to "
    "macro F1 (pseudo-values)."
)
_COLUMN_HELP = {
    **{accuracy_name(split): "Mean over the seeds." for split in SPLIT_TITLES},
    "Macro F1": "F1 of each class, averaged over the classes; mean over the seeds.",
    "Log loss": "Mean cross-entropy in nats; mean over the seeds. Lower is better.",
    "95 % interval": "For new images and, with several seeds, new seeds.",
    "Over seeds": "The worst and the best seed, and the standard deviation over seeds: variation "
    "that has nothing to do with the images. A head fitted without epochs is the same with others.",
    "Ensemble of the seeds": (
        "The mean of the seeds' probabilities, with its 95 % interval for new images. It takes as "
        "long to predict as all of them together."
    ),
    "Time": (
        "Of the median run. The first of several also computes the activation cache that the "
        "others reuse."
    ),
    "Without the cache": (
        "The time of the same run if its frozen stages ran in every epoch. A little too low where "
        "the cache was computed from that of another strategy."
    ),
    "Trainable": "Parameters that are trained.",
    "Memory": (
        "Memory of a run in addition to the program itself: weights, optimizer, decoded images, "
        "cache, and activations of a step, as far as they are not on a GPU."
    ),
    "GPU memory": "The most of a GPU's memory that a run has held.",
    "Verdict": (
        "Against the strategy to use, or where there is none, against the best: for the method in "
        "general where the seeds allow that."
    ),
    "On disk": "The best checkpoint, which holds only the trained weights.",
    **{
        f"Difference ({one.unit})": (
            f"{one.title} of the first minus that of the "
            f"second{', in percentage points' if one.share else ''}."
        )
        for one in MEASURES.values()
    },
    CLAIMS["strategies"]: "95 % interval of the difference, for new images and new seeds.",
    "p, Holm": (
        "For the method in general: over images and seeds, corrected for the number of pairs. At "
        "most 0.05 counts as a difference."
    ),
    CLAIMS[
        "networks"
    ]: "95 % interval of the difference between the models trained here, for new images.",
    "p, Holm (models)": "For these trained models: over images, corrected for the number of pairs.",
    "McNemar p": (
        "For accuracy, regardless of the metric chosen: exact test on the images that only one of "
        "two networks classifies correctly; every network of one arm against every network of the "
        "other, combined (Rüger)."
    ),
    "Uncertainty": "Standard errors, from the images and, with several seeds, from the seeds.",
}


def draw_verdict(comparison: Comparison) -> None:
    """Draw the answer, its size, and the recommended action."""
    answer, *rest = comparison.verdict.lines
    with st.container(border=True):
        st.header(escape_markdown(answer), anchor=False)
        for line in rest:
            st.markdown(escape_markdown(line))


def draw_arms(comparison: Comparison) -> None:
    """Draw the chart and the table of the strategies."""
    measure, split = comparison.measure, comparison.split
    title = measure.title_on(split)
    st.header(
        title,
        anchor=False,
        help="Large: mean over the seeds, with its 95 % interval. Small: each seed.",
    )
    st.plotly_chart(
        plot_accuracies(comparison.arms, split),
        key=f"accuracies-{measure.name}",
        alt=f"{title} of each strategy with its interval, a small dot for each seed",
        config=PLAIN,
    )
    _draw_table(*arms_table(comparison), key="arms")
    for footnote in footnotes(comparison):
        st.caption(escape_markdown(footnote))


def draw_details(comparison: Comparison) -> None:
    """Draw what is known besides the verdict: limits, pairs, tests, and the method."""
    for line in detail_lines(comparison):
        st.markdown(escape_markdown(line))
    if comparison.differing:
        names = ", ".join(form.get_label(name).lower() for name in comparison.differing)
        st.markdown(f"Besides the strategy, these settings differ: {names}.")
    _draw_pairs(comparison)
    with st.popover("Method", icon=":material/help:", type="tertiary"):
        st.markdown(_HOW)


def _draw_table(columns: list[str], rows: list[list[str]], key: str) -> None:
    st.dataframe(
        [dict(zip(columns, row, strict=True)) for row in rows],
        hide_index=True,
        key=key,
        column_config={
            name: st.column_config.TextColumn(help=_COLUMN_HELP[name], width=_WIDTHS.get(name))
            for name in columns
            if name in _COLUMN_HELP
        },
    )


def _draw_pairs(comparison: Comparison) -> None:
    """Describe each pair, or of many pairs those of the first arm, and list all in a table."""
    if not comparison.pairs:
        return
    described: Sequence[Pair] = comparison.pairs
    if len(described) > _MOST_PAIRS and comparison.arm_verdicts:
        first = comparison.arm_verdicts[0].arm
        described = [pair for pair in described if first in (pair.a, pair.b)]
    for pair in described:
        st.markdown(format_pair(comparison.arms, pair))
    _draw_table(*pairs_table(comparison), key="pairs")

"""Sections of Compare: accuracy against cost, depth and amount of data; learning curves."""

import streamlit as st

from finetune_core.evaluation.comparison.compare import Comparison
from finetune_core.figures.comparison import (
    COSTS,
    Axis,
    Kind,
    list_costs,
    plot_depth,
    plot_learning_curves,
    plot_pareto_front,
    plot_training_size,
)
from finetune_core.formatting import accuracy_name

_AXES: dict[Axis, str] = {"epoch": "By epoch", "seconds": "By time"}  # of the learning curves
_PARETO = (
    "Dotted line: Pareto front. No run is both better and cheaper than one on it. Hollow: the same "
    "runs without the cache of the frozen stages' output."
)


def draw_costs(comparison: Comparison) -> None:
    """Draw accuracy against cost, and against depth and amount of data if the runs differ there."""
    _draw_pareto(comparison)
    _draw_depth_and_data(comparison)


@st.fragment
def _draw_pareto(comparison: Comparison) -> None:
    name = accuracy_name(comparison.split)
    costs, reason = list_costs(comparison.arms)
    if st.session_state.get("measure") not in (None, *costs):
        del st.session_state["measure"]
    measure = st.segmented_control(
        "Cost",
        costs,
        default="seconds",
        required=True,
        format_func=lambda name: COSTS[name][0],
        key="measure",
        persist_state="session",
        help=_PARETO,
    )
    st.plotly_chart(
        plot_pareto_front(measure, comparison.arms, comparison.split),
        key=f"pareto-{measure}",
        alt=f"{name} against {COSTS[measure][0].lower()}",
    )
    if reason:
        st.caption(reason)


def _draw_depth_and_data(comparison: Comparison) -> None:
    """Draw accuracy against depth and amount of data, if the runs differ in these."""
    name = accuracy_name(comparison.split)
    drawn = [
        (
            f"{name} by first stage that trains",
            "depth",
            plot_depth(comparison.arms, comparison.split),
            f"{name} against the first stage that trains",
        ),
        (
            f"{name} by training set size",
            "data",
            plot_training_size(comparison.arms, comparison.split),
            f"{name} against the number of training images",
        ),
    ]
    drawn = [one for one in drawn if one[2]]
    for column, (heading, key, figure, alt) in zip(
        st.columns(len(drawn)) if drawn else [], drawn, strict=True
    ):
        with column:
            st.markdown(f"**{heading}**")
            st.plotly_chart(figure, key=key, alt=alt)


@st.fragment
def draw_curves(comparison: Comparison) -> None:
    """Draw the learning curves of all runs by epoch or by time."""
    axis = st.segmented_control(
        "Axis",
        list(_AXES),
        default="epoch",
        required=True,
        format_func=_AXES.__getitem__,
        key="axis",
        persist_state="session",
        label_visibility="collapsed",
    )
    kinds: tuple[Kind, Kind] = ("loss", "accuracy")
    for column, kind in zip(st.columns(2), kinds, strict=True):
        figure = plot_learning_curves(kind, axis, comparison.arms)
        column.plotly_chart(
            figure,
            key=f"curves-{kind}-{axis}",
            alt=f"Validation {kind} of every run on shared axes",
        )

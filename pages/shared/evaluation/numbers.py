"""Boxes with one number and its interval."""

import streamlit as st

from finetune_core.formatting import format_interval, format_percent


def draw_share(label: str, value: float, low: float, high: float, meaning: str) -> None:
    """Draw a share with its 95 % interval; ``meaning`` is the help text."""
    draw_value(label, format_percent(value), f"95 % interval {format_interval(low, high)}", meaning)


def draw_value(label: str, value: str, note: str, meaning: str) -> None:
    """Draw a value and a note below it; ``meaning`` is the help text."""
    st.metric(
        label,
        value,
        delta=note or None,
        delta_color="off",
        delta_arrow="off",
        help=meaning,
        border=True,
        height="stretch",
    )

"""Colours and styles of all figures, and the escaping of names for Plotly."""

import html

COLD, WARM = "#5aa9d6", "#f08a3c"  # frozen, training
# Distinct on light and dark pages and for colour-blind people. Dashes distinguish them, too.
TRAIN_COLOR, VAL_COLOR = ("#8b73d6", "#1fa287")
TEST_COLOR = "#7d8590"
SPLIT_COLORS = {"train": TRAIN_COLOR, "val": VAL_COLOR, "test": TEST_COLOR}
# Distinct from the colours of stages and splits.
RUN_COLORS = ("#c2568f", "#a88a12", "#4f6bd8", "#6f9a2e", "#8c5a3c", "#7c8791")
BEST_COLOR, OTHER_COLOR = "#51677a", "#a9b8c4"
# Okabe & Ito's colours, which colour-blind people can distinguish, and three more. More lines
# than colours need dashes or symbols, too.
CLASS_COLORS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#b5a800",
    "#7a5195",
    "#8c5a3c",
    "#7c8791",
)
SYMBOLS = ("circle", "diamond", "square", "cross", "x", "triangle-up", "star")
# Opaque, because Plotly chooses black or white labels by the cell, not by the page behind it.
# Medium tones are left out, because neither label is readable on them.
COLD_SCALE = ((0.0, "#edf5fa"), (0.5, "#93c0d8"), (0.5, "#357ca6"), (1.0, "#0d5c8c"))
COLD_SCALE_DARK = ((0.0, "#18242e"), (1.0, "#1b78b3"))
LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
MARGIN = {"l": 10, "r": 24, "t": 10, "b": 10}  # right: space for half of the last tick label


def format_label(name: str, letters: int = 18) -> str:
    """Escape a name and cut it to ``letters`` characters."""
    return escape_plotly(name if len(name) <= letters else f"{name[: letters - 1]}…")


def escape_plotly(name: str) -> str:
    """Escape a name for Plotly.

    Plotly reads tags in labels as markup, and does not decode ``&quot;``.
    """
    return html.escape(name, quote=False)

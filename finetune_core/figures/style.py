"""What all figures share: colours that mean the same everywhere, and names that plotly does not take for markup."""

import html

COLD, WARM = "#5aa9d6", "#f08a3c"  # frozen, training
# distinct in light, dark and for the colour-blind; dashes distinguish them, too
TRAIN_COLOR, VAL_COLOR = ("#8b73d6", "#1fa287")
TEST_COLOR = "#7d8590"
SPLIT_COLORS = {"train": TRAIN_COLOR, "val": VAL_COLOR, "test": TEST_COLOR}
# Runs get neither the cold and warm of stages nor the colours of the splits.
RUN_COLORS = ("#c2568f", "#a88a12", "#4f6bd8", "#6f9a2e", "#8c5a3c", "#7c8791")
BEST_COLOR, OTHER_COLOR = "#51677a", "#a9b8c4"
# Okabe & Ito's colours, which the colour-blind can distinguish, then three more; where there are more lines, they need another sign, too.
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
# Opaque: plotly picks black or white labels by the cell, not by the page behind it. Neither can be read on tones in between.
COLD_SCALE = ((0.0, "#edf5fa"), (0.5, "#93c0d8"), (0.5, "#357ca6"), (1.0, "#0d5c8c"))
COLD_SCALE_DARK = ((0.0, "#18242e"), (1.0, "#1b78b3"))
LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
MARGIN = {"l": 10, "r": 24, "t": 10, "b": 10}  # right: room for half of the last tick's label


def label(name: str, letters: int = 18) -> str:
    """An escaped name, cut to so many letters."""
    return escaped(name if len(name) <= letters else f"{name[: letters - 1]}…")


def escaped(name: str) -> str:
    """A name for plotly, which takes tags in labels for markup, but knows no &quot;."""
    return html.escape(name, quote=False)

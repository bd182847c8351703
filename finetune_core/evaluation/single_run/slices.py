"""Accuracy in slices of the images, tested against the rest of the split."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from finetune_core.data.index import index_stamp, load_known_images
from finetune_core.data.manifest import is_manifest, read_other_columns
from finetune_core.errors import DataError
from finetune_core.evaluation.intervals import accuracy_interval
from finetune_core.evaluation.single_run.metrics import Evaluation
from finetune_core.files import Stamp, file_stamp

FEW = 20  # images, below which an interval is too wide to show anything
_ALPHA = 0.05
_PARTS = 4  # slices of a numeric column
_MOST_VALUES = 10
_SEEN: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "Shorter side (pixels)": lambda seen: seen[["width", "height"]].min(axis=1),
    "Longer to shorter side": lambda seen: (
        seen[["width", "height"]].max(axis=1) / seen[["width", "height"]].min(axis=1)
    ),
    "File size (bytes)": lambda seen: seen["bytes"],
    "Brightness (0 to 255)": lambda seen: seen["brightness"],
    "Contrast": lambda seen: seen["contrast"],
    "Sharpness": lambda seen: seen["sharpness"],
    "Format": lambda seen: seen["format"],
    "Colour mode": lambda seen: seen["mode"],
}


@dataclass(frozen=True)
class Facts:
    """Facts about images.

    Attributes:
        table: one row per image of the split, in the order of its predictions; numbers or str,
            missing if nothing is known.
        own: the columns that come from a manifest.
    """

    table: pd.DataFrame
    own: tuple[str, ...]


def load_image_facts(data: str | Path, ids: pd.Series) -> Facts:
    """Return facts about images from the index and from a manifest.

    Columns with one value only are left out.
    """
    rows = load_known_images(data).reindex(ids)
    columns = {name: make(rows) for name, make in _SEEN.items()}
    path = Path(data)
    own: tuple[str, ...] = ()
    if path.is_file() and is_manifest(path):
        try:
            extra = read_other_columns(path).reindex(ids)
        except DataError:  # the manifest was changed or removed since: evaluate without it
            extra = pd.DataFrame(index=pd.Index(ids))
        own = tuple(name for name in extra.columns if extra[name].nunique() > 1)
        columns = columns | {name: _to_numbers(extra[name]) for name in own}
    table = pd.DataFrame(columns)
    varied = [name for name in table.columns if table[name].nunique() > 1]
    return Facts(
        table[varied].reset_index(drop=True), tuple(name for name in own if name in varied)
    )


def facts_stamp(data: str | Path) -> tuple[Stamp | None, Stamp | None]:
    """Return stamps of the index and the manifest that ``load_image_facts`` reads."""
    return index_stamp(data), file_stamp(Path(os.path.realpath(data)))


def compute_slices(result: Evaluation, facts: pd.DataFrame) -> pd.DataFrame:
    """Compute the accuracy in every slice.

    Numbers are cut into quarters; of other values, the most frequent ones are slices. A slice is
    compared with the rest of the split by Fisher's exact test. Over all slices the share of false
    alarms is kept to 5 % (Benjamini & Hochberg 1995). Slices with few images are not compared.

    Returns:
        ``by, slice, images, accuracy, low, high, verdict``: ``worse``, ``better``, ``no clear
        difference`` or ``few images``.
    """
    correct = result.predictions["correct"].to_numpy()
    rows, chances, better = [], [], []
    for name in facts.columns:
        for label, inside in _cut_column(facts[name]):
            rows.append(
                (
                    name,
                    label,
                    int(inside.sum()),
                    *accuracy_interval(int(correct[inside].sum()), int(inside.sum())),
                )
            )
            chances.append(_p_value(correct, inside))
            better.append(
                correct[inside].mean() > correct[~inside].mean()
                if 0 < inside.sum() < len(inside)
                else False
            )
    table = pd.DataFrame(rows, columns=["by", "slice", "images", "accuracy", "low", "high"])
    return table.assign(verdict=_judge_slices(np.array(chances), np.array(better, dtype=bool)))


def _cut_column(values: pd.Series) -> list[tuple[str, np.ndarray]]:
    """Return (label, bool ``[n]``) for each slice of a column."""
    if pd.api.types.is_numeric_dtype(values):
        edges = np.unique(values.quantile(np.linspace(0, 1, _PARTS + 1)).to_numpy())
        if values.nunique() > _PARTS and len(edges) > 2:
            parts = pd.cut(values, edges.tolist(), include_lowest=True, labels=False)
            labels = [
                f"{_format_number(low)} to {_format_number(high)}" for low, high in pairwise(edges)
            ]
            slices = [(labels[part], (parts == part).to_numpy()) for part in range(len(labels))]
        else:
            slices = [
                (_format_number(value), (values == value).to_numpy())
                for value in np.sort(values.dropna().unique())
            ]
    else:
        values = values.mask(values == "")
        frequent = values.value_counts().index[:_MOST_VALUES]
        slices = [(str(value), (values == value).to_numpy()) for value in frequent]
        slices.append(("all others", (values.notna() & ~values.isin(frequent)).to_numpy()))
    slices.append(("not known", values.isna().to_numpy()))
    return [(label, inside) for label, inside in slices if inside.any()]


def _p_value(correct: np.ndarray, inside: np.ndarray) -> float:
    """Return the p-value of the slice against the rest; NaN if either has few images."""
    from scipy.stats import fisher_exact

    if min(inside.sum(), (~inside).sum()) < FEW:
        return float("nan")
    right, wrong = correct & inside, ~correct & inside
    table = [[right.sum(), wrong.sum()], [(correct & ~inside).sum(), (~correct & ~inside).sum()]]
    return float(fisher_exact(table).pvalue)


def _judge_slices(chances: np.ndarray, better: np.ndarray) -> np.ndarray:
    from scipy.stats import false_discovery_control

    verdicts = np.full(len(chances), "few images", dtype=object)
    enough = ~np.isnan(chances)
    if enough.any():
        clear = false_discovery_control(chances[enough]) < _ALPHA
        verdicts[enough] = np.where(
            clear, np.where(better[enough], "better", "worse"), "no clear difference"
        )
    return verdicts


def _to_numbers(values: pd.Series) -> pd.Series:
    """Convert a column to numbers if all its values are numbers; empty cells do not count."""
    numbers = pd.to_numeric(values.mask(values == ""), errors="coerce")
    return numbers if numbers.notna().sum() == (values.notna() & (values != "")).sum() else values


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 100 else f"{value:.3g}"

"""Table of all runs: searched, sorted, and selected by id, whatever the table shows."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from finetune_core.evaluation.run_accuracy import run_accuracy
from finetune_core.figures.style import VAL_COLOR
from finetune_core.formatting import (
    accuracy_name,
    format_interval,
    format_learning_rate,
    format_number,
    pluralize,
)
from finetune_core.runs.store import Run, summarize_run
from finetune_core.training.strategies.catalogue import describe_run_kind
from pages.shared.chrome import escape_markdown
from pages.shared.runs.backend import STATUS_WORDS, describe_status
from pages.shared.runs.labels import effective_value, parse_queue_time, short_data_name

_SPLITS = ("test", "val")
_SELECTED, _SEARCH = "selected_runs", "runs_search"
_MOST_POINTS = 60  # points of a sparkline
# Columns that tell runs apart. A column with equal values for all runs is not shown.
_TELLING = (
    "Data",
    "Backbone",
    "Strategy",
    "Learning rate",
    "Image size",
    "Epochs",
    "Seed",
    "Images",
)


def draw_search_box() -> str:
    """Draw the search field, and return its text."""
    return st.text_input(
        "Search",
        type="search",
        live="300ms",
        key=_SEARCH,
        persist_state="session",
        label_visibility="collapsed",
        placeholder="Search by name, data, backbone, strategy, status, tag or note",
    )


def find_matching(runs: Sequence[Run], query: str) -> list[Run]:
    """Return the runs in which every word occurs."""
    words = query.casefold().split()
    return [run for run in runs if all(word in _searchable_text(run) for word in words)]


def get_selected(visible: Sequence[Run]) -> list[Run]:
    """Return the visible runs that are selected, and deselect runs that are not visible."""
    by_id = {run.run_id: run for run in visible}
    st.session_state[_SELECTED] = [
        run_id for run_id in st.session_state.get(_SELECTED, []) if run_id in by_id
    ]
    return [by_id[run_id] for run_id in st.session_state[_SELECTED]]


def draw_table(visible: Sequence[Run]) -> None:
    """Draw the visible runs, with the selected ones marked."""
    ids = [run.run_id for run in visible]
    # A browser names rows by their position. So other rows get another table, and a click on the
    # old table does not count.
    rows = [_make_row(run) for run in visible]
    shared = find_shared(rows)
    if text := _describe_shared(shared):
        st.caption(escape_markdown(f"All of them: {text}."))
    key = f"runs-{hashlib.sha256(chr(0).join(ids).encode()).hexdigest()[:16]}"
    st.dataframe(
        pd.DataFrame(rows),
        key=key,
        hide_index=True,
        placeholder="",
        height="auto" if len(visible) <= 10 else 560,
        on_select=lambda: _take_selection(key, ids),
        selection_mode="multi-row",
        selection_default={
            "selection": {
                "rows": [ids.index(run_id) for run_id in st.session_state.get(_SELECTED, [])]
            }
        },
        column_config=_configure_columns(visible) | dict.fromkeys(shared),
        alt=f"Table of {pluralize(len(visible), 'run')}",
    )


def _take_selection(key: str, ids: Sequence[str]) -> None:
    st.session_state[_SELECTED] = [
        ids[row] for row in st.session_state[key]["selection"]["rows"] if row < len(ids)
    ]


def _searchable_text(run: Run) -> str:
    """Return the text of a run that the search looks through."""
    parts = (
        run.run_id,
        run.name,
        run.note,
        run.config.data,
        run.config.backbone,
        describe_run_kind(run.config),
        describe_status(run)[0],
        run.owner,
        run.config.from_run or "",
        *run.tags,
    )
    return "\n".join(parts).casefold()


def _make_row(run: Run) -> dict[str, Any]:
    accuracy, epochs = run_accuracy(run), run.history.epochs
    step = -(-len(epochs) // _MOST_POINTS) or 1
    seconds = summarize_run(run)["seconds"] or (epochs[-1]["seconds"] if epochs else None)
    return {
        "Status": [describe_status(run)[0]],
        "Name": run.name,
        "Strategy": describe_run_kind(run.config),
        **{
            accuracy_name(split): 100 * accuracy.value
            if accuracy and accuracy.split == split
            else None
            for split in _SPLITS
        },
        "95 % interval": format_interval(accuracy.low, accuracy.high) if accuracy else "",
        "Data": short_data_name(run.config),
        "Backbone": run.config.backbone,
        "Learning rate": _format_rate(run),
        "Image size": effective_value(run.config, "image_size"),
        "Epochs": _count_epochs(run),
        "Seed": run.config.seed,
        "Images": format_number(accuracy.images) if accuracy else "",
        "Converged": {True: "yes", False: "no", None: ""}[run.convergence.converged],
        "By epoch": [epoch["val_accuracy"] for epoch in epochs[::-step][::-1]],
        "Time": pd.Timedelta(seconds=round(seconds)) if seconds is not None else None,
        "When": parse_queue_time(run),
        "Started from": Path(run.config.from_run).name if run.config.from_run else "",
        "Tags": list(run.tags),
        "Run": run.run_id,
    }


def _count_epochs(run: Run) -> int | None:
    """Return the number of epochs trained, or of an active run the number to train."""
    trained = len(run.history.epochs)
    epochs: int | None = effective_value(run.config, "epochs")
    return epochs if run.is_active or not trained else trained


def _format_rate(run: Run) -> str:
    rate = effective_value(run.config, "learning_rate")
    return "" if rate is None else format_learning_rate(rate)


def find_shared(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the columns of ``_TELLING`` whose values are equal in several rows, with the value."""
    if len(rows) < 2:
        return {}
    return {name: rows[0][name] for name in _TELLING if len({row[name] for row in rows}) == 1}


def _describe_shared(shared: Mapping[str, Any]) -> str:
    """Return the settings that all runs share: ``shapes · efficientnet_lite0 · seed 0``."""
    looks = {
        "Learning rate": "lr {}",
        "Image size": "{} px",
        "Epochs": "{} epochs",
        "Seed": "seed {}",
        "Images": "{} images",
    }
    known = {name: value for name, value in shared.items() if value not in ("", None)}
    return " · ".join(looks.get(name, "{}").format(value) for name, value in known.items())


def _configure_accuracy_columns(visible: Sequence[Run]) -> dict[str, Any]:
    """Return a column for each split; None for a split that no run's accuracy is from."""
    found = {accuracy.split for run in visible if (accuracy := run_accuracy(run))}
    helps = {
        "test": "Of finished runs that have test images.",
        "val": "Of runs without test images or not finished: the best epoch's so far.",
    }
    return {
        accuracy_name(split): st.column_config.NumberColumn(format="%.1f %%", help=helps[split])
        if split in found or (split == "val" and not found)
        else None
        for split in _SPLITS
    }


def _configure_columns(visible: Sequence[Run]) -> dict[str, Any]:
    statuses = {*STATUS_WORDS.values(), *(describe_status(run) for run in visible)}
    looks = {word: color for word, color, _ in sorted(statuses)}
    tags = sorted({tag for run in visible for tag in run.tags})
    column = st.column_config
    return {
        "Status": column.MultiselectColumn(options=looks, color=list(looks.values()), pinned=True),
        **_configure_accuracy_columns(visible),
        "95 % interval": column.TextColumn(
            help="Wilson's interval for the accuracy beside it, on other such images."
        ),
        "Images": column.TextColumn(help="The images of the accuracy beside it."),
        "Converged": column.TextColumn(
            help="Whether its own curve shows that it trained long enough; empty where that is "
            "not known."
        ),
        "By epoch": column.LineChartColumn(
            y_min=0,
            y_max=1,
            width=100,
            color=VAL_COLOR,
            help="Validation accuracy by epoch, from 0 to 100 %.",
        ),
        "Time": column.NumberColumn(format="compact", help="Hours, minutes, seconds."),
        "Strategy": column.TextColumn(width=150),
        "Learning rate": column.TextColumn(help="Empty where nothing trains in steps."),
        "Image size": column.NumberColumn(format="%d px"),
        "When": column.DatetimeColumn(format="D MMM YYYY, HH:mm"),
        "Tags": column.MultiselectColumn(options=tags, color="auto") if tags else None,
        "Started from": column.TextColumn(help="The earlier run whose network it began with.")
        if any(run.config.from_run for run in visible)
        else None,
        "Name": column.TextColumn(width=140) if any(run.name for run in visible) else None,
        "Run": None,
    }

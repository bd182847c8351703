"""Labels of runs in lists, and the run that a browser means by a label.

A browser names a choice by its label. A label with a run's status changes while it can be chosen.
So each label that this session has shown is remembered: a browser that lags behind still gets the
run that it shows.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import streamlit as st

from finetune_core.config import RunConfig, get_setting, setting_names
from finetune_core.config.changes import format_setting_value
from finetune_core.config.metadata import TRAINING
from finetune_core.evaluation.run_accuracy import run_accuracy
from finetune_core.formatting import format_learning_rate, format_percent, lower_first, pluralize
from finetune_core.runs.design import find_ineffective_settings
from finetune_core.runs.store import Run
from finetune_core.training.strategies.catalogue import describe_run_kind
from pages.shared.runs.backend import describe_status

_MOST_REMEMBERED = 20_000
# Texts of some settings in labels. Other settings are shown by label and value.
_WORDS: dict[str, Callable[[Any], str]] = {
    "learning_rate": lambda rate: f"lr {format_learning_rate(rate)}",
    "image_size": lambda side: f"{side} px",
    "epochs": lambda count: pluralize(count, "epoch"),
    "train_fraction": lambda share: f"{format_percent(share, 0)} of the images",
}


def parse_queue_time(run: Run) -> datetime | None:
    """Return when a run was queued, read from its directory's name; None if that was renamed."""
    try:
        return datetime.strptime(run.run_id[:15], "%Y%m%d-%H%M%S")
    except ValueError:
        return None


def short_data_name(config: RunConfig) -> str:
    """Return the name of a data set's folder or file."""
    return Path(config.data).name or config.data


def run_title(run: Run) -> str:
    """Return a run's name, time, data set, backbone and strategy."""
    queued_at = parse_queue_time(run)
    when = f"{queued_at:%d %b %H:%M}" if queued_at else run.run_id
    strategy = lower_first(describe_run_kind(run.config))
    return " · ".join(
        filter(None, (run.name, when, short_data_name(run.config), run.config.backbone, strategy))
    )


def effective_value(config: RunConfig, name: str) -> Any:
    """Return a setting's value; None if the run does not obey it."""
    return None if name in find_ineffective_settings(config) else getattr(config, name)


def _find_differences(runs: Sequence[Run]) -> dict[str, str]:
    """Return, by id, the settings in which runs of equal data, backbone and strategy differ."""
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        kind = run.config.data, run.config.backbone, describe_run_kind(run.config)
        groups.setdefault(kind, []).append(run)
    found = {}
    for group in groups.values():
        differing = [
            name
            for name in (*setting_names(TRAINING), "train_fraction")
            if len({effective_value(run.config, name) for run in group}) > 1
        ]
        for run in group:
            values = [(name, effective_value(run.config, name)) for name in differing]
            texts = [_format_setting(name, value) for name, value in values if value is not None]
            found[run.run_id] = " · ".join(texts)
    return found


def _format_setting(name: str, value: Any) -> str:
    if name in _WORDS:
        return _WORDS[name](value)
    setting = get_setting(name)
    return f"{lower_first(setting.label)} {format_setting_value(setting, value)}"


def run_label(run: Run, differences: str = "") -> str:
    """Return a run's title, differences, status, accuracy, and the end of its id.

    The end of the id makes labels unique.
    """
    accuracy = run_accuracy(run) if run.is_evaluable else None
    score = accuracy.to_text() if accuracy else ""
    return " · ".join(
        filter(
            None,
            (run_title(run), differences, describe_status(run)[0].lower(), score, run.run_id[-4:]),
        )
    )


def run_labels(runs: Iterable[Run]) -> dict[str, str]:
    """Return run id -> label of runs to choose from."""
    runs = list(runs)
    differences = _find_differences(runs)
    labels = {run.run_id: run_label(run, differences[run.run_id]) for run in runs}
    remembered: dict[str, str] = st.session_state.setdefault("run_labels", {})
    remembered.update((label, run_id) for run_id, label in labels.items())
    for label in list(remembered)[: max(0, len(remembered) - _MOST_REMEMBERED)]:
        del remembered[label]
    return labels


def resolve_run_ids(chosen: Sequence[str]) -> list[str]:
    """Return the ids of runs chosen in a box of ``run_labels``.

    Args:
        chosen: ids, or labels that have changed since. Others are left out.
    """
    remembered: dict[str, str] = st.session_state.get("run_labels", {})
    ids = set(remembered.values())
    found = [one if one in ids else remembered.get(one) for one in chosen]
    return [run_id for run_id in found if run_id]

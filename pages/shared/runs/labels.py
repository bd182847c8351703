"""What runs are called in lists, and which run a browser means by such a label.

A browser names what is chosen by its label. A label that says how a run stands changes while it can be chosen, so each one that this
session has been shown is remembered: a browser that lags behind still gets the run that it shows.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

import streamlit as st

from finetune_core.config import RunConfig
from finetune_core.evaluation.run_accuracy import run_accuracy
from finetune_core.formatting import mid_sentence
from finetune_core.runs.store import Run
from finetune_core.training.strategies import run_kind
from pages.shared.runs.backend import STATUS_WORDS

_MOST_REMEMBERED = 20_000


def run_began(run: Run) -> datetime | None:
    """When it was queued, as its folder's name tells; None where that was renamed."""
    try:
        return datetime.strptime(run.run_id[:15], "%Y%m%d-%H%M%S")
    except ValueError:
        return None


def data_in_short(config: RunConfig) -> str:
    """The name of a data set's folder or file."""
    return Path(config.data).name or config.data


def run_title(run: Run) -> str:
    """Its name, when, and what."""
    began = run_began(run)
    when = f"{began:%d %b %H:%M}" if began else run.run_id
    strategy = mid_sentence(run_kind(run.config))
    return " · ".join(
        filter(None, (run.name, when, data_in_short(run.config), run.config.backbone, strategy))
    )


def run_label(run: Run) -> str:
    """A run in a list: its title, how it stands, its accuracy, and the end of its id, so that no two look alike."""
    accuracy = run_accuracy(run) if run.judged else None
    score = accuracy.in_words() if accuracy else ""
    return " · ".join(
        filter(None, (run_title(run), STATUS_WORDS[run.status][0].lower(), score, run.run_id[-4:]))
    )


def run_labels(runs: Iterable[Run]) -> dict[str, str]:
    """Run id -> label of runs that are to be chosen from."""
    labels = {run.run_id: run_label(run) for run in runs}
    remembered: dict[str, str] = st.session_state.setdefault("run_labels", {})
    remembered.update((label, run_id) for run_id, label in labels.items())
    for label in list(remembered)[: max(0, len(remembered) - _MOST_REMEMBERED)]:
        del remembered[label]
    return labels


def meant(chosen: Sequence[str]) -> list[str]:
    """The ids of what was chosen in a box of ``run_labels``: ids, or labels that have changed since. Others are left out."""
    remembered: dict[str, str] = st.session_state.get("run_labels", {})
    ids = set(remembered.values())
    found = [one if one in ids else remembered.get(one) for one in chosen]
    return [run_id for run_id in found if run_id]

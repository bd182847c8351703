"""A run's settings and data set, taken to another page."""

import streamlit as st

from finetune_core.config import RunConfig
from finetune_core.data.edits import effective, load_edits
from finetune_core.data.entry import load_split
from finetune_core.errors import FinetuneError
from finetune_core.runs.store import Run
from pages.shared.chrome import go, plain
from pages.shared.configure import settings
from pages.shared.data.chosen import choose_data


def use_again(run: Run, page: str = "pages/configure.py") -> None:
    """``use_settings`` of a run."""
    use_settings(run.config, page)


def use_settings(config: RunConfig, page: str = "pages/configure.py") -> None:
    """Put settings into the form, choose their data set, and go to that page; where the data cannot be had, say why and stay."""
    try:
        choose_data(config.data)
    except FinetuneError as error:
        st.error(plain(str(error)), icon=":material/error:")
        return
    settings.use(config)
    go(page)


def differs_now(run: Run) -> str:
    """What of a run's data set is not as it was then, in words: split and changes belong to the data set. Empty where nothing is."""
    try:
        now = load_split(run.config.data), effective(load_edits(run.config.data))
    except FinetuneError as error:
        return str(error)
    what = [
        words
        for words, then, current in zip(
            ("split", "changes to images"),
            (run.config.split_settings, run.config.edits),
            now,
            strict=True,
        )
        if then != current
    ]
    return (
        f"Its data set has other settings now ({' and '.join(what)}): a new run uses those."
        if what
        else ""
    )

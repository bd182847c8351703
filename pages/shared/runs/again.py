"""Reuse of a run's settings and data set on another page."""

import streamlit as st

from finetune_core.config import RunConfig
from finetune_core.data.edits import load_edits, select_effective_edits
from finetune_core.data.entry import load_split
from finetune_core.errors import FinetuneError
from finetune_core.runs.store import Run
from pages.shared.chrome import escape_markdown, go
from pages.shared.configure import settings
from pages.shared.data.chosen import choose_data


def use_again(run: Run, page: str = "pages/configure.py") -> None:
    """Put a run's settings into the form, choose its data set, and go to a page."""
    use_settings(run.config, page)


def use_settings(config: RunConfig, page: str = "pages/configure.py") -> None:
    """Put settings into the form, choose their data set, and go to a page.

    If the data set cannot be used, say why and stay.
    """
    try:
        choose_data(config.data)
    except FinetuneError as error:
        st.error(escape_markdown(str(error)), icon=":material/error:")
        return
    settings.use_config(config)
    go(page)


def describe_differences(run: Run) -> str:
    """Say in words what has changed in a run's data set since; empty if nothing has.

    The split and the changes belong to the data set, so a new run would use the current ones.
    """
    try:
        now = load_split(run.config.data), select_effective_edits(load_edits(run.config.data))
    except FinetuneError as error:
        return str(error)
    changed = [
        text
        for text, then, current in zip(
            ("split", "changes to images"),
            (run.config.split_settings, run.config.edits),
            now,
            strict=True,
        )
        if then != current
    ]
    return (
        f"Its data set has other settings now ({' and '.join(changed)}): a new run uses those."
        if changed
        else ""
    )

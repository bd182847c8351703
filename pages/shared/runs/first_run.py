"""What an empty page offers: a first run on the bundled sample."""

from typing import Any, Literal

import streamlit as st

from finetune_core.config import make_config
from finetune_core.data.sample import digits_folder
from finetune_core.errors import FinetuneError
from finetune_core.training.recipes import DEMO_RECIPE
from finetune_core.training.strategies import BASELINE, STRATEGIES
from pages.shared.chrome import go, plain
from pages.shared.runs.backend import submit


def nothing_yet(what: str) -> None:
    """An empty page: says what to do first, and offers the sample."""
    st.info(what, icon=":material/info:")
    try_it_now("secondary")


def try_it_now(kind: Literal["primary", "secondary"] = "primary") -> None:
    """The button that trains on the bundled sample, without a question."""
    if st.button("Try it now", type=kind, icon=":material/bolt:", key="try"):
        _start(DEMO_RECIPE)


def baseline_now() -> None:
    """The button that fits the baseline to the same sample."""
    name = STRATEGIES[BASELINE].title
    if st.button(
        f"Fit the baseline: {name.lower()}",
        icon=":material/flag:",
        key="try_baseline",
        help=STRATEGIES[BASELINE].help,
    ):
        _start(DEMO_RECIPE | {"strategy": BASELINE})


def _start(recipe: dict[str, Any]) -> None:
    try:
        with st.spinner("Writing the sample's images"):
            run = submit(make_config(recipe | {"data": str(digits_folder())}))
    except FinetuneError as error:
        st.error(plain(str(error)))
        return
    go("pages/train.py", run)

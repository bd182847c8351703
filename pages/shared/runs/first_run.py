"""What an empty page offers: a first run on the bundled sample."""

from typing import Literal

import streamlit as st

from finetune_core.config import make_config
from finetune_core.data.sample import digits_folder
from finetune_core.errors import FinetuneError
from finetune_core.recipes import DEMO_RECIPE
from pages.shared.chrome import go, plain
from pages.shared.runs.backend import submit


def nothing_yet(what: str) -> None:
    """An empty page: says what to do first, and offers the sample."""
    st.info(what, icon=":material/info:")
    try_it_now("secondary")


def try_it_now(kind: Literal["primary", "secondary"] = "primary") -> None:
    """The button that trains on the bundled sample, without a question."""
    if st.button("Try it now", type=kind, icon=":material/bolt:", key="try"):
        try:
            with st.spinner("Writing the sample's images"):
                run = start_demo()
        except FinetuneError as error:
            st.error(plain(str(error)))
            return
        go("pages/train.py", run)


def start_demo() -> str:
    """Queue the demo run; returns its id."""
    return submit(make_config(DEMO_RECIPE | {"data": str(digits_folder())}))

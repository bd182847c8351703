"""Moving runs to the trash."""

from collections.abc import Sequence
from functools import partial

import streamlit as st

from pages.shared.account import is_sign_in_required, owner
from pages.shared.runs.backend import store
from pages.shared.runs.controls import attempt

TRASH = (
    "The trash is the folder `.trash` among the runs. Move them back from there, or delete them "
    "for good."
)


def move_to_trash(run_ids: Sequence[str]) -> None:
    """Move runs to the trash (may be a callback). The page that is drawn next shows errors."""
    by = owner() if is_sign_in_required() else None
    for run_id in run_ids:
        attempt(partial(store().delete, run_id, by))
    if "problem" not in st.session_state:
        st.toast("Moved to the trash.", icon=":material/delete:")

"""The run folders that cannot be read: which, why, and the way to the trash. Shown wherever runs are."""

from collections.abc import Sequence

import streamlit as st

from finetune_core.errors import FinetuneError
from finetune_core.formatting import things
from finetune_core.runs.store import Damaged
from pages.shared.account import may_change, owner, sign_in_asked
from pages.shared.chrome import plain
from pages.shared.runs.backend import store

_MOST = 50


def damaged_runs(damaged: Sequence[Damaged]) -> None:
    """Name them at the end of a page; nothing where there are none."""
    if problem := st.session_state.pop("damaged_problem", None):
        st.error(plain(problem), icon=":material/error:")
    if not damaged:
        return
    with st.expander(things(len(damaged), "damaged run"), icon=":material/folder_off:", expanded=len(damaged) <= 3):
        st.caption("These run folders cannot be read, so they are left out everywhere. No other run is affected.")
        for one in damaged[:_MOST]:
            with st.container(horizontal=True, vertical_alignment="center"):
                st.badge("Damaged", color="red", icon=":material/folder_off:")
                st.markdown(f"**{plain(_shown(one.run_id))}**: {plain(one.reason)}", width="stretch")
                if may_change(one):
                    st.button(
                        "Move to the trash",
                        key=f"trash-{one.run_id}",
                        icon=":material/delete:",
                        on_click=_to_trash,
                        args=(one.run_id,),
                        help="The folder .trash among the runs. Move it back from there, or delete it for good.",
                    )
        if len(damaged) > _MOST:
            st.caption(f"And {len(damaged) - _MOST:,} more.")


def _to_trash(run_id: str) -> None:
    try:
        store().delete(run_id, owner() if sign_in_asked() else None)
    except FinetuneError as error:  # a callback has no place on the page: the next drawing says it
        st.session_state["damaged_problem"] = str(error)
    else:
        st.toast("Moved to the trash.", icon=":material/delete:")


def _shown(run_id: str) -> str:
    return run_id if len(run_id) <= 80 else f"{run_id[:80]}…"

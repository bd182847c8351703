"""Damaged run directories: their names, the reasons, and the way to the trash.

They are shown on every page that shows runs.
"""

from collections.abc import Sequence

import streamlit as st

from finetune_core.formatting import pluralize
from finetune_core.runs.store import DamagedRun
from pages.shared.account import can_change
from pages.shared.chrome import escape_markdown
from pages.shared.runs.controls import show_problem
from pages.shared.runs.trash import TRASH, move_to_trash

_MOST = 50


def draw_damaged_runs(damaged: Sequence[DamagedRun]) -> None:
    """List the damaged runs at the end of a page; draw nothing if there are none."""
    show_problem()
    if not damaged:
        return
    with st.expander(
        pluralize(len(damaged), "damaged run"),
        icon=":material/folder_off:",
        expanded=len(damaged) <= 3,
    ):
        st.caption(
            "These run folders cannot be read, so they are left out everywhere. No other run is "
            "affected."
        )
        for one in damaged[:_MOST]:
            with st.container(horizontal=True, vertical_alignment="center"):
                st.badge("Damaged", color="red", icon=":material/folder_off:")
                st.markdown(
                    f"**{escape_markdown(_shorten(one.run_id))}**: {escape_markdown(one.reason)}",
                    width="stretch",
                )
                if can_change(one):
                    st.button(
                        "Move to the trash",
                        key=f"trash-{one.run_id}",
                        icon=":material/delete:",
                        on_click=move_to_trash,
                        args=([one.run_id],),
                        help=TRASH,
                    )
        if len(damaged) > _MOST:
            st.caption(f"And {len(damaged) - _MOST:,} more.")


def _shorten(run_id: str) -> str:
    return run_id if len(run_id) <= 80 else f"{run_id[:80]}…"

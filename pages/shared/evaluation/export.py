"""Buttons that export a run to files for other programs, and download them as a ZIP."""

from functools import partial

import streamlit as st

from finetune_core.exporters.catalogue import FORMATS
from finetune_core.exporters.formats import export_from_app, find_export, zip_folder
from finetune_core.runs.store import Run
from pages.shared.data.chosen import readable_roots
from pages.shared.jobs import begin, show_outcome


def draw_export_buttons(run: Run) -> None:
    """Draw one row for each export format.

    Exports are made on request. Finished exports are offered for download.
    """
    with st.expander("Export", icon=":material/ios_share:"):
        _draw_rows(run)


@st.fragment
def _draw_rows(run: Run) -> None:
    for name, export_format in FORMATS.items():
        key = f"export-{name}:{run.run_dir}"
        with st.container(border=True):
            with st.container(horizontal=True, vertical_alignment="center"):
                st.markdown(f"**{export_format.title}**  \n{export_format.help}", width="stretch")
                st.button(
                    "Export",
                    key=f"export-{run.run_id}-{name}",
                    icon=":material/build:",
                    help=f"Made from {'the events' if export_format.events else 'the best epoch'} "
                    "of this run, and stored in the run's folder.",
                    on_click=begin,
                    args=(
                        key,
                        f"Exporting {export_format.title}",
                        partial(export_from_app, run, name, readable_roots()),
                    ),
                    kwargs={"kept": False},
                )
                download = st.empty()
            show_outcome(key)
            if folder := find_export(run, name):
                archive = f"{run.run_id}-{name}"
                download.download_button(
                    "Download ZIP",
                    # Packed on request, not at every drawing of the page.
                    partial(zip_folder, folder, archive),
                    file_name=f"{archive}.zip",
                    mime="application/zip",
                    key=f"download-{archive}",
                    icon=":material/download:",
                    on_click="ignore",
                )

"""Buttons that make a run into files for elsewhere, and hand them over as a ZIP."""

from functools import partial

import streamlit as st

from finetune_core.errors import FinetuneError
from finetune_core.export.formats import FORMATS, export_from_app, finished_export, zipped
from finetune_core.runs.store import Run
from pages.shared.chrome import plain


def export_buttons(run: Run) -> None:
    """One row for each form of export. Nothing is made before it is asked for; what is there is offered for download."""
    with st.expander("Export: take this network, or its recipe, elsewhere", icon=":material/ios_share:"):
        _rows(run)


@st.fragment
def _rows(run: Run) -> None:
    for name, form in FORMATS.items():
        with st.container(border=True):
            with st.container(horizontal=True, vertical_alignment="center"):
                st.markdown(f"**{form.title}**  \n{form.help}", width="stretch")
                asked = st.button(
                    "Make",
                    key=f"export-{run.run_id}-{name}",
                    icon=":material/build:",
                    help=f"Makes it from {'the events' if form.events else 'the best epoch'} of this run, and keeps it in the run's folder.",
                )
                download = st.empty()
            if asked:
                _make(run, name)
            if folder := finished_export(run, name):
                told = f"{run.run_id}-{name}"
                download.download_button(
                    "Download ZIP",
                    partial(zipped, folder, told),  # packed when it is asked for, not at every look at the page
                    file_name=f"{told}.zip",
                    mime="application/zip",
                    key=f"download-{told}",
                    icon=":material/download:",
                    on_click="ignore",
                )


def _make(run: Run, name: str) -> None:
    words = f"Making {FORMATS[name].title}" + (", and comparing it with the network" if FORMATS[name].apart else "")
    try:
        with st.spinner(words, show_time=True):
            export_from_app(run, name)
    except FinetuneError as error:
        st.error(plain(str(error)), icon=":material/error:")

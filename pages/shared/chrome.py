"""Frame of every page: settings, links to other pages, title, and the button to the next page."""

import re
from collections.abc import Sequence
from typing import Literal

import streamlit as st

from pages.shared.account import owner, require_sign_in
from pages.shared.address import get_settings_problem, link_parameters, sync_address

Color = Literal["red", "orange", "blue", "green", "violet", "gray"]  # of a badge

PAGES = (
    ("app.py", "Home", ":material/home:"),
    ("pages/dataset.py", "Dataset", ":material/photo_library:"),
    ("pages/configure.py", "Configure", ":material/tune:"),
    ("pages/train.py", "Train", ":material/local_fire_department:"),
    ("pages/runs.py", "Runs", ":material/table_rows:"),
    ("pages/evaluate.py", "Evaluate", ":material/fact_check:"),
    ("pages/compare.py", "Compare", ":material/compare_arrows:"),
    ("pages/predict.py", "Predict", ":material/image_search:"),
)

# Streamlit writes white on the primary colour. On dark pages that colour is light, so that it can
# be read as text, and white on it would be unreadable.
_UNDER_WHITE = """<style>
button[kind^="primary"]:enabled, [data-testid="stMultiSelect"] [data-tag] {
  background-color: #b53b0a; border-color: #b53b0a; }
button[kind^="primary"]:enabled:hover { background-color: #963006; border-color: #963006; }
</style>"""
# Settings of a Plotly chart that is too small to zoom. On a touch screen its toolbar is always
# there, and covers the legend and the first label.
PLAIN = {"displayModeBar": False}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|$~:&])")


def start_page(path: str, sentence: str) -> None:
    """Start a page: its frame, its title, and one sentence on its purpose.

    A page that is opened by a deep link runs without app.py, so each page calls this function.
    """
    _, title, icon = next(entry for entry in PAGES if entry[0] == path)
    st.set_page_config(page_title=f"{title} · Thaw", page_icon="❄️", layout="wide")
    st.html(_UNDER_WHITE)
    require_sign_in()
    sync_address()
    with st.container(horizontal=True, wrap=False, gap="small", key="navigation"):
        for target, label, symbol in PAGES:
            text = f"**{label}**" if target == path else label
            st.page_link(
                target, label=text, icon=symbol, width="content", query_params=link_parameters()
            )
        if name := owner():
            help_ = f"Signed in as {escape_markdown(name)}"
            st.button(
                "Sign out",
                type="tertiary",
                icon=":material/logout:",
                key="sign-out",
                help=help_,
                on_click=st.logout,
            )
    st.title(
        "Thaw" if path == "app.py" else title, icon=None if path == "app.py" else icon, anchor=False
    )
    st.markdown(sentence)
    with st.container():
        # Always there: otherwise everything below would be drawn anew.
        if problem := get_settings_problem():
            st.warning(escape_markdown(problem), icon=":material/link_off:")


def draw_next_step(path: str, label: str, *, primary: bool = True, run: str | None = None) -> None:
    """Draw the one button that leads to the next page."""
    st.space("small")
    if st.button(
        label,
        type="primary" if primary else "secondary",
        icon=":material/arrow_forward:",
        key=f"to-{path}",
    ):
        go(path, run)


def go(path: str, run: str | None = None, runs: Sequence[str] = ()) -> None:
    """Switch to another page, and take along the session's choices.

    Args:
        path: path of the page.
        run: id of the run to show there.
        runs: ids of several runs to compare there.
    """
    parameters: dict[str, str | list[str]] = {}
    if run:
        parameters["run"] = run
    if runs:
        parameters["runs"] = list(runs)
    st.switch_page(path, query_params={**parameters, **link_parameters()})


def escape_markdown(text: str) -> str:
    """Escape text from a person or a folder, so that Streamlit's Markdown shows it literally."""
    return _MARKDOWN.sub(r"\\\1", text.replace("\n", " "))

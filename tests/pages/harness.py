"""Pages in Streamlit's test harness: opened, read, and pressed."""

import re
import shutil
from pathlib import Path

from streamlit.testing.v1 import AppTest

from finetune_core import paths
from finetune_core.runs.store import read_run
from pages.shared.configure.settings import RANDOM_WEIGHTS
from tests.factories import TINY_BACKBONE

ROOT = Path(__file__).resolve().parent.parent.parent
SECRETS = {
    "redirect_uri": "http://localhost:8501/oauth2callback",
    "cookie_secret": "x" * 32,
    "client_id": "thaw",
    "client_secret": "secret",
    "server_metadata_url": "http://localhost/.well-known/openid-configuration",
}
ANN, BEN = ({"is_logged_in": True, "email": f"{name}@example.org"} for name in ("ann", "ben"))

_KINDS = ("title", "header", "markdown", "caption", "info", "success", "warning", "error")


def open_page(name, *, user=None, providers=None, form=None, state=None, **query):
    """Open a page of the app, and draw it without an exception.

    Args:
        name: name in the address; ``home`` for the first page.
        user: signed-in user, as ``st.user``; None on a server without sign-in.
        providers: sign-in providers by name.
        form: settings, as the widgets of Configure hold them.
        state: state of the session.
        query: query parameters of the address.
    """
    at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=300)
    if user:
        at.secrets["auth"], at.user = SECRETS | (providers or {}), user
    for key, value in query.items():
        at.query_params[key] = value
    for key, value in (
        {f"form_{setting}": value for setting, value in (form or {}).items()} | (state or {})
    ).items():
        at.session_state[key] = value
    if name != "home":
        at.switch_page(f"pages/{name}.py")
    return at.run()


def evaluate_state(view):
    """Return the session's state in which Evaluate shows a view: a tab, or a part of one."""
    if view in ("Mistakes", "Metrics"):
        return {"evaluate_view": view}
    if view == "Curves":
        return {"evaluate_view": "Metrics", "curves_box": True}
    return {"evaluate_view": "Reliability", "reliability_view": view}


def address(at):
    """Return the query parameters of a page's address, to open a page with them."""
    return {
        name: value if isinstance(value, str) else value[-1]
        for name, value in at.query_params.items()
    }


def page_text(at):
    """Return all text of a page, as Markdown."""
    return "\n".join(str(element.value) for kind in _KINDS for element in at.get(kind))


def unescaped_text(at):
    """Return all text of a page without the backslashes of Markdown."""
    return page_text(at).replace("\\", "")


def button_labels(at):
    """Return the labels of all buttons."""
    return [button.label for button in at.button]


def button(at, label):
    return next(button for button in at.button if button.label == label)


def primary_labels(at):
    """Return the labels of the primary buttons."""
    return [button.label for button in at.button if button.proto.type == "primary"]


def read_metrics(at):
    """Return label -> value of all metrics."""
    return {metric.label: metric.value for metric in at.metric}


def read_facts(at):
    """Return the line of facts of the Dataset page; empty if no data set is shown."""
    return next((one.value for one in at.markdown if re.match(r"[\d,]+ images? · ", one.value)), "")


def widget_keys(at, *kinds):
    """Return the keys of all widgets of some kinds."""
    return {widget.key for kind in kinds or ("button",) for widget in at.get(kind)}


def tiny_form(**changes):
    """Return a form's settings of a short run of the tiny network, with the session's state."""
    form = {
        "backbone": TINY_BACKBONE,
        "image_size": 32,
        "batch_size": 16,
        "epochs": 1,
        "precision": "fp32",
    }
    return form | changes, {"weights_from": RANDOM_WEIGHTS}


def place_run(run, name):
    """Copy a run into the app's own folder under another name, and return the copy."""
    return read_run(Path(shutil.copytree(run.run_dir, paths.runs_dir() / name)))


def press(at, label):
    return button(at, label).click().run()

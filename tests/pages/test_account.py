"""Sign-in: nothing before it, and whose a run is, after it. The provider's side is in the browser tests."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from finetune_core import paths
from finetune_core.runs.about import About, write_about
from finetune_core.runs.store import RunStore

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = ("dataset", "configure", "train", "evaluate", "compare", "predict", "runs")
SECRETS = {"redirect_uri": "http://localhost:8501/oauth2callback", "cookie_secret": "x" * 32, "client_id": "thaw"}
ANN, BEN = ({"is_logged_in": True, "email": f"{name}@example.org"} for name in ("ann", "ben"))
OUTSIDE = {"is_logged_in": False}


@pytest.fixture
def run(trained_once):
    """A run that belongs to somebody; returns its name."""

    def owned_by(owner):
        [run_dir] = trained_once.copied(paths.runs_dir(), "feature_extraction")
        write_about(run_dir, About(owner=owner))
        return run_dir.name

    return owned_by


def opened(name, user, run="", **providers):
    at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=300)
    at.secrets["auth"] = SECRETS | providers
    at.user = user
    if run:
        at.query_params["run"] = run
    if name != "home":
        at.switch_page(f"pages/{name}.py")
    at.run()
    assert not at.exception
    return at


def labels(at):
    return [button.label for button in at.button]


@pytest.mark.parametrize("name", ["home", *PAGES])
def test_before_sign_in_every_page_shows_nothing_but_the_way_in(name, run):
    named = run("ann@example.org")
    at = opened(name, OUTSIDE, named)
    assert labels(at) == ["Sign in"]
    assert not at.get("page_link")
    text = "".join(element.value for kind in ("markdown", "caption", "title") for element in at.get(kind))
    assert named not in text
    assert not at.get("metric")


def test_each_provider_has_a_button():
    providers = {name: {"client_id": name} for name in ("google", "okta")}
    assert labels(opened("home", OUTSIDE, **providers)) == ["Sign in with Google", "Sign in with Okta"]


def test_a_run_carries_its_owner_and_only_that_one_may_change_it(run):
    named = run("ann@example.org")
    hers, his = opened("train", ANN, named), opened("train", BEN, named)
    assert "Delete this run" in labels(hers)
    assert "Delete this run" not in labels(his)
    assert any("ann\\@example\\.org" in caption.value or "ann@example" in caption.value for caption in his.caption)
    assert "Sign out" in labels(his)


def test_a_run_that_is_started_after_sign_in_belongs_to_who_started_it():
    at = opened("home", ANN)
    next(button for button in at.button if button.label == "Try it now").click().run()
    run = RunStore(paths.runs_dir()).runs()[0]
    assert run.owner == "ann@example.org"
    (run.run_dir / "stop").touch()


def test_without_an_auth_section_nobody_is_asked_and_all_may_change_all(run):
    named = run("")
    at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=300)
    at.query_params["run"] = named
    at.switch_page("pages/train.py")
    at.run()
    assert "Delete this run" in labels(at)
    assert "Sign out" not in labels(at)

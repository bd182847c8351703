"""Sign-in: nothing before it, and whose a run is, after it. The provider's side is in the browser tests."""

import pytest

from finetune_core import paths
from finetune_core.runs.about import About, write_about
from finetune_core.runs.store import RunStore
from tests.pages.harness import ANN, BEN, button, labels, open_page

PAGES = ("dataset", "configure", "train", "evaluate", "compare", "predict", "runs")
OUTSIDE = {"is_logged_in": False}


@pytest.fixture
def run(trained_once):
    """A run that belongs to somebody; returns its name."""

    def owned_by(owner):
        [run_dir] = trained_once.copied(paths.runs_dir(), "feature_extraction")
        write_about(run_dir, About(owner=owner))
        return run_dir.name

    return owned_by


@pytest.mark.parametrize("name", ["home", *PAGES])
def test_before_sign_in_every_page_shows_nothing_but_the_way_in(name, run):
    named = run("ann@example.org")
    at = open_page(name, user=OUTSIDE, run=named)
    assert labels(at) == ["Sign in"]
    assert not at.get("page_link")
    text = "".join(
        element.value for kind in ("markdown", "caption", "title") for element in at.get(kind)
    )
    assert named not in text
    assert not at.get("metric")


def test_each_provider_has_a_button():
    providers = {name: {"client_id": name} for name in ("google", "okta")}
    assert labels(open_page("home", user=OUTSIDE, providers=providers)) == [
        "Sign in with Google",
        "Sign in with Okta",
    ]


def test_a_run_carries_its_owner_and_only_that_one_may_change_it(run):
    named = run("ann@example.org")
    hers, his = (open_page("train", user=user, run=named) for user in (ANN, BEN))
    assert "Delete this run" in labels(hers)
    assert "Delete this run" not in labels(his)
    assert any(
        "ann\\@example\\.org" in caption.value or "ann@example" in caption.value
        for caption in his.caption
    )
    assert "Sign out" in labels(his)


def test_a_run_that_is_started_after_sign_in_belongs_to_who_started_it():
    at = open_page("home", user=ANN)
    button(at, "Try it now").click().run()
    run = RunStore(paths.runs_dir()).runs()[0]
    assert run.owner == "ann@example.org"
    (run.run_dir / "stop").touch()


def test_without_an_auth_section_nobody_is_asked_and_all_may_change_all(run):
    named = run("")
    at = open_page("train", run=named)
    assert "Delete this run" in labels(at)
    assert "Sign out" not in labels(at)

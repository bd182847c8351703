"""Sign-in: pages show nothing before it, and runs have owners. Browser tests have the provider."""

import os
from pathlib import Path

import pytest
import streamlit as st
from streamlit import config
from streamlit.config_option import ConfigOption

from finetune_core import paths
from finetune_core.runs.about import About, write_about
from finetune_core.runs.store import RunStore
from pages.shared import account, chrome
from tests.factories import trained_run
from tests.pages.harness import (
    ANN,
    BEN,
    SECRETS,
    button_labels,
    open_page,
    page_text,
    place_run,
    press,
    unescaped_text,
)

PAGES = ["home" if path == "app.py" else Path(path).stem for path, *_ in chrome.PAGES]
OUTSIDE = {"is_logged_in": False}
PROVIDER = {key: SECRETS[key] for key in ("client_id", "client_secret", "server_metadata_url")}
AUTH = "\n".join(["[auth]", *(f'{key} = "{value}"' for key, value in SECRETS.items()), ""])
UNUSABLE = {
    "a lost quote": AUTH.replace('thaw"', "thaw"),
    "a broken header": AUTH.replace("[auth]", "[auth"),
    "no UTF-8": AUTH.encode() + b"\xff",
    "nested too deeply": "x = " + "[" * 100_000,
    "no section": "auth = true\n",
    "a list": AUTH.replace("[auth]", "[[auth]]"),
    "an empty section": "[auth]\n",
    "no cookie secret": AUTH.replace("cookie_secret", "cookie_secert"),
    "a provider without its keys": AUTH + '[auth.google]\nclient_id = "x"\n',
    "a number for text": AUTH.replace(f'"{SECRETS["client_id"]}"', "1"),
}


@pytest.fixture
def run():
    """Return the name of a run that belongs to somebody: ``run(owner)``."""

    def owned_by(owner):
        run_dir = place_run(trained_run(), "owned").run_dir
        write_about(run_dir, About(owner=owner))
        return run_dir.name

    return owned_by


@pytest.mark.parametrize("name", PAGES)
def test_before_sign_in_every_page_shows_nothing_but_the_way_in(name, run):
    named = run("ann@example.org")
    at = open_page(name, user=OUTSIDE, run=named)
    assert button_labels(at) == ["Sign in"]
    assert not at.get("page_link")
    text = "".join(
        element.value for kind in ("markdown", "caption", "title") for element in at.get(kind)
    )
    assert named not in text
    assert not at.get("metric")


@pytest.fixture
def secrets(tmp_path):
    """Write the server's secrets file, and return its path: ``secrets(content)``.

    None deletes the file.
    """
    file, before = tmp_path / "secrets.toml", config.get_option("secrets.files")

    def place(files):
        config.set_option("secrets.files", files, ConfigOption.DEFAULT_DEFINITION)
        st.secrets._reset()

    def write(content):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        place([str(tmp_path / "global" / "secrets.toml"), str(file)])
        return file

    yield write
    place(before)


@pytest.mark.parametrize("why", UNUSABLE)
def test_secrets_that_cannot_be_used_stop_every_page(secrets, run, why):
    secrets(UNUSABLE[why])
    named = run("ann@example.org")
    # All pages ask the same function (``start_page``); one of the cases opens them all.
    for name in PAGES if why == "a lost quote" else ("runs",):
        assert_nothing_but_a_message(open_page(name, run=named), named)


@pytest.mark.parametrize("place", ["a folder", "a FIFO", "a dangling link", "named but not there"])
def test_a_secrets_file_that_cannot_be_opened_stops_every_page(secrets, tmp_path, run, place):
    other, named = secrets("[other]\nkey = 1\n"), run("ann@example.org")
    file = tmp_path / "global" / "secrets.toml"
    file.parent.mkdir()
    if place == "a folder":
        file.mkdir()
    elif place == "a FIFO":
        os.mkfifo(file)
    elif place == "a dangling link":
        file.symlink_to(tmp_path / "gone")
    else:
        config.set_option("secrets.files", [str(other), str(file)])
    assert_nothing_but_a_message(open_page("runs", run=named), named)


@pytest.mark.parametrize("content", [None, "", "[other]\nkey = 1\n"])
def test_sign_in_that_was_there_stays_while_the_server_runs(secrets, run, content):
    secrets(AUTH)
    named = run("ann@example.org")
    assert button_labels(open_page("runs")) == ["Sign in"]
    secrets(content)
    st.cache_resource.clear()  # as a browser can ask for
    assert_nothing_but_a_message(open_page("runs", run=named), named)
    assert account.is_sign_in_required()
    secrets(AUTH)
    assert button_labels(open_page("runs")) == ["Sign in"]


def test_the_operator_is_told_once_what_is_wrong_and_visitors_are_not(secrets, caplog):
    file = secrets(UNUSABLE["a lost quote"])
    for _ in range(2):
        assert str(file) not in page_text(open_page("runs"))
    [told] = [record for record in caplog.records if record.name == account.__name__]
    assert str(file) in told.message
    assert "line 4" in told.message


def test_without_secrets_nobody_is_asked(secrets):
    secrets(None)
    assert not account.is_sign_in_required()
    secrets("[other]\nkey = 1\n")
    assert not account.is_sign_in_required()


def assert_nothing_but_a_message(at, named):
    """Assert that a page says that sign-in is unusable, and shows nothing else."""
    [error] = at.error
    assert "sign-in settings of this server cannot be used" in error.value
    assert named not in page_text(at)
    assert not button_labels(at)
    assert not at.get("page_link")
    assert not at.get("metric")


def test_each_provider_has_a_button():
    providers = {name: PROVIDER | {"client_id": name} for name in ("google", "okta")}
    assert button_labels(open_page("home", user=OUTSIDE, providers=providers)) == [
        "Sign in with Google",
        "Sign in with Okta",
    ]


def test_a_run_carries_its_owner_and_only_that_one_may_change_it(run):
    named = run("ann@example.org")
    hers, his = (open_page("train", user=user, run=named) for user in (ANN, BEN))
    assert "Delete this run" in button_labels(hers)
    assert "Delete this run" not in button_labels(his)
    assert "ann@example.org" in unescaped_text(his)
    assert "Sign out" in button_labels(his)


@pytest.mark.train
def test_a_run_that_is_started_after_sign_in_belongs_to_who_started_it(device_is_taken):
    press(open_page("home", user=ANN), "Try it now")
    runs = RunStore(paths.runs_dir()).list_runs()
    assert [run.owner for run in runs] == ["ann@example.org"] * 2
    assert "Try it now" in button_labels(open_page("home", user=BEN)), "these runs are another's"


def test_without_an_auth_section_nobody_is_asked_and_all_may_change_all(run):
    named = run("")
    at = open_page("train", run=named)
    assert "Delete this run" in button_labels(at)
    assert "Sign out" not in button_labels(at)

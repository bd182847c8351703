"""Damaged runs on every page that shows runs: named, with the reason, and on to the trash; the good run works as before."""

import json

import pytest

from finetune_core import paths
from tests.pages.harness import open_page, words

PAGES = ["home", "train", "evaluate", "compare", "predict", "runs"]


@pytest.fixture
def damaged(home):
    """The folder of a run whose config is a list."""
    run_dir = paths.runs_dir() / "20990101-000000-bad"
    run_dir.mkdir(parents=True)
    (run_dir / "config.json").write_text("[1]")
    return run_dir


@pytest.mark.parametrize("page", PAGES)
def test_every_page_names_it_and_its_reason_and_moves_it_to_the_trash(damaged, page):
    at = open_page(page)
    assert "20990101" in words(at)
    assert "holds no settings" in words(at)
    at.button(key=f"trash-{damaged.name}").click().run()
    assert not at.exception
    assert not damaged.exists()
    assert "20990101" not in words(at)
    assert (damaged.parent / ".trash" / damaged.name / "config.json").is_file()


def test_beside_a_good_run_an_address_that_names_it_says_why_another_one_is_shown(
    damaged, trained_once
):
    [good] = trained_once.copied(paths.runs_dir(), "last_block")
    for page in PAGES[1:3]:
        at = open_page(page, run=damaged.name)
        assert "it is damaged" in words(at).replace("\\", "")
        assert good.name in at.query_params["run"]


def test_lines_that_were_left_out_are_reported_beside_the_run(trained_once):
    [run_dir] = trained_once.copied(paths.runs_dir(), "last_block")
    with (run_dir / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": "EpochEnded"}) + "\n")
    assert "1 line of events" in words(open_page("train")).replace("\\", "")

"""One run from several, in a real browser: a soup and an ensemble of two seeds, made on Compare, evaluated, and exported as ONNX."""

import re

import pytest

from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.store import RunStore


@pytest.fixture
def seeds(image_folder, tmp_path, monkeypatch):
    """Two seeds that began with one head, in the server's own folder."""
    monkeypatch.setenv("THAW_HOME", str(tmp_path))
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))
    folder = image_folder(tmp_path / "images", {"red": 20, "blue": 20})
    found = []
    for seed in (0, 1):
        config = make_config(
            {
                "data": str(folder),
                "image_size": 32,
                "epochs": 1,
                "batch_size": 16,
                "seed": seed,
                "head_seed": 5,
            }
        )
        reservation = create_run(config, paths.runs_dir())
        list(execute(reservation))
        found.append(reservation.run_dir.name)
    return found


def test_two_seeds_become_one_run_in_two_ways_each_of_which_is_evaluated_and_exported(
    seeds, server, page, no_error_on
):
    for how, button, title in (
        ("Soup", "Average their weights", "Soup of 2 runs: Last block"),
        ("Ensemble", "Average their probabilities", "Ensemble of 2 runs"),
    ):
        page.goto(f"{server.url}/compare?runs={seeds[0]}&runs={seeds[1]}")
        page.get_by_text("Average weights or probabilities").click()
        page.get_by_role("radio", name=how, exact=True).click()
        page.get_by_role("button", name=button, exact=True).click()
        page.wait_for_url(re.compile(r"/compare\?.*runs=.+&runs=.+&runs="))
        page.get_by_text(re.compile(re.escape(title))).first.wait_for()
        page.get_by_text("Accuracy on").first.wait_for()
        no_error_on(page)

        [made] = [
            run
            for run in RunStore(paths.runs_dir()).runs()
            if run.config.averaged and run.config.averaged.title in title
        ]
        page.goto(f"{server.url}/evaluate?run={made.run_id}")
        page.get_by_role("heading", name="Confusion matrix").wait_for()
        page.get_by_text("Export", exact=True).first.click()
        page.locator(f".st-key-export-{made.run_id}-onnx").get_by_role("button").click()
        page.get_by_role("button", name="Download ZIP").wait_for()
        assert (made.run_dir / "export" / "onnx" / "model.onnx").is_file()
        no_error_on(page)

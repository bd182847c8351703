"""The average command: its JSON, its refusals, and the ensemble that compare prints."""

import json

import pytest

from finetune_core.runs.store import read_run
from tests.command_line import thaw, thaw_json
from tests.documents import missing_in_reference
from tests.factories import shared_images, tiny_config, trained_run


@pytest.fixture(scope="module")
def two_seeds(home_of_shared_fixtures):
    """Return (run directories of two seeds with one head, JSON of their comparison)."""
    data = shared_images(red=14, blue=14)
    configs = (tiny_config(data, strategy="last_block", seed=seed, head_seed=4) for seed in (0, 1))
    folders = [trained_run(config).run_dir for config in configs]
    return folders, thaw_json("compare", *folders)


@pytest.mark.train
def test_an_average_is_printed_as_a_trained_run_is_and_is_in_the_reference(two_seeds, tmp_path):
    folders, comparison = two_seeds
    known = set(comparison["runs"][0])
    made = {}
    for how, said in (
        ("soup", "The mean of the weights of 2 runs"),
        ("greedy_soup", "The mean of the weights of"),
        ("ensemble", "The mean of the probabilities of 2 networks"),
    ):
        done = thaw("average", *folders, "--how", how, "--runs-dir", tmp_path, "--json")
        assert done.returncode == 0, done.stderr
        assert said in done.words
        made[how] = result = json.loads(done.stdout)
        assert set(result) <= known | {"reference_points"}
        found = (result["status"], result["epochs"], result["averaged"]["how"])
        assert found == ("finished", 0, how)
        averaged = result["averaged"]
        assert not missing_in_reference({*result, *averaged, *averaged["parents"][0]})
        assert read_run(result["run_dir"]).status == "finished"
    runs = [run["run_id"] for run in comparison["runs"]]
    assert sorted(made["soup"]["averaged"]["runs"]) == sorted(runs)
    assert made["ensemble"]["test_accuracy"] == pytest.approx(comparison["ensemble"]["value"])
    wise = thaw_json("average", folders[0], "--how", "wise", "--runs-dir", tmp_path)
    tried = made["greedy_soup"]["averaged"]["ingredients"][0]
    assert not missing_in_reference({*tried, *wise["averaged"]["curve"][0]})


def test_a_wrong_request_is_refused_in_words_and_makes_no_run(two_seeds, tmp_path):
    first, second = two_seeds[0]
    hows = "soup, greedy_soup, wise, ensemble"
    for arguments, words in (
        ((first, second, "--how", "stew"), f"--how: must be one of {hows}, not 'stew'"),
        ((first, "--how", "soup"), "RUN_DIR: a soup is made of two runs or more"),
        ((first, second, "--how", "wise"), "averages one run with what it started from: name one"),
        ((first, tmp_path / "nowhere", "--how", "soup"), "There is no run in"),
    ):
        done = thaw("average", *arguments, "--runs-dir", tmp_path / "runs")
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.words
    assert not (tmp_path / "runs").exists()


def test_compare_says_what_the_ensemble_of_one_strategys_seeds_reaches(two_seeds):
    folders, comparison = two_seeds
    ensemble = comparison["ensemble"]
    assert ensemble["low"] <= ensemble["value"] <= ensemble["high"]
    printed = " ".join(thaw("compare", *folders).stdout.split())
    assert "Ensemble of the 2 seeds (mean of their probabilities): accuracy" in printed

"""The command that makes one network of several: its JSON, its refusals, and the ensemble that `compare` prints."""

import json

import pytest
from typer.testing import CliRunner

from finetune_core.__main__ import app
from finetune_core.runs.store import read_run
from tests.documents import missing_in_reference

QUICK = [
    "--epochs",
    "1",
    "--image-size",
    "32",
    "--batch-size",
    "8",
    "--lr",
    "0.001",
    "--precision",
    "fp32",
    "--as-is",
]


def thaw(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="module")
def compared(image_folder_once, tmp_path_factory, home_of_shared_fixtures):
    """(JSON of a comparison of two seeds with one head, and what it is as text)."""
    base = tmp_path_factory.mktemp("average")
    data = image_folder_once(base / "images", {"red": 14, "blue": 14})
    wanted = [
        "compare",
        data,
        *QUICK,
        "--strategies",
        "last_block",
        "--seeds",
        "0,1",
        "--head-seed",
        "4",
    ]
    done = thaw(*wanted, "--runs-dir", base / "runs", "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    return result, thaw("compare", *(run["run_dir"] for run in result["runs"])).stdout


def test_a_soup_is_printed_as_a_trained_run_is(compared, tmp_path):
    folders = [run["run_dir"] for run in compared[0]["runs"]]
    done = thaw("average", *folders, "--how", "soup", "--runs-dir", tmp_path, "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    trained = set(compared[0]["runs"][0])
    assert set(result) <= trained
    assert (result["status"], result["epochs"], result["averaged"]["how"]) == (
        "finished",
        0,
        "soup",
    )
    assert result["averaged"]["runs"] == [run["run_id"] for run in compared[0]["runs"]]
    assert not missing_in_reference(
        {*result, *result["averaged"], *result["averaged"]["parents"][0]}
    )
    assert "The mean of the weights of 2 runs" in done.stderr
    assert read_run(result["run_dir"]).status == "finished"


def test_what_is_tried_is_in_the_reference(compared, tmp_path):
    folders = [run["run_dir"] for run in compared[0]["runs"]]
    greedy = json.loads(
        thaw("average", *folders, "--how", "greedy_soup", "--runs-dir", tmp_path, "--json").stdout
    )
    wise = json.loads(
        thaw("average", folders[0], "--how", "wise", "--runs-dir", tmp_path, "--json").stdout
    )
    tried, point = greedy["averaged"]["ingredients"][0], wise["averaged"]["curve"][0]
    assert not missing_in_reference({*tried, *point})


def test_an_ensemble_is_printed_as_a_trained_run_is(compared, tmp_path):
    folders = [run["run_dir"] for run in compared[0]["runs"]]
    done = thaw("average", *folders, "--how", "ensemble", "--runs-dir", tmp_path, "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) <= set(compared[0]["runs"][0])
    assert (result["status"], result["averaged"]["how"]) == ("finished", "ensemble")
    assert result["test_accuracy"] == pytest.approx(compared[0]["ensemble"]["value"])
    assert not missing_in_reference({*result["averaged"], *result["averaged"]["parents"][0]})
    assert "The mean of the probabilities of 2 networks" in done.stderr


def test_a_wrong_request_is_refused_in_words_and_makes_no_run(compared, tmp_path):
    first, second = (run["run_dir"] for run in compared[0]["runs"])
    for arguments, words in (
        (
            (first, second, "--how", "stew"),
            "--how: must be one of soup, greedy_soup, wise, ensemble, not 'stew'",
        ),
        ((first, "--how", "soup"), "RUN_DIR: a soup is made of two runs or more"),
        (
            (first, second, "--how", "wise"),
            "RUN_DIR: WiSE-FT averages one run with what it started from: name one",
        ),
        ((first, tmp_path / "nowhere", "--how", "soup"), "There is no run in"),
    ):
        done = thaw("average", *arguments, "--runs-dir", tmp_path / "runs")
        assert (done.exit_code, done.stdout) == (2, "")
        assert words in " ".join(done.stderr.split())
    assert not (tmp_path / "runs").exists()


def test_compare_says_what_the_ensemble_of_one_strategys_seeds_reaches(compared):
    result, text = compared
    assert result["ensemble"]["low"] <= result["ensemble"]["value"] <= result["ensemble"]["high"]
    assert "Ensemble of the 2 seeds (mean of their probabilities): accuracy" in " ".join(
        text.split()
    )

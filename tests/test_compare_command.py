"""The ``compare`` command: trains and compares, or compares existing runs."""

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from finetune_core.__main__ import app
from finetune_core.commands.compare import designed
from finetune_core.commands.train_all import train_all
from finetune_core.config import make_config
from finetune_core.errors import ConfigError
from finetune_core.evaluation.comparison.disagree import disagreement
from finetune_core.runs.store import RunStore, read_run
from tests.answers import answer_rightly
from tests.documents import missing_in_reference

FAST = ("--epochs", 1, "--batch-size", 16, "--image-size", 32, "--lr", 0.003, "--precision", "fp32")
CLAIM = {"difference", "ci_low", "ci_high", "p", "holm_p", "different", "smallest_seen", "verdict"}
TOLD = {"difference", "ci_low", "ci_high", "mcnemar_p", "holm_p", "verdict"}


def thaw(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def compared(image_folder_once, tmp_path_factory):
    """(arguments, folder of runs, report, what was printed) of two strategies with two seeds each."""
    base = tmp_path_factory.mktemp("compare")
    data = image_folder_once(base / "images", {"red": 20, "blue <b>": 20, "violet": 20})
    choice = ("--strategies", "feature_extraction,last_block", "--seeds", "0,1")
    arguments = (
        "compare",
        data,
        *choice,
        *FAST,
        "--runs-dir",
        base / "runs",
        "--report",
        base / "report.html",
        "--json",
    )
    done = thaw(*arguments)
    assert done.exit_code == 0, done.stderr
    return arguments, base / "runs", base / "report.html", json.loads(done.stdout)


def test_strategies_by_seeds_are_trained_and_compared(compared):
    _, runs, _, result = compared
    assert {(run["strategy"], run["seed"]) for run in result["runs"]} == {
        (strategy, seed) for strategy in ("feature_extraction", "last_block") for seed in (0, 1)
    }
    assert {Path(run["run_dir"]).parent for run in result["runs"]} == {runs}
    assert all(run["ci_low"] <= run["accuracy"] <= run["ci_high"] for run in result["runs"])
    assert len(result["pairs"]) == 1
    assert set(result["pairs"][0]) >= TOLD
    assert result["pairs"][0]["about"] == "strategies"
    for claim in ("strategies", "networks"):
        assert set(result["pairs"][0][claim]) == CLAIM
        assert result["pairs"][0][claim]["difference"] == pytest.approx(
            result["pairs"][0]["difference"]
        )
        assert result[claim] in result["verdict"]
    assert (result["failed"], result["stopped"]) == ([], False)


def test_where_no_next_experiment_stands_out_that_is_said(compared, tmp_path):
    """A linear probe alone lacks no baseline, and has no rival that more seeds could tell from it."""
    arguments, *_ = compared
    usual = ("--strategy", "linear_probe", "--image-size", 32, "--runs-dir", tmp_path, "--json")
    run_dir = json.loads(thaw("train", arguments[1], *usual).stdout)["run_dir"]
    result = json.loads(thaw("compare", run_dir, "--json").stdout)
    assert result["next"] is None
    assert result["no_next_reason"].startswith("None stands out from the verdicts.")
    assert not missing_in_reference({"no_next_reason"})
    printed = " ".join(thaw("compare", run_dir).stdout.split())
    assert f"Next experiment: {result['no_next_reason']}" in printed


def test_the_next_experiment_is_told_with_its_forecast(compared):
    *_, result = compared
    following = result["next"]
    assert result["no_next_reason"] is None
    assert (following["kind"], following["inferred"]) == ("baseline", False)
    assert [(one["strategy"], one["seed"]) for one in following["runs"]] == [
        ("linear_probe", 0),
        ("linear_probe", 1),
    ]
    assert "no linear probe beside it" in following["reason"]
    assert following["forecast"]["seconds"] > 0  # timed after training
    assert not missing_in_reference(
        {*result, *following, *following["runs"][0], *following["forecast"]}
    )


def test_what_contradicts_a_published_ordering_is_told_with_its_source(compared, tmp_path):
    runs = [
        read_run(shutil.copytree(run["run_dir"], tmp_path / run["run_id"]))
        for run in compared[3]["runs"]
    ]
    for run in runs:
        answer_rightly(run, run.config.strategy == "feature_extraction")
    folders = [run.run_dir for run in runs]
    (told,) = json.loads(thaw("compare", *folders, "--json").stdout)["published"]
    assert told.startswith(
        "“Last block” is said to beat “Feature extraction” (Yosinski et al. 2014)"
    )
    printed = " ".join(thaw("compare", *folders).stdout.split())
    assert told in printed
    assert "Next experiment: fit a linear probe as the baseline." in printed


def test_the_report_holds_the_verdict_and_what_the_networks_looked_at_where_they_disagree(compared):
    _, runs, report, result = compared
    page = report.read_text(encoding="utf-8")
    assert result["strategies"].split(" on these ")[0] in page
    assert result["networks"] in page
    assert "Layer diagnostics" in page
    assert "blue <b>" not in page
    firsts = [RunStore(runs).run(run["run_id"]) for run in result["runs"] if run["seed"] == 0]
    found = disagreement(*firsts)
    apart = min(6, len(found.only_a) + len(found.only_b))
    assert page.count("data:image/jpeg;base64,") == 3 * apart
    assert page.count("<h2>Disagreements</h2>") == bool(apart)


@pytest.mark.train
def test_three_packaged_networks_are_compared_on_the_digits_without_a_connection(
    tmp_path, monkeypatch
):
    def no_connection(*_):
        raise OSError("there is no connection")

    monkeypatch.setattr("socket.socket.connect", no_connection)
    backbones = [f"efficientnet_lite{number}" for number in range(3)]
    settings = (
        "--image-size",
        96,
        "--train-fraction",
        0.1,
        "--val-fraction",
        0.1,
        "--test-fraction",
        0.1,
        "--precision",
        "fp32",
    )
    arguments = (
        "--backbones",
        ",".join(backbones),
        "--strategies",
        "linear_probe",
        "--seeds",
        0,
        "--runs-dir",
        tmp_path,
    )
    done = thaw("compare", "digits", *arguments, *settings, "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert [run["backbone"] for run in result["runs"]] == backbones
    # as nothing with random weights would be
    assert all(run["accuracy"] > 0.7 for run in result["runs"])
    assert len(result["pairs"]) == 3


def test_existing_runs_are_compared_without_training(compared):
    _, runs, _, result = compared
    before = sorted(runs.iterdir())
    some = [run["run_dir"] for run in result["runs"] if run["seed"] == 0]
    done = thaw("compare", *some, "--json")
    assert done.exit_code == 0, done.stderr
    pair = json.loads(done.stdout)["pairs"][0]
    assert pair["about"] == "networks"
    assert pair["holm_p"] == pair["p"] == pytest.approx(pair["mcnemar_p"])
    assert sorted(runs.iterdir()) == before


def test_runs_are_named_by_their_ids_too(compared, monkeypatch):
    _, runs, _, result = compared
    monkeypatch.setenv("THAW_HOME", str(runs.parent))
    some = [run["run_id"] for run in result["runs"] if run["seed"] == 0]
    done = thaw("compare", *some, "--json")
    assert done.exit_code == 0, done.stderr
    assert [run["run_id"] for run in json.loads(done.stdout)["runs"]] == some


@pytest.mark.parametrize("given", [{"cut": "block6"}, {"stage_rates": "block7=0.1,head=1"}])
def test_a_cut_or_rates_for_stages_add_the_strategy_that_they_describe(
    image_folder, tmp_path, given
):
    data = str(image_folder(tmp_path, {"red": 4, "blue": 4}))
    fixed = given | {"seed": "0", "backbone": "efficientnet_lite0"}
    configs = {config.strategy: config for config in designed(fixed, data, None, as_is=True)}
    assert set(configs) == {"feature_extraction", "last_block", "full", "custom"}
    assert (configs["custom"].cut, configs["custom"].stage_rates) == (
        given.get("cut"),
        {"block7": 0.1, "head": 1} if "stage_rates" in given else None,
    )
    assert [
        config.strategy
        for config in designed(fixed | {"strategy": "custom"}, data, None, as_is=True)
    ] == ["custom"]
    with pytest.raises(ConfigError, match="name that among the strategies"):
        designed(fixed | {"strategy": "full,last_block"}, data, None, as_is=True)


@pytest.mark.parametrize(
    ("setting", "owner"), [("lora_from", "lora"), ("features_from", "prototypes")]
)
def test_a_stage_that_one_of_the_strategies_is_told_is_no_setting_of_the_others(
    image_folder, tmp_path, setting, owner
):
    data = str(image_folder(tmp_path / "images", {"red": 9, "blue": 9}))
    given = {"strategy": f"full,{owner}", "seed": "0", setting: "block6"}
    configs = designed(given, data, None, as_is=True)
    assert {config.strategy: getattr(config, setting) for config in configs} == {
        owner: "block6",
        "full": None,
    }
    with pytest.raises(ConfigError, match=f"{setting}: belongs to .*{owner}"):
        designed(given | {"strategy": "full,last_block"}, data, None, as_is=True)


def test_the_baseline_is_added_once_and_says_what_training_gained(image_folder, tmp_path):
    data = str(image_folder(tmp_path / "images", {"red": 14, "blue": 14}))
    fixed = {"strategy": "last_block", "seed": "0"}
    assert [
        config.strategy for config in designed(fixed, data, None, as_is=True, baseline=True)
    ] == ["last_block", "linear_probe"]
    named = fixed | {"strategy": "linear_probe,last_block"}
    assert len(designed(named, data, None, as_is=True, baseline=True)) == 2
    arguments = (
        "--strategies",
        "last_block",
        "--seeds",
        0,
        "--baseline",
        "--runs-dir",
        tmp_path / "runs",
    )
    done = thaw("compare", data, *arguments, *FAST)
    assert done.exit_code == 0, done.stderr
    assert re.search("(a|the) linear probe (that took|by) ", " ".join(done.stdout.split()))


def test_each_run_of_a_comparison_is_reported_as_one_that_is_trained_alone(
    image_folder, tmp_path, monkeypatch
):
    reported = []
    monkeypatch.setattr(
        "finetune_core.commands.train.report_to_mlflow",
        lambda run_dir: reported.append(run_dir) or "",
    )
    data = str(image_folder(tmp_path / "images", {"red": 8, "blue": 8}))
    usual = {
        "data": data,
        "epochs": 1,
        "image_size": 32,
        "batch_size": 8,
        "strategy": "feature_extraction",
        "precision": "fp32",
    }
    done = train_all(
        [make_config(usual | {"seed": seed}) for seed in (0, 1)], tmp_path / "runs", reuse=False
    )
    assert reported == [run.run_dir for run in done.runs]
    assert len(reported) == 2


def test_two_runs_of_one_strategy_are_compared_with_each_other(compared):
    *_, result = compared
    some = [run["run_dir"] for run in result["runs"] if run["strategy"] == "last_block"]
    answer = json.loads(thaw("compare", *some, "--json").stdout)
    assert {answer["pairs"][0]["a"], answer["pairs"][0]["b"]} == {
        "Last block · seed 0",
        "Last block · seed 1",
    }
    assert answer["verdict"].startswith("These runs differ in their seeds only")


def test_reuse_trains_what_is_missing_and_nothing_again(compared):
    arguments, runs, _, result = compared
    before = len(list(runs.iterdir()))
    more = [argument if argument != "0,1" else "0,1,2" for argument in arguments]
    answer = json.loads(thaw(*more, "--reuse").stdout)
    assert len(list(runs.iterdir())) == before + 2
    assert {run["run_id"] for run in result["runs"]} < {run["run_id"] for run in answer["runs"]}


def test_for_people_the_verdict_comes_first(compared):
    *_, result = compared
    done = thaw("compare", *(run["run_dir"] for run in result["runs"]))
    lines = [line for line in done.stdout.splitlines() if line]
    assert " ".join(lines).startswith(result["verdict"][:40])
    assert "Feature extraction" in done.stdout


def test_other_images_are_refused(compared, image_folder, tmp_path):
    *_, result = compared
    layout = {"red": 20, "blue <b>": 20, "violet": 20}
    data = image_folder(tmp_path / "others", layout, suffix=".bmp")
    other = json.loads(thaw("train", data, *FAST, "--runs-dir", tmp_path / "runs", "--json").stdout)
    done = thaw("compare", result["runs"][0]["run_dir"], other["run_dir"], "--json")
    assert done.exit_code != 0
    assert "not evaluated on the same images" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (("--seeds", "one"), "--seeds: must be numbers"),
        (("--seed", "one"), "--seeds: must be numbers"),
        (("--strategy", "nonsense"), "nonsense"),
        (("--backbone", "resnet0"), "resnet0"),
        (("--backbones", "resnet0"), "resnet0"),
        (("--train-fraction", "200 %"), "must be at most 1"),
        (("--cut", "nowhere", "--strategies", "custom"), "nowhere"),
        (("--strategies", "nonsense"), "nonsense"),
        (("--strategies", "from:nowhere"), "nowhere"),
        (("--fractions", "2"), "must be at most 1"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_trains(
    compared, tmp_path, changed, problem
):
    done = thaw(
        "compare", compared[0][1], *FAST, "--runs-dir", tmp_path / "runs", *changed, "--json"
    )
    assert done.exit_code != 0
    assert problem in " ".join(done.stderr.split())
    assert not list((tmp_path / "runs").glob("2*"))


def test_a_report_that_cannot_be_written_is_an_error(compared):
    *_, result = compared
    done = thaw(
        "compare",
        *(run["run_dir"] for run in result["runs"]),
        "--report",
        result["runs"][0]["run_dir"],
        "--json",
    )
    assert done.exit_code != 0
    assert "--report: " in done.stderr
    assert "is a folder" in done.stderr


def test_the_metric_can_be_chosen(compared):
    *_, result = compared
    runs = [run["run_dir"] for run in result["runs"]]
    other = json.loads(thaw("compare", *runs, "--measure", "log_loss", "--json").stdout)
    assert (result["measure"], other["measure"]) == ("accuracy", "log_loss")
    assert "by log loss" in other["verdict"]
    refused = thaw("compare", *runs, "--measure", "f2")
    assert refused.exit_code != 0
    assert "accuracy, macro_f1, log_loss" in " ".join(refused.stderr.split())


def test_strategies_are_compared_from_an_earlier_run(compared, tmp_path):
    (_, data, *_), _, _, result = compared
    parent = next(run for run in result["runs"] if run["strategy"] == "last_block")["run_dir"]
    configs = designed(
        {"from_run": parent, "strategy": "full,linear_probe", "seed": "0,1"},
        str(data),
        None,
        as_is=False,
    )
    assert {config.from_run for config in configs} == {parent}
    assert {(config.backbone, config.image_size) for config in configs} == {
        ("efficientnet_lite0", 32)
    }
    assert len(configs) == 4

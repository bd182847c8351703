"""The compare command: trains and compares, or compares existing runs."""

import re
import shutil
from pathlib import Path

import pytest

from finetune_core.commands.compare import design_comparison
from finetune_core.commands.train_all import train_all
from finetune_core.errors import ConfigError
from finetune_core.evaluation.comparison.disagree import find_disagreements
from finetune_core.runs.store import RunStore, read_run
from tests.answers import answer_rightly
from tests.command_line import thaw, thaw_json, tiny_options
from tests.documents import missing_in_reference
from tests.factories import shared_images, tiny_config, trained_run

CLAIM = {"difference", "ci_low", "ci_high", "p", "holm_p", "different", "smallest_seen", "verdict"}
TOLD = {"difference", "ci_low", "ci_high", "mcnemar_p", "holm_p", "verdict"}
STRATEGIES = ("feature_extraction", "last_block")


@pytest.fixture(scope="module")
def data(home_of_shared_fixtures):
    return shared_images(**{"red": 20, "blue <b>": 20, "violet": 20})


@pytest.fixture(scope="module")
def small_data(home_of_shared_fixtures):
    return str(shared_images(red=8, blue=8))


@pytest.fixture(scope="module")
def comparison(data, tmp_path_factory):
    """Return (arguments, folder of runs, report, JSON) of two strategies with two seeds each."""
    base = tmp_path_factory.mktemp("compare")
    # Both start with a random head, so that one epoch leaves them alike.
    options = tiny_options(initial_head="random")
    choice = ("--strategies", ",".join(STRATEGIES), "--seeds", "0,1", *options)
    files = ("--runs-dir", base / "runs", "--report", base / "report.html")
    arguments = ("compare", data, *choice, *files)
    return arguments, base / "runs", base / "report.html", thaw_json(*arguments)


@pytest.mark.train
def test_strategies_by_seeds_are_trained_and_compared(comparison):
    _, runs, _, result = comparison
    trained = {(run["strategy"], run["seed"]) for run in result["runs"]}
    assert trained == {(strategy, seed) for strategy in STRATEGIES for seed in (0, 1)}
    assert {Path(run["run_dir"]).parent for run in result["runs"]} == {runs}
    assert all(run["ci_low"] <= run["accuracy"] <= run["ci_high"] for run in result["runs"])
    (pair,) = result["pairs"]
    assert set(pair) >= TOLD
    assert pair["about"] == "strategies"
    for claim in ("strategies", "networks"):
        assert set(pair[claim]) == CLAIM
        assert pair[claim]["difference"] == pytest.approx(pair["difference"])
    assert (result["failed"], result["stopped"]) == ([], False)


def test_the_next_experiment_is_told_with_its_forecast(comparison):
    *_, result = comparison
    following = result["next"]
    assert result["no_next_reason"] is None
    assert (following["kind"], following["inferred"]) == ("baseline", False)
    runs = [(one["strategy"], one["seed"]) for one in following["runs"]]
    assert runs == [("linear_probe", 0)]
    assert "no linear probe beside it" in following["reason"]
    assert following["forecast"]["seconds"] > 0  # timed after training
    told = {*result, *following, *following["runs"][0], *following["forecast"]}
    assert not missing_in_reference({*told, "no_next_reason"})


@pytest.mark.train
def test_where_no_next_experiment_stands_out_that_is_said(data):
    """Compare with a linear probe alone.

    It lacks no baseline, and has no rival from which more seeds could tell it apart.
    """
    run_dir = trained_run(tiny_config(data, strategy="linear_probe")).run_dir
    result = thaw_json("compare", run_dir)
    assert result["next"] is None
    assert result["no_next_reason"].startswith("None stands out from the verdicts.")
    printed = " ".join(thaw("compare", run_dir).stdout.split())
    assert f"Next experiment: {result['no_next_reason']}" in printed


def test_what_contradicts_a_published_ordering_is_told_with_its_source(comparison, tmp_path):
    folders = [
        shutil.copytree(run["run_dir"], tmp_path / run["run_id"]) for run in comparison[3]["runs"]
    ]
    for run in map(read_run, folders):
        answer_rightly(run, run.config.strategy == "feature_extraction")
    (told,) = thaw_json("compare", *folders)["published"]
    said = "“Last block” is said to beat “Feature extraction” (Yosinski et al. 2014)"
    assert told.startswith(said)
    printed = " ".join(thaw("compare", *folders).stdout.split())
    assert told in printed
    assert "Next experiment: fit a linear probe as the baseline." in printed


def test_the_report_holds_the_verdict_and_the_images_the_networks_disagree_about(comparison):
    _, runs, report, result = comparison
    page = report.read_text(encoding="utf-8")
    assert all(result[line] in page for line in ("answer", "size", "action"))
    assert result["pairs"][0]["networks"]["verdict"] in page
    assert "Layer diagnostics" in page
    assert "blue <b>" not in page
    firsts = [RunStore(runs).get_run(run["run_id"]) for run in result["runs"] if run["seed"] == 0]
    found = find_disagreements(*firsts)
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
    options = ["--strategies", "linear_probe", "--seeds", 0, "--image-size", 64]
    for name in ("train", "val", "test"):
        options += [f"--{name}-fraction", "0.1"]
    options += ["--backbones", ",".join(backbones), "--runs-dir", tmp_path]
    result = thaw_json("compare", "digits", *options)
    assert [run["backbone"] for run in result["runs"]] == backbones
    # no network with random weights would
    assert all(run["accuracy"] > 0.6 for run in result["runs"])
    assert len(result["pairs"]) == 3


def test_existing_runs_are_compared_by_folder_or_id_without_training(comparison, monkeypatch):
    _, runs, _, result = comparison
    before = sorted(runs.iterdir())
    firsts = [run for run in result["runs"] if run["seed"] == 0]
    (pair,) = thaw_json("compare", *(run["run_dir"] for run in firsts))["pairs"]
    assert pair["about"] == "networks"
    assert pair["holm_p"] == pair["p"] == pytest.approx(pair["mcnemar_p"])
    monkeypatch.setenv("THAW_HOME", str(runs.parent))
    ids = [run["run_id"] for run in firsts]
    assert [run["run_id"] for run in thaw_json("compare", *ids)["runs"]] == ids
    assert sorted(runs.iterdir()) == before


def test_two_runs_of_one_strategy_are_compared_with_each_other(comparison):
    *_, result = comparison
    some = [run["run_dir"] for run in result["runs"] if run["strategy"] == "last_block"]
    answer = thaw_json("compare", *some)
    (pair,) = answer["pairs"]
    assert {pair["a"], pair["b"]} == {"Last block · seed 0", "Last block · seed 1"}
    assert answer["verdict"].startswith("One strategy with 2 seeds: test accuracy ")


@pytest.mark.parametrize("given", [{"cut": "block6"}, {"stage_rates": "block7=0.1,head=1"}])
def test_a_cut_or_rates_for_stages_add_the_strategy_that_they_describe(small_data, given):
    fixed = given | {"seed": "0", "backbone": "efficientnet_lite0"}
    configs = {one.strategy: one for one in design_comparison(fixed, small_data, None, as_is=True)}
    assert set(configs) == {"feature_extraction", "last_block", "full", "custom"}
    rates = {"block7": 0.1, "head": 1} if "stage_rates" in given else None
    assert (configs["custom"].cut, configs["custom"].stage_rates) == (given.get("cut"), rates)
    (only,) = design_comparison(fixed | {"strategy": "custom"}, small_data, None, as_is=True)
    assert only.strategy == "custom"
    with pytest.raises(ConfigError, match="name that among the strategies"):
        design_comparison(fixed | {"strategy": "full,last_block"}, small_data, None, as_is=True)


@pytest.mark.parametrize(
    ("setting", "owner"), [("lora_from", "lora"), ("features_from", "prototypes")]
)
def test_a_stage_that_one_of_the_strategies_is_told_is_no_setting_of_the_others(
    small_data, setting, owner
):
    given = {"strategy": f"full,{owner}", "seed": "0", setting: "block6"}
    configs = design_comparison(given, small_data, None, as_is=True)
    found = {config.strategy: getattr(config, setting) for config in configs}
    assert found == {owner: "block6", "full": None}
    with pytest.raises(ConfigError, match=f"{setting}: belongs to .*{owner}"):
        design_comparison(given | {"strategy": "full,last_block"}, small_data, None, as_is=True)


def test_strategies_are_compared_from_an_earlier_run(data):
    parent = trained_run(tiny_config(data)).run_dir
    given = {"from_run": str(parent), "strategy": "full,linear_probe", "seed": "0,1"}
    configs = design_comparison(given, str(data), None, as_is=False)
    assert {config.from_run for config in configs} == {str(parent)}
    known = {(config.backbone, config.image_size) for config in configs}
    assert known == {("timm/test_resnet", 32)}
    assert len(configs) == 3


@pytest.mark.train
def test_the_baseline_is_added_once_and_says_what_training_gained(small_data, tmp_path):
    for strategies in ("last_block", "last_block,linear_probe"):
        given = {"strategy": strategies, "seed": "0"}
        configs = design_comparison(given, small_data, None, as_is=True, baseline=True)
        assert [config.strategy for config in configs] == ["last_block", "linear_probe"]
    options = tiny_options(epochs=8, lr=1e-2)
    choice = ("--strategies", "last_block", "--seeds", 0, "--baseline", *options)
    done = thaw("compare", small_data, *choice, "--runs-dir", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert re.search("(a|the) linear probe (that took|by) ", " ".join(done.stdout.split()))


@pytest.mark.train
def test_each_run_of_a_comparison_is_reported_as_one_that_is_trained_alone(
    small_data, tmp_path, monkeypatch
):
    reported = []
    monkeypatch.setattr(
        "finetune_core.commands.train.report_to_mlflow",
        lambda run_dir: reported.append(run_dir) or "",
    )
    usual = {"epochs": 1, "strategy": "feature_extraction"}
    configs = [tiny_config(small_data, seed=seed, **usual) for seed in (0, 1)]
    done = train_all(configs, tmp_path / "runs", reuse=False)
    assert reported == [run.run_dir for run in done.runs]
    assert len(reported) == 2


@pytest.mark.train
def test_reuse_trains_what_is_missing_and_nothing_again(comparison):
    arguments, runs, _, result = comparison
    before = len(list(runs.iterdir()))
    more = ["0,1,2" if argument == "0,1" else argument for argument in arguments]
    answer = thaw_json(*more, "--reuse")
    assert len(list(runs.iterdir())) == before + 2
    assert {run["run_id"] for run in result["runs"]} < {run["run_id"] for run in answer["runs"]}


def test_for_people_the_verdict_comes_first(comparison):
    *_, result = comparison
    done = thaw("compare", *(run["run_dir"] for run in result["runs"]))
    shown = " ".join(done.stdout.split())
    assert shown.startswith(result["verdict"])
    assert shown.count(result["answer"]) == 1
    assert "Feature extraction" in done.stdout


def test_other_images_and_a_report_in_the_place_of_a_folder_are_refused(comparison, tmp_path):
    first = comparison[3]["runs"][0]["run_dir"]
    others = shared_images(**{"red": 14, "blue <b>": 14, "violet": 14})
    other = trained_run(tiny_config(others, epochs=1)).run_dir
    done = thaw("compare", first, other, "--json")
    assert done.returncode == 2
    assert "not evaluated on the same images" in done.words
    done = thaw("compare", first, "--report", first, "--json")
    assert done.returncode == 2
    assert "--report: " in done.stderr
    assert "is a folder" in done.stderr


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ("--seeds one", "--seeds: must be numbers"),
        ("--seed one", "--seeds: must be numbers"),
        ("--strategy nonsense", "nonsense"),
        ("--strategies nonsense", "nonsense"),
        ("--strategies from:nowhere", "nowhere"),
        ("--backbone resnet0", "resnet0"),
        ("--backbones resnet0", "resnet0"),
        ("--train-fraction 2", "must be at most 1"),
        ("--fractions 2", "must be at most 1"),
        ("--cut nowhere --strategies custom", "nowhere"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_trains(
    small_data, tmp_path, changed, problem
):
    options = ("--runs-dir", tmp_path / "runs", *changed.split())
    done = thaw("compare", small_data, *options, "--json")
    assert done.returncode == 2
    assert problem in done.words
    assert not list((tmp_path / "runs").glob("2*"))


def test_the_metric_can_be_chosen(comparison):
    *_, result = comparison
    runs = [run["run_dir"] for run in result["runs"]]
    other = thaw_json("compare", *runs, "--measure", "log_loss")
    assert (result["measure"], other["measure"]) == ("accuracy", "log_loss")
    assert " test images: log loss " in other["answer"]
    refused = thaw("compare", *runs, "--measure", "f2")
    assert refused.returncode == 2
    assert "accuracy, macro_f1, log_loss" in refused.words

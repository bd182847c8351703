"""Profiles from the command line: whole, interrupted, cached, without test images."""

import json

import pytest

from finetune_core.commands import train_all
from finetune_core.config import read_config
from finetune_core.errors import TrainingError
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import RunStore
from tests.command_line import thaw, thaw_json, tiny_options
from tests.documents import missing_in_reference
from tests.factories import TINY_BACKBONE, image_folder

STAGES = ("--stages", "layer2,layer3,layer4")
TIMES = ("seconds", "run_ids", "sentence")


@pytest.fixture(scope="module")
def data(home_of_shared_fixtures, tmp_path_factory):
    """Write two colours in three given splits."""
    counts = {"train": 12, "val": 8, "test": 10}
    layout = {f"{split}/{hue}": n for split, n in counts.items() for hue in ("red", "green")}
    return image_folder(tmp_path_factory.mktemp("profiled"), layout)


def make_options(data, runs, *more, **changes):
    return ("profile", data, *tiny_options(epochs=3, **changes), "--runs-dir", runs, *more)


@pytest.fixture(scope="module")
def profiled(data, tmp_path_factory):
    """Return (directory of runs, JSON) of a profile of three stages."""
    runs = tmp_path_factory.mktemp("runs")
    return runs, thaw_json(*make_options(data, runs, *STAGES))


def drop_times(result):
    """Return a profile's result without its times."""
    arms = [{k: v for k, v in arm.items() if k not in TIMES} for arm in result["arms"]]
    return {k: v for k, v in result.items() if k not in TIMES} | {"arms": arms}


@pytest.mark.train
def test_a_profile_trains_each_stage_alone_and_answers(profiled):
    _, result = profiled
    assert (result["complete"], result["missing"], result["failed_runs"]) == (True, 0, [])
    assert (result["split"], result["images"], result["backbone"]) == ("test", 20, TINY_BACKBONE)
    alone = {arm["stages"][0]: arm for arm in result["arms"] if arm["kind"] in ("stage", "short")}
    assert {*alone} == {"layer2", "layer3", "layer4"}
    assert sorted(arm["kind"] for arm in alone.values()) == ["short", "stage", "stage"]
    kinds = {arm["kind"]: arm["seeds"] for arm in result["arms"]}
    # Full fine-tuning has more seeds only where the validation images make it a candidate.
    assert (kinds["short"], kinds["full"]) in ((1, 1), (1, 3))
    selected = next(arm for arm in result["arms"] if arm["stages"] == result["selected"])
    assert selected["seeds"] == 3
    assert all(arm["ci_low"] <= arm["gain"] <= arm["ci_high"] for arm in result["arms"])
    assert result["path"][0]["stage"] == result["selected"][0]
    told = {*result, *result["arms"][0], *result["path"][0], *result["predictions"][0]}
    assert not missing_in_reference(told)


@pytest.mark.train
def test_its_runs_are_ordinary_runs(profiled):
    runs, result = profiled
    found = RunStore(runs).list_runs()
    assert {run.status for run in found} == {"finished"}
    assert {id for arm in result["arms"] for id in arm["run_ids"]} <= {run.run_id for run in found}
    custom = [run.config for run in found if run.config.strategy == "custom"]
    assert all(config.initial_head == "probe" for config in custom)
    assert read_config(found[0].run_dir / "config.json")["auto"] == []


@pytest.mark.train
def test_a_second_call_trains_nothing_and_says_the_same(data, profiled):
    runs, result = profiled
    before = sorted(runs.iterdir())
    assert thaw_json(*make_options(data, runs, *STAGES)) == result
    assert sorted(runs.iterdir()) == before
    printed = " ".join(thaw(*make_options(data, runs, *STAGES)).stdout.split())
    assert result["sentence"] in printed


@pytest.mark.train
def test_an_interrupted_profile_goes_on_and_ends_as_one_that_was_not(
    data, profiled, tmp_path, monkeypatch
):
    runs, result = profiled
    trained, count = train_all.train_reserved, 0

    def interrupted(reservation):
        nonlocal count
        count += 1
        if count == 6:
            request_stop(reservation.run_dir)
        return trained(reservation)

    monkeypatch.setattr(train_all, "train_reserved", interrupted)
    done = thaw(*make_options(data, tmp_path, *STAGES))
    assert done.returncode == 1
    assert "The profile was stopped. The same command goes on from there." in done.words
    assert len(RunStore(tmp_path).list_runs()) == 6 < len(RunStore(runs).list_runs())
    again = thaw_json(*make_options(data, tmp_path, *STAGES))
    assert drop_times(again) == drop_times(result)


@pytest.mark.train
def test_without_the_cache_the_profile_is_the_same(data, profiled, tmp_path):
    _, result = profiled
    plain = thaw_json(*make_options(data, tmp_path, *STAGES, cache="off"))
    assert drop_times(plain) == drop_times(result)


@pytest.mark.train
def test_without_test_images_it_says_that_gains_are_optimistic(home_of_shared_fixtures, tmp_path):
    layout = {f"{split}/{hue}": 8 for split in ("train", "val") for hue in ("red", "green")}
    folder = image_folder(tmp_path / "images", layout)
    some = ("--stages", "layer4", "--seeds", "0")
    result = thaw_json(*make_options(folder, tmp_path / "runs", *some))
    assert (result["split"], result["images"]) == ("val", 16)
    assert any("optimistic" in note for note in result["notes"])
    assert any("With one seed each" in note for note in result["notes"])


@pytest.mark.train
def test_a_budget_leaves_out_and_says_so(data, tmp_path):
    result = thaw_json(
        *make_options(data, tmp_path, "--stages", "layer3,layer4", "--budget", "0.001")
    )
    every = ["third_seeds", "full_seeds", "selection", "second_seeds"]
    # Full fine-tuning that is no candidate has no second seed to leave out.
    assert [part for part in every if part in {*result["left_out"], "full_seeds"}] == every
    assert any(note.startswith("Left out, because the budget ended") for note in result["notes"])
    assert {arm["seeds"] for arm in result["arms"]} == {1}


@pytest.mark.train
def test_a_run_that_breaks_is_done_without(data, profiled, tmp_path, monkeypatch):
    trained = train_all.train_reserved

    def breaking(reservation):
        config = json.loads((reservation.run_dir / "config.json").read_text())
        if "layer3" in (config["stage_rates"] or {}):
            raise TrainingError("it broke")
        return trained(reservation)

    monkeypatch.setattr(train_all, "train_reserved", breaking)
    result = thaw_json(*make_options(data, tmp_path, *STAGES))
    assert {
        stage for arm in result["arms"] if arm["kind"] != "full" for stage in arm["stages"]
    } == {
        "layer2",
        "layer4",
    }
    assert result["failed_runs"]


def test_what_the_profile_decides_itself_is_no_option(data, tmp_path):
    for option in ("--strategy", "--stage-rates", "--initial-head", "--lora-rank"):
        done = thaw("profile", data, option, "1", "--runs-dir", tmp_path)
        assert done.returncode == 2
        assert f"No such option: {option}" in done.stderr


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("--stages", "layer9"), "--stages: there is no stage layer9"),
        (("--budget", "-1"), "--budget: must be minutes"),
        (("--seeds", "a"), "--seeds: must be numbers"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_trains(data, tmp_path, given, named):
    done = thaw(*make_options(data, tmp_path, *given))
    assert done.returncode == 2
    assert named in done.words
    assert not RunStore(tmp_path).list_runs()

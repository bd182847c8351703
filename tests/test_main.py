import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from finetune_core.__main__ import app
from finetune_core.config import make_config
from finetune_core.runs.record import create_run, execute, request_stop

ROOT = Path(__file__).resolve().parent.parent
QUICK = ["--epochs", "2", "--image-size", "32", "--batch-size", "8", "--lr", "0.001", "--precision", "fp32"]


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def thaw(*arguments):
    """The command line in this process: a start of its own takes seconds."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="module")
def trained(image_folder_once, tmp_path_factory):
    """(data, runs folder, JSON of the run) of one small run that the tests of this file share."""
    base = tmp_path_factory.mktemp("cli")
    data = image_folder_once(base / "images", {"red": 12, "blue <b>": 12})
    done = thaw("train", data, *QUICK, "--runs-dir", base / "runs", "--seed", 3, "--json")
    assert done.returncode == 0, done.stderr
    return data, base / "runs", json.loads(done.stdout), done


def test_train_prints_one_json_object_and_progress_elsewhere(trained):
    _, runs, told, done = trained
    assert done.stdout.count("\n") == 1
    assert "epoch 2/2" in done.stderr
    wanted = "run_id run_dir strategy backbone trainable_parameters total_parameters epochs best_epoch val_accuracy seconds device precision"
    assert set(wanted.split()) <= set(told)
    assert told["strategy"] == "last_block"
    assert told["backbone"] == "efficientnet_lite0"
    assert told["epochs"] == 2
    assert told["precision"] == "fp32"
    assert 0 < told["trainable_parameters"] < told["total_parameters"]
    assert Path(told["run_dir"]) == runs / told["run_id"]


def test_the_config_of_a_run_repeats_it(trained, tmp_path):
    _, _, told, _ = trained
    again = thaw("train", "--config", Path(told["run_dir"], "config.json"), "--runs-dir", tmp_path, "--json")
    assert again.returncode == 0, again.stderr
    repeated = json.loads(again.stdout)
    assert Path(repeated["run_dir"], "config.json").read_bytes() == Path(told["run_dir"], "config.json").read_bytes()
    assert Path(repeated["run_dir"], "last.safetensors").read_bytes() == Path(told["run_dir"], "last.safetensors").read_bytes()


def test_evaluate_and_predict_json(trained):
    data, _, told, _ = trained
    judged = json.loads(thaw("evaluate", told["run_dir"], "--json").stdout)
    assert judged["split"] == "test"
    assert judged["accuracy_low"] <= judged["accuracy"] <= judged["accuracy_high"]
    assert [row["class"] for row in judged["per_class"]] == ["blue <b>", "red"]
    files = sorted(Path(data, "red").iterdir())[:2]
    named = json.loads(thaw("predict", told["run_dir"], *files, "--json").stdout)
    assert [row["image"] for row in named["predictions"]] == [str(file) for file in files]
    assert sum(named["predictions"][0]["probabilities"].values()) == pytest.approx(1)


def test_predict_reports_what_it_cannot_read_and_names_the_rest(trained, tmp_path):
    data, _, told, _ = trained
    text = tmp_path / "text.jpg"
    text.write_text("hello")
    done = thaw("predict", told["run_dir"], text, next(Path(data, "red").iterdir()), "--json")
    assert done.returncode == 2
    answer = json.loads(done.stdout)
    assert [row["image"] for row in answer["skipped"]] == [str(text)]
    assert len(answer["predictions"]) == 1
    assert "text.jpg" in done.stderr


def test_plain_words_for_people(trained):
    _, _, told, _ = trained
    done = thaw("evaluate", told["run_dir"])
    assert "95 % interval" in done.stdout
    assert "blue <b>" in done.stdout


def test_backbones_json():
    rows = {row["name"]: row for row in json.loads(thaw("backbones", "--json").stdout)["backbones"]}
    assert rows["efficientnet_lite0"]["ready"] is True
    assert rows["resnet18"]["parameters"] == 11_689_512
    assert len(rows) > 70


def test_inspect_json(trained, tmp_path):
    data, _, _, _ = trained
    told = json.loads(thaw("inspect", data, "--json").stdout)
    assert told["counts"]["red"] == {"train": 8, "val": 2, "test": 2}
    assert told["findings"] != []  # fewer than ten training images a class


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "/not/there"], ["DATA: there is no folder"]),
        (["train"], ["DATA: is needed"]),
        (["train", "digits", "--epochs", "0", "--lr", "-1", "--batch-size", "many"], ["--epochs", "--lr", "--batch-size"]),
        (["train", "digits", "--backbone", "resnet0", "--strategy", "last_block"], ["--backbone"]),
        (["train", "digits", "--strategy", "thaw_it_all"], ["--strategy"]),
        (["train", "digits", "--device", "cuda:9"], ["--device"]),
        (["train", "--config", "/not/there.json"], ["cannot be read as JSON"]),
        (["inspect", "/not/there"], ["There is no folder"]),
        (["evaluate", "/not/there"], ["There is no run"]),
        (["predict", "/not/there", "x.jpg"], ["There is no run"]),
        (["train", "digits", "--no-such-option"], ["No such option"]),
    ],
)
def test_wrong_requests_end_with_2_and_words(arguments, words):
    done = thaw(*arguments)
    assert done.returncode == 2
    assert all(word in done.stderr for word in words), done.stderr
    assert done.stdout == ""


def test_weights_that_cannot_be_had_name_the_way_out(trained, tmp_path, monkeypatch):
    data, *_ = trained
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    done = thaw("train", data, *QUICK, "--backbone", "resnet18", "--runs-dir", tmp_path / "runs", "--json")
    assert done.returncode == 2
    assert "efficientnet_lite0" in done.stderr
    assert "--weights FILE" in done.stderr
    assert done.stdout == ""


def test_a_process_of_its_own_ends_with_the_same_status_and_no_traceback():
    command = [sys.executable, "-m", "finetune_core", "train", "/not/there", "--epochs", "none"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "--epochs: must be a whole number" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_interrupt_stops_in_good_order(trained, tmp_path):
    data, *_ = trained
    command = [
        sys.executable,
        "-m",
        "finetune_core",
        "train",
        str(data),
        *QUICK,
        "--epochs",
        "1000",
        "--runs-dir",
        str(tmp_path),
        "--json",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not list(tmp_path.glob("*/best.safetensors")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert json.loads(stdout)["status"] == "stopped"
    assert "Traceback" not in stderr


def test_a_stopped_run_is_resumed_from_the_command_line(trained, tmp_path):
    data, *_ = trained
    reservation = create_run(make_config({"data": str(data), "image_size": 32, "epochs": 2}), tmp_path)
    request_stop(reservation.run_dir)
    list(execute(reservation))
    done = thaw("resume", reservation.run_dir, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "finished"
    again = thaw("resume", reservation.run_dir)
    assert (again.returncode, again.stdout) == (2, "")
    assert "is finished" in again.stderr


def test_rates_for_stages_from_the_command_line(trained, tmp_path):
    data, *_ = trained
    rates = ["--strategy", "custom", "--stage-rates", "block7=0.1,head=1"]
    done = thaw("train", data, *QUICK, *rates, "--runs-dir", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    config = json.loads(Path(json.loads(done.stdout)["run_dir"], "config.json").read_text())
    assert config["stage_rates"] == {"block7": 0.1, "head": 1.0}
    assert (
        "--stage-rates" in thaw("train", data, "--strategy", "custom", "--stage-rates", "block7", "--runs-dir", tmp_path).stderr
    )


def test_a_runs_folder_that_cannot_be_written_is_a_wrong_request(trained, tmp_path):
    data, *_ = trained
    (tmp_path / "file").write_text("")
    done = thaw("train", data, *QUICK, "--runs-dir", tmp_path / "file")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def test_the_cache_can_be_switched_off(trained, tmp_path):
    data, *_ = trained
    done = thaw("train", data, *QUICK, "--cache", "off", "--runs-dir", tmp_path, "--json")
    first = Path(json.loads(done.stdout)["run_dir"], "events.jsonl").read_text()
    assert '"where": "off"' in first

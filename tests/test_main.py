"""The command line from training to a comparison, and the ends of its commands."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_core.runs.record import create_run, execute
from finetune_core.runs.stop_request import request_stop
from tests.command_line import thaw, thaw_json, tiny_options
from tests.deadline import wait_until
from tests.factories import shared_images, tiny_config, trained_run

ROOT = Path(__file__).resolve().parent.parent
POSIX = pytest.mark.skipif(os.name != "posix", reason="POSIX signals and permissions")


@pytest.fixture(scope="module")
def data(home_of_shared_fixtures):
    return shared_images(**{"red": 12, "blue <b>": 12})


@pytest.fixture(scope="module")
def run_dir(data):
    """Return the run directory of a run that no test changes."""
    return trained_run(tiny_config(data)).run_dir


@pytest.mark.journey
def test_a_run_is_trained_repeated_evaluated_used_and_compared(data, tmp_path):
    options = tiny_options(epochs=2, batch_size=8)
    done = thaw("train", data, *options, "--seed", 3, "--runs-dir", tmp_path / "runs", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert "epoch 2/2" in done.stderr
    result = json.loads(done.stdout)
    run_dir = Path(result["run_dir"])
    assert run_dir == tmp_path / "runs" / result["run_id"]
    found = [result[name] for name in ("strategy", "backbone", "epochs", "precision")]
    assert found == ["last_block", "timm/test_resnet", 2, "fp32"]
    assert 0 < result["trainable_parameters"] < result["total_parameters"]
    assert {"best_epoch", "val_accuracy", "seconds", "device"} <= set(result)

    again = ["--config", run_dir / "config.json", "--runs-dir", tmp_path / "again"]
    repeated = Path(thaw_json("train", *again)["run_dir"])
    for name in ("config.json", "best.safetensors"):
        assert (repeated / name).read_bytes() == (run_dir / name).read_bytes()

    evaluated = thaw_json("evaluate", run_dir)
    assert evaluated["split"] == "test"
    assert [row["class"] for row in evaluated["per_class"]] == ["blue <b>", "red"]
    scores = evaluated["scores"]
    assert scores["accuracy"]["value"] == evaluated["accuracy"]
    assert all(row["low"] <= row["value"] <= row["high"] for row in scores.values())
    assert (evaluated["resamples"], evaluated["absent_classes"]) == (1000, [])
    printed = thaw("evaluate", run_dir).stdout
    assert all(text in printed for text in ("95 % interval", "Balanced accuracy", "blue <b>"))

    files = sorted((data / "red").iterdir())[:2]
    named = thaw_json("predict", run_dir, *files)["predictions"]
    assert [row["image"] for row in named] == [str(file) for file in files]
    assert sum(named[0]["probabilities"].values()) == pytest.approx(1)

    other = trained_run(tiny_config(data, strategy="feature_extraction")).run_dir
    (pair,) = thaw_json("compare", run_dir, other)["pairs"]
    assert {pair["a"], pair["b"]} == {"Last block", "Feature extraction"}


@POSIX
def test_results_are_written_into_regular_files_only_and_keep_permissions(data, run_dir, tmp_path):
    predict = ["predict", run_dir, data / "red" / "000.png", "--csv"]
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to("target")
    os.mkfifo(tmp_path / "fifo")
    for name, kind in (("link", "link"), ("fifo", "FIFO")):
        for arguments in (predict, ["compare", run_dir, "--report"]):
            done = thaw(*arguments, tmp_path / name)
            assert done.returncode == 2
            assert f"is a {kind}" in done.words
    assert (tmp_path / "target").read_text() == "mine"
    (tmp_path / "target").chmod(0o600)
    assert thaw(*predict, tmp_path / "target").returncode == 0
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "target").read_text().startswith("file,")


@POSIX
def test_an_export_keeps_the_permissions_of_a_folder_and_follows_no_link(run_dir, tmp_path):
    (tmp_path / "empty").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("empty")
    command = ["export", run_dir, "--format", "card", "--output"]
    done = thaw(*command, tmp_path / "link")
    assert done.returncode == 2
    assert "is a link" in done.words
    assert thaw(*command, tmp_path / "empty").returncode == 0
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train /not/there", ["DATA: there is no folder"]),
        ("train", ["DATA: is needed"]),
        (
            "train DATA --epochs 0 --lr -1 --batch-size many",
            ["--epochs", "--lr", "--batch-size"],
        ),
        ("train DATA --backbone resnet0 --strategy last_block", ["--backbone"]),
        ("train DATA --strategy thaw_it_all", ["--strategy"]),
        ("train DATA --device cuda:9", ["--device"]),
        ("train --config /not/there.json", ["--config", "cannot be read"]),
        ("train DATA --no-such-option", ["No such option"]),
        ("inspect /not/there", ["There is no folder"]),
        ("evaluate /not/there", ["There is no run"]),
        ("predict /not/there x.jpg", ["There is no run"]),
        ("app --port 0", ["--port"]),
    ],
)
def test_wrong_requests_end_with_2_and_words(data, command, words):
    done = thaw(*(data if part == "DATA" else part for part in command.split()))
    assert (done.returncode, done.stdout) == (2, "")
    assert all(word in done.stderr for word in words), done.stderr


def test_weights_that_cannot_be_had_name_the_way_out(data, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    for command in (
        ["train", data, "--backbone", "resnet18"],
        ["compare", data, "--backbones", "efficientnet_lite0,resnet18", "--seeds", "0"],
    ):
        done = thaw(*command, "--runs-dir", tmp_path / "runs", "--json")
        assert (done.returncode, done.stdout) == (2, "")
        assert "efficientnet_lite0" in done.stderr
        assert "--weights FILE" in done.stderr
        assert not (tmp_path / "runs").exists(), "a run was made that cannot begin"


def test_a_stopped_run_is_resumed_and_a_finished_one_is_not(data, tmp_path):
    reservation = create_run(tiny_config(data), tmp_path)
    request_stop(reservation.run_dir)
    list(execute(reservation))
    assert thaw_json("resume", reservation.run_dir)["status"] == "finished"
    again = thaw("resume", reservation.run_dir)
    assert (again.returncode, again.stdout) == (2, "")
    assert "is finished" in again.stderr


@POSIX
@pytest.mark.processes
def test_an_interrupt_stops_in_good_order(data, tmp_path):
    options = [*tiny_options(epochs=1000), "--runs-dir", str(tmp_path), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune_core", "train", str(data), *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: process.poll() is not None or list(tmp_path.glob("*/best.safetensors")))
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 1, stderr
    assert json.loads(stdout)["status"] == "stopped"
    assert "Traceback" not in stderr


INTERRUPTED_OUTSIDE_OF_COMMANDS = """
import signal
import finetune_core.__main__ as command

def interrupt(**_):
    for _ in range(5):
        signal.raise_signal(signal.SIGINT)

command.app = interrupt
command.main()
"""


@POSIX
@pytest.mark.processes
def test_several_interrupts_before_a_command_runs_end_with_one_message():
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_OUTSIDE_OF_COMMANDS],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Aborted.\n")

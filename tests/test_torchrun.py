"""Commands on two devices, started by torchrun or by themselves: what a user sees of them, and what is left when one of them dies."""

import json
import os
import signal
import subprocess
import sys
import time
from base64 import b64decode
from pathlib import Path

import psutil
import pytest

from finetune_core.runs.record import execute, reopen_run
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import read_run
from tests.deadline import SECONDS, wait_until, wait_until_gone
from tests.ports import HERE, free_port

pytestmark = pytest.mark.processes
ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "backbone": "timm/test_vit",
    "weights": "none",
    "strategy": "full",
    "image-size": 32,
    "batch-size": 10,
    "precision": "fp32",
}


@pytest.fixture(scope="module")
def data(image_folder_once, tmp_path_factory):
    return image_folder_once(
        tmp_path_factory.mktemp("images"), {"red": 14, "blue": 14, "green": 14}
    )


def torchrun(*arguments):
    return started(
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "finetune_core",
        *arguments,
    )


def started(*arguments, **environment):
    """A process group of its own, as a terminal makes one of each command."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def training(data, runs, **settings):
    return torchrun("train", data, *options(runs, **settings))


def options(runs, **settings):
    return [
        *(part for name, value in (SMALL | settings).items() for part in (f"--{name}", value)),
        "--runs-dir",
        runs,
        "--json",
    ]


def ended(process):
    """(status, stdout, stderr); nothing that it has started outlives it."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


def the_run(runs):
    return read_run(next(folder for folder in runs.iterdir()))


def wait_for_epoch(runs):
    def has_one():
        return any(
            b'"event": "EpochEnded"' in file.read_bytes() for file in runs.glob("*/events.jsonl")
        )

    wait_until(has_one, "no epoch ended")


def test_a_run_stops_when_it_is_asked_to_and_prints_one_object(data, tmp_path):
    process = training(data, tmp_path, epochs=1000)
    wait_for_epoch(tmp_path)
    request_stop(the_run(tmp_path).run_dir)
    status, out, err = ended(process)
    assert json.loads(out)["status"] == "stopped", err
    assert status == 1
    assert err.count("parameters train on") == 1


def test_a_run_that_loses_a_rank_is_interrupted_and_goes_on_alone(data, tmp_path):
    process = training(data, tmp_path, epochs=1000)
    wait_for_epoch(tmp_path)
    ranks = [
        one for one in psutil.Process(process.pid).children() if "finetune_core" in one.cmdline()
    ]
    rank = next(one for one in ranks if one.environ()["RANK"] == "1")
    rank.kill()
    status, out, _ = ended(process)
    assert (status != 0, out) == (True, "")
    run = the_run(tmp_path)
    assert (run.status, run.resumable) == ("interrupted", True)
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in ranks)
    for event in execute(reopen_run(run.run_dir)):
        if type(event).__name__ == "EpochEnded":
            request_stop(run.run_dir)
    assert read_run(run.run_dir).status == "stopped"


def test_two_machines_train_a_run_to_its_end_and_decode_each_image_once(data, tmp_path):
    there = [
        "--nnodes",
        2,
        "--nproc-per-node",
        1,
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        f"{HERE}:{free_port()}",
    ]
    command = ["train", data, *options(tmp_path / "runs", strategy="last_two_blocks", epochs=2)]
    launcher = ["-m", "torch.distributed.run", *there, "-m", "finetune_core"]
    caches = [tmp_path / "cache-0", tmp_path / "cache-1"]
    machines = [started(*launcher, *command, THAW_CACHE_DIR=str(cache)) for cache in caches]
    answers = [ended(machine) for machine in machines]
    assert [status for status, _, _ in answers] == [0, 0], answers
    (out,) = (out for _, out, _ in answers if out)
    assert (json.loads(out)["status"], json.loads(out)["epochs"]) == ("finished", 2)
    assert the_run(tmp_path / "runs").started["ranks"] == 2
    decoded, activations = ([held(cache, kind) for cache in caches] for kind in ("pixels", "trunk"))
    assert min(decoded) > 0
    assert sum(decoded) == 42
    assert activations == [42, 42]


def held(cache, kind):
    """Return how many rows of tables of that kind a cache has."""
    return sum(
        len(b64decode(json.loads(file.read_text())["keys"])) // 8
        for file in cache.glob(f"thaw-rows*/thaw-{kind}-*.json")
    )


def test_a_wrong_request_is_refused_once_and_leaves_nothing(data, tmp_path):
    status, out, err = ended(training(data, tmp_path / "runs", strategy="linear_probe"))
    assert (status != 0, out) == (True, "")
    assert err.count("--devices: this run takes no steps") == 1
    assert not (tmp_path / "runs").exists()


def test_what_is_no_training_is_refused_once(data):
    status, out, err = ended(torchrun("inspect", data))
    assert (status != 0, out) == (True, "")
    assert err.count("torchrun is for train and resume: start inspect without it.") == 1


def test_ctrl_c_stops_a_run_on_two_devices_after_the_step(data, tmp_path):
    process = started(
        "-m", "finetune_core", "train", data, *options(tmp_path, epochs=1000), "--devices", 2
    )
    wait_for_epoch(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    status, out, err = ended(process)
    assert (status, json.loads(out)["status"]) == (1, "stopped"), err
    assert "Stopping after this step" in err
    run = the_run(tmp_path)
    assert (run.started["ranks"], run.resumable) == (2, True)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("command", ["train", "compare"])
def test_five_ctrl_c_at_once_stop_a_run_with_one_message(command, devices, data, tmp_path):
    process = started(
        "-m", "finetune_core", command, data, *options(tmp_path, epochs=1000), "--devices", devices
    )
    wait_for_epoch(tmp_path)
    for _ in range(5):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)  # else the system merges them
    status, _, err = ended(process)
    assert status != 0
    assert (err.count("Stopping after this step"), err.count("Traceback")) == (1, 0), err
    run = the_run(tmp_path)
    assert (run.status, run.resumable) == ("stopped", True)


def test_five_ctrl_c_before_the_training_abort_with_one_word(data, tmp_path):
    process = started("-X", "importtime", "-m", "finetune_core", "train", data, *options(tmp_path))
    wait_for_import(process, "torch")
    for _ in range(5):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
    status, out, err = ended(process)
    assert (status != 0, out) == (True, "")
    assert (err.count("Aborted"), err.count("Traceback")) == (1, 0), err


def wait_for_import(process, module):
    """Read the lines of ``-X importtime`` until a module has been imported."""
    assert any(line.split("|")[-1].strip() == module for line in process.stderr)


def test_a_second_ctrl_c_breaks_off_and_leaves_no_process(data, tmp_path):
    process = started(
        "-m", "finetune_core", "train", data, *options(tmp_path, epochs=1000), "--devices", 2
    )
    wait_for_epoch(tmp_path)
    family = psutil.Process(process.pid).children(recursive=True)
    leader = next(one for one in family if one.cmdline()[-2:] == ["0", "2"])
    leader.suspend()  # so that it does not stop

    def breaks_off():
        os.killpg(process.pid, signal.SIGINT)
        return process.poll() is not None

    wait_until(breaks_off)  # by a signal that comes late enough to be a second one
    status, out, _ = ended(process)
    assert (status != 0, out) == (True, "")
    wait_until_gone(family)
    assert the_run(tmp_path).resumable


def test_torchrun_says_how_many_devices(data, tmp_path):
    status, out, err = ended(torchrun("train", data, *options(tmp_path / "runs"), "--devices", 2))
    assert (status != 0, out) == (True, "")
    assert "--devices: torchrun says how many" in err
    assert not (tmp_path / "runs").exists()

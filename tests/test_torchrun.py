"""Commands on two devices: their output, and the files after a process is lost or stopped.

Where a launcher does not matter, ranks are forked processes that find each other as torchrun's
processes do.
"""

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

from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import read_run
from tests.deadline import SECONDS, wait_until, wait_until_gone
from tests.factories import shared_images
from tests.forked import Command
from tests.ports import HERE, free_port
from tests.training.rank_program import Machine, make_environments

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


def images():
    return shared_images(red=14, blue=14, green=14)


def options(runs, **settings):
    return [
        *(part for name, value in (SMALL | settings).items() for part in (f"--{name}", value)),
        "--runs-dir",
        runs,
        "--json",
    ]


def start_program(*arguments, **environment):
    """Start Python in a process group of its own, as a terminal does with each command."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def start_torchrun(arguments, *launching, **environment):
    launcher = ["-m", "torch.distributed.run", *launching, "-m", "finetune_core"]
    return start_program(*launcher, *arguments, **environment)


def end_of(process):
    """Return (status, stdout, stderr) of a program, and kill it when it does not end."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


def start_ranks(folder, *arguments):
    """Start a command as two ranks, which print into the same files."""
    machines = [Machine(2)]
    return [
        Command(folder, *arguments, environment=environment)
        for environment in make_environments(machines, Path(os.environ["THAW_HOME"]))
    ]


def end_of_ranks(ranks):
    """Return (statuses, stdout, stderr) of all ranks."""
    ends = [rank.end() for rank in ranks]
    return [status for status, _, _ in ends], *ends[-1][1:]


def the_run(runs):
    return read_run(next(folder for folder in runs.iterdir()))


def wait_for_epoch(runs):
    def has_one():
        return any(
            b'"event": "EpochEnded"' in file.read_bytes() for file in runs.glob("*/events.jsonl")
        )

    wait_until(has_one, "no epoch ended")


def test_under_torchrun_a_run_that_loses_a_rank_is_interrupted(tmp_path):
    command = ["train", images(), *options(tmp_path, epochs=1000)]
    process = start_torchrun(command, "--standalone", "--nproc-per-node", 2)
    wait_for_epoch(tmp_path)
    ranks = [
        one for one in psutil.Process(process.pid).children() if "finetune_core" in one.cmdline()
    ]
    next(one for one in ranks if one.environ()["RANK"] == "1").kill()
    status, out, _ = end_of(process)
    assert (status != 0, out) == (True, "")
    run = the_run(tmp_path)
    assert (run.status, run.is_resumable) == ("interrupted", True)
    wait_until_gone(ranks)


def test_two_machines_train_a_run_to_its_end_and_decode_each_image_once(tmp_path):
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{HERE}:{free_port()}"]
    command = ["train", images(), *options(tmp_path / "runs", strategy="last_two_blocks", epochs=2)]
    caches = [tmp_path / "cache-0", tmp_path / "cache-1"]
    machines = [
        start_torchrun(
            command, "--nnodes", 2, "--nproc-per-node", 1, *meeting, THAW_CACHE_DIR=str(cache)
        )
        for cache in caches
    ]
    answers = [end_of(machine) for machine in machines]
    assert [status for status, _, _ in answers] == [0, 0], answers
    (out,) = (out for _, out, _ in answers if out)
    assert (json.loads(out)["status"], json.loads(out)["epochs"]) == ("finished", 2)
    assert the_run(tmp_path / "runs").started["ranks"] == 2
    decoded, activations = (
        [count_rows(cache, kind) for cache in caches] for kind in ("pixels", "trunk")
    )
    assert min(decoded) > 0
    assert sum(decoded) == 42
    assert activations == [42, 42]


def count_rows(cache, kind):
    """Return the number of rows in tables of one kind in a cache."""
    return sum(
        len(b64decode(json.loads(file.read_text())["keys"])) // 8
        for file in cache.glob(f"thaw-rows*/thaw-{kind}-*.json")
    )


def test_a_run_of_ranks_stops_when_asked_and_prints_one_object(tmp_path):
    ranks = start_ranks(tmp_path, "train", images(), *options(tmp_path / "runs", epochs=1000))
    wait_for_epoch(tmp_path / "runs")
    request_stop(the_run(tmp_path / "runs").run_dir)
    statuses, out, err = end_of_ranks(ranks)
    assert (statuses, json.loads(out)["status"]) == ([1, 0], "stopped"), err
    assert err.count("parameters train on") == 1


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        ("train", ("--strategy", "linear_probe"), "--devices: this run takes no steps"),
        ("train", ("--devices", 2), "--devices: torchrun says how many"),
        ("inspect", None, "torchrun is for train and resume: start inspect without it."),
    ],
)
def test_ranks_refuse_a_wrong_request_once_and_leave_nothing(command, more, message, tmp_path):
    arguments = [] if more is None else [*options(tmp_path / "runs"), *more]
    statuses, out, err = end_of_ranks(start_ranks(tmp_path, command, images(), *arguments))
    assert (statuses[0], out) == (2, ""), err
    assert err.count(message) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("command", "devices"),
    [
        ("train", 1),
        ("train", 2),
        ("compare", 1),
        pytest.param("compare", 2, marks=pytest.mark.exhaustive),
    ],
)
def test_five_ctrl_c_at_once_stop_a_run_with_one_message(command, devices, tmp_path):
    arguments = [*options(tmp_path / "runs", epochs=1000), "--devices", devices]
    process = Command(tmp_path, command, images(), *arguments)
    wait_for_epoch(tmp_path / "runs")
    for _ in range(5):
        process.interrupt()
        time.sleep(0.05)  # otherwise the system merges them
    status, out, err = process.end()
    assert status == 1
    assert (err.count("Stopping after this step"), err.count("Traceback")) == (1, 0), err
    assert command == "compare" or json.loads(out)["status"] == "stopped"
    run = the_run(tmp_path / "runs")
    assert (run.started["ranks"], run.status, run.is_resumable) == (devices, "stopped", True)


def test_five_ctrl_c_before_the_training_abort_with_one_word(tmp_path):
    arguments = ["train", images(), *options(tmp_path)]
    process = start_program("-X", "importtime", "-m", "finetune_core", *arguments)
    assert any(line.split("|")[-1].strip() == "torch" for line in process.stderr)
    for _ in range(5):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
    status, out, err = end_of(process)
    assert (status != 0, out) == (True, "")
    assert (err.count("Aborted"), err.count("Traceback")) == (1, 0), err


def test_a_second_ctrl_c_breaks_off_and_leaves_no_process(tmp_path):
    arguments = [*options(tmp_path / "runs", epochs=1000), "--devices", 2]
    process = Command(tmp_path, "train", images(), *arguments, burst=0)
    wait_for_epoch(tmp_path / "runs")
    family = psutil.Process(process.pid).children(recursive=True)
    leader = next(one for one in family if one.cmdline()[-2:] == ["0", "2"])
    leader.suspend()  # so that it does not stop
    wait_until(process.interrupt)
    status, out, _ = process.end()
    assert (status != 0, out) == (True, "")
    wait_until_gone(family)
    assert the_run(tmp_path / "runs").is_resumable

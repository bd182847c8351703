"""Runs that the queue has two processes of this machine train: stopped, paused, cut off, and left by whoever asked for them."""

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import torch

from finetune_core.config import make_config
from finetune_core.errors import ConfigError
from finetune_core.runs.record import create_run, execute, reopen_run
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import RunStore
from finetune_core.runs.together import execute_together
from finetune_core.runs.worker import Worker
from finetune_core.training.checkpoints import load_tensors
from tests.deadline import wait_until, wait_until_gone

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "backbone": "timm/test_vit",
    "weights": "none",
    "strategy": "full",
    "image_size": 32,
    "batch_size": 10,
    "precision": "fp32",
    "device": "cpu",
}


@pytest.fixture
def config(image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    data = image_folder(tmp_path / "images", {"red": 14, "blue": 14, "green": 14})
    return lambda **changes: make_config(SMALL | {"data": str(data)} | changes)


@pytest.fixture
def worker(tmp_path):
    return Worker(tmp_path / "runs")


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs")


def weights(run):
    return {
        (name, key): value
        for name in ("best", "last")
        for key, value in load_tensors(run.run_dir, name)[0].items()
    }


def trained_to_the_end(worker, store, run_id):
    wait_until(lambda: not worker.queues())
    return store.run(run_id)


@pytest.mark.processes
def test_a_run_is_paused_and_goes_on_exactly(config, worker, store):
    whole = trained_to_the_end(worker, store, worker.submit(config(epochs=8), devices=2))
    assert (whole.status, whole.started["ranks"]) == ("finished", 2)
    assert whole.history.where.startswith("2 devices (gloo), each ")
    worker = Worker(store.runs_dir)  # the same settings again
    cut = worker.submit(config(epochs=8), devices=2)
    wait_until(lambda: store.run(cut).history.epochs)
    worker.stop(cut, pause=True)
    assert trained_to_the_end(worker, store, cut).status == "paused"
    worker.resume(cut, devices=2)
    resumed = trained_to_the_end(worker, store, cut)
    assert resumed.status == "finished", resumed.history.end
    ours, theirs = weights(whole), weights(resumed)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.processes
def test_a_run_that_waits_for_its_device_is_stopped_and_the_next_one_has_its_turn(
    config, worker, store
):
    first = worker.submit(config(epochs=1000), devices=2)
    wait_until(lambda: store.run(first).history.epochs)
    # another program's
    reservation = create_run(config(epochs=1000, seed=1), store.runs_dir, devices=2)
    stream = execute_together(reservation)
    for _ in stream:
        if store.run(reservation.run_dir.name).status == "waiting":
            request_stop(reservation.run_dir)
    assert store.run(reservation.run_dir.name).status == "cancelled"
    worker.stop(first)
    assert trained_to_the_end(worker, store, first).status == "stopped"


@pytest.mark.processes
def test_a_run_that_loses_a_rank_is_interrupted(config, worker, store):
    run_id = worker.submit(config(epochs=1000), devices=2)
    wait_until(lambda: store.run(run_id).history.epochs)
    ranks = ranks_of(psutil.Process())
    next(one for one in ranks if one.cmdline()[-2:] == ["1", "2"]).kill()
    run = trained_to_the_end(worker, store, run_id)
    assert (run.status, run.resumable) == ("interrupted", True)
    wait_until_gone(ranks)


@pytest.mark.processes
def test_ranks_listen_on_loopback_only_and_leave_nothing_in_the_temporary_folder(
    config, worker, store, tmp_path, monkeypatch
):
    """Its name holds a space and a letter that a URI would encode."""
    folder = tmp_path / "für Läufe"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    run_id = worker.submit(config(epochs=1000), devices=2)
    wait_until(lambda: store.run(run_id).history.epochs or not worker.queues())
    family = psutil.Process().children(recursive=True)
    assert len(ranks_of(psutil.Process())) == 2
    listening = {
        one.laddr.ip
        for process in family
        for one in process.net_connections("inet")
        if one.status == psutil.CONN_LISTEN
    }
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    family[0].kill()  # the launcher, before it can clean up
    wait_until_gone(family)
    assert trained_to_the_end(worker, store, run_id).status == "interrupted"
    assert not list(folder.iterdir())


ASKED_FOR = """
import sys, threading
from pathlib import Path
from finetune_core.config import make_config, read_config
from finetune_core.runs.worker import Worker
Worker(Path(sys.argv[2])).submit(make_config(read_config(Path(sys.argv[1]))), devices=2)
threading.Event().wait()
"""


@pytest.mark.processes
def test_ranks_end_with_whoever_asked_for_them_and_the_run_goes_on_alone(config, store, tmp_path):
    settings = tmp_path / "config.json"
    settings.write_text(config(epochs=1000).model_dump_json())
    process = subprocess.Popen(
        [sys.executable, "-c", ASKED_FOR, settings, store.runs_dir], cwd=ROOT
    )
    try:
        wait_until(
            lambda: process.poll() is not None or any(run.history.epochs for run in store.runs())
        )
        ranks = ranks_of(psutil.Process(process.pid))
        assert len(ranks) == 2
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_until_gone(ranks)
    [run] = store.runs()
    assert (run.status, run.resumable) == ("interrupted", True)
    for event in execute(reopen_run(run.run_dir)):
        if type(event).__name__ == "EpochEnded":
            request_stop(run.run_dir)
    assert store.run(run.run_id).status == "stopped"


def test_processes_that_cannot_start_are_a_failed_run(config, worker, store, monkeypatch):
    monkeypatch.setattr("finetune_core.runs.together.sys.executable", shutil.which("false"))
    run = trained_to_the_end(worker, store, worker.submit(config(), devices=2))
    assert run.status == "failed"
    assert "A process of the run has ended" in run.history.end["message"]


def test_what_devices_cannot_share_is_refused_before_there_is_a_run(config, worker, store):
    with pytest.raises(ConfigError, match="devices: this run takes no steps"):
        worker.submit(config(strategy="linear_probe"), devices=2)
    assert not store.runs_dir.exists()


def ranks_of(process):
    return [
        one
        for one in process.children(recursive=True)
        if "finetune_core.runs.rank" in one.cmdline()
    ]

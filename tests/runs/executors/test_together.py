"""Runs on several processes of this machine: cut off, resumed, stopped, and without leftovers."""

import shutil
import tempfile

import psutil
import pytest

from finetune_core.errors import ConfigError
from finetune_core.runs.executors.together import execute_on_devices
from finetune_core.runs.record import create_run
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import RunStore
from finetune_core.runs.worker import Worker
from tests.deadline import wait_until, wait_until_gone
from tests.factories import shared_images, tiny_config
from tests.training.equal import check_identical
from tests.training.rank_program import Task, train_together


def together_config(**changes):
    usual = {"backbone": "timm/test_vit", "weights": "none", "strategy": "full", "batch_size": 10}
    return tiny_config(shared_images(), device="cpu", **usual | changes)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def worker(tmp_path):
    return Worker(tmp_path / "runs")


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs")


def wait_for_end(worker, store, run_id):
    wait_until(lambda: not worker.list_queues())
    return store.get_run(run_id)


def list_ranks(process):
    return [
        one
        for one in process.children(recursive=True)
        if "finetune_core.runs.executors.rank" in one.cmdline()
    ]


def list_listening(processes):
    """Return the addresses that processes listen on."""
    found = {
        one.laddr.ip.removeprefix("::ffff:")
        for process in processes
        for one in process.net_connections("inet")
        if one.status == psutil.CONN_LISTEN
    }
    return found


@pytest.mark.processes
def test_a_run_that_loses_its_processes_goes_on_exactly(worker, store, tmp_path, monkeypatch):
    """A rank is killed, then the launcher, before it can clean up.

    The name of the temporary folder contains a space and a letter that a URI would encode.
    """
    config = together_config(epochs=40)
    (tmp_path / "whole").mkdir()
    whole = {"whole": Task(config, tmp_path / "whole")}
    train_together(2, tmp_path, whole)
    folder = tmp_path / "für Läufe"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    run_id = worker.submit(config, devices=2)
    wait_until(lambda: store.get_run(run_id).history.epochs or not worker.list_queues())
    ranks = list_ranks(psutil.Process())
    assert len(ranks) == 2
    assert list_listening(ranks) == {"127.0.0.1"}
    next(one for one in ranks if one.cmdline()[-2:] == ["1", "2"]).kill()
    run = wait_for_end(worker, store, run_id)
    assert (run.status, run.is_resumable, run.started["ranks"]) == ("interrupted", True, 2)
    assert run.history.where.startswith("2 devices (gloo), each ")
    wait_until_gone(ranks)
    done = len(run.history.epochs)
    worker.resume(run_id, devices=2)
    wait_until(lambda: len(store.get_run(run_id).history.epochs) > done or not worker.list_queues())
    family = [one for one in psutil.Process().children(recursive=True) if is_of_a_run(one)]
    assert len(family) == 3
    next(one for one in family if "finetune_core.runs.executors.launch" in one.cmdline()).kill()
    wait_until_gone(family)
    assert wait_for_end(worker, store, run_id).status == "interrupted"
    assert not list(folder.iterdir())
    worker.resume(run_id, devices=2)
    run = wait_for_end(worker, store, run_id)
    assert run.status == "finished", run.history.end
    check_identical(run.run_dir, tmp_path / "whole")


def is_of_a_run(process):
    return any(name.startswith("finetune_core.runs.") for name in process.cmdline())


@pytest.mark.processes
def test_a_run_that_waits_for_its_device_is_cancelled_by_a_stop(store, hold_device):
    hold_device("cpu")
    reservation = create_run(together_config(), store.runs_dir, devices=2)
    for _ in execute_on_devices(reservation):
        if store.get_run(reservation.run_dir.name).status == "waiting":
            request_stop(reservation.run_dir)
    assert store.get_run(reservation.run_dir.name).status == "cancelled"


def submit_and_wait(line, config, runs_dir):
    Worker(runs_dir).submit(config, devices=2)
    line.poll(300)


@pytest.mark.processes
def test_ranks_end_with_the_process_that_asked_for_them(store, processes):
    line, far_end = processes.Pipe()
    asking = processes.Process(
        target=submit_and_wait, args=(far_end, together_config(epochs=1000), store.runs_dir)
    )
    asking.start()
    try:
        wait_until(
            lambda: not asking.is_alive() or any(run.history.epochs for run in store.list_runs())
        )
        ranks = list_ranks(psutil.Process(asking.pid))
        assert len(ranks) == 2
    finally:
        asking.kill()
        asking.join()
        line.close()
    wait_until_gone(ranks)
    [run] = store.list_runs()
    assert (run.status, run.is_resumable) == ("interrupted", True)


def test_processes_that_cannot_start_are_a_failed_run(worker, store, monkeypatch):
    monkeypatch.setattr(
        "finetune_core.runs.executors.together.sys.executable", shutil.which("false")
    )
    run = wait_for_end(worker, store, worker.submit(together_config(), devices=2))
    assert run.status == "failed"
    assert "A process of the run has ended" in run.history.end["message"]


def test_what_devices_cannot_share_is_refused_before_there_is_a_run(worker, store):
    with pytest.raises(ConfigError, match="devices: this run takes no steps"):
        worker.submit(together_config(strategy="linear_probe"), devices=2)
    assert not store.runs_dir.exists()

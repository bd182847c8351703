"""Failing writes: the run reports them, published files load, and the run can be resumed."""

import errno
import os
import shutil
from contextlib import contextmanager, suppress

import pytest

from finetune_core.errors import RunError, TrainingError
from finetune_core.files import replace_atomically
from finetune_core.runs.record import create_run, execute, reopen_run
from finetune_core.runs.store import RunStore
from finetune_core.training.checkpoints.files import load_tensors
from finetune_core.training.events import StepEnded
from tests.factories import shared_images, tiny_config
from tests.training.equal import check_identical


def head_config():
    return tiny_config(shared_images(red=10, blue=10), strategy="feature_extraction")


class Faults:
    """Let the n-th call of a function fail that ``finetune_core.files`` writes with."""

    def __init__(self, monkeypatch, name):
        self.calls, self.fails = 0, None
        self._inner = open if name == "open" else getattr(os, name.removeprefix("os."))
        monkeypatch.setattr(f"finetune_core.files.{name}", self, raising=False)

    def __call__(self, *arguments, **named):
        reads = self._inner is open and "xb" not in arguments
        self.calls += not reads
        if self.calls == self.fails and not reads:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._inner(*arguments, **named)


@pytest.mark.train
@pytest.mark.parametrize("name", ["open", "os.replace", "os.fsync"])
def test_a_disk_that_is_full_at_any_call_costs_nothing_that_was_there(tmp_path, monkeypatch, name):
    store = RunStore(tmp_path / "runs")
    faults = Faults(monkeypatch, name)
    whole = create_run(head_config(), store.runs_dir)
    before = faults.calls
    list(execute(whole))
    calls = faults.calls - before
    assert calls > 5
    for number in range(1, calls + 1):
        reservation = create_run(head_config(), store.runs_dir)
        faults.fails = faults.calls + number
        with suppress(TrainingError):
            list(execute(reservation))
        faults.fails = None
        run = store.get_run(reservation.run_dir.name)
        for checkpoint in ("last", "best"):
            if (run.run_dir / f"{checkpoint}.safetensors").exists():
                load_tensors(run.run_dir, checkpoint)
        assert not list(run.run_dir.glob(".*")), "half a file was left behind"
        if run.status != "finished":
            assert run.status == "failed"
            assert "No space left" in run.history.end["message"]
            list(execute(reopen_run(run.run_dir)))
        check_identical(whole.run_dir, run.run_dir)


@contextmanager
def limit_file_size(most):
    """Limit the size of every file."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("most", [0, 50])  # nothing of the first event fits, half of it fits
def test_without_room_for_its_first_event_a_run_fails_and_can_be_resumed(tmp_path, most):
    store = RunStore(tmp_path / "runs")
    reservation = create_run(head_config(), store.runs_dir)
    with limit_file_size(most), pytest.raises(TrainingError, match="Make room"):
        list(execute(reservation))
    assert (reservation.run_dir / "events.jsonl").read_bytes() == b""
    list(execute(reopen_run(reservation.run_dir)))
    assert store.get_run(reservation.run_dir.name).status == "finished"


def test_without_room_for_its_config_no_folder_is_left(tmp_path):
    with limit_file_size(10), pytest.raises(RunError, match="make room"):
        create_run(head_config(), tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_run_whose_folder_is_deleted_ends_and_is_not_made_again(tmp_path):
    reservation = create_run(head_config(), tmp_path / "runs")
    training = execute(reservation)
    while not isinstance(next(training), StepEnded):
        pass
    shutil.rmtree(reservation.run_dir)
    with pytest.raises(TrainingError, match="No such file"):
        list(training)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_whose_name_is_no_unicode_is_refused_before_anything_trains(tmp_path):
    with pytest.raises(RunError, match="Unicode"):
        create_run(head_config(), tmp_path / "r\udcff")
    assert not os.path.lexists(tmp_path / "r\udcff")


@pytest.mark.parametrize(
    "name",
    ["last.safetensors", "best.safetensors", "predictions.parquet", "prediction_history.json"],
)
def test_what_a_kill_while_saving_leaves_goes_when_the_run_goes_on(tmp_path, name):
    run_dir = create_run(head_config(), tmp_path / "runs").run_dir
    with replace_atomically(run_dir / name) as file:
        file.write(bytes(1000))
        (half,) = run_dir.glob(".*")
        shutil.copy(half, tmp_path / "half")
    (run_dir / name).unlink()
    shutil.move(tmp_path / "half", half)
    next(execute(reopen_run(run_dir)))
    assert list(run_dir.glob(".*")) == []

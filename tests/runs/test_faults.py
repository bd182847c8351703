"""The n-th write, sync or rename fails, for every n: the run says so, what was published loads, and it can be resumed."""

import errno
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from finetune_core.config import make_config
from finetune_core.errors import RunError, TrainingError
from finetune_core.runs.record import create_run, execute, reopen_run
from finetune_core.runs.store import RunStore
from finetune_core.training.checkpoints import load_tensors
from finetune_core.training.events import StepEnded

ROOT = Path(__file__).resolve().parents[2]


class Faults:
    """Lets the n-th call of some functions of ``os`` fail; counts them all."""

    def __init__(self, monkeypatch, name):
        self.calls, self.fails = 0, None
        self._inner = getattr(os, name)
        monkeypatch.setattr(f"finetune_core.files.os.{name}", self)

    def __call__(self, *arguments, **named):
        self.calls += 1
        if self.calls == self.fails:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._inner(*arguments, **named)


@pytest.fixture
def config(image_folder, tmp_path):
    folder = image_folder(tmp_path / "images", {"red": 10, "blue": 10})
    # quick to build and to trace: there are many runs
    settings = {"backbone": "squeezenet1_1", "weights": "none", "image_size": 64}
    settings |= {
        "epochs": 2,
        "strategy": "feature_extraction",
        "learning_rate": 1e-3,
        "precision": "fp32",
    }
    return make_config(settings | {"data": str(folder)})


@pytest.mark.parametrize(
    "name",
    ["replace", *(pytest.param(name, marks=pytest.mark.train) for name in ("fdopen", "fsync"))],
)
def test_a_full_disk_costs_nothing_that_was_there(config, tmp_path, monkeypatch, name):
    store = RunStore(tmp_path / "runs")
    faults = Faults(monkeypatch, name)
    whole = create_run(config, store.runs_dir)
    before = faults.calls
    list(execute(whole))
    calls = faults.calls - before
    assert calls > 5
    for number in range(1, calls + 1):
        reservation = create_run(config, store.runs_dir)
        faults.fails = faults.calls + number
        with suppress(TrainingError):
            list(execute(reservation))
        faults.fails = None
        run = store.run(reservation.run_dir.name)
        for checkpoint in ("last", "best"):
            if (run.run_dir / f"{checkpoint}.safetensors").exists():
                load_tensors(run.run_dir, checkpoint)
        assert not list(run.run_dir.glob(".*")), "half a file was left behind"
        if run.status != "finished":
            assert run.status == "failed"
            assert "No space left" in run.history.end["message"]
            list(execute(reopen_run(run.run_dir)))
        for checkpoint in ("last", "best"):
            wanted, _ = load_tensors(whole.run_dir, checkpoint)
            found, _ = load_tensors(run.run_dir, checkpoint)
            assert all((wanted[key] == found[key]).all() for key in wanted)


@contextmanager
def room_for(most):
    """No file may become larger than that many bytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("most", [0, 50])  # nothing of the first event fits, half of it fits
def test_without_room_for_its_first_event_a_run_fails_in_words_and_can_be_resumed(
    config, tmp_path, most
):
    store = RunStore(tmp_path / "runs")
    reservation = create_run(config, store.runs_dir)
    with room_for(most), pytest.raises(TrainingError, match="Make room"):
        list(execute(reservation))
    assert (reservation.run_dir / "events.jsonl").read_bytes() == b""
    list(execute(reopen_run(reservation.run_dir)))
    assert store.run(reservation.run_dir.name).status == "finished"


def test_without_room_for_its_config_no_folder_is_left(config, tmp_path):
    with room_for(10), pytest.raises(RunError, match="make room"):
        create_run(config, tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_run_whose_folder_is_deleted_ends_and_is_not_made_again(config, tmp_path):
    reservation = create_run(config, tmp_path / "runs")
    training = execute(reservation)
    while not isinstance(next(training), StepEnded):
        pass
    shutil.rmtree(reservation.run_dir)
    with pytest.raises(TrainingError, match="No such file"):
        list(training)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_whose_name_is_no_unicode_is_refused_before_anything_trains(config, tmp_path):
    with pytest.raises(RunError, match="Unicode"):
        create_run(config, tmp_path / "r\udcff")
    assert not os.path.lexists(tmp_path / "r\udcff")


KILLED = """
import os, signal, sys
from pathlib import Path
from finetune_core.files import replacing

with replacing(Path(sys.argv[1])) as file:
    file.write(bytes(1000))
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="no such signal")
@pytest.mark.parametrize(
    "name",
    ["last.safetensors", "best.safetensors", "predictions.parquet", "prediction_history.json"],
)
def test_what_a_kill_while_saving_leaves_goes_when_the_run_goes_on(config, tmp_path, name):
    run_dir = create_run(config, tmp_path / "runs").run_dir
    subprocess.run([sys.executable, "-c", KILLED, run_dir / name], cwd=ROOT, check=False)
    assert len(list(run_dir.glob(".*"))) == 1
    next(execute(reopen_run(run_dir)))
    assert list(run_dir.glob(".*")) == []

"""The n-th write, sync or rename fails, for every n: the run says so, what was published loads, and it can be resumed."""

import errno
import os
from contextlib import suppress

import pytest

from finetune_core.config import make_config
from finetune_core.errors import TrainingError
from finetune_core.runs.record import create_run, execute, reopen_run
from finetune_core.runs.store import RunStore
from finetune_core.training.checkpoints import load_tensors


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
    settings = {"image_size": 32, "epochs": 2, "strategy": "feature_extraction", "learning_rate": 1e-3, "precision": "fp32"}
    return make_config(settings | {"data": str(folder)})


@pytest.mark.parametrize("name", ["fdopen", "fsync", "replace"])
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

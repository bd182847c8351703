"""kill -9 at any moment: every run can be read, and resumed to the very weights of one that was never killed."""

import hashlib
import os
import random
import time

import pytest

from finetune_core.config import make_config
from finetune_core.models.catalogue import PACKAGED
from finetune_core.models.weights import PRETRAINED
from finetune_core.runs.record import create_run, execute, reopen_run
from finetune_core.runs.store import RunStore
from finetune_core.training import loop
from finetune_core.training.checkpoints import load_tensors

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX processes")


@pytest.fixture
def config(image_folder, tmp_path, backbone, weights):
    folder = image_folder(tmp_path / "images", {"red": 14, "blue": 14, "green": 14})
    settings = {
        "backbone": backbone,
        "weights": weights,
        "image_size": 64,
        "batch_size": 10,
        "epochs": 3,
        "learning_rate": 1e-3,
        "precision": "fp32",
        "schedule": "cosine",
    }
    return make_config(settings | {"data": str(folder)})


def train(run_dir, started):
    """Go on with a run whose last process died; a checkpoint after every step, so that many are hit."""
    loop.CHECKPOINT_SECONDS = 0
    reservation = reopen_run(run_dir)
    started.set()
    for _ in execute(reservation):
        pass


def marks(run_dir):
    digest = hashlib.sha256()
    for name in ("last", "best"):
        tensors, _ = load_tensors(run_dir, name)
        for key in sorted(tensors):
            digest.update(key.encode() + tensors[key].numpy().tobytes())
    return digest.hexdigest()


def new_run(config, runs):
    reservation = create_run(config, runs)
    reservation.lock.release()
    return reservation.run_dir


def process_for(processes, run_dir):
    started = processes.Event()
    process = processes.Process(target=train, args=(run_dir, started))
    process.start()
    assert started.wait(300)
    return process


@pytest.mark.parametrize(
    ("backbone", "weights", "enough"),
    [
        ("squeezenet1_1", "none", 2),
        pytest.param("squeezenet1_1", "none", 30, marks=pytest.mark.processes),
        pytest.param(PACKAGED, PRETRAINED, 6, marks=pytest.mark.processes),
    ],
)
def test_kills_lose_nothing(config, processes, tmp_path, enough):
    random.seed(0)
    store = RunStore(tmp_path / "runs")
    whole = new_run(config, store.runs_dir)
    process = process_for(processes, whole)
    began = time.monotonic()
    process.join()
    usual = time.monotonic() - began
    wanted, kills = marks(whole), 0
    while kills < enough:
        run_dir = new_run(config, store.runs_dir)
        # A run that is cut into ever longer pieces is hit at its start, in mid-epoch, while it writes, and at its end.
        for share in (0.2, 0.5, 0.8, 1.0, 1.0, 1.0):
            process = process_for(processes, run_dir)
            time.sleep(random.uniform(0, share * usual))
            if not process.is_alive():
                break
            process.kill()
            process.join()
            kills += 1
            status = store.run(run_dir.name).status
            assert status in ("interrupted", "finished"), "a killed run cannot be read"
            if status == "finished":  # killed on its way out
                break
        if store.run(run_dir.name).status != "finished":
            process_for(processes, run_dir).join()
        run = store.run(run_dir.name)
        assert run.status == "finished"
        assert marks(run_dir) == wanted
        assert [row["epoch"] for row in run.history.epochs] == list(range(1, config.epochs + 1))
        steps = [(row["epoch"], row["step"]) for row in run.history.steps]
        assert steps == sorted(set(steps)), "steps are reported twice"

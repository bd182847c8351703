"""``kill -9`` at any moment.

The run can be read, and resumed to the weights of an undisturbed run.
"""

import os
import signal

import pytest

from finetune_core import files
from finetune_core.models.catalogue import PACKAGED
from finetune_core.runs.record import create_run, execute, reopen_run
from finetune_core.runs.store import RunStore
from finetune_core.training import loop
from tests.factories import shared_images, tiny_config, train
from tests.training.equal import check_identical

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="POSIX processes"),
    pytest.mark.processes,
]


def train_until(run_dir, moment):
    """Continue a run until its process is killed at a moment.

    The moments are each event, and before and after each file is published or flushed. A checkpoint
    follows every step.
    """
    passed = 0

    def pass_moment():
        nonlocal passed
        passed += 1
        if passed == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def surround(function):
        def call(*arguments, **named):
            pass_moment()
            result = function(*arguments, **named)
            pass_moment()
            return result

        return call

    loop.CHECKPOINT_SECONDS = 0
    files.os.replace, files.os.fsync = surround(os.replace), surround(os.fsync)
    for _ in execute(reopen_run(run_dir)):
        pass_moment()


def kill_at(processes, run_dir, moment):
    """Return whether the process that continues the run lived until that moment."""
    process = processes.Process(target=train_until, args=(run_dir, moment))
    process.start()
    process.join(300)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def config_of(**changes):
    usual = {"batch_size": 10, "epochs": 3, "schedule": "cosine"}
    return tiny_config(shared_images(), **usual | changes)


def new_run(config, runs_dir):
    reservation = create_run(config, runs_dir)
    reservation.lock.release()
    return reservation.run_dir


def check_whole(run, whole):
    """Check that a run that was killed equals the undisturbed run."""
    assert run.status == "finished"
    check_identical(run.run_dir, whole.run_dir)
    assert [row["epoch"] for row in run.history.epochs] == [1, 2, 3]
    steps = [(row["epoch"], row["step"]) for row in run.history.steps]
    assert steps == sorted(set(steps)), "steps are reported twice"


@pytest.mark.journey
def test_a_run_that_is_killed_once_is_resumed_to_the_same_weights(processes, tmp_path):
    config, store = config_of(), RunStore(tmp_path / "runs")
    run_dir = new_run(config, store.runs_dir)
    assert kill_at(processes, run_dir, 92)
    run = store.get_run(run_dir.name)
    assert (run.status, run.is_evaluable, run.is_resumable) == ("interrupted", True, True)
    list(execute(reopen_run(run_dir)))
    check_whole(store.get_run(run_dir.name), train(config, tmp_path / "whole"))


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({}, 9),
        ({"strategy": "full"}, 17),
        pytest.param({}, 1, marks=pytest.mark.exhaustive),
        pytest.param({"backbone": PACKAGED}, 5, marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_that_is_killed_again_and_again_loses_nothing(processes, tmp_path, changes, step):
    """Each process lives a few moments longer, so that all kinds of moments are hit."""
    config, store = config_of(**changes), RunStore(tmp_path / "runs")
    run_dir, moment, kills = new_run(config, store.runs_dir), 1, 0
    while kill_at(processes, run_dir, moment):
        kills += 1
        moment += step
        run = store.get_run(run_dir.name)
        if run.status == "finished":  # killed on its way out
            break
        assert run.status == "interrupted", "a killed run cannot be read"
    assert kills > 3
    check_whole(store.get_run(run_dir.name), train(config, tmp_path / "whole"))

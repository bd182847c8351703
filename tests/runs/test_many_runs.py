"""Thousands of runs: memory of a run that has ended, and when it is read again."""

import json
import weakref

import pytest

from finetune_core.config import Edit, make_config
from finetune_core.errors import ConfigError
from finetune_core.runs.history import History
from finetune_core.runs.record import create_run
from finetune_core.runs.store import RunStore
from finetune_core.training.events import (
    EpochEnded,
    RunFinished,
    RunReopened,
    RunResumed,
    RunStopped,
)
from tests.factories import shared_images

CONFIG = {"data": "images", "backbone": "resnet18", "strategy": "full", "epochs": 2}


@pytest.fixture
def run_of(tmp_path, started, lines):
    """Make a run directory with the given events after the first."""

    def make(name, *events):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(CONFIG))
        (folder / "events.jsonl").write_bytes(lines(started(), *events))
        return folder

    return make


def epoch(number):
    return EpochEnded(number, 1.0, 0.5, 1.0, 0.5, 1.0, 1.0, 2.0 * number)


def append(folder, content):
    with (folder / "events.jsonl").open("ab") as file:
        file.write(content)


def places(history):
    return [(row["epoch"], row["step"]) for row in history.steps]


def test_the_steps_of_a_run_that_has_ended_are_read_when_they_are_asked_for(run_of, step, lines):
    measured = {"head": {"learning_rate": 1e-3, "gradient_norm": 1.0, "update": 0.1}}
    folder = run_of("a", step(1, 1), step(1, 2, stages=measured))
    history = History(folder).refresh()
    before = list(history.steps)
    append(folder, lines(RunStopped(1, 0, 2.0)))
    assert history.refresh().end
    assert list(history.steps) == before
    assert history.steps[0] is not before[0]  # it was not held
    assert [row["stages"] for row in history.measured_steps] == [measured]
    content = (folder / "events.jsonl").read_bytes()
    (folder / "events.jsonl").write_bytes(content.replace(b'"step": 2', b'"step": 3'))
    assert places(history.refresh()) == [(1, 1), (1, 3)]


def test_a_run_that_goes_on_after_its_end_keeps_the_steps_before_it(run_of, step, lines):
    folder = run_of("a", step(1, 1), step(1, 2), step(1, 3), RunStopped(1, 0, 2.0))
    history = History(folder).refresh()
    append(folder, lines(RunReopened(), RunResumed(1, 2), step(1, 3), step(1, 4)))
    assert places(history.refresh()) == [(1, 1), (1, 2), (1, 3), (1, 4)]
    append(folder, lines(step(1, 4)))
    assert (places(history.refresh())[-1], history.skipped_lines) == ((1, 4), 1)


def test_a_run_that_has_ended_is_listed_as_it_is_until_its_files_change(run_of, lines):
    folder = run_of("a", epoch(1), epoch(2), RunFinished(2, 2, 0.5, 1.0, None, 3.0))
    run_of("b", RunStopped(1, 0, 2.0))
    store = RunStore(folder.parent)
    first = store.list_runs()
    assert [run.status for run in first] == ["stopped", "finished"]
    assert all(now is then for now, then in zip(store.list_runs(), first, strict=True))
    store.set_about("a", "best", "")
    assert store.get_run("a").name == "best"
    append(folder.parent / "b", lines(RunReopened()))
    assert [run.status for run in store.list_runs()] == ["interrupted", "finished"]
    (folder / "config.json").write_text("{")
    assert [one.run_id for one in store.list_damaged()] == ["a"]


def test_a_run_that_was_deleted_is_forgotten(run_of):
    folder = run_of("a", epoch(1), RunStopped(1, 1, 2.0))
    store = RunStore(folder.parent)
    history = weakref.ref(store.list_runs()[0].history)
    store.delete("a")
    assert store.list_runs() == []
    assert history() is None


def test_settings_that_could_not_be_read_again_make_no_run(tmp_path):
    folder = shared_images(red=4, blue=4)
    paths = tuple(f"red/{number:0200d}.png" for number in range(170_000))
    config = make_config({"data": str(folder), "edits": [Edit(action="exclude", paths=paths)]})
    with pytest.raises(ConfigError, match=r"37\.4 MB, of which 33\.6 MB can be read"):
        create_run(config, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()

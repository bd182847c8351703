"""Tasks without Ray: a task is tried again, and the run continues exactly."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from finetune_core.data.rowcache import CACHE
from finetune_core.errors import RunError
from finetune_core.runs import record
from finetune_core.runs.executors.remote import (
    MOST_TRIES,
    RemoteRun,
    run_from_row,
    train_and_report,
)
from finetune_core.runs.executors.storage import find_differences, show_storage
from finetune_core.runs.ownership import claim, current_holder
from finetune_core.runs.record import append_event, create_run
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import RunStore
from finetune_core.training.events import EpochEnded, RunPlaced
from tests.factories import image_folder, shared_images, tiny_config
from tests.training.equal import check_identical


@pytest.fixture(autouse=True)
def own_settings(monkeypatch):
    """Restore the settings that a task changes in its process, which is this one."""
    monkeypatch.setattr(CACHE, "shared", False)
    monkeypatch.setenv("THAW_CACHE_DIR", "")


@pytest.fixture
def request_for(tmp_path, home):
    """Make a run and its request, as the process that asks does."""
    owners = []

    def make(**changes):
        config = tiny_config(shared_images(red=20, blue=20), batch_size=8, epochs=3)
        config = config.model_copy(update=changes)
        reservation = create_run(config, tmp_path / "runs", remote=True)
        owners.append(claim(reservation.run_dir))
        return RemoteRun(
            reservation.run_dir, owners[-1].number, False, current_holder().machine, home, threads=1
        )

    yield make
    for owner in owners:
        owner.release()


def die_after_an_epoch(request):
    """Run a task whose process is killed after an epoch."""
    fit = record.fit

    def fit_until_killed(*arguments, **named):
        for event in fit(*arguments, **named):
            yield event
            if isinstance(event, EpochEnded):
                os.kill(os.getpid(), signal.SIGKILL)

    record.fit = fit_until_killed
    train_and_report(request, "task")


@pytest.mark.processes
def test_a_task_whose_process_is_killed_goes_on_when_it_is_tried_again(request_for, processes):
    whole, cut = request_for(), request_for()
    assert train_and_report(whole, "whole") == {}
    process = processes.Process(target=die_after_an_epoch, args=(cut,))
    process.start()
    process.join(300)
    store = RunStore(cut.run_dir.parent)
    assert len(store.get_run(cut.run_dir.name).history.epochs) == 1
    assert train_and_report(cut, "task") == {}
    run = store.get_run(cut.run_dir.name)
    assert run.status == "finished"
    check_identical(whole.run_dir, cut.run_dir)
    assert [place["moved_from"] == "" for place in run.history.places] == [True, False]
    assert {place["task"] for place in run.history.places} == {"task"}
    steps = [(row["epoch"], row["step"]) for row in run.history.steps]
    assert steps == sorted(set(steps))
    assert [row["epoch"] for row in run.history.epochs] == [1, 2, 3]


def test_a_task_that_had_ended_does_nothing_when_it_is_tried_again(request_for):
    request = request_for(epochs=1)
    assert train_and_report(request, "task") == {}
    events = (request.run_dir / "events.jsonl").read_bytes()
    assert train_and_report(request, "task") == {}
    assert (request.run_dir / "events.jsonl").read_bytes() == events


def test_a_stop_that_comes_while_nobody_trains_is_kept(request_for):
    request = request_for()
    append_event(request.run_dir, RunPlaced("here", "task"))
    claim(request.run_dir, handed=request.owner, task="task").release()
    request_stop(request.run_dir)
    assert train_and_report(request, "task") == {}
    run = RunStore(request.run_dir.parent).get_run(request.run_dir.name)
    assert run.history.end["event"] == "RunStopped"
    assert not run.history.steps


def test_a_run_that_costs_process_after_process_their_lives_fails(request_for):
    request = request_for()
    for _ in range(MOST_TRIES):
        append_event(request.run_dir, RunPlaced("there", "task"))
    assert f"ended {MOST_TRIES} times" in train_and_report(request, "task")["problem"]
    assert RunStore(request.run_dir.parent).get_run(request.run_dir.name).status == "failed"


def test_a_task_does_not_take_a_run_that_another_process_has(request_for, monkeypatch):
    request = request_for()
    monkeypatch.setattr("finetune_core.runs.executors.remote._PATIENCE", 0.0)
    other = claim(request.run_dir, handed=request.owner, task="other")
    assert "going on already" in train_and_report(request, "task")["problem"]
    other.release()
    assert not (request.run_dir / "events.jsonl").exists()


def test_problems_and_bugs_are_told_apart(request_for, monkeypatch, tmp_path):
    data = image_folder(tmp_path / "images", {"red": 6, "blue": 6})
    request, other = request_for(data=str(data)), request_for()
    data.rename(tmp_path / "moved")
    assert "images" in train_and_report(request, "task")["problem"]

    def broken(*_):
        raise AssertionError("a bug")

    monkeypatch.setattr("finetune_core.runs.executors.remote.train_as_main_process", broken)
    assert "AssertionError: a bug" in train_and_report(other, "task")["traceback"]


def test_a_request_survives_json(request_for):
    request = request_for()
    row = {
        **vars(request),
        "run_dir": str(request.run_dir),
        "home": str(request.home),
        "roots": ["/data"],
    }
    assert run_from_row(row).roots == (Path("/data"),)
    assert run_from_row(row).run_dir == request.run_dir


def test_another_machine_has_to_see_the_same_folders_data_and_programs(tmp_path):
    data = image_folder(tmp_path / "images", {"red": 1, "blue": 1})
    runs = tmp_path / "runs"
    with show_storage([runs], [str(data)]) as seen:
        assert find_differences(seen) == []
        (data / "green").mkdir()
        assert find_differences(seen) == [f"{data} holds other files there"]
        (data / "green").rmdir()
        data.rename(tmp_path / "elsewhere")
        assert find_differences(seen) == [f"{data} is not there"]
        (tmp_path / "elsewhere").rename(data)
        seen["programs"]["torch"] = "1.0"
        assert find_differences(seen)[0].startswith("it has torch ")
        seen["programs"].pop("torch")
        for file in seen["files"]:
            Path(file).write_text("of another folder")
        assert find_differences(seen) == [f"{runs} is not the same folder there"]
    assert list(runs.iterdir()) == []


def test_what_cannot_be_written_to_is_refused_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunError, match="cannot be kept there"),
        show_storage([tmp_path / "file"], []),
    ):
        pass
    with suppress(FileNotFoundError):
        assert not list((tmp_path / "file").parent.glob(".thaw-check*"))

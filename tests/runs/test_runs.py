import json
import shutil
import subprocess
import sys
import threading
import time

import pytest
from filelock import FileLock

from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.errors import ConfigError, RunError, TrainingError
from finetune_core.runs.history import History
from finetune_core.runs.locks import is_locked
from finetune_core.runs.log import log_lines
from finetune_core.runs.record import create_run, execute, reopen_run
from finetune_core.runs.stop_request import request_stop, requested_stop
from finetune_core.runs.store import RunStore, run_folder, summary
from finetune_core.runs.worker import Worker
from finetune_core.training import events, loop
from tests.deadline import wait_until


@pytest.fixture
def config(image_folder, tmp_path):
    folder = image_folder(tmp_path / "images", {"red": 10, "blue": 10})
    return make_config(
        {
            "data": str(folder),
            "image_size": 32,
            "batch_size": 8,
            "epochs": 2,
            "strategy": "feature_extraction",
            "learning_rate": 1e-3,
        }
    )


def test_the_config_is_there_before_the_first_event(config, tmp_path):
    reservation = create_run(config, tmp_path / "runs")
    assert (
        json.loads((reservation.run_dir / "config.json").read_text())["strategy"]
        == "feature_extraction"
    )
    assert RunStore(tmp_path / "runs").run(reservation.run_dir.name).status == "queued"
    reservation.lock.release()


def test_a_run_that_has_not_begun_says_so(config, tmp_path):
    reservation = create_run(config, tmp_path / "runs")
    with pytest.raises(RunError, match="has not begun to train"):
        _ = RunStore(tmp_path / "runs").run(reservation.run_dir.name).started
    reservation.lock.release()


class Named:
    """A path whose text is not the path: only ``os.fspath`` gives that."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path


def test_a_run_is_named_by_anything_that_is_a_path(config):
    reservation = create_run(config, paths.runs_dir())
    assert run_folder(Named(reservation.run_dir.name)) == reservation.run_dir
    reservation.lock.release()


def test_what_is_yielded_is_what_is_written(config, tmp_path):
    reservation = create_run(config, tmp_path / "runs")
    found = list(execute(reservation))
    lines = [
        json.loads(line) for line in (reservation.run_dir / "events.jsonl").read_text().splitlines()
    ]
    assert [{key: value for key, value in line.items() if key != "at"} for line in lines] == [
        event.to_json() for event in found
    ]
    run = RunStore(tmp_path / "runs").run(reservation.run_dir.name)
    assert run.status == "finished"
    assert not is_locked(run.run_dir)
    row = summary(run)
    assert row["epochs"] == 2
    assert row["best_epoch"] == found[-1].best_epoch
    assert row["trainable_parameters"] == 1280 * 2 + 2
    json.dumps(row)


def test_a_config_that_cannot_work_leaves_no_folder(config, tmp_path):
    with pytest.raises(ConfigError) as error:
        create_run(
            config.model_copy(update={"backbone": "nope", "data": "/not/there"}), tmp_path / "runs"
        )
    assert set(error.value.problems) == {"backbone", "data"}
    assert not (tmp_path / "runs").exists()


def test_a_name_that_is_taken_costs_its_run_nothing(config, tmp_path, monkeypatch):
    names = iter(["one", "one", "two"])
    monkeypatch.setattr("finetune_core.runs.record.secrets.token_hex", lambda _: next(names))
    monkeypatch.setattr("finetune_core.runs.record.time.strftime", lambda _: "20260101-000000")
    first, second = (create_run(config, tmp_path / "runs") for _ in range(2))
    assert [one.run_dir.name.rpartition("-")[2] for one in (first, second)] == ["one", "two"]
    assert (first.run_dir / "config.json").is_file()
    for one in (first, second):
        one.lock.release()
    monkeypatch.setattr("finetune_core.runs.record.secrets.token_hex", lambda _: "one")
    with pytest.raises(RunError, match="every name that was tried is taken"):
        create_run(config, tmp_path / "runs")
    assert (first.run_dir / "config.json").is_file()


def test_failures_are_written_before_they_are_raised(config, tmp_path, monkeypatch):
    def broken(*_, **__):
        yield events.Progress("index", 1, 1)
        raise TrainingError("it broke")

    monkeypatch.setattr("finetune_core.runs.record.fit", broken)
    reservation = create_run(config, tmp_path / "runs")
    with pytest.raises(TrainingError):
        list(execute(reservation))
    run = RunStore(tmp_path / "runs").run(reservation.run_dir.name)
    assert (run.status, run.history.end["message"], run.history.end["traceback"]) == (
        "failed",
        "it broke",
        "",
    )


def test_a_bug_is_written_with_its_traceback(config, tmp_path, monkeypatch):
    def buggy(*_, **__):
        yield events.Progress("index", 1, 1)
        raise ValueError("oops")

    monkeypatch.setattr("finetune_core.runs.record.fit", buggy)
    reservation = create_run(config, tmp_path / "runs")
    with pytest.raises(ValueError, match="oops"):
        list(execute(reservation))
    end = RunStore(tmp_path / "runs").run(reservation.run_dir.name).history.end
    assert end["message"] == "ValueError: oops"
    assert "Traceback" in end["traceback"]


def test_stop_from_outside_ends_the_run_within_a_step(config, tmp_path):
    reservation = create_run(config.model_copy(update={"epochs": 500}), tmp_path / "runs")
    found = []
    for event in execute(reservation):
        found.append(event)
        if isinstance(event, events.StepEnded) and event.epoch == 2 and event.step == 1:
            request_stop(reservation.run_dir)
    assert isinstance(found[-1], events.RunStopped)
    assert isinstance(found[-2], events.StepEnded)
    assert (found[-2].epoch, found[-2].step) == (2, 1)


def _hold(path):
    reservation = create_run(*path)
    stream = execute(reservation)
    for event in stream:
        if isinstance(event, events.EpochEnded):
            time.sleep(600)


def test_a_killed_process_leaves_an_interrupted_run_that_can_be_read(config, tmp_path, processes):
    runs = tmp_path / "runs"
    process = processes.Process(target=_hold, args=((config, runs),))
    process.start()
    store = RunStore(runs)
    try:
        wait_until(lambda: runs.is_dir() and store.runs() and store.runs()[0].history.epochs)
        assert store.runs()[0].status == "running"
    finally:
        process.kill()
        process.join()
    run = store.runs()[0]
    assert run.status == "interrupted"
    assert run.judged


def test_readers_leave_an_unfinished_last_line_and_count_a_broken_one(
    tmp_path, started, step, lines
):
    file = tmp_path / "events.jsonl"
    second = lines(step(1, 2))
    file.write_bytes(lines(started(), step(1, 1)) + b"{broken\n[1]\n" + second[:18])
    history = History(tmp_path).refresh()
    assert len(history.steps) == 1
    with file.open("ab") as opened:
        opened.write(second[18:])
    assert [row["step"] for row in history.refresh().steps] == [1, 2]
    assert (history.skipped_lines, history.problem) == (2, "")


def test_pace_and_time_left(tmp_path, started, step, lines):
    (tmp_path / "events.jsonl").write_bytes(
        lines(started(), *(step(1, number) for number in range(1, 6)))
    )
    history = History(tmp_path).refresh()
    assert history.fraction == 0.25
    assert history.seconds_left == pytest.approx(15)
    assert history.images_per_second == pytest.approx(8)


def test_a_damaged_run_hides_no_other(config, tmp_path):
    good = create_run(config, tmp_path / "runs")
    good.lock.release()
    bad = tmp_path / "runs" / "20200101-000000-bad"
    bad.mkdir()
    (bad / "config.json").write_text("{")
    store = RunStore(tmp_path / "runs")
    assert [run.run_id for run in store.runs()] == [good.run_dir.name]
    assert [one.run_id for one in store.damaged()] == ["20200101-000000-bad"]


@pytest.mark.parametrize("name", ["", "..", "../images", "a/b", "missing"])
def test_run_names_cannot_leave_the_folder(tmp_path, name):
    (tmp_path / "runs").mkdir()
    with pytest.raises(RunError):
        RunStore(tmp_path / "runs").run(name)


def test_the_worker_trains_one_run_at_a_time_in_order(config, tmp_path):
    worker = Worker(tmp_path / "runs")
    first, second = worker.submit(config), worker.submit(config.model_copy(update={"seed": 1}))
    store = RunStore(tmp_path / "runs")
    seen = []

    def both_done():
        pair = (store.run(second).status, store.run(first).status)
        seen.append(pair)
        return pair == ("finished", "finished")

    wait_until(both_done)
    assert all(pair[0] in ("queued", "running") or pair[1] == "finished" for pair in seen)
    assert ("running", "running") not in seen


def test_a_failing_run_does_not_end_the_queue(config, tmp_path):
    worker = Worker(tmp_path / "runs")
    broken = config.model_copy(
        update={
            "backbone": "squeezenet1_1",
            "weights": "none",
            "image_size": 64,
            "learning_rate": 10.0,
            "optimizer": "sgd",
            "strategy": "full",
            "epochs": 30,
        }
    )
    first, second = worker.submit(broken), worker.submit(config)
    store = RunStore(tmp_path / "runs")
    wait_until(lambda: not store.run(second).active)
    assert (store.run(first).status, store.run(second).status) == ("failed", "finished")


def test_a_queued_run_can_be_cancelled(config, tmp_path):
    worker = Worker(tmp_path / "runs")
    first, second = worker.submit(config.model_copy(update={"epochs": 30})), worker.submit(config)
    request_stop(tmp_path / "runs" / second)
    request_stop(tmp_path / "runs" / first)
    store = RunStore(tmp_path / "runs")
    wait_until(lambda: not store.run(second).active)
    assert store.run(second).status == "cancelled"
    assert not store.run(second).judged


def test_many_readers_at_once_see_every_step_once(tmp_path, started, step, lines):
    steps = 300
    history = History(tmp_path)
    threads = [
        threading.Thread(target=lambda: [history.refresh() for _ in range(100)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(lines(started(steps_per_epoch=steps)))
        for number in range(1, steps + 1):
            file.write(lines(step(1, number)))
            file.flush()
    for thread in threads:
        thread.join()
    assert [row["step"] for row in history.refresh().steps] == list(range(1, steps + 1))


def stopped_run(config, runs, *, pause=False):
    reservation = create_run(config, runs)
    for event in execute(reservation):
        if isinstance(event, events.StepEnded) and event.epoch == 2 and event.step == 1:
            request_stop(reservation.run_dir, pause=pause)
    return reservation.run_dir


@pytest.mark.parametrize(("pause", "status"), [(False, "stopped"), (True, "paused")])
def test_a_run_that_was_stopped_or_paused_goes_on(config, tmp_path, pause, status):
    store = RunStore(tmp_path / "runs")
    run_dir = stopped_run(config, store.runs_dir, pause=pause)
    run = store.run(run_dir.name)
    assert (run.status, run.resumable, run.judged) == (status, True, True)
    reservation = reopen_run(run_dir)
    assert store.run(run_dir.name).status == "queued"
    for event in execute(reservation):
        if isinstance(event, events.StepEnded):
            assert store.run(run_dir.name).status == "running"
    run = store.run(run_dir.name)
    assert (run.status, run.resumable) == ("finished", False)
    assert [(row["epoch"], row["step"]) for row in run.history.steps] == [
        (1, 1),
        (1, 2),
        (2, 1),
        (2, 2),
    ]


def test_a_finished_run_is_not_opened_again(config, tmp_path):
    reservation = create_run(config, tmp_path / "runs")
    list(execute(reservation))
    with pytest.raises(RunError, match="is finished"):
        reopen_run(reservation.run_dir)
    assert not is_locked(reservation.run_dir)


def test_a_run_that_goes_on_is_not_opened_twice(config, tmp_path):
    run_dir = stopped_run(config, tmp_path / "runs")
    reservation = reopen_run(run_dir)
    with pytest.raises(RunError, match="going on already"):
        reopen_run(run_dir)
    reservation.lock.release()


def test_half_a_line_of_a_crash_spoils_no_other(config, tmp_path):
    run_dir = stopped_run(config, tmp_path / "runs")
    with (run_dir / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "StepEn')
    list(execute(reopen_run(run_dir)))
    assert RunStore(tmp_path / "runs").run(run_dir.name).status == "finished"


@pytest.fixture
def slow_queue(config, tmp_path):
    """A worker whose first run takes until it is asked to stop; (worker, first run, config)."""
    worker = Worker(tmp_path / "runs")
    first = worker.submit(config.model_copy(update={"epochs": 1000}))
    store = RunStore(tmp_path / "runs")
    wait_until(lambda: store.run(first).history.steps)
    yield worker, store, config
    request_stop(store.runs_dir / first)
    wait_until(lambda: not store.run(first).active)


def test_a_second_click_starts_no_second_run(slow_queue):
    worker, store, config = slow_queue
    once, twice = worker.submit(config), worker.submit(config)
    assert once == twice
    assert len(store.runs()) == 2
    worker.stop(once)


def test_the_same_settings_of_another_person_are_a_run_of_their_own(slow_queue):
    worker, _, config = slow_queue
    again = make_config(config.model_dump() | {"seed": 77})
    hers, his = (worker.submit(again, f"{name}@example.org") for name in ("ann", "ben"))
    assert hers != his
    assert worker.submit(again, "ben@example.org") == his
    assert RunStore(worker.runs_dir).run(his).owner == "ben@example.org"
    for run_id in (hers, his):
        worker.cancel(run_id)


def test_waiting_runs_have_places_can_go_earlier_and_can_be_stopped(slow_queue):
    worker, store, config = slow_queue
    second, third = (worker.submit(config.model_copy(update={"seed": seed})) for seed in (1, 2))
    assert (worker.waiting(second), worker.waiting(third)) == ((1, 2), (2, 2))
    worker.move(third, -1)
    assert (worker.waiting(third), worker.waiting(second)) == ((1, 2), (2, 2))
    worker.move(third, -1)
    worker.move(third, 1)
    assert worker.waiting(third) == (2, 2)
    worker.move(third, 1)
    (first,) = {run.run_id for run in store.runs()} - {second, third}
    assert worker.queues() == [[first, second, third]]
    worker.cancel(second)
    assert worker.waiting(third) == (1, 1)
    worker.stop(third)
    assert worker.waiting(third) is None


def test_a_run_that_is_stopped_while_it_waits_is_cancelled_and_can_be_resumed(slow_queue):
    worker, store, config = slow_queue
    (first,) = [run.run_id for run in store.runs()]
    ids = [worker.submit(config.model_copy(update={"seed": seed})) for seed in (1, 2)]
    worker.cancel(ids[0])
    worker.stop(ids[1])
    for run_id in ids:
        run = store.run(run_id)
        assert (run.status, run.active, run.judged, run.resumable) == (
            "cancelled",
            False,
            False,
            True,
        )
        assert log_lines(run.history.notable)[-1].endswith("Cancelled before it began.")
    worker.resume(ids[0])
    assert store.run(ids[0]).status == "queued"
    worker.cancel(ids[0])
    with pytest.raises(RunError, match="does not wait"):
        worker.cancel(first)
    assert requested_stop(store.runs_dir / first) == ""


@pytest.mark.parametrize("end", ["cancel", "stop"])
def test_a_run_whose_request_cannot_be_written_still_waits(slow_queue, monkeypatch, end):
    worker, _, config = slow_queue
    second = worker.submit(config.model_copy(update={"seed": 1}))

    def full(*_, **__):
        raise RunError("no room")

    with monkeypatch.context() as patch:
        patch.setattr("finetune_core.runs.worker.request_stop", full)
        with pytest.raises(RunError, match="no room"):
            getattr(worker, end)(second)
    assert worker.waiting(second) == (1, 1)
    getattr(worker, end)(second)
    assert worker.waiting(second) is None


def test_one_stop_ends_a_run_that_is_queued_and_one_that_has_begun(slow_queue):
    worker, store, config = slow_queue
    (first,) = [run.run_id for run in store.runs()]
    second = worker.submit(config.model_copy(update={"seed": 1}))
    worker.stop(second, pause=True)
    assert store.run(second).status == "paused"
    worker.stop(first)
    wait_until(lambda: not store.run(first).active)
    assert store.run(first).status == "stopped"


def test_a_pause_becomes_a_stop_even_while_the_last_checkpoint_is_written(
    config, tmp_path, monkeypatch
):
    reservation = create_run(config, tmp_path / "runs")
    saving = loop._Trainer.save

    def slow(self, at):
        if requested_stop(reservation.run_dir):
            request_stop(reservation.run_dir)
        return saving(self, at)

    monkeypatch.setattr(loop._Trainer, "save", slow)
    for event in execute(reservation):
        if isinstance(event, events.StepEnded):
            request_stop(reservation.run_dir, pause=True)
    assert (event, requested_stop(reservation.run_dir)) == (
        events.RunStopped(1, 0, event.seconds),
        "stop",
    )


def test_a_run_that_is_stopped_again_before_it_goes_on_keeps_its_time(config, tmp_path):
    run_dir = stopped_run(config, tmp_path / "runs")
    took = History(run_dir).refresh().epochs[-1]["seconds"]
    reservation = reopen_run(run_dir)
    request_stop(run_dir)
    assert list(execute(reservation)) == [events.RunStopped(0, 0, 0.0)]
    run = RunStore(tmp_path / "runs").run(run_dir.name)
    assert (run.status, run.judged) == ("stopped", True)
    assert run.history.end["seconds"] >= took > 0


def test_a_run_is_resumed_while_its_last_process_still_lets_go_of_it(config, tmp_path):
    run_dir = stopped_run(config, tmp_path / "runs")
    held = FileLock(run_dir / "lock", thread_local=False)
    held.acquire()
    threading.Timer(0.2, held.release).start()
    reservation = reopen_run(run_dir)
    assert reservation.resume
    reservation.lock.release()


def test_those_who_look_at_one_lock_do_not_take_each_other_for_its_owner(config, tmp_path):
    run_dir = stopped_run(config, tmp_path / "runs")
    seen = []
    looking = [
        threading.Thread(target=lambda: seen.extend(is_locked(run_dir) for _ in range(200)))
        for _ in range(4)
    ]
    for thread in looking:
        thread.start()
    for thread in looking:
        thread.join()
    assert seen == [False] * 800


def test_the_worker_resumes_what_was_stopped(config, tmp_path):
    worker, store = Worker(tmp_path / "runs"), RunStore(tmp_path / "runs")
    run_dir = stopped_run(config, store.runs_dir)
    worker.resume(run_dir.name)
    wait_until(lambda: store.run(run_dir.name).status == "finished")


def test_a_run_has_tags_that_are_checked_and_an_earlier_about_has_none(config, tmp_path):
    store = RunStore(tmp_path / "runs")
    reservation = create_run(config, store.runs_dir)
    run_id, about = reservation.run_dir.name, reservation.run_dir / "about.json"
    about.write_text('{"name": "earlier", "note": "", "owner": "me"}')
    assert (store.run(run_id).name, store.run(run_id).tags) == ("earlier", ())
    store.describe(run_id, "now", "", [" first   try ", "", "<b>", "first try"])
    assert (store.run(run_id).tags, store.run(run_id).owner) == (("first try", "<b>"), "me")
    for wrong in (["x" * 41], [str(number) for number in range(21)]):
        with pytest.raises(RunError, match="at most"):
            store.describe(run_id, "now", "", wrong)
    assert store.run(run_id).tags == ("first try", "<b>")
    for damaged in ('{"tags": "no list"}', '{"tags": [1]}', '{"tags": ["%s"]}' % ("x" * 2000)):
        about.write_text(damaged)
        assert (store.run(run_id).tags, len(store.run(run_id).notices)) == ((), 1)
    reservation.lock.release()


def test_a_run_has_a_name_and_a_note_that_it_keeps(config, tmp_path):
    store = RunStore(tmp_path / "runs")
    reservation = create_run(config, store.runs_dir)
    store.describe(reservation.run_dir.name, " baseline ", "<b>first</b>")
    run = store.run(reservation.run_dir.name)
    assert (run.name, run.note) == ("baseline", "<b>first</b>")
    (run.run_dir / "about.json").write_text("[")
    assert store.run(run.run_id).name == ""
    reservation.lock.release()


TRAIN_AND_END = """
import sys, time
from pathlib import Path
from finetune_core.config import make_config, read_config
from finetune_core.runs.store import RunStore
from finetune_core.runs.worker import Worker
runs = Path(sys.argv[2])
name = Worker(runs).submit(make_config(read_config(Path(sys.argv[1]))))
while not RunStore(runs).run(name).history.epochs:
    time.sleep(0.01)
"""


@pytest.mark.processes
def test_a_server_that_is_ended_in_good_order_leaves_interrupted_runs(config, tmp_path):
    settings = tmp_path / "config.json"
    settings.write_text(
        config.model_copy(update={"epochs": 1000, "cache": "off"}).model_dump_json()
    )
    # However it ends: a thread in the middle of torch's work may break the last breath of the process off.
    subprocess.run(
        [sys.executable, "-c", TRAIN_AND_END, settings, tmp_path / "runs"],
        timeout=300,
        stderr=subprocess.DEVNULL,
    )
    [run] = RunStore(tmp_path / "runs").runs()
    assert (run.status, run.resumable) == ("interrupted", True)


def test_what_python_says_at_its_end_is_no_failure_of_the_run(config, tmp_path, monkeypatch):
    def cut_off(*_, **__):
        raise RuntimeError("cannot schedule new futures after shutdown")
        yield

    monkeypatch.setattr("finetune_core.runs.record.fit", cut_off)
    reservation = create_run(config, tmp_path / "runs")
    with pytest.raises(TrainingError, match="resume it"):
        list(execute(reservation))
    assert RunStore(tmp_path / "runs").run(reservation.run_dir.name).status == "interrupted"


def test_what_comes_after_a_run_may_warn_and_the_queue_goes_on(config, tmp_path, caplog):
    result = []

    def after(run_dir):
        result.append(run_dir.name)
        return "no server answers"

    worker, store = Worker(tmp_path / "runs", after=after), RunStore(tmp_path / "runs")
    runs = [worker.submit(config.model_copy(update={"seed": seed})) for seed in range(2)]
    wait_until(lambda: len(result) == 2)
    assert result == runs
    assert [store.run(run).status for run in runs] == ["finished", "finished"]
    wait_until(lambda: caplog.text.count("no server answers") == 2)


def test_a_name_does_not_lose_the_owner_and_only_the_owner_deletes(config, tmp_path):
    store = RunStore(tmp_path / "runs")
    reservation = create_run(config, store.runs_dir, "ann@example.org")
    request_stop(reservation.run_dir)
    list(execute(reservation))
    store.describe(reservation.run_dir.name, "baseline", "")
    assert store.run(reservation.run_dir.name).owner == "ann@example.org"
    for stranger in ("ben@example.org", ""):
        with pytest.raises(RunError, match="only its owner"):
            store.delete(reservation.run_dir.name, stranger)
    store.delete(reservation.run_dir.name, "ann@example.org")
    assert store.runs() == []


def test_a_run_that_nobody_owns_is_deleted_by_nobody_who_signs_in(config, tmp_path):
    store = RunStore(tmp_path / "runs")
    run_dir = stopped_run(config, store.runs_dir)
    with pytest.raises(RunError, match="belongs to nobody"):
        store.delete(run_dir.name, "ann@example.org")


def test_a_deleted_run_goes_to_the_trash_and_comes_back(config, tmp_path):
    store = RunStore(tmp_path / "runs")
    reservation = create_run(config, store.runs_dir)
    with pytest.raises(RunError, match="stop it first"):
        store.delete(reservation.run_dir.name)
    request_stop(reservation.run_dir)
    list(execute(reservation))
    place = store.delete(reservation.run_dir.name)
    assert store.runs() == []
    place.rename(reservation.run_dir)
    assert [run.status for run in store.runs()] == ["cancelled"]


def test_resuming_what_was_deleted_makes_no_folder(config, tmp_path):
    store = RunStore(tmp_path / "runs")
    run_dir = stopped_run(config, store.runs_dir)
    store.delete(run_dir.name)
    with pytest.raises(RunError, match="no run in"):
        reopen_run(run_dir)
    assert not run_dir.exists()


def test_resuming_what_cannot_work_any_more_leaves_the_run_as_it_was(config, tmp_path):
    run_dir = stopped_run(config, tmp_path / "runs")
    shutil.rmtree(config.data)
    with pytest.raises(ConfigError, match="there is no folder"):
        reopen_run(run_dir)
    assert RunStore(tmp_path / "runs").run(run_dir.name).status == "stopped"


def test_a_run_of_the_app_reads_no_image_outside_its_folders(config, image_folder, tmp_path):
    outside = image_folder(tmp_path / "outside", {"red": 3})
    for file in (outside / "red").iterdir():
        (tmp_path / "images" / "red" / f"link-{file.name}").symlink_to(file)
    store = RunStore(tmp_path / "runs")
    counted = {}
    for roots in ((), (tmp_path / "images",)):
        worker = Worker(store.runs_dir, roots)
        run = worker.submit(config.model_copy(update={"seed": len(roots)}))
        wait_until(lambda run=run: store.run(run).status == "finished")
        counted[len(roots)] = sum(store.run(run).history.started["counts"].values())
    assert counted == {0: 23, 1: 20}

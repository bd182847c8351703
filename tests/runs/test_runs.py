"""Runs: their directories, how they end and continue, and the queue."""

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from finetune_core import paths
from finetune_core.errors import ConfigError, RunError, TrainingError
from finetune_core.runs import locks, record
from finetune_core.runs.history import History
from finetune_core.runs.locks import is_locked
from finetune_core.runs.log import format_log
from finetune_core.runs.record import create_run, execute, reopen_run
from finetune_core.runs.stop_request import read_stop_request, request_stop
from finetune_core.runs.store import RunStore, resolve_run_dir, summarize_run
from finetune_core.runs.worker import Worker
from finetune_core.training import events, loop
from finetune_core.training.loop import StopRequested
from tests.deadline import wait_until
from tests.factories import copy_run, image_folder, shared_images, tiny_config


@pytest.fixture
def config():
    return small_config()


def small_config(**changes):
    usual = {"strategy": "feature_extraction", "batch_size": 8}
    return tiny_config(shared_images(red=10, blue=10), **usual | changes)


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs")


@pytest.fixture
def queued(config, store):
    """Run that nobody trains yet."""
    reservation = create_run(config, store.runs_dir)
    yield reservation
    reservation.lock.release()


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    return stop_in_second_epoch(small_config(), tmp_path_factory.mktemp("runs"))


@pytest.fixture
def stopped(stopped_once, store):
    """Run that was stopped in its second epoch."""
    return copy_run(stopped_once, store.runs_dir)


def stop_in_second_epoch(config, runs, *, pause=False):
    reservation = create_run(config, runs)
    for event in execute(reservation):
        if isinstance(event, events.StepEnded) and event.epoch == 2 and event.step == 1:
            request_stop(reservation.run_dir, pause=pause)
    return reservation.run_dir


def fail_with(error):
    """Return a ``fit`` that raises an error after its first event."""

    def fit(*_, **__):
        yield events.Progress("index", 1, 1)
        raise error

    return fit


def test_a_run_that_waits_has_its_config_and_says_that_it_has_not_begun(queued, store):
    written = json.loads((queued.run_dir / "config.json").read_text())
    assert written["strategy"] == "feature_extraction"
    run = store.get_run(queued.run_dir.name)
    assert run.status == "queued"
    with pytest.raises(RunError, match="has not begun to train"):
        _ = run.started


class Named:
    """Path whose text is not the path: only ``os.fspath`` returns the path."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path


def test_a_run_is_named_by_anything_that_is_a_path(config):
    reservation = create_run(config, paths.runs_dir())
    assert resolve_run_dir(Named(reservation.run_dir.name)) == reservation.run_dir
    reservation.lock.release()


def test_what_is_yielded_is_what_is_written_and_a_finished_run_stays_so(queued, store):
    found = list(execute(queued))
    lines = [
        json.loads(line) for line in (queued.run_dir / "events.jsonl").read_text().splitlines()
    ]
    assert [{key: value for key, value in line.items() if key != "at"} for line in lines] == [
        event.to_json() for event in found
    ]
    run = store.get_run(queued.run_dir.name)
    assert run.status == "finished"
    row = json.loads(json.dumps(summarize_run(run)))
    assert row["epochs"] == 2
    assert row["best_epoch"] == found[-1].best_epoch
    assert row["trainable_parameters"] == 96 * 2 + 2
    with pytest.raises(RunError, match="is finished"):
        reopen_run(run.run_dir)
    assert not is_locked(run.run_dir)


def test_a_config_that_cannot_work_leaves_no_folder(config, tmp_path):
    with pytest.raises(ConfigError) as error:
        create_run(
            config.model_copy(update={"backbone": "nope", "data": "/not/there"}), tmp_path / "runs"
        )
    assert set(error.value.problems) == {"backbone", "data"}
    assert not (tmp_path / "runs").exists()


def test_a_name_that_is_taken_costs_its_run_nothing(config, tmp_path, monkeypatch):
    names = iter(["one", "one", "two"])
    monkeypatch.setattr(record, "secrets", SimpleNamespace(token_hex=lambda _: next(names)))
    monkeypatch.setattr("finetune_core.runs.record.time.strftime", lambda _: "20260101-000000")
    first, second = (create_run(config, tmp_path / "runs") for _ in range(2))
    assert [one.run_dir.name.rpartition("-")[2] for one in (first, second)] == ["one", "two"]
    assert (first.run_dir / "config.json").is_file()
    for one in (first, second):
        one.lock.release()
    monkeypatch.setattr(record, "secrets", SimpleNamespace(token_hex=lambda _: "one"))
    with pytest.raises(RunError, match="every name that was tried is taken"):
        create_run(config, tmp_path / "runs")
    assert (first.run_dir / "config.json").is_file()


@pytest.mark.parametrize(
    ("error", "message", "traceback"),
    [
        (TrainingError("it broke"), "it broke", False),
        (ValueError("oops"), "ValueError: oops", True),  # a bug
    ],
)
def test_a_failure_is_written_before_it_is_raised(
    queued, store, monkeypatch, error, message, traceback
):
    monkeypatch.setattr("finetune_core.runs.record.fit", fail_with(error))
    with pytest.raises(type(error)):
        list(execute(queued))
    run = store.get_run(queued.run_dir.name)
    assert (run.status, run.history.end["message"]) == ("failed", message)
    assert ("Traceback" in run.history.end["traceback"]) == traceback


def test_a_stop_ends_the_run_within_a_step(store):
    reservation = create_run(small_config(epochs=500), store.runs_dir)
    found = []
    for event in execute(reservation):
        found.append(event)
        if isinstance(event, events.StepEnded) and event.epoch == 2 and event.step == 1:
            request_stop(reservation.run_dir)
    assert isinstance(found[-1], events.RunStopped)
    assert isinstance(found[-2], events.StepEnded)
    assert (found[-2].epoch, found[-2].step) == (2, 1)


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


@pytest.mark.parametrize("name", ["", "..", "../images", "a/b", "missing"])
def test_run_names_cannot_leave_the_folder(tmp_path, name):
    (tmp_path / "runs").mkdir()
    with pytest.raises(RunError):
        RunStore(tmp_path / "runs").get_run(name)


@pytest.mark.train
def test_the_worker_trains_one_run_at_a_time_and_goes_on_after_a_failure(
    config, store, monkeypatch
):
    seen, fit = [], loop.fit

    def watched(config, *arguments, **named):
        seen.append([run.config.seed for run in store.list_runs() if run.status == "running"])
        if config.seed == 1:
            raise TrainingError("it broke")
        yield from fit(config, *arguments, **named)

    monkeypatch.setattr("finetune_core.runs.record.fit", watched)
    worker = Worker(store.runs_dir)
    ids = [worker.submit(config.model_copy(update={"seed": seed})) for seed in (0, 1, 2)]
    wait_until(lambda: not worker.list_queues())
    assert [store.get_run(one).status for one in ids] == ["finished", "failed", "finished"]
    assert seen == [[], [], []], "another run trains already"


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


@pytest.mark.train
@pytest.mark.parametrize(("pause", "status"), [(False, "stopped"), (True, "paused")])
def test_a_run_that_was_stopped_or_paused_goes_on(config, store, pause, status):
    run_dir = stop_in_second_epoch(config, store.runs_dir, pause=pause)
    run = store.get_run(run_dir.name)
    assert (run.status, run.is_resumable, run.is_evaluable) == (status, True, True)
    with (run_dir / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "StepEn')  # half a line, as of a crash
    reservation = reopen_run(run_dir)
    assert store.get_run(run_dir.name).status == "queued"
    for event in execute(reservation):
        if isinstance(event, events.StepEnded):
            assert store.get_run(run_dir.name).status == "running"
    run = store.get_run(run_dir.name)
    assert (run.status, run.is_resumable) == ("finished", False)
    steps = [(row["epoch"], row["step"]) for row in run.history.steps]
    assert steps == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_a_run_that_goes_on_is_not_opened_twice(stopped, monkeypatch):
    monkeypatch.setattr(locks, "LOCK_TIMEOUT", 0.1)
    reservation = reopen_run(stopped)
    with pytest.raises(RunError, match="going on already"):
        reopen_run(stopped)
    reservation.lock.release()


@pytest.fixture
def slow_queue(config, store, monkeypatch, started):
    """Worker whose first run trains until it is asked to stop; (worker, first run, config)."""

    def train_until_stopped(*_, **__):
        yield started(backbone=config.backbone, strategy=config.strategy)
        try:
            while True:
                time.sleep(0.005)
                yield events.Progress("decode", 1, 2)
        except StopRequested as stop:
            yield events.RunStopped(1, 0, 1.0, stop.pause)

    monkeypatch.setattr("finetune_core.runs.record.fit", train_until_stopped)
    worker = Worker(store.runs_dir)
    first = worker.submit(config)
    wait_until(lambda: store.get_run(first).history.started)
    yield worker, first, lambda seed: config.model_copy(update={"seed": seed})
    for run in store.list_runs():
        if run.is_active:
            request_stop(run.run_dir)
    wait_until(lambda: not worker.list_queues())


def test_a_second_click_starts_no_second_run_except_for_another_person(slow_queue, store):
    worker, _, again = slow_queue
    once, twice = worker.submit(again(1)), worker.submit(again(1))
    assert once == twice
    hers, his = (worker.submit(again(77), f"{name}@example.org") for name in ("ann", "ben"))
    assert hers != his
    assert worker.submit(again(77), "ben@example.org") == his
    assert len(store.list_runs()) == 4
    assert store.get_run(his).owner == "ben@example.org"


def test_waiting_runs_have_places_can_go_earlier_and_can_be_stopped(slow_queue):
    worker, first, again = slow_queue
    second, third = (worker.submit(again(seed)) for seed in (1, 2))
    assert (worker.find_position(second), worker.find_position(third)) == ((1, 2), (2, 2))
    worker.move_in_queue(third, -1)
    assert (worker.find_position(third), worker.find_position(second)) == ((1, 2), (2, 2))
    worker.move_in_queue(third, -1)
    worker.move_in_queue(third, 1)
    assert worker.find_position(third) == (2, 2)
    worker.move_in_queue(third, 1)
    assert worker.list_queues() == [[first, second, third]]
    worker.cancel(second)
    assert worker.find_position(third) == (1, 1)
    worker.stop(third)
    assert worker.find_position(third) is None


def test_a_run_that_is_stopped_while_it_waits_is_cancelled_and_can_be_resumed(slow_queue, store):
    worker, first, again = slow_queue
    ids = [worker.submit(again(seed)) for seed in (1, 2, 3)]
    worker.cancel(ids[0])
    worker.stop(ids[1])
    request_stop(store.runs_dir / ids[2])  # which the queue sees when it is its turn
    for run_id in ids[:2]:
        run = store.get_run(run_id)
        assert (run.status, run.is_active, run.is_evaluable, run.is_resumable) == (
            "cancelled",
            False,
            False,
            True,
        )
        assert format_log(run.history.notable)[-1].endswith("Cancelled before it began.")
    worker.resume(ids[0])
    assert store.get_run(ids[0]).status == "queued"
    worker.cancel(ids[0])
    with pytest.raises(RunError, match="does not wait"):
        worker.cancel(first)
    assert read_stop_request(store.runs_dir / first) == ""
    request_stop(store.runs_dir / first)
    wait_until(lambda: not worker.list_queues())
    assert (store.get_run(ids[2]).status, store.get_run(ids[2]).is_evaluable) == (
        "cancelled",
        False,
    )


@pytest.mark.parametrize("end", ["cancel", "stop"])
def test_a_run_whose_request_cannot_be_written_still_waits(slow_queue, monkeypatch, end):
    worker, _, again = slow_queue
    second = worker.submit(again(1))

    def full(*_, **__):
        raise RunError("no room")

    with monkeypatch.context() as patch:
        patch.setattr("finetune_core.runs.worker.request_stop", full)
        with pytest.raises(RunError, match="no room"):
            getattr(worker, end)(second)
    assert worker.find_position(second) == (1, 1)
    getattr(worker, end)(second)
    assert worker.find_position(second) is None


def test_one_stop_ends_a_run_that_is_queued_and_one_that_has_begun(slow_queue, store):
    worker, first, again = slow_queue
    second = worker.submit(again(1))
    worker.stop(second, pause=True)
    assert store.get_run(second).status == "paused"
    worker.stop(first)
    wait_until(lambda: not store.get_run(first).is_active)
    assert store.get_run(first).status == "stopped"


def test_a_pause_becomes_a_stop_even_while_the_last_checkpoint_is_written(queued, monkeypatch):
    saving = loop._Trainer.save

    def slow(self, at):
        if read_stop_request(queued.run_dir):
            request_stop(queued.run_dir)
        return saving(self, at)

    monkeypatch.setattr(loop._Trainer, "save", slow)
    for event in execute(queued):
        if isinstance(event, events.StepEnded):
            request_stop(queued.run_dir, pause=True)
    assert event == events.RunStopped(1, 0, event.seconds)
    assert read_stop_request(queued.run_dir) == "stop"


def test_a_run_that_is_stopped_again_before_it_goes_on_keeps_its_time(stopped, store):
    took = History(stopped).refresh().epochs[-1]["seconds"]
    reservation = reopen_run(stopped)
    request_stop(stopped)
    assert list(execute(reservation)) == [events.RunStopped(0, 0, 0.0)]
    run = store.get_run(stopped.name)
    assert (run.status, run.is_evaluable) == ("stopped", True)
    assert run.history.end["seconds"] >= took > 0


def test_a_run_is_resumed_while_its_last_process_still_lets_go_of_it(stopped, monkeypatch):
    held = FileLock(stopped / "lock", thread_local=False)
    held.acquire()
    taking = locks.FileLock.acquire

    def acquire(lock, **options):
        """Wait for a lock that is released meanwhile."""
        threading.Timer(0.1, held.release).start()
        return taking(lock, **options)

    monkeypatch.setattr(locks, "LOCK_TIMEOUT", 300)
    monkeypatch.setattr(locks.FileLock, "acquire", acquire)
    reservation = reopen_run(stopped)
    assert reservation.resume
    reservation.lock.release()


def test_those_who_look_at_one_lock_do_not_take_each_other_for_its_owner(stopped):
    seen = []
    looking = [
        threading.Thread(target=lambda: seen.extend(is_locked(stopped) for _ in range(50)))
        for _ in range(4)
    ]
    for thread in looking:
        thread.start()
    for thread in looking:
        thread.join()
    assert seen == [False] * 200


def test_the_worker_resumes_what_was_stopped(stopped, store):
    worker = Worker(store.runs_dir)
    worker.resume(stopped.name)
    wait_until(lambda: store.get_run(stopped.name).status == "finished")


def test_a_run_has_a_name_a_note_and_tags_that_are_checked(queued, store):
    run_id, about = queued.run_dir.name, queued.run_dir / "about.json"
    about.write_text('{"name": "earlier", "note": "", "owner": "me"}')
    assert (store.get_run(run_id).name, store.get_run(run_id).tags) == ("earlier", ())
    tags = [" first   try ", "", "<b>", "first try"]
    store.set_about(run_id, " baseline ", "<b>first</b>", tags)
    run = store.get_run(run_id)
    assert (run.name, run.note, run.owner) == ("baseline", "<b>first</b>", "me")
    assert run.tags == ("first try", "<b>")
    for wrong in (["x" * 41], [str(number) for number in range(21)]):
        with pytest.raises(RunError, match="at most"):
            store.set_about(run_id, "now", "", wrong)
    assert store.get_run(run_id).tags == ("first try", "<b>")
    for damaged in ('{"tags": "no list"}', '{"tags": [1]}', '{"tags": ["%s"]}' % ("x" * 2000)):
        about.write_text(damaged)
        assert (store.get_run(run_id).tags, len(store.get_run(run_id).notices)) == ((), 1)


TRAIN_AND_END = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from finetune_core.config import make_config, read_config
from finetune_core.runs.store import RunStore
from finetune_core.runs.worker import Worker
runs = Path(sys.argv[2])
name = Worker(runs).submit(make_config(read_config(Path(sys.argv[1]))))
while not RunStore(runs).get_run(name).history.epochs:
    time.sleep(0.01)
"""


@pytest.mark.processes
def test_a_server_that_is_ended_in_good_order_leaves_interrupted_runs(store, tmp_path):
    settings = tmp_path / "config.json"
    settings.write_text(small_config(epochs=1000, cache="off").model_dump_json())
    # However it ends: a thread in the middle of torch's work may break the last breath of it off.
    subprocess.run(
        [sys.executable, "-c", TRAIN_AND_END, settings, store.runs_dir],
        timeout=600,
        stderr=subprocess.DEVNULL,
    )
    [run] = store.list_runs()
    assert (run.status, run.is_resumable) == ("interrupted", True)


def test_what_python_says_at_its_end_is_no_failure_of_the_run(queued, store, monkeypatch):
    error = RuntimeError("cannot schedule new futures after shutdown")
    monkeypatch.setattr("finetune_core.runs.record.fit", fail_with(error))
    with pytest.raises(TrainingError, match="resume it"):
        list(execute(queued))
    assert store.get_run(queued.run_dir.name).status == "interrupted"


@pytest.mark.train
def test_what_comes_after_a_run_may_warn_and_the_queue_goes_on(config, store, caplog):
    result = []

    def after(run_dir):
        result.append(run_dir.name)
        return "no server answers"

    worker = Worker(store.runs_dir, after=after)
    runs = [worker.submit(config.model_copy(update={"seed": seed})) for seed in range(2)]
    wait_until(lambda: not worker.list_queues())
    assert result == runs
    assert [store.get_run(run).status for run in runs] == ["finished", "finished"]
    assert caplog.text.count("no server answers") == 2


def test_a_name_does_not_lose_the_owner_and_only_the_owner_deletes(config, store):
    reservation = create_run(config, store.runs_dir, "ann@example.org")
    request_stop(reservation.run_dir)
    list(execute(reservation))
    store.set_about(reservation.run_dir.name, "baseline", "")
    assert store.get_run(reservation.run_dir.name).owner == "ann@example.org"
    for stranger in ("ben@example.org", ""):
        with pytest.raises(RunError, match="only its owner"):
            store.delete(reservation.run_dir.name, stranger)
    store.delete(reservation.run_dir.name, "ann@example.org")
    assert store.list_runs() == []


def test_a_deleted_run_goes_to_the_trash_and_comes_back(queued, store):
    with pytest.raises(RunError, match="belongs to nobody"):
        store.delete(queued.run_dir.name, "ann@example.org")
    with pytest.raises(RunError, match="stop it first"):
        store.delete(queued.run_dir.name)
    request_stop(queued.run_dir)
    list(execute(queued))
    place = store.delete(queued.run_dir.name)
    assert store.list_runs() == []
    with pytest.raises(RunError, match="no run in"):
        reopen_run(queued.run_dir)
    assert not queued.run_dir.exists()
    place.rename(queued.run_dir)
    assert [run.status for run in store.list_runs()] == ["cancelled"]


def test_resuming_what_cannot_work_any_more_leaves_the_run_as_it_was(store, tmp_path):
    data = image_folder(tmp_path / "images", {"red": 10, "blue": 10})
    run_dir = stop_in_second_epoch(
        small_config().model_copy(update={"data": str(data)}), store.runs_dir
    )
    shutil.rmtree(data)
    with pytest.raises(ConfigError, match="there is no folder"):
        reopen_run(run_dir)
    assert store.get_run(run_dir.name).status == "stopped"


@pytest.mark.train
def test_a_run_of_the_app_reads_no_image_outside_its_folders(store, tmp_path):
    data = image_folder(tmp_path / "images", {"red": 10, "blue": 10})
    for file in Path(image_folder(tmp_path / "outside", {"red": 3}), "red").iterdir():
        (data / "red" / f"link-{file.name}").symlink_to(file)
    counted = {}
    for roots in ((), (data,)):
        worker = Worker(store.runs_dir, roots)
        changed = {"seed": len(roots), "data": str(data)}
        run = worker.submit(small_config().model_copy(update=changed))
        wait_until(lambda worker=worker: not worker.list_queues())
        counted[len(roots)] = sum(store.get_run(run).history.started["counts"].values())
    assert counted == {0: 23, 1: 20}

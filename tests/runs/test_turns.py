"""A run waits while another program uses its device, reports that, and can be stopped meanwhile."""

import os
import threading

import pytest
import torch

from finetune_core import paths
from finetune_core.data.dataset import load_dataset
from finetune_core.errors import TrainingError
from finetune_core.runs.log import format_log
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import RunStore
from finetune_core.runs.turns import wait_for_turn
from finetune_core.training import events
from finetune_core.training.devices import turn as device_turn
from finetune_core.training.devices.speed_book import SpeedBook
from finetune_core.training.devices.turn import Turn
from finetune_core.training.forecast.lr_finder import find_rate
from finetune_core.training.forecast.timing import calibrate
from finetune_core.work import finish
from tests.deadline import wait_until
from tests.factories import shared_images, tiny_config


@pytest.fixture
def config():
    return tiny_config(
        shared_images(red=10, blue=10),
        batch_size=8,
        epochs=1,
        strategy="feature_extraction",
        device="cpu",
    )


@pytest.fixture
def looks(monkeypatch):
    """Record at each look whether the turn had come, with short waits between looks."""
    found, come = [], Turn.acquire

    def note(turn):
        found.append(come(turn))
        return found[-1]

    monkeypatch.setattr(device_turn, "_POLL", 0.01)
    monkeypatch.setattr(Turn, "acquire", note)
    return found


def test_waiting_is_a_status_and_one_line_of_the_log_however_long_it_takes(
    config, hold_device, looks
):
    _, line = hold_device("cpu")
    reservation, store = create_run(config, paths.runs_dir()), RunStore(paths.runs_dir())
    seen = []
    thread = threading.Thread(target=lambda: seen.extend(execute(reservation)))
    thread.start()
    wait_until(lambda: looks.count(False) >= 50)
    run = store.get_run(reservation.run_dir.name)
    assert (run.status, run.is_active, run.history.is_waiting_for_device) == ("waiting", True, True)
    assert len((reservation.run_dir / "events.jsonl").read_text().splitlines()) == 1
    line.send("let go")
    thread.join()
    assert seen[:2] == [events.Progress("device", 0, 0), events.Progress("prepare", 0, 0)]
    assert store.get_run(reservation.run_dir.name).status == "finished"
    assert sum("Waiting" in line for line in format_log(run.history.notable)) == 1


def use_processor(line, home):
    os.environ["THAW_HOME"] = str(home)  # where the lock is
    turn = Turn("cpu")  # lets go once nothing refers to it
    assert turn.acquire()
    line.send("taken")
    line.poll(300)


@pytest.mark.processes
def test_a_program_that_is_killed_holds_up_nobody(config, processes, home):
    line, far_end = processes.Pipe()
    process = processes.Process(target=use_processor, args=(far_end, home))
    process.start()
    assert line.poll(300)
    stream = execute(create_run(config, paths.runs_dir()))
    assert next(stream) == events.Progress("device", 0, 0)
    process.kill()
    assert isinstance(list(stream)[-1], events.RunFinished)


def test_a_waiting_run_can_be_stopped(config, hold_device, looks):
    hold_device("cpu")
    reservation = create_run(config, paths.runs_dir())
    stream = execute(reservation)
    next(stream)
    request_stop(reservation.run_dir, pause=True)
    end = list(stream)[-1]
    assert isinstance(end, events.RunStopped)
    assert end.paused


def test_two_threads_of_a_program_take_turns(looks):
    order = []

    def work(name):
        def result():
            order.append(name)
            wait_until(lambda: False in looks)  # the other one is there, and may not begin
            order.append(name)
            yield events.Progress("decode", 1, 1)

        list(wait_for_turn(result(), "cpu"))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order in (["a", "a", "b", "b"], ["b", "b", "a", "a"])


def test_where_no_lock_can_be_written_a_run_does_not_wait(home):
    home.rmdir()
    home.write_text("a file in the folder's place")
    assert list(wait_for_turn(iter([events.RunReopened()]), "cpu")) == [events.RunReopened()]


@pytest.fixture
def on_gpu(gpu, monkeypatch):
    """Record what was still on the GPU each time that its memory was released."""
    left = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 1)
    monkeypatch.setattr(
        torch.cuda,
        "empty_cache",
        lambda: left.append([one() for kind, one in gpu if kind == "cuda" and one()]),
    )
    return left


@pytest.mark.parametrize(
    ("end", "cache"),
    [("finished", "auto"), ("finished", "off"), ("stopped", "off"), ("failed", "auto")],
)
def test_a_run_leaves_nothing_on_the_gpu_however_it_ends(
    config, gpu, on_gpu, monkeypatch, end, cache
):
    def fail(*_):
        try:
            raise ValueError("a number")
        except ValueError:
            raise TrainingError("The predictions cannot be kept.") from None

    reservation = create_run(
        config.model_copy(update={"device": "auto", "cache": cache}), paths.runs_dir()
    )
    caught = None
    if end == "failed":
        monkeypatch.setattr("finetune_core.training.loop.add_predictions", fail)
    try:
        for event in execute(reservation):
            if end == "stopped" and isinstance(event, events.StepEnded):
                request_stop(reservation.run_dir)
    except TrainingError as error:
        caught = error  # still known: whoever shows it holds it
    assert RunStore(paths.runs_dir()).get_run(reservation.run_dir.name).status == end
    assert (caught is not None) == (end == "failed")
    assert [kind for kind, _ in gpu].count("cuda")
    assert on_gpu == [[]]


@pytest.mark.train
@pytest.mark.parametrize("work", ["rate", "calibration"])
def test_trials_leave_nothing_on_the_gpu(config, gpu, on_gpu, work):
    config = config.model_copy(update={"device": "auto"})
    finish(
        find_rate(config)
        if work == "rate"
        else calibrate([config], load_dataset(config.data), SpeedBook())
    )
    assert [kind for kind, _ in gpu].count("cuda")
    assert on_gpu == [[]]

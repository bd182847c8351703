"""Tests that work waits for its turn on a device, says so, and can be stopped meanwhile."""

import threading

import pytest

from finetune_core.data.dataset import load_dataset
from finetune_core.errors import ConfigError
from finetune_core.jobs import Jobs
from finetune_core.training.devices import memory as device_memory
from finetune_core.training.devices import turn as device_turn
from finetune_core.training.devices.speed_book import SpeedBook
from finetune_core.training.devices.turn import Turn, run_in_turn
from finetune_core.training.forecast.lr_finder import find_rate
from finetune_core.training.forecast.timing import calibrate
from finetune_core.work import Step, finish
from tests.deadline import wait_until
from tests.drain import drain
from tests.factories import tiny_config

WAITS = Step(0, None, "device")


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(device_turn, "_POLL", 0.05)


@pytest.fixture
def config():
    return tiny_config(batch_size=10, strategy="feature_extraction", device="cpu")


@pytest.mark.train
def test_the_rate_finder_waits_for_another_program(config, hold_device):
    _, line = hold_device("cpu")
    work = find_rate(config)
    assert [next(work) for _ in range(3)] == [WAITS] * 3
    line.send("let go")
    steps, curve = drain(work)
    assert curve.suggestion
    assert steps[-1].phase == "rates"


@pytest.mark.train
def test_calibration_waits_for_another_program_and_then_says_how_far_it_is(config, hold_device):
    _, line = hold_device("cpu")
    dataset, book = load_dataset(config.data), SpeedBook()
    work = calibrate([config], dataset, book)
    assert [next(work) for _ in range(3)] == [Step(0, 1), WAITS, WAITS]
    assert not book.has_all_speeds(config, dataset)
    line.send("let go")
    steps = drain(work)[0]
    assert [step for step in steps if step != WAITS] == [Step(0, 1), Step(1, 1)]
    assert book.has_all_speeds(config, dataset)


def test_what_cannot_work_is_refused_before_it_waits(config, hold_device, tmp_path):
    hold_device("cpu")
    with pytest.raises(ConfigError):
        next(find_rate(config.model_copy(update={"data": str(tmp_path / "gone")})))


def test_a_job_that_waits_is_stopped_and_loses_its_place(config, hold_device):
    _, line = hold_device("cpu")
    job = Jobs().start("rates:", "Trying learning rates", lambda: find_rate(config))
    wait_until(lambda: job.progress == WAITS)
    job.stop()
    assert job.wait(300)
    assert job.result is None
    line.send("let go")
    with Turn("cpu") as turn:
        wait_until(turn.acquire)


def test_who_waits_comes_before_who_has_just_had_it():
    """A queue of runs takes the device again at once, and yet a waiting program is next."""
    order, first = [], Turn("cpu")
    assert first.acquire()
    work = run_in_turn(noted(order), "cpu")
    assert next(work) == WAITS
    first.release()
    again = Turn("cpu")
    assert not again.acquire(at_once=True)
    assert not again.acquire()
    thread = threading.Thread(
        target=lambda: (wait_until(again.acquire), order.append("again"), again.release())
    )
    thread.start()
    finish(work)
    thread.join()
    assert order == ["waited", "again"]


def noted(order):
    order.append("waited")
    yield Step(1, 1)


def test_another_kind_of_device_is_free(hold_device):
    hold_device("cuda")
    with Turn("cuda") as gpu, Turn("cpu") as processor:
        assert not gpu.acquire(at_once=True)
        assert processor.acquire(at_once=True)


@pytest.mark.train
@pytest.mark.parametrize(("kind", "library"), [("cuda", "torch.cuda"), ("mps", "torch.mps")])
def test_its_memory_is_handed_back_when_the_work_has_ended_well_or_badly(
    kind, library, monkeypatch
):
    found = []
    monkeypatch.setattr(
        f"{library}.empty_cache",
        lambda: found.append((list(alive), Turn(kind).acquire(at_once=True))),
    )
    alive = {}

    class Network:
        def __init__(self):
            self.part = self  # a cycle, as modules have
            alive[id(self)] = self.size = 1

        def __del__(self):
            del alive[id(self)]

    def trains(ends):
        network = Network()
        yield Step(network.size, 2)
        if ends == "badly":
            try:
                raise ValueError("a step")
            except ValueError:
                raise RuntimeError("the run") from None
        if ends == "stopped":
            yield Step(2, 2)

    finish(run_in_turn(trains("well"), kind))
    with pytest.raises(RuntimeError) as caught:
        finish(run_in_turn(trains("badly"), kind))
    stopped = run_in_turn(trains("stopped"), kind)
    next(stopped), next(stopped)
    stopped.close()
    assert str(caught.value) == "the run"  # it is still known
    assert found == [([], False)] * 3, (
        "what is alive, and whether others could have the device already"
    )


def test_a_processor_keeps_nothing_back(monkeypatch):
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: pytest.fail("there is no GPU"))
    device_memory.release_memory("cpu")

"""The queue of an executor that trains several runs at a time, whose slots come and go."""

from threading import Event, Lock

import pytest

from finetune_core.errors import ConfigError
from finetune_core.runs.store import RunStore
from finetune_core.runs.worker import Worker
from tests.deadline import wait_until
from tests.factories import shared_images, tiny_config


class Somewhere:
    """Executor with a given number of slots, whose runs go on until they are released.

    Attributes:
        most: largest number of slots that were taken at a time.
    """

    remote = True

    def __init__(self, places):
        self.free, self.going, self.let_go, self.lock = places, [], {}, Lock()
        self.taken = self.most = 0

    def queue_name(self, config):
        return "somewhere"

    def slots(self, queue):
        return self.free

    def slots_needed(self, devices):
        return devices

    def check(self, config, devices):
        if devices > self.free:
            raise ConfigError({"devices": "too many"})

    def max_devices(self):
        return 1

    def execute(self, reservation, roots=()):
        name, end = reservation.run_dir.name, Event()
        with self.lock:
            self.going.append(name)
            self.taken += reservation.devices
            self.most = max(self.most, self.taken)
            self.let_go[name] = end
        end.wait(300)
        with self.lock:
            self.going.remove(name)
            self.taken -= reservation.devices
        reservation.lock.release()
        yield from ()

    def has_ended(self):
        """Release all runs, and return whether all have ended."""
        with self.lock:
            for end in self.let_go.values():
                end.set()
            return not self.going


def place_config(seed=0):
    return tiny_config(shared_images(red=6, blue=6), seed=seed)


@pytest.fixture
def submitted(tmp_path):
    """Make (worker, executor, ids of submitted runs)."""
    executors = []

    def make(places, runs):
        executors.append(Somewhere(places))
        worker = Worker(tmp_path / "runs", executor=executors[-1])
        return worker, executors[-1], [worker.submit(place_config(seed)) for seed in range(runs)]

    yield make
    for executor in executors:
        executor.free = 100
        wait_until(executor.has_ended)


def test_as_many_train_as_there_are_places_and_the_others_wait_in_their_order(submitted):
    worker, executor, ids = submitted(2, 4)
    wait_until(lambda: sorted(executor.going) == sorted(ids[:2]))
    assert worker.list_queues()[0][2:] == ids[2:]
    assert worker.find_position(ids[3]) == (2, 2)
    worker.move_in_queue(ids[3], -1)
    executor.let_go[ids[0]].set()
    wait_until(lambda: sorted(executor.going) == sorted([ids[1], ids[3]]))
    assert worker.find_position(ids[2]) == (1, 1)


def test_a_run_on_several_devices_waits_for_as_many_places_and_is_not_overtaken(submitted):
    worker, executor, ids = submitted(2, 2)
    wait_until(lambda: len(executor.going) == 2)
    wide, after = worker.submit(place_config(7), devices=2), worker.submit(place_config(8))
    executor.let_go[ids[0]].set()
    wait_until(lambda: ids[0] not in executor.going)
    executor.let_go[ids[1]].set()
    wait_until(lambda: executor.going == [wide])
    executor.let_go[wide].set()
    wait_until(lambda: executor.going == [after])
    assert executor.most == 2


def test_what_the_executor_refuses_is_no_run(submitted):
    worker, executor, ids = submitted(1, 1)
    wait_until(lambda: executor.going == ids)
    with pytest.raises(ConfigError, match="too many"):
        worker.submit(place_config(7), devices=2)
    wait_until(executor.has_ended)
    wait_until(lambda: not worker.list_queues())
    with pytest.raises(ConfigError, match="too many"):
        worker.resume(ids[0], devices=2)
    assert [run.run_id for run in RunStore(worker.runs_dir).list_runs()] == ids


def test_a_place_that_comes_later_is_used(submitted):
    worker, executor, ids = submitted(1, 3)
    wait_until(lambda: executor.going == ids[:1])
    executor.free = 3
    wait_until(lambda: sorted(executor.going) == sorted(ids))
    assert worker.find_position(ids[2]) is None


def test_a_run_that_waits_is_cancelled_without_the_executor(submitted):
    worker, executor, ids = submitted(1, 2)
    wait_until(lambda: executor.going == ids[:1])
    worker.cancel(ids[1])
    assert RunStore(worker.runs_dir).get_run(ids[1]).status == "cancelled"
    assert ids[1] not in executor.let_go

import threading

import pytest

from finetune_core.errors import DataError
from finetune_core.jobs import Jobs
from finetune_core.work import Step


@pytest.fixture
def gate():
    opened = threading.Event()
    yield opened
    opened.set()


def counting(gate, closed=None):
    """Return work of three steps, the second of which waits for the gate."""

    def make():
        try:
            yield Step(1, 3)
            assert gate.wait(300)
            yield Step(2, 3, "probe")
            yield Step(3, 3, "probe")
            return "result"
        finally:
            if closed:
                closed.set()

    return make


def test_work_goes_on_in_its_thread_and_its_result_is_kept(gate):
    job = Jobs().start("a", "Counting", counting(gate))
    assert job.is_running
    assert not job.wait(0)
    gate.set()
    assert job.wait(300)
    assert (job.result, job.error, job.progress, job.is_stopping) == (
        "result",
        None,
        Step(3, 3, "probe"),
        False,
    )


def test_the_same_work_is_done_once_for_all_who_ask(gate):
    jobs = Jobs()
    first = jobs.start("a", "Counting", counting(gate))
    assert jobs.start("a", "Counting", counting(gate)) is first
    other = jobs.start("b", "Counting", counting(gate))
    assert other is not first
    assert jobs.list_running() == [first, other]
    assert jobs.find("a") is first
    gate.set()
    assert first.wait(300)
    assert other.wait(300)
    assert jobs.list_running() == []
    assert jobs.find("a") is None
    assert jobs.start("a", "Counting", counting(gate)) is not first


def test_stop_ends_work_after_its_step_and_closes_it(gate):
    closed = threading.Event()
    job = Jobs().start("a", "Counting", counting(gate, closed))
    job.stop()
    gate.set()
    assert job.wait(300)
    assert closed.is_set()
    assert job.is_stopping
    assert job.result is None


def test_what_work_raises_is_kept_for_those_who_look_on():
    def broken():
        yield Step(0, 1)
        raise DataError("there is no such folder")

    def cannot_begin():
        raise KeyError("x")

    jobs = Jobs()
    job = jobs.start("a", "Counting", broken)
    assert job.wait(300)
    assert isinstance(job.error, DataError)
    job = jobs.start("a", "Counting", cannot_begin)
    assert job.wait(300)
    assert isinstance(job.error, KeyError)


def test_a_stop_that_comes_after_the_last_step_takes_nothing_back(gate):
    reached = threading.Event()

    def make():
        yield Step(1, 1)
        reached.set()
        assert gate.wait(300)
        return "result"

    job = Jobs().start("a", "Counting", make)
    assert reached.wait(300)
    job.stop()
    gate.set()
    assert job.wait(300)
    assert (job.result, job.is_stopping) == ("result", False)

import threading

import pytest

from finetune_core.inspection import background
from finetune_core.inspection.background import run_in_background
from finetune_core.work import Step, finish


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(background, "_EVERY", 0.01)


def test_yields_while_it_waits_and_hands_the_result_on():
    go_on, done = threading.Event(), [0]

    def call():
        assert go_on.wait(300)
        return "result"

    work = run_in_background("map", call, lambda: done[0], 7)
    assert next(work) == Step(0, 7, "map")
    done[0] = 3
    assert next(work) == Step(3, 7, "map")
    go_on.set()
    assert finish(work) == "result"


def test_the_call_runs_in_a_thread_of_that_name():
    assert finish(run_in_background("labels", lambda: threading.current_thread().name)).startswith(
        "labels"
    )


def test_what_the_call_raises_is_raised_where_it_is_waited_for():
    go_on = threading.Event()

    def call():
        assert go_on.wait(300)
        raise ZeroDivisionError("broken")

    work = run_in_background("map", call)
    next(work)
    go_on.set()
    with pytest.raises(ZeroDivisionError, match="broken"):
        list(work)


def test_nothing_begins_before_the_first_step():
    begun = []
    work = run_in_background("map", lambda: begun.append(1))
    assert begun == []
    list(work)
    assert begun == [1]


def test_closing_leaves_the_thread_to_finish():
    go_on, ended = threading.Event(), threading.Event()

    def call():
        go_on.wait(300)
        ended.set()

    work = run_in_background("map", call)
    next(work)
    work.close()
    assert not ended.is_set(), "it was waited for"
    go_on.set()
    assert ended.wait(300)

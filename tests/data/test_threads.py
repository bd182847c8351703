import os
import threading

import pytest
from threadpoolctl import ThreadpoolController, threadpool_info

from finetune_core.data import threads
from finetune_core.data.threads import limit_blas_threads, map_adaptively, map_in_threads


@pytest.mark.parametrize(("cores", "threads"), [(1, 3), (12, 14), (64, 32)])
def test_files_are_read_in_two_threads_more_than_there_are_cores_for_this_process(
    monkeypatch, cores, threads
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(cores)), raising=False)
    together, readers = threading.Barrier(threads), set()

    def read(item):
        readers.add(threading.get_ident())
        together.wait(300)  # nobody passes before that many have come
        return -item

    items = range(2 * threads)
    assert list(map_in_threads(read, items)) == [(item, -item) for item in items]
    assert len(readers) == threads


@pytest.mark.parametrize(
    ("wall", "busy", "here"),
    [(0.0004, 0.0003, True), (0.004, 0.003, False), (0.004, 0.0003, False)],
    ids=["small", "large", "waited for"],
)
def test_items_are_spread_over_threads_where_they_are_large_or_waited_for(
    monkeypatch, wall, busy, here
):
    clocks = {"perf_counter": 0.0, "thread_time": 0.0}
    for clock in clocks:
        monkeypatch.setattr(threads, clock, lambda clock=clock: clocks[clock])
    used = set()

    def work(item):
        used.add(threading.get_ident())
        clocks["perf_counter"] += wall
        clocks["thread_time"] += busy
        return -item

    assert list(map_adaptively(work, range(3000))) == [(item, -item) for item in range(3000)]
    assert (used == {threading.get_ident()}) == here


def test_what_is_left_is_not_begun_once_nobody_takes_it():
    begun = []
    taking = map_adaptively(begun.append, range(5000))
    for _ in range(40):
        next(taking)
    taking.close()
    assert len(begun) < 500


def blas_threads():
    return {
        library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"
    }


def test_whoever_is_the_last_to_need_one_blas_thread_gives_the_others_back():
    """Two uses overlap, as those of two sessions do, and neither contains the other."""
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        one, other = limit_blas_threads(), limit_blas_threads()
        one.__enter__()
        other.__enter__()
        assert blas_threads() == {1}
        one.__exit__(None, None, None)
        assert blas_threads() == {1}
        other.__exit__(None, None, None)
        assert blas_threads() == {2}

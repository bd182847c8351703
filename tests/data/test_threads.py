import os
import threading

import pytest

from finetune_core.data.threads import in_threads


@pytest.mark.parametrize(("cores", "threads"), [(1, 3), (12, 14), (64, 32)])
def test_files_are_read_in_two_threads_more_than_there_are_cores_for_this_process(monkeypatch, cores, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(cores)), raising=False)
    together, readers = threading.Barrier(threads), set()

    def read(item):
        readers.add(threading.get_ident())
        together.wait(300)  # nobody passes before that many have come
        return -item

    items = range(2 * threads)
    assert list(in_threads(read, items)) == [(item, -item) for item in items]
    assert len(readers) == threads

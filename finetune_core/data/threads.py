"""Parallel work on many files, or on parts of an array.

Decoders and numpy release the interpreter lock, so threads are enough.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from threading import Lock
from time import perf_counter, thread_time
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 4  # results per thread that may wait for the consumer
_TIMED, _PORTION = 32, 992  # items that are timed, and items that the result holds for
_SMALL = 1e-3  # seconds of processor time per item
_MOST_THREADS = 32  # each thread holds a decoded image, up to a quarter of a gigabyte


def count_usable_cores() -> int:
    """Return the number of cores that this process may use.

    In a container this may be fewer than the machine has.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 2


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item]
) -> Generator[tuple[Item, Result], None, None]:
    """Yield (item, function(item)) in order, computed in two threads more than there are cores.

    Some threads wait for the disk. Closing the generator drops items that have not begun. A slow
    consumer makes the threads wait.
    """
    workers = min(_MOST_THREADS, count_usable_cores() + 2)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) >= workers * _AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def map_adaptively(
    function: Callable[[Item], Result], items: Iterable[Item]
) -> Generator[tuple[Item, Result], None, None]:
    """Yield (item, function(item)) in order, in this thread or as ``map_in_threads`` does.

    This thread is quicker for small images: threads take longer to hand each other the interpreter
    lock. The choice is measured again every thousand items, so files that are waited for are read
    by several threads.
    """
    left = iter(items)
    while sample := list(islice(left, _TIMED)):
        wall = busy = 0.0
        for item in sample:
            began, busy_before = perf_counter(), thread_time()
            result = function(item)
            wall, busy = wall + perf_counter() - began, busy + thread_time() - busy_before
            yield item, result
        portion = islice(left, _PORTION)
        if busy < _SMALL * len(sample) and wall < 2 * busy:
            yield from ((item, function(item)) for item in portion)
        else:
            yield from map_in_threads(function, portion)


class _BlasLimit:
    """Limit of BLAS to one thread, shared by its users.

    The limit holds for the whole process. The first user sets it, and the last one restores the
    previous state.
    """

    def __init__(self) -> None:
        self._lock, self._users = Lock(), 0
        self._limit: Any = None

    def acquire(self) -> None:
        """Set the limit for the first user."""
        with self._lock:
            if self._users == 0:
                self._limit = ThreadpoolController().limit(limits=1, user_api="blas")
            self._users += 1

    def release(self) -> None:
        """Restore the previous state after the last user."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._limit.restore_original_limits()


_blas_limit = _BlasLimit()


@contextmanager
def limit_blas_threads() -> Iterator[None]:
    """Compute BLAS products in the calling thread.

    Sharing a product of small matrices among threads takes longer than computing it.
    """
    _blas_limit.acquire()
    try:
        yield
    finally:
        _blas_limit.release()

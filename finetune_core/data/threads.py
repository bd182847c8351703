"""Reading many files at once. Decoders release the interpreter lock, so threads are enough."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 4  # results a thread that may wait for whoever takes them
_MOST_THREADS = 32  # each holds a decoded image, up to a quarter of a gigabyte


def usable_cores() -> int:
    """Processor cores that this process may use: in a container, fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 2


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Generator[tuple[Item, Result], None, None]:
    """(item, function(item)), in order, in two threads more than there are cores: some wait for the disk. Closing the generator drops
    what has not begun; a slow taker holds the threads up."""
    workers = min(_MOST_THREADS, usable_cores() + 2)
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

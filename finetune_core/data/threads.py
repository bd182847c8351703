"""Reading many files at once. Decoders release the interpreter lock, so threads are enough."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
    """(item, function(item)), in order. Closing the iterator drops what has not begun."""
    items = list(items)
    pool = ThreadPoolExecutor(max_workers=min(8, (os.cpu_count() or 2) + 2), thread_name_prefix="decode")
    try:
        yield from zip(items, pool.map(function, items), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)

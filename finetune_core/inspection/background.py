"""Long calls into libraries that report no progress: made in a thread, while whoever waits can draw, or go away."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from finetune_core.work import Step, Work

Result = TypeVar("Result")

_EVERY = 0.2  # seconds


def in_background(
    phase: str, call: Callable[[], Result], done: Callable[[], int] = lambda: 0, total: int = 1
) -> Work[Result]:
    """Steps of the phase until the call has returned; returns its result, raises what it raised.

    Closing the generator leaves the thread to finish on its own.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix=phase)
    future = pool.submit(call)
    pool.shutdown(wait=False)
    while not wait([future], timeout=_EVERY).done:
        yield Step(done(), total, phase)
    return future.result()

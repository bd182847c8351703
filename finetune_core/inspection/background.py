"""Background calls of library functions that report no progress.

A call runs in a thread, so that the waiting caller can redraw, or go away.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from finetune_core.work import Step, Work

Result = TypeVar("Result")

_EVERY = 0.2  # seconds


def run_in_background(
    phase: str, call: Callable[[], Result], done: Callable[[], int] = lambda: 0, total: int = 1
) -> Work[Result]:
    """Run a call in a thread, and return its result or raise its exception.

    Closing the generator leaves the thread to finish on its own.

    Args:
        phase: phase of the steps.
        call: the call.
        done: returns the progress so far.
        total: progress at the end.

    Yields:
        Steps of the phase until the call has returned.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix=phase)
    future = pool.submit(call)
    pool.shutdown(wait=False)
    while not wait([future], timeout=_EVERY).done:
        yield Step(done(), total, phase)
    return future.result()

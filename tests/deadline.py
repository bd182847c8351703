"""Deadlines for tests, so that endless waiting fails one test instead of blocking all."""

import signal
import time
from contextlib import contextmanager

import psutil

# Far more than anything here takes, even on a busy machine. Only endless waiting takes longer.
SECONDS = 600


@contextmanager
def in_time(what):
    """Fail the test if it waits forever."""

    def too_long(*_):
        raise TimeoutError(f"it hangs: {what}")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def wait_until_gone(processes):
    """Wait until none of the processes runs.

    A process whose parent is gone, too, may stay listed for a while.
    """
    wait_until(
        lambda: (
            not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)
        ),
        "one lives on",
    )


def wait_until(condition, what="it did not come about"):
    """Wait until a condition holds. A test that waits forever fails."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)

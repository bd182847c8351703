"""What waits for ever fails its test, instead of holding up all others."""

import signal
import time
from contextlib import contextmanager

import psutil

# Far more than anything here takes, on a busy machine too: only what waits for ever is longer.
SECONDS = 600


@contextmanager
def in_time(what):
    """Nothing waits for ever."""

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
    """Until none of them runs: one whose parent is gone, too, may stay listed for a while."""
    wait_until(
        lambda: (
            not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)
        ),
        "one lives on",
    )


def wait_until(condition, what="it did not come about"):
    """Until a condition holds; a test that waits for ever fails."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)

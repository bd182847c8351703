"""What waits for ever fails its test, instead of holding up all others."""

import signal
from contextlib import contextmanager

SECONDS = 300  # far more than anything here takes, on a busy machine too: only what waits for ever is longer


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

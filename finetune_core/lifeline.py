"""Processes that must not outlive the one that has started them."""

import os
import signal
from threading import Thread


def end_with_stdin() -> None:
    """End this process and all others of its group, which it leads, when whoever holds the other end of its stdin is gone or closes it."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.killpg(0, signal.SIGKILL)

    Thread(target=wait, daemon=True).start()

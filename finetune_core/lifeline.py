"""Processes that must not outlive the process that started them."""

import os
import select
import signal
import stat
import sys
from threading import Thread


def exit_with_stdin() -> None:
    """Kill this process when the other end of its stdin is closed.

    The holder of the other end may close it, or die. If this process leads a process group, the
    whole group is killed. On Linux the kernel does so if stdin is a pipe, which also works while C
    code holds the interpreter lock. Elsewhere a thread waits. Processes that inherit this stdin
    must not call this function again: the kernel remembers one recipient for all of them.
    """
    if sys.platform == "linux" and stat.S_ISFIFO(os.fstat(0).st_mode):
        _request_kernel_kill()
    else:
        Thread(target=_wait_and_kill, daemon=True).start()


def _request_kernel_kill() -> None:
    import fcntl

    fcntl.fcntl(0, fcntl.F_SETOWN, -os.getpgrp() if _leads_group() else os.getpid())
    fcntl.fcntl(0, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(0, select.POLLHUP)
    # The other end may have been closed before the kernel was asked.
    if poll.poll(0):
        _kill()


def _wait_and_kill() -> None:
    while os.read(0, 1):
        pass
    _kill()


def _kill() -> None:
    if _leads_group():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _leads_group() -> bool:
    return os.getpgrp() == os.getpid()

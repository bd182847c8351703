"""Acting as another user of the machine, which only root can."""

import os

import pytest

AS_ROOT = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="only root can act as another user"
)
NOBODY = 65534


def as_another_user(function):
    """Whether a process of another user calls a function to its end."""
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            function()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def open_to_all(folder):
    """Let other users into a folder of pytest's, and let them write there."""
    for one in (folder, *folder.parents[:2]):
        one.chmod(0o777)

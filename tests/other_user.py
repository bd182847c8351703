"""Actions of another user of the machine, which need root."""

import os
import stat

import pytest

AS_ROOT = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="only root can act as another user"
)
NOBODY = 65534


def as_another_user(function):
    """Return whether a process of another user calls a function successfully."""
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
    """Let other users write to a folder of pytest, and pass the folders above it."""
    folder.chmod(0o777)
    for around in folder.parents:
        if not around.stat().st_mode & stat.S_IXOTH:
            around.chmod(0o711)

"""Where the processes of a test meet."""

import socket

HERE = "127.0.0.1"


def free_port():
    """A port of this machine that nobody listens on, a moment ago."""
    with socket.socket() as free:
        free.bind((HERE, 0))
        return free.getsockname()[1]

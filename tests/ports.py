"""Ports for the processes of a test."""

import socket

HERE = "127.0.0.1"


def free_port():
    """Return a port of this machine on which nobody listened a moment ago."""
    with socket.socket() as free:
        free.bind((HERE, 0))
        return free.getsockname()[1]

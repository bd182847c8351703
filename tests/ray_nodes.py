"""A Ray cluster of two nodes on this machine, each with capacity for one run."""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress

import psutil

from tests.deadline import SECONDS, wait_until

AUTH = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


class Nodes:
    """The nodes of a cluster.

    Attributes:
        address: address of the head.
        processes: processes of the nodes, the head's first.
    """

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        # Ray replaces 127.0.0.1 by the machine's address on a network, which may not exist. Ray
        # leaves this address unchanged.
        self.address, self.processes = f"127.0.0.2:{self.port}", []

    def start(self, host, *arguments):
        """Start a node. Ray waits 30 s, too little on a busy machine, so failures are retried."""
        wait_until(lambda: self._is_started(host, arguments), "the node does not start")

    def kill(self, process):
        """Kill all processes of a node at once, as a power failure would."""
        self.processes.remove(process)
        family = []
        with suppress(psutil.NoSuchProcess):
            family = [
                *psutil.Process(process.pid).children(recursive=True),
                psutil.Process(process.pid),
            ]
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(family, SECONDS)
        process.wait(SECONDS)

    def _is_started(self, host, arguments):
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            *arguments,
            f"--node-ip-address={host}",
        ]
        quiet = [
            "--block",
            "--num-cpus=1",
            "--num-gpus=0",
            f"--object-store-memory={100 * 2**20}",
            "--disable-usage-stats",
        ]
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                [*command, *quiet],
                env=os.environ | AUTH | {"PYTHONUNBUFFERED": "1"},
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
            self.processes.append(process)
            is_up = False
            while process.poll() is None and not is_up:
                time.sleep(0.2)
                is_up = b"Ray runtime started" in os.pread(said.fileno(), 2**20, 0)
        if not is_up:
            self.kill(process)
        return is_up


@contextmanager
def two_nodes():
    nodes = Nodes()
    try:
        nodes.start("127.0.0.2", "--head", f"--port={nodes.port}", "--include-dashboard=false")
        nodes.start("127.0.0.3", f"--address={nodes.address}")
        yield nodes
    finally:
        for process in list(reversed(nodes.processes)):
            nodes.kill(process)

"""``thaw app``: the dashboard with the settings of its checkout, wherever it is started."""

import os
import subprocess
import sys
import time

import pytest

from tests.handshake import status, websocket_status
from tests.ports import free_port


@pytest.fixture
def started(tmp_path):
    """``started(*options)``: the command in another folder; returns its port once it answers."""
    running = []

    def start(*options):
        port = free_port()
        command = [sys.executable, "-m", "finetune_core", "app", "--port", str(port)]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "--server.headless", "true", *options],
                cwd=tmp_path,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"HOME": str(tmp_path)},
            )
        running.append(process)
        while True:
            assert process.poll() is None, (tmp_path / "log").read_text()
            try:
                if status(port, "/_stcore/health", "localhost") == 200:
                    return port
            except OSError:
                time.sleep(0.2)

    yield start
    for process in running:
        process.terminate()
        process.wait(300)


@pytest.mark.processes
def test_the_command_accepts_the_names_of_this_machine_only(started):
    port = started()
    assert websocket_status(port, "localhost") == 101
    assert websocket_status(port, "thaw.example.org") == 403


@pytest.mark.processes
def test_other_names_are_added_as_options(started):
    names = ("thaw.example.org", "192.168.0.7")
    port = started(*(f"--server.allowedHosts={name}" for name in names))
    assert [websocket_status(port, name) for name in names] == [101, 101]
    assert websocket_status(port, "evil.example") == 403

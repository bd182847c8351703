"""``thaw app``: the dashboard with the settings of its checkout, from any working directory."""

import os
import subprocess
import sys
from contextlib import suppress

import pytest

from finetune_core.paths import dashboard
from tests.command_line import thaw
from tests.deadline import wait_until
from tests.handshake import status, websocket_status
from tests.ports import free_port


@pytest.mark.processes
def test_the_command_accepts_the_names_of_this_machine_only(tmp_path):
    port, log = free_port(), tmp_path / "log"
    command = [sys.executable, "-m", "finetune_core", "app", "--no-browser", "--port", str(port)]
    with log.open("wb") as file:
        environment = os.environ | {"HOME": str(tmp_path)}
        server = subprocess.Popen(
            command,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
        )

    def answers():
        assert server.poll() is None, log.read_text()
        with suppress(OSError):
            return status(port, "/_stcore/health", "localhost") == 200

    try:
        wait_until(answers, "the server does not answer")
        assert websocket_status(port, "localhost") == 101
        assert websocket_status(port, "thaw.example.org") == 403
    finally:
        server.kill()
        server.wait(300)


def test_the_process_becomes_streamlit_with_its_options(monkeypatch):
    started = []
    monkeypatch.setattr("os.execv", lambda _, arguments: started.append(arguments))
    names = ["--server.allowedHosts=thaw.example.org", "--server.allowedHosts", "192.168.0.7"]
    thaw("app", "--port", 8600, "--no-browser", *names)
    own = ["run", str(dashboard()), "--server.port=8600", "--server.headless=true"]
    assert started == [[sys.executable, "-m", "streamlit", *own, *names]]

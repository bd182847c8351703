"""A browser and servers of the app for it; without Chromium, these tests are skipped."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CHROMIUM = os.environ.get("THAW_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or ""
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
FAKE_CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # a test pattern, which may be used
MINUTE = 60_000


def unused_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """The app on a port of its own, with a folder of its own."""

    def __init__(self, home, port=None, options=()):
        self.port = port or unused_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = (home / "server.log").open("wb")
        command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.headless=true", f"--server.port={self.port}"]
        self.process = subprocess.Popen(
            [*command, *options], cwd=ROOT, env=os.environ | {"THAW_HOME": str(home)}, stdout=self.log, stderr=subprocess.STDOUT
        )
        end = time.monotonic() + 300
        while not self._healthy():
            assert self.process.poll() is None, (home / "server.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.2)

    def _healthy(self):
        try:
            return urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=2).status == 200
        except OSError:
            return False

    def close(self):
        self.process.terminate()
        self.process.wait(300)
        self.log.close()


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, *FAKE_CAMERA])
        yield chromium
        chromium.close()


@pytest.fixture
def start(browser):
    """Starts servers that end with the test: (home, port, options) -> server."""
    running = []

    def begin(home, port=None, options=()):
        running.append(Server(home, port, options))
        return running[-1]

    yield begin
    for server in running:
        server.close()


@pytest.fixture
def server(start, tmp_path):
    return start(tmp_path)


@pytest.fixture
def free_port():
    return unused_port()


@pytest.fixture(scope="module")
def shared_server(browser, tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("shared"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def filled_server(browser, trained_once, tmp_path_factory):
    """One with two finished runs, which its pages compare."""
    home = tmp_path_factory.mktemp("filled")
    trained_once.copied(home / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THAW_DATA_ROOTS", str(trained_once.data))
        running = Server(home)
    yield running
    running.close()


@pytest.fixture
def page(browser):
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(10 * MINUTE)  # a core may be slow, old, and shared
    yield opened
    opened.close()


@pytest.fixture
def no_error_on():
    """``no_error_on(page)``: nothing on it is a traceback."""

    def check(page):
        assert page.locator("[data-testid=stException]").count() == 0

    return check

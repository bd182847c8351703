"""A browser and servers of the app for it; without Chromium, these tests are skipped."""

import os
import shutil
import socket
import time
import urllib.request

import pytest

from tests.forked import run_app

CHROMIUM = (
    os.environ.get("THAW_CHROMIUM")
    or shutil.which("chromium")
    or shutil.which("chromium-browser")
    or ""
)
REBOUND = "evil.example"  # a name of another site, which leads to this machine
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1",
]
FAKE_CAMERA = [
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]  # a test pattern, which may be used
MINUTE = 60_000


def unused_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """The app on a port of its own, with a folder of its own."""

    def __init__(self, processes, home, port=None, options=()):
        self.port = port or unused_port()
        self.url = f"http://127.0.0.1:{self.port}"
        log, options = (
            home / "server.log",
            ("--server.headless=true", f"--server.port={self.port}", *options),
        )
        self.process = processes.Process(
            target=run_app, args=(os.environ | {"THAW_HOME": str(home)}, log, options)
        )
        self.process.start()
        end = time.monotonic() + 300
        while not self._healthy():
            assert self.process.is_alive(), log.read_text()
            assert time.monotonic() < end
            time.sleep(0.2)

    def _healthy(self):
        try:
            return urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=2).status == 200
        except OSError:
            return False

    def close(self):
        self.process.terminate()
        self.process.join(300)
        assert not self.process.is_alive()


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*ARGUMENTS, *FAKE_CAMERA]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def start(browser, processes):
    """Starts servers that end with the test: (home, port, options) -> server."""
    running = []

    def begin(home, port=None, options=()):
        running.append(Server(processes, home, port, options))
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
def shared_server(browser, processes, tmp_path_factory):
    running = Server(processes, tmp_path_factory.mktemp("shared"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def filled_server(browser, processes, trained_once, tmp_path_factory):
    """One with two finished runs, which its pages compare."""
    home = tmp_path_factory.mktemp("filled")
    trained_once.copied(home / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THAW_DATA_ROOTS", str(trained_once.data))
        running = Server(processes, home)
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

"""Servers of the app for a browser."""

import os
import time
import urllib.request

import pytest

from tests.chromium import MINUTE
from tests.forked import run_app
from tests.ports import free_port


class Server:
    """The app on a port of its own, with a folder of its own."""

    def __init__(self, processes, home, port=None, options=()):
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        log = home / "server.log"
        options = ("--server.headless=true", f"--server.port={self.port}", *options)
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
def port():
    return free_port()


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

"""Fixtures for browser tests: servers of the app, and pages that must never show an exception."""

import os
import urllib.request

import pytest

from finetune_core.data.recent import remember_source
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import RunStore
from finetune_core.saved_settings import save_settings
from tests import factories
from tests.chromium import ARGUMENTS, CHROMIUM, TIMEOUT
from tests.deadline import wait_until
from tests.forked import run_app
from tests.ports import free_port

REPORT_EXCEPTIONS = """new MutationObserver(() => {
    for (const node of document.querySelectorAll('[data-testid=stException]'))
        reportException(node.innerText)
}).observe(document, {childList: true, subtree: true})"""


class Server:
    """Server of the app with its own port and home folder."""

    def __init__(self, processes, home, port=None, options=()):
        self.home, self.port = home, port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.store = RunStore(home / "runs")
        roots = os.environ.get("THAW_DATA_ROOTS", str(factories.Shared.folder))
        environment = os.environ | {"THAW_HOME": str(home), "THAW_DATA_ROOTS": roots}
        log = home / "server.log"
        options = ("--server.headless=true", f"--server.port={self.port}", *options)
        self.process = processes.Process(target=run_app, args=(environment, log, options))
        self.process.start()

        def is_healthy():
            assert self.process.is_alive(), log.read_text()
            try:
                answer = urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=2)
            except OSError:
                return False
            return answer.status == 200

        wait_until(is_healthy, "the server does not answer")

    def address(self, page, data=None, **changes):
        """Return the address of ``page`` with ``data`` and the settings of ``tiny_config``."""
        config = factories.tiny_config(data, **changes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("THAW_HOME", str(self.home))
            settings = save_settings({"settings": config.model_dump(mode="json"), "comparison": {}})
            return f"{self.url}/{page}?data={remember_source(config.data)}&settings={settings}"

    def close(self):
        self.process.terminate()
        self.process.join(300)
        assert not self.process.is_alive()


@pytest.fixture
def start(browser, processes):
    """Start servers that end with the test: ``start(home, port, options)``."""
    running = []

    def start_server(*args, **kwargs):
        running.append(Server(processes, *args, **kwargs))
        return running[-1]

    yield start_server
    for server in running:
        server.close()


@pytest.fixture(scope="session")
def _shared_server(processes, tmp_path_factory):
    running = Server(processes, tmp_path_factory.mktemp("shared"))
    yield running
    running.close()


@pytest.fixture
def server(browser, _shared_server):
    """Return a shared server for tests that name their own runs and data."""
    yield _shared_server
    for run in _shared_server.store.list_runs():
        if run.is_active:
            request_stop(run.run_dir)


@pytest.fixture(scope="session")
def finished_runs(_shared_server, trained_runs):
    """Return the names of two finished runs on ``server`` that no test may change."""
    return [run_dir.name for run_dir in trained_runs.copied(_shared_server.home / "runs")]


@pytest.fixture
def tab(browser):
    """Open pages: ``tab()``, or ``tab(argument, …)`` in a Chromium started with these arguments.

    The test fails if any of the pages ever shows an exception.
    """
    opened, started, exceptions = [], [], []

    def open_tab(*arguments, width=1280, height=900):
        chromium = browser
        if arguments:
            chromium = browser.browser_type.launch(
                executable_path=CHROMIUM, args=[*ARGUMENTS, *arguments]
            )
            started.append(chromium)
        page = chromium.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(TIMEOUT)
        page.expose_function("reportException", lambda text: exceptions.append(text))
        page.add_init_script(REPORT_EXCEPTIONS)
        opened.append(page)
        return page

    yield open_tab
    for page in opened:
        page.evaluate("0")  # what was reported last is received with the answer
        page.close()
    for chromium in started:
        chromium.close()
    assert exceptions == []


@pytest.fixture
def page(tab):
    return tab()


@pytest.fixture
def set_number(page):
    """Set a number field: ``set_number(label, value)`` types the value and presses Enter."""

    def fill(label, value):
        box = page.get_by_label(label, exact=True)
        box.fill(str(value))
        box.press("Enter")

    return fill

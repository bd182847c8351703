"""Fixtures that the tests of pages share."""

import os
import threading
from contextlib import ExitStack
from pydoc import locate

import pytest
import streamlit as st
from filelock import FileLock
from streamlit.runtime.scriptrunner.script_cache import ScriptCache
from streamlit.testing.v1 import AppTest, local_script_runner

from finetune_core import paths
from finetune_core.data.recent import remember_source
from finetune_core.runs.store import read_run
from finetune_core.training.devices.device import choose_device
from finetune_core.work import Step
from pages.shared import account
from pages.shared.jobs import jobs
from pages.shared.runs import backend
from tests.deadline import wait_until
from tests.factories import shared_images


@pytest.fixture(scope="session")
def strict_harness():
    """Fail the test if any run of a page shows an exception.

    Streamlit's harness also parses and compiles app.py and the page on every run. Here both happen
    once.
    """
    cache, run = ScriptCache(), AppTest._run

    def run_without_exception(self, *args, **settings):
        run(self, *args, **settings)
        assert not self.exception
        return self

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_script_runner, "ScriptCache", lambda: cache)
        patch.setattr(AppTest, "_run", run_without_exception)
        yield


def _end_runs():
    """Stop the runs that pages have started: they would go on in the next test's folders."""
    worker = backend.worker()

    def stop_all():
        for run_id in [run_id for queue in worker.list_queues() for run_id in reversed(queue)]:
            worker.stop(run_id)
        return not worker.list_queues()

    wait_until(stop_all, "a run goes on")


@pytest.fixture(autouse=True)
def fresh_process_state(cached_component_manifests, strict_harness, monkeypatch):
    """Reset the state of the process, which belongs to another test's folder."""
    monkeypatch.setattr(account, "_STATE", account.ProcessState())
    st.cache_resource.clear()
    st.cache_data.clear()
    yield
    _end_runs()
    for job in jobs().list_running():
        job.stop()
        job.wait()
    st.cache_resource.clear()
    st.cache_data.clear()


@pytest.fixture(autouse=True)
def nothing_timed_unasked(monkeypatch):
    """Keep Home and Configure from timing runs: no thread beside the test computes."""

    def time_sample():
        yield Step(1, 1)

    monkeypatch.setattr("pages.shared.configure.forecasts._LARGEST", 0)
    monkeypatch.setattr("pages.shared.runs.first_run._time_sample", time_sample)


@pytest.fixture
def folder(monkeypatch):
    """Return a small data set that the pages may read and no test may change."""
    images = shared_images(red=12, blue=12)
    monkeypatch.setenv("THAW_DATA_ROOTS", str(images))
    return images


@pytest.fixture
def runs(trained_runs, tmp_path, monkeypatch):
    """Copy a run of Last block and one of Feature extraction into the app's own folder.

    The pages may read their images, and ``tmp_path``.
    """
    roots = (trained_runs.data, tmp_path)
    monkeypatch.setenv("THAW_DATA_ROOTS", os.pathsep.join(map(str, roots)))
    return [read_run(run_dir) for run_dir in trained_runs.copied(paths.runs_dir())]


@pytest.fixture
def data_id_of():
    """Return the id of a data set as in an address: ``data_id_of(folder)``."""
    return remember_source


@pytest.fixture
def wait_until_finished():
    """Draw a page again once all that it has started has ended: ``wait_until_finished(at)``."""

    def wait(at):
        for job in jobs().list_running():
            job.wait()
        return at.run()

    return wait


@pytest.fixture
def hold_back(monkeypatch):
    """Make work wait: ``hold_back("module.function")``.

    The work waits after its first step until the returned event is set.
    """
    gates = []

    def hold(name):
        gate, real = threading.Event(), locate(name)
        gates.append(gate)

        def waits(*args, **settings):
            yield Step(0, 1)
            assert gate.wait(300)
            return (yield from real(*args, **settings))

        monkeypatch.setattr(name, waits)
        return gate

    yield hold
    for gate in gates:
        gate.set()


@pytest.fixture
def drawn_stages(monkeypatch):
    """Return the tiles of each drawing of stages, the latest last."""
    found = []
    monkeypatch.setattr(
        "pages.shared.configure.stages._ROW", lambda *, data, **_: found.append(data["tiles"])
    )
    return found


@pytest.fixture
def device_is_taken(monkeypatch):
    """Occupy the devices like another program until ``close``: runs that are started wait."""
    monkeypatch.setattr("finetune_core.training.devices.turn._POLL", 0.05)
    locks = paths.home() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with ExitStack() as taken:
        for kind in {"cpu", choose_device().kind}:
            taken.enter_context(FileLock(locks / f"{kind}.lock"))
        yield taken
        _end_runs()

"""What the tests of pages share."""

import threading
from pydoc import locate

import pytest
import streamlit as st

from finetune_core.data.recent import remember
from finetune_core.work import Step
from pages.shared import account
from pages.shared.jobs import jobs


def _end_all():
    for job in jobs().all():
        job.stop()
        job.wait()


@pytest.fixture(autouse=True)
def fresh_process_state(components_found_once, monkeypatch):
    """What the pages hold once a process belongs to another test's folder."""
    monkeypatch.setattr(account, "_SEEN", account.Seen())
    st.cache_resource.clear()
    st.cache_data.clear()
    yield
    _end_all()
    st.cache_resource.clear()
    st.cache_data.clear()


@pytest.fixture
def folder(image_folder, tmp_path, monkeypatch):
    """A small data set, which the pages may read."""
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))
    return image_folder(tmp_path / "images", {"red": 12, "blue": 12})


@pytest.fixture
def known():
    """``known(folder)``: the id of a data set, as an address that names it has it."""
    return remember


@pytest.fixture
def finished():
    """``finished(at)``: the page as it is drawn once all that it has begun has ended."""

    def wait(at):
        for job in jobs().all():
            job.wait()
        at.run()
        assert not at.exception
        return at

    return wait


@pytest.fixture
def held_back(monkeypatch):
    """``held_back("pages.shared.evaluation.prediction.predict_images")``: that work waits before its first step until what is returned is set."""
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

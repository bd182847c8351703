"""Long work of pages goes on whatever is pressed, and two pieces of work stay apart."""

import threading

import pytest

from finetune_core.errors import WeightsError
from finetune_core.formatting import PHASE_TITLES
from finetune_core.training.forecast import lr_finder
from finetune_core.work import Step
from pages.shared.jobs import jobs
from tests.deadline import wait_until
from tests.pages.harness import button, open_page, press, tiny_form

pytestmark = pytest.mark.train


def make_held_find_rate(gate, real=lr_finder.find_rate):
    """Return a rate finder that waits for ``gate`` before its first step."""

    def find_rate(*args):
        yield Step(0, 100, "rates")
        assert gate.wait(300)
        return (yield from real(*args))

    return find_rate


@pytest.fixture
def held(monkeypatch):
    """Return the event that the rate finder waits for before its first step."""
    gate = threading.Event()
    monkeypatch.setattr(lr_finder, "find_rate", make_held_find_rate(gate))
    yield gate
    gate.set()


@pytest.fixture
def configure(folder, data_id_of):
    """Open Configure in a new session, on a small data set."""
    form, state = tiny_form()
    state |= {"more_strategies": True}
    return lambda: open_page("configure", data=data_id_of(folder), form=form, state=state)


def test_a_forecast_waits_for_the_rate_finder_which_nothing_pressed_ends(
    configure, held, wait_until_finished
):
    at = configure()
    assert not button(at, "Forecast all strategies").disabled
    button(at, "Find a learning rate").click().run()
    (job,) = jobs().list_running()
    forecast = button(at, "Forecast all strategies")
    assert forecast.disabled
    assert "“Trying learning rates”" in forecast.help
    at.selectbox(key="form_schedule").set_value("cosine").run()
    at.selectbox(key="form_schedule").set_value("auto").run()
    at.switch_page("pages/dataset.py").run()
    at.switch_page("pages/configure.py").run()
    assert jobs().list_running() == [job]
    assert any(one.label == "Stop" for one in at.button)
    held.set()
    wait_until_finished(at)
    assert len(at.get("plotly_chart")) == 1
    assert not button(at, "Forecast all strategies").disabled


def test_work_while_another_program_trains_waits_and_can_be_stopped(
    configure, device_is_taken, wait_until_finished
):
    at = configure()
    button(at, "Forecast all strategies").click().run()
    (job,) = jobs().list_running()
    wait_until(lambda: job.progress.phase == "device")
    at.run()
    assert any(bar.proto.text.startswith(PHASE_TITLES["device"]) for bar in at.get("progress"))
    button(at, "Stop").click().run()
    assert job.wait(300)
    press(at, "Find a learning rate")
    (job,) = jobs().list_running()
    wait_until(lambda: job.progress.phase == "device")
    device_is_taken.close()
    wait_until_finished(at)
    assert len(at.get("plotly_chart")) == 1


def test_two_sessions_share_the_work_and_stop_ends_it_for_both(
    configure, held, wait_until_finished
):
    mine, other = configure(), configure()
    button(mine, "Find a learning rate").click().run()
    button(other, "Find a learning rate").click().run()
    (job,) = jobs().list_running()
    button(other, "Stop").click().run()
    held.set()
    assert job.wait(300)
    for at in (mine, other):
        wait_until_finished(at)
        assert not at.get("plotly_chart")
        assert not any(one.label.startswith("Stop") for one in at.button)


def test_an_error_is_gone_once_the_work_begins_again(configure, monkeypatch, wait_until_finished):
    at = configure()
    gate = threading.Event()

    def fails(*args):
        yield Step(0, 100, "rates")
        raise WeightsError("no weights")

    monkeypatch.setattr(lr_finder, "find_rate", fails)
    at.run()
    button(at, "Find a learning rate").click().run()
    wait_until_finished(at)
    assert "no weights" in [error.value for error in at.error]
    monkeypatch.setattr(lr_finder, "find_rate", make_held_find_rate(gate))
    at.run()
    button(at, "Find a learning rate").click().run()
    assert not at.error
    gate.set()
    wait_until_finished(at)
    assert len(at.get("plotly_chart")) == 1

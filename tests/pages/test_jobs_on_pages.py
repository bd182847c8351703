"""Long work of the pages: whatever is pressed meanwhile, it goes on; two pieces that would disturb each other are kept apart."""

import threading

import pytest

from finetune_core.errors import WeightsError
from finetune_core.formatting import PHASE_WORDS
from finetune_core.training import lr_finder
from finetune_core.work import Step
from pages.shared.jobs import jobs
from tests.deadline import wait_until
from tests.pages.harness import button, open_page


@pytest.fixture
def held(monkeypatch):
    """The rate finder waits for this before its first step."""
    gate, real = threading.Event(), lr_finder.find_rate

    def find_rate(*args):
        yield Step(0, 100, "rates")
        assert gate.wait(300)
        return (yield from real(*args))

    monkeypatch.setattr(lr_finder, "find_rate", find_rate)
    yield gate
    gate.set()


@pytest.fixture
def configure(folder, known):
    """Configure, in a session of its own, on a small data set."""
    return lambda: open_page(
        "configure", data=known(folder), form={"image_size": 32, "batch_size": 4}
    )


def test_forecast_waits_while_the_rate_finder_works_and_says_why_and_nothing_pressed_ends_it(
    configure, held, finished
):
    at = configure()
    assert not button(at, "Forecast all strategies").disabled
    button(at, "Find a learning rate").click().run()
    (job,) = jobs().all()
    forecast = button(at, "Forecast all strategies")
    assert forecast.disabled
    assert "“Trying learning rates”" in forecast.help
    at.selectbox(key="form_schedule").set_value("cosine").run()
    at.selectbox(key="form_schedule").set_value("constant").run()
    at.switch_page("pages/dataset.py").run()
    at.switch_page("pages/configure.py").run()
    assert not at.exception
    assert jobs().all() == [job]
    assert any(one.label == "Stop" for one in at.button)
    held.set()
    finished(at)
    assert len(at.get("plotly_chart")) == 1
    assert not button(at, "Forecast all strategies").disabled


def test_what_is_asked_for_while_another_program_trains_says_that_it_waits_and_can_be_stopped(
    configure, device_held, finished
):
    _, line = device_held("cpu")
    at = configure()
    button(at, "Forecast all strategies").click().run()
    (job,) = jobs().all()
    wait_until(lambda: job.progress.phase == "device")
    at.run()
    assert any(bar.proto.text.startswith(PHASE_WORDS["device"]) for bar in at.get("progress"))
    button(at, "Stop").click().run()
    assert job.wait(300)
    button(at, "Find a learning rate").click().run()
    (job,) = jobs().all()
    wait_until(lambda: job.progress.phase == "device")
    line.send("let go")
    finished(at)
    assert len(at.get("plotly_chart")) == 1


def test_two_sessions_share_the_work_and_stop_ends_it_for_both(configure, held, finished):
    mine, other = configure(), configure()
    button(mine, "Find a learning rate").click().run()
    button(other, "Find a learning rate").click().run()
    (job,) = jobs().all()
    button(other, "Stop").click().run()
    held.set()
    assert job.wait(300)
    for at in (mine, other):
        finished(at)
        assert not at.get("plotly_chart")
        assert not any(one.label.startswith("Stop") for one in at.button)


def test_an_error_is_gone_once_the_work_begins_again(configure, monkeypatch, finished):
    at = configure()
    gate, real = threading.Event(), lr_finder.find_rate

    def fails(*args):
        yield Step(0, 100, "rates")
        raise WeightsError("no weights")

    def waits(*args):
        yield Step(0, 100, "rates")
        assert gate.wait(300)
        return (yield from real(*args))

    monkeypatch.setattr(lr_finder, "find_rate", fails)
    at.run()
    button(at, "Find a learning rate").click().run()
    finished(at)
    assert "no weights" in [error.value for error in at.error]
    monkeypatch.setattr(lr_finder, "find_rate", waits)
    at.run()
    button(at, "Find a learning rate").click().run()
    assert not at.error
    gate.set()
    finished(at)
    assert len(at.get("plotly_chart")) == 1


def test_a_deep_look_at_the_data_goes_on_whatever_is_pressed_and_its_report_is_kept(
    configure, held_back, finished
):
    gate = held_back("pages.shared.data.analysis.inspect_deeply")
    at = configure()
    at.switch_page("pages/dataset.py").run()
    button(at, "Analyze with embeddings").click().run()
    (job,) = jobs().all()
    at.switch_page("pages/configure.py").run()
    at.switch_page("pages/dataset.py").run()
    assert jobs().all() == [job]
    assert button(at, "Analyze with embeddings").disabled
    gate.set()
    finished(at)
    assert not any(one.label in ("Analyze with embeddings", "Stop") for one in at.button)

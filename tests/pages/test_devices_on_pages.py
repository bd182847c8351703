"""Number of devices: chosen on Configure, carried by the address, kept by *Resume*."""

from dataclasses import replace

import pytest

from finetune_core import paths
from finetune_core.runs.record import append_event, create_run
from finetune_core.runs.store import read_run
from finetune_core.training.events import make_event
from tests.deadline import wait_until
from tests.factories import tiny_config, trained_run
from tests.pages.harness import address, button, open_page, press, tiny_form, unescaped_text

QUICK, RANDOM = tiny_form(strategy="feature_extraction", device="cpu")
FOUR_CORES = "Devices must be from 1 to 4"


@pytest.fixture(autouse=True)
def four_devices(monkeypatch):
    has(monkeypatch, 4)


def has(monkeypatch, devices):
    monkeypatch.setattr("finetune_core.runs.executors.in_process.max_devices", lambda: devices)


@pytest.fixture
def devices_by_strategy(monkeypatch):
    """Return strategy -> number of devices of each run; nothing trains."""
    found = []

    def note(reservation, *_):
        strategy = read_run(reservation.run_dir).config.strategy
        found.append((strategy, reservation.devices))
        reservation.lock.release()
        yield from ()

    for name in ("execute", "execute_on_devices"):
        monkeypatch.setattr(f"finetune_core.runs.executors.in_process.{name}", note)
    return found


@pytest.fixture
def configure(folder, data_id_of):
    return lambda devices=1, **form: open_page(
        "configure", data=data_id_of(folder), form=QUICK | {"devices": devices} | form, state=RANDOM
    )


def has_field(at):
    return any(one.key == "form_devices" for one in at.number_input)


def test_there_is_a_choice_where_there_are_several(configure, folder, data_id_of, monkeypatch):
    assert has_field(configure())
    has(monkeypatch, 1)
    assert not has_field(open_page("configure", data=data_id_of(folder), form=QUICK, state=RANDOM))


@pytest.mark.train
def test_what_is_chosen_is_in_the_address_and_starts_the_run(configure, devices_by_strategy):
    at = configure()
    at.number_input(key="form_devices").set_value(2).run()
    again = open_page("configure", **address(at))
    assert again.number_input(key="form_devices").value == 2
    assert "on 2 devices" in unescaped_text(again)
    button(again, "Start training").click().run()
    wait_until(lambda: devices_by_strategy)
    assert devices_by_strategy == [("feature_extraction", 2)]


@pytest.mark.train
def test_an_address_from_a_larger_machine_says_what_is_wrong_here(configure, monkeypatch):
    found = address(configure(devices=2))
    has(monkeypatch, 1)
    at = open_page("configure", **found)
    assert "Devices must be 1: there is only one" in unescaped_text(at)
    at.number_input(key="form_devices").set_value(1).run()
    assert not has_field(at)
    assert not button(at, "Start training").disabled


@pytest.mark.train
def test_what_cannot_be_is_said_with_the_other_problems(configure):
    at = configure()
    for devices, strategy, problem in (
        (5, "full", FOUR_CORES),
        (-1, "full", FOUR_CORES),
        (2, "linear_probe", "Devices this run takes no steps"),
    ):
        at.session_state["form_devices"], at.session_state["form_strategy"] = devices, strategy
        at.run()
        assert unescaped_text(at).count(problem) == 2, "at the field, and in the bar"
        assert button(at, "Start training").disabled


def test_a_comparison_trains_on_several_what_has_steps(folder, data_id_of, devices_by_strategy):
    form = QUICK | {"devices": 2}
    chosen = {"compare_strategies": ["linear_probe", "feature_extraction"], "compare_seeds": 1}
    at = open_page("compare", data=data_id_of(folder), form=form, state=RANDOM | chosen)
    assert "Each trains on 2 devices, those without epochs on one." in unescaped_text(at)
    assert "Forecasts are for one device." in unescaped_text(at)
    at.button(key="compare_start").click().run()
    wait_until(lambda: len(devices_by_strategy) == 2)
    assert sorted(devices_by_strategy) == [("feature_extraction", 2), ("linear_probe", 1)]


def test_a_comparison_on_too_many_devices_is_not_offered(folder, data_id_of):
    at = open_page("compare", data=data_id_of(folder), form=QUICK | {"devices": 5}, state=RANDOM)
    assert FOUR_CORES in unescaped_text(at)
    assert not any(one.key == "compare_start" for one in at.button)


@pytest.mark.parametrize(
    ("here", "expected", "words"), [(4, 3, ", as before."), (2, 2, ", before on 3.")]
)
def test_a_run_goes_on_with_as_many_as_before_where_there_are_so_many(
    folder, devices_by_strategy, monkeypatch, here, expected, words
):
    has(monkeypatch, here)
    finished = trained_run(strategy="feature_extraction")
    reservation = create_run(tiny_config(folder, strategy="feature_extraction"), paths.runs_dir())
    append_event(reservation.run_dir, replace(make_event(finished.history.started), ranks=3))
    reservation.lock.release()
    at = open_page("train", run=reservation.run_dir.name)
    assert "3 devices (gloo), each " in unescaped_text(at)
    assert f"On {expected} devices{words}" in button(at, "Resume").help
    press(at, "Resume")
    wait_until(lambda: devices_by_strategy)
    assert devices_by_strategy == [("feature_extraction", expected)]

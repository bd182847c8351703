"""Devices: how many train the next runs is chosen on Configure, carried by the address, refused where it cannot be, and kept by *Resume*."""

from dataclasses import replace

import pytest

from finetune_core import paths
from finetune_core.config import CONFIG_FILE, make_config, read_config
from finetune_core.runs.history import History
from finetune_core.runs.record import append_event, create_run
from finetune_core.runs.store import RunStore
from finetune_core.training.events import event_of
from tests.deadline import wait_until
from tests.pages.harness import address, button, open_page, press, unescaped

QUICK = {
    "image_size": 32,
    "batch_size": 8,
    "epochs": 1,
    "precision": "fp32",
    "strategy": "feature_extraction",
    "device": "cpu",
}
FOUR_CORES = "Devices must be from 1 to 4"


@pytest.fixture(autouse=True)
def four_devices(monkeypatch):
    has(monkeypatch, 4)


def has(monkeypatch, devices):
    monkeypatch.setattr("finetune_core.runs.executors.most_devices", lambda: devices)


@pytest.fixture
def trained_on(monkeypatch):
    """How many devices each run is trained on, by strategy; none is trained."""
    found = []

    def note(reservation, *_):
        found.append(
            (
                RunStore(paths.runs_dir()).run(reservation.run_dir.name).config.strategy,
                reservation.devices,
            )
        )
        reservation.lock.release()
        yield from ()

    for name in ("execute", "execute_together"):
        monkeypatch.setattr(f"finetune_core.runs.executors.{name}", note)
    return found


@pytest.fixture
def configure(folder, known):
    return lambda devices=1, **form: open_page(
        "configure", data=known(folder), form=QUICK | {"devices": devices} | form
    )


def has_field(at):
    return any(one.key == "form_devices" for one in at.number_input)


def test_there_is_a_choice_where_there_are_several(configure, folder, known, monkeypatch):
    assert has_field(configure())
    has(monkeypatch, 1)
    assert not has_field(open_page("configure", data=known(folder), form=QUICK))


def test_what_is_chosen_is_in_the_address_and_starts_the_run(configure, trained_on):
    at = configure()
    at.number_input(key="form_devices").set_value(2).run()
    again = open_page("configure", **address(at))
    assert again.number_input(key="form_devices").value == 2
    assert "on 2 devices" in unescaped(again)
    button(again, "Start training").click().run()
    wait_until(lambda: trained_on)
    assert trained_on == [("feature_extraction", 2)]


def test_an_address_from_a_larger_machine_says_what_is_wrong_where_there_is_no_choice(
    configure, monkeypatch
):
    found = address(configure(devices=2))
    has(monkeypatch, 1)
    at = open_page("configure", **found)
    assert "Devices must be 1: there is only one" in unescaped(at)
    at.number_input(key="form_devices").set_value(1).run()
    assert not has_field(at)
    assert not button(at, "Start training").disabled


@pytest.mark.parametrize(
    ("form", "problem"),
    [
        ({"devices": 5}, FOUR_CORES),
        ({"devices": -1}, FOUR_CORES),
        ({"strategy": "linear_probe"}, "Devices this run takes no steps"),
    ],
)
def test_what_cannot_be_is_said_with_the_other_problems(configure, form, problem):
    at = configure(**{"devices": 2} | form)
    assert unescaped(at).count(problem) == 2, "at the field, and in the bar"
    assert button(at, "Start training").disabled


def test_a_comparison_trains_on_several_what_has_steps(folder, known, trained_on):
    form = QUICK | {"devices": 2}
    chosen = {"compare_strategies": ["linear_probe", "feature_extraction"], "compare_seeds": 1}
    at = open_page("compare", data=known(folder), form=form, state=chosen)
    assert "Each trains on 2 devices, those without epochs on one." in unescaped(at)
    assert "Forecasts are for one device." in unescaped(at)
    at.button(key="compare_start").click().run()
    wait_until(lambda: len(trained_on) == 2)
    assert sorted(trained_on) == [("feature_extraction", 2), ("linear_probe", 1)]


def test_a_comparison_on_too_many_devices_is_not_offered(folder, known):
    at = open_page("compare", data=known(folder), form=QUICK | {"devices": 5})
    assert FOUR_CORES in unescaped(at)
    assert not any(one.key == "compare_start" for one in at.button)


@pytest.mark.parametrize(
    ("here", "expected", "words"), [(4, 3, ", as before."), (2, 2, ", before on 3.")]
)
def test_a_run_goes_on_with_as_many_as_before_where_there_are_so_many(
    folder, trained_once, trained_on, monkeypatch, tmp_path, here, expected, words
):
    has(monkeypatch, here)
    [finished] = trained_once.copied(tmp_path / "finished", "feature_extraction")
    reservation = create_run(
        make_config(read_config(finished / CONFIG_FILE) | {"data": str(folder)}), paths.runs_dir()
    )
    append_event(
        reservation.run_dir, replace(event_of(History(finished).refresh().started), ranks=3)
    )
    reservation.lock.release()
    at = open_page("train", run=reservation.run_dir.name)
    assert "3 devices (gloo), each " in unescaped(at)
    assert f"On {expected} devices{words}" in button(at, "Resume").help
    press(at, "Resume")
    wait_until(lambda: trained_on)
    assert trained_on == [("feature_extraction", expected)]


@pytest.mark.processes
def test_a_run_on_two_devices_is_started_and_seen_to_its_end(configure, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    at = press(configure(devices=2), "Start training")
    store = RunStore(paths.runs_dir())
    wait_until(lambda: any(not run.active for run in store.runs()))
    [run] = store.runs()
    assert (run.status, run.started["ranks"]) == ("finished", 2), run.history.end
    at = open_page("train", run=run.run_id)
    assert "2 devices (gloo)" in unescaped(at)
    assert "images, never used before" in unescaped(at)

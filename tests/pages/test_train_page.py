"""Train: finished and waiting runs, details, name, tags and settings."""

import inspect
import json
from types import SimpleNamespace

import pytest
from streamlit.testing.v1 import AppTest

from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.errors import TrainingError
from finetune_core.formatting import PHASE_TITLES
from finetune_core.runs.record import append_event, create_run, execute
from finetune_core.runs.stop_request import read_stop_request, request_stop
from finetune_core.runs.store import RunStore
from finetune_core.training.events import EpochEnded, Progress
from pages.shared.runs.backend import worker
from pages.shared.runs.labels import run_label
from pages.shared.runs.live import refresh_seconds
from tests.deadline import wait_until
from tests.factories import tiny_config, train, trained_run
from tests.pages.harness import (
    address,
    button_labels,
    open_page,
    page_text,
    place_run,
    press,
    primary_labels,
    unescaped_text,
)


def store():
    return RunStore(paths.runs_dir())


def bars(at):
    return [element.proto.text for element in at.get("progress")]


def wait_for_status(run_id, *statuses):
    wait_until(lambda: store().get_run(run_id).status in statuses, statuses)


@pytest.fixture
def waiting_runs(folder, device_is_taken):
    """Return the ids of a run that waits for another program, and of one queued behind it."""
    ids = [worker().submit(tiny_config(folder, device="cpu", seed=seed)) for seed in (0, 1)]
    wait_for_status(ids[0], "waiting")
    return ids


@pytest.fixture
def reserved_run(folder):
    """Reserve a run in this process without starting it."""
    reservation = create_run(tiny_config(folder), paths.runs_dir())
    yield reservation.run_dir
    reservation.lock.release()


def test_a_run_that_waits_for_another_program_says_so_and_not_that_it_trains(waiting_runs):
    at = open_page("train", run=waiting_runs[0])
    assert "Waiting for the device" in page_text(at)
    assert "Training" not in page_text(at)
    assert bars(at) == [PHASE_TITLES["device"]]
    at = open_page("train", run=waiting_runs[1])
    assert "Queued" in page_text(at)
    assert "place 1 of 1" in page_text(at)
    assert bars(at) == ["Waiting for the run before it"]


@pytest.mark.parametrize(("key", "status"), [("pause", "paused"), ("stop", "cancelled")])
def test_a_run_is_paused_and_stopped_by_the_same_buttons_wherever_it_waits(
    waiting_runs, key, status
):
    for run_id in reversed(waiting_runs):
        at = open_page("train", run=run_id)
        assert [one.label for one in at.button if one.key in ("pause", "stop")] == ["Pause", "Stop"]
        at.button(key=key).click().run()
        wait_for_status(run_id, status)
        assert "Resume" in button_labels(open_page("train", run=run_id))


def bar_while_waiting(run_id):
    from dataclasses import replace

    from finetune_core import paths
    from finetune_core.runs.store import RunStore
    from pages.shared.runs.live import draw_progress

    draw_progress(replace(RunStore(paths.runs_dir()).get_run(run_id), status="waiting"))


def test_a_run_whose_turn_comes_while_its_page_is_drawn_has_a_bar(reserved_run):
    """Check a run whose later events another session has read meanwhile."""
    at = AppTest.from_function(
        bar_while_waiting, args=(reserved_run.name,), default_timeout=300
    ).run()
    assert bars(at) == [PHASE_TITLES["device"]]


def live_memory(run_id):
    from dataclasses import replace

    from finetune_core import paths
    from finetune_core.runs.store import RunStore
    from pages.shared.runs.live import _draw_timing, draw_numbers

    run = RunStore(paths.runs_dir()).get_run(run_id)
    expected = {
        "seconds": 9.0,
        "epoch_seconds": 1.0,
        "memory_bytes": 4e8,
        "device_bytes": 3e9,
        "cache_bytes": 0.0,
    }
    run.history.started["forecast"] = expected
    run.history.epochs[-1] |= {"memory_bytes": 5 * 10**8, "device_bytes": 6 * 10**9}
    draw_numbers(replace(run, status="running"))
    _draw_timing(run)
    run.history.epochs[-1]["device_bytes"] = None
    draw_numbers(replace(run, status="running"))
    _draw_timing(run)


def test_a_gpus_memory_is_shown_apart_from_the_programs(runs):
    at = AppTest.from_function(live_memory, args=(runs[0].run_id,), default_timeout=300).run()
    shown = [(metric.label, metric.value) for metric in at.metric if "emory" in metric.label]
    assert shown == [("Memory", "500.0 MB"), ("GPU memory", "6.0 GB"), ("Memory", "500.0 MB")]
    on_gpu, here = (one.value for one in at.caption if one.value.startswith("Forecast and actual"))
    assert "400.0 MB, 500.0 MB of memory; 3.0 GB, 6.0 GB of GPU memory;" in on_gpu
    assert "GPU" not in here


def test_a_pause_that_was_asked_for_can_still_be_made_a_stop(reserved_run):
    at = open_page("train", run=reserved_run.name)
    at.button(key="pause").click().run()
    buttons = {key: at.button(key=key) for key in ("pause", "stop")}
    assert [(one.label, one.disabled) for one in buttons.values()] == [
        ("Pausing…", True),
        ("Stop", False),
    ]
    buttons["stop"].click().run()
    assert read_stop_request(reserved_run) == "stop"
    assert (at.button(key="stop").label, at.button(key="stop").disabled) == ("Stopping…", True)


def test_a_long_run_is_watched_less_closely_and_one_that_has_ended_not_at_all():
    def watched(active, *seconds):
        history = SimpleNamespace(steps=[{"seconds": at} for at in seconds])
        return refresh_seconds(SimpleNamespace(is_active=active, history=history))

    assert watched(True) == watched(True, 1, 59)
    assert watched(True, 1, 61) > watched(True, 1)
    assert watched(False, 61) is None


@pytest.mark.train
def test_a_stopped_run_is_resumed_from_its_page(folder):
    reservation = create_run(tiny_config(folder, epochs=9), paths.runs_dir())
    for event in execute(reservation):
        if isinstance(event, EpochEnded):
            request_stop(reservation.run_dir, pause=True)
    at = open_page("train", run=reservation.run_dir.name)
    assert primary_labels(at) == ["Resume"]
    assert "The run has run for" in page_text(at)
    assert "The run took" not in page_text(at)
    press(at, "Resume")
    wait_for_status(reservation.run_dir.name, "finished")
    assert "Resume" not in button_labels(open_page("train", run=reservation.run_dir.name))


def test_a_finished_run_is_shown_with_its_interval(runs):
    at = open_page("train", run=runs[0].run_id)
    assert "95 % interval" in page_text(at)
    assert "held-out images" in page_text(at)
    assert "frozen stages are bit for bit what they were" in page_text(at)
    assert not at.metric, "what the curves end with is not said again"
    assert primary_labels(at) == ["See the evaluation"]


def test_a_run_that_has_converged_says_so_and_one_that_is_too_short_to_tell_does_not(folder):
    fitted = place_run(trained_run(tiny_config(folder, strategy="linear_probe")), "fitted")
    assert f"Converged: {fitted.convergence.reason}." in unescaped_text(
        open_page("train", run="fitted")
    )
    short = place_run(trained_run(tiny_config(folder)), "short")
    assert short.convergence.converged is None
    assert "onverged" not in page_text(open_page("train", run="short"))


def test_a_run_with_nothing_ahead_of_it_is_not_called_queued(reserved_run):
    at = open_page("train", run=reserved_run.name)
    assert bars(at) == ["Preparing the network"]
    assert "Starting" in page_text(at)
    assert "Queued" not in page_text(at)
    assert "· starting ·" in at.selectbox(key="run_box").options[0]


def test_the_drawing_shows_which_frozen_stages_images_go_through(reserved_run, drawn_stages):
    stages = ["conv1", "layer1", "layer2", "layer3", "layer4", "head"]
    append_event(reserved_run, Progress("trunk", 3, 9, "conv1"))
    open_page("train", run=reserved_run.name)
    assert [tile["name"] for tile in drawn_stages[-1]] == stages
    assert [tile["look"] for tile in drawn_stages[-1]] == ["passing"] * 4 + ["warm", "head"]
    append_event(reserved_run, Progress("trunk", 5, 9, "layer2"))
    open_page("train", run=reserved_run.name)
    assert [tile["word"] for tile in drawn_stages[-1][:4]] == [
        *["computed"] * 2,
        *["computing"] * 2,
    ]


def test_a_failure_is_shown_in_words(folder, monkeypatch):
    def fail(*_, **__):
        raise TrainingError("The loss is not finite.")
        yield

    monkeypatch.setattr("finetune_core.runs.record.fit", fail)
    with pytest.raises(TrainingError):
        train(tiny_config(folder), paths.runs_dir())
    assert "not finite" in page_text(open_page("train"))


def open_details(run, what):
    """Open the Train page with the details of a run."""
    return open_page("train", run=run.run_id, state={"closer": what, "details_box": True})


@pytest.mark.train
def test_closer_looks_show_stages_flips_and_a_log():
    run = place_run(trained_run(strategy="last_block", epochs=3), "three-epochs")
    assert len(open_details(run, "Stages").get("vega_lite_chart")) == 5
    assert "class" in page_text(open_details(run, "Predictions that changed"))
    log = open_details(run, "Log").code[0].value.splitlines()
    assert "Finished after" in log[0]  # the latest first
    assert sum("Epoch" in line for line in log) == 3


@pytest.mark.train
def test_timing_says_where_the_time_went_and_what_the_cache_did(folder):
    def told(**settings):
        run = train(tiny_config(folder, epochs=1, **settings), paths.runs_dir())
        return unescaped_text(open_details(run, "Timing"))

    first, second = (told(strategy="last_block", seed=seed) for seed in (1, 2))
    assert "Computing the frozen stages (once)" in first
    assert "Frozen stages: not compiled: " in first
    assert "100 % of it was cached before" in second
    assert "compiled" not in second
    assert "nothing is frozen" in told(strategy="full")


def test_a_browser_that_sends_a_label_from_before_a_renaming_keeps_its_run(runs):
    first, second = runs
    at = open_page("evaluate", run=first.run_id)
    before = run_label(store().get_run(second.run_id))
    assert "finished" in before
    store().set_about(second.run_id, "another name", "")
    at.run()
    box = at.selectbox(key="run_box")
    assert before not in box.options
    for label, run in ((before, second), ("what nothing was ever called", second)):
        box = at.selectbox(key="run_box")
        box.options.append(label)
        box.select(label).run()
        assert address(at)["run"] == run.run_id
        assert at.selectbox(key="run_box").value == run.run_id
        assert "There is no run" not in page_text(at)


def test_a_run_gets_tags_where_it_gets_its_name(runs):
    first, second = (run.run_id for run in runs)
    store().set_about(second, "", "", ["paper"])
    at = open_page("train", run=first)
    tags = next(one for one in at.multiselect if one.label == "Tags")
    assert tags.options == ["paper"]
    tags.select("paper")
    press(at, "Save")
    assert store().get_run(first).tags == ("paper",)
    assert any("paper" in one.value for one in at.markdown)


@pytest.mark.train
def test_other_runs_are_overlaid_and_the_address_keeps_them(runs):
    first, second = (run.run_id for run in runs)
    at = open_page("train", run=first)
    before = len(at.get("vega_lite_chart"))
    at.multiselect(key="with_box").select(second).run()
    assert address(at)["with"] == second
    charts = at.get("vega_lite_chart")
    assert len(charts) == before
    assert all(
        title in charts[at].spec for at in (0, 1) for title in ("Last block", "Feature extraction")
    )
    again = open_page("train", run=first, **{"with": second})
    assert again.multiselect(key="with_box").value == [second]


def test_the_runs_to_overlay_are_chosen_outside_the_panel_that_refreshes_itself(runs, monkeypatch):
    within = []

    def chosen(*_, **__):
        within.append("live" in [frame.function for frame in inspect.stack()])
        return []

    monkeypatch.setattr("pages.shared.runs.overlay.choose_runs", chosen)
    open_page("train", run=runs[0].run_id)
    assert within == [False]


@pytest.mark.train
def test_settings_of_a_run_are_shown_as_changes_and_copied_as_command_and_json(runs):
    config = runs[1].config
    at = open_page("train", run=runs[1].run_id)
    changes, everything = (at.table[place].value for place in (0, 1))
    assert set(changes.index) == {
        "Strategy",
        "Epochs",
        "Batch size",
        "Learning rate",
        "Image size \\(pixels\\)",
        "Precision",
    }
    assert changes.loc["Strategy"].item().startswith("Feature extraction :gray[")
    assert set(changes.index) < set(everything.index)
    command, as_json = (at.code[place].value for place in (-2, -1))
    assert command.split()[:4] == ["thaw", "train", config.data, "--as-is"]
    assert "--strategy feature_extraction " in command
    assert make_config(json.loads(as_json)) == config

"""The Train page of runs that wait: what for, and that they can be paused and stopped there."""

from types import SimpleNamespace

import pytest
from filelock import FileLock
from streamlit.testing.v1 import AppTest

from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.formatting import PHASE_WORDS
from finetune_core.runs.record import create_run
from finetune_core.runs.stop_request import requested_stop
from finetune_core.runs.store import RunStore
from pages.shared.runs.backend import worker
from pages.shared.runs.live import pace
from tests.deadline import wait_until
from tests.pages.harness import open_page, words


def bars(at):
    return [element.proto.text for element in at.get("progress")]


def wait_for_status(run_id, *statuses):
    wait_until(lambda: RunStore(paths.runs_dir()).run(run_id).status in statuses, statuses)


@pytest.fixture
def two_runs(image_folder, tmp_path, monkeypatch):
    """Ids of a run that waits for another program's turn, and of one that is queued behind it."""
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))
    monkeypatch.setattr("finetune_core.training.device_turn._POLL", 0.05)
    settings = {
        "data": str(image_folder(tmp_path / "images", {"red": 9, "blue": 9})),
        "image_size": 32,
        "device": "cpu",
    }
    (paths.home() / "locks").mkdir(parents=True)
    with FileLock(paths.home() / "locks" / "cpu.lock"):
        ids = [worker().submit(make_config(settings | {"seed": seed})) for seed in (0, 1)]
        wait_for_status(ids[0], "waiting")
        yield ids
        for run_id in ids:
            worker().stop(run_id)
        wait_for_status(ids[0], "cancelled", "paused")


def test_a_run_that_waits_for_another_program_says_so_and_not_that_it_trains(two_runs):
    at = open_page("train", run=two_runs[0])
    assert "Waiting for the device" in words(at)
    assert "Training" not in words(at)
    assert bars(at) == [PHASE_WORDS["device"]]
    at = open_page("train", run=two_runs[1])
    assert "Queued" in words(at)
    assert "place 1 of 1" in words(at)
    assert bars(at) == ["Waiting for the run before it"]


def bar_while_waiting(run_id):
    from dataclasses import replace

    from finetune_core import paths
    from finetune_core.runs.store import RunStore
    from pages.shared.runs.live import bar

    bar(replace(RunStore(paths.runs_dir()).run(run_id), status="waiting"))


def test_a_run_whose_turn_comes_while_its_page_is_drawn_has_a_bar(image_folder, tmp_path):
    """Another session may have read its later events meanwhile."""
    settings = {
        "data": str(image_folder(tmp_path / "images", {"red": 9, "blue": 9})),
        "image_size": 32,
    }
    reservation = create_run(make_config(settings), paths.runs_dir())
    at = AppTest.from_function(
        bar_while_waiting, args=(reservation.run_dir.name,), default_timeout=300
    ).run()
    assert not at.exception
    assert bars(at) == [PHASE_WORDS["device"]]
    reservation.lock.release()


def live_memory(run_id):
    from dataclasses import replace

    from finetune_core import paths
    from finetune_core.runs.store import RunStore
    from pages.shared.runs.live import _engine, numbers

    run = RunStore(paths.runs_dir()).run(run_id)
    expected = {
        "seconds": 9.0,
        "epoch_seconds": 1.0,
        "memory_bytes": 4e8,
        "device_bytes": 3e9,
        "cache_bytes": 0.0,
    }
    run.history.started["forecast"] = expected
    run.history.epochs[-1] |= {"memory_bytes": 5 * 10**8, "device_bytes": 6 * 10**9}
    numbers(replace(run, status="running"))
    _engine(run)
    run.history.epochs[-1]["device_bytes"] = None
    numbers(replace(run, status="running"))
    _engine(run)


def test_a_gpus_memory_is_shown_apart_from_the_programs(trained_once):
    trained_once.copied(paths.runs_dir(), "last_block")
    at = AppTest.from_function(
        live_memory, args=(trained_once.last_block.name,), default_timeout=300
    ).run()
    assert not at.exception
    shown = [(metric.label, metric.value) for metric in at.metric if "emory" in metric.label]
    assert shown == [("Memory", "500.0 MB"), ("GPU memory", "6.0 GB"), ("Memory", "500.0 MB")]
    on_gpu, here = (one.value for one in at.caption if one.value.startswith("Forecast and actual"))
    assert "400.0 MB, 500.0 MB of memory; 3.0 GB, 6.0 GB of GPU memory;" in on_gpu
    assert "GPU" not in here


@pytest.mark.parametrize(("key", "status"), [("pause", "paused"), ("stop", "cancelled")])
def test_a_run_is_paused_and_stopped_by_the_same_buttons_wherever_it_waits(two_runs, key, status):
    for run_id in reversed(two_runs):
        at = open_page("train", run=run_id)
        assert [button.label for button in at.button if button.key in ("pause", "stop")] == [
            "Pause",
            "Stop",
        ]
        at.button(key=key).click().run()
        assert not at.exception
        wait_for_status(run_id, status)
        assert "Resume" in [button.label for button in open_page("train", run=run_id).button]


def test_a_pause_that_was_asked_for_can_still_be_made_a_stop(image_folder, tmp_path):
    folder = image_folder(tmp_path / "images", {"red": 9, "blue": 9})
    reservation = create_run(make_config({"data": str(folder), "image_size": 32}), paths.runs_dir())
    at = open_page("train", run=reservation.run_dir.name)
    at.button(key="pause").click().run()
    buttons = {key: at.button(key=key) for key in ("pause", "stop")}
    assert [(one.label, one.disabled) for one in buttons.values()] == [
        ("Pausing…", True),
        ("Stop", False),
    ]
    buttons["stop"].click().run()
    assert requested_stop(reservation.run_dir) == "stop"
    assert (at.button(key="stop").label, at.button(key="stop").disabled) == ("Stopping…", True)
    reservation.lock.release()


def test_a_long_run_is_watched_less_closely_and_one_that_has_ended_not_at_all():
    def watched(active, *seconds):
        return pace(
            SimpleNamespace(
                active=active, history=SimpleNamespace(steps=[{"seconds": at} for at in seconds])
            )
        )

    assert watched(True) == watched(True, 1, 59)
    assert watched(True, 1, 61) > watched(True, 1)
    assert watched(False, 61) is None

"""Runs: the table, the actions on selected runs, and the queue."""

import json
from pathlib import Path

import pytest

from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.data.entry import save_split
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import RunStore
from finetune_core.training.events import EpochEnded
from pages.shared.runs.backend import worker
from tests.deadline import wait_until
from tests.factories import tiny_config, trained_run
from tests.pages.harness import address, button, open_page, place_run, press


def store():
    return RunStore(paths.runs_dir())


def select(at, *run_ids):
    """Select rows as clicks on their checkboxes would, because the harness cannot click there."""
    at.session_state["selected_runs"] = list(run_ids)
    return at.run()


@pytest.fixture
def three_runs(runs):
    """Return the ids of two finished runs, and of one that was cancelled."""
    reservation = create_run(make_config({"data": runs[0].config.data}), paths.runs_dir())
    request_stop(reservation.run_dir)
    list(execute(reservation))
    return *(run.run_id for run in runs), reservation.run_dir.name


def test_the_table_tells_how_each_run_stands(three_runs):
    first, _, cancelled = three_runs
    store().set_about(first, "baseline", "", ["paper"])
    [table] = open_page("runs").dataframe
    rows = table.value.set_index("Run")
    assert list(rows.index) == sorted(three_runs, reverse=True)
    assert [rows["Status"][run_id] for run_id in three_runs] == [
        ["Finished"],
        ["Finished"],
        ["Cancelled"],
    ]
    assert (rows["Name"][first], list(rows["Tags"][first])) == ("baseline", ["paper"])
    assert rows["Data"][first] == Path(store().get_run(first).config.data).name
    assert len(rows["By epoch"][first]) == 2
    assert rows["Test accuracy"][first] == pytest.approx(
        100 * store().get_run(first).history.end["test_accuracy"]
    )
    low, high = rows["95 % interval"][first].replace(" %", "").split(" to ")
    assert 0 <= float(low) < rows["Test accuracy"][first] <= float(high) <= 100
    assert rows["Test accuracy"].isna()[cancelled]
    assert rows["Validation accuracy"].isna().all(), "all finished runs have test images"


@pytest.mark.train
def test_a_stopped_run_shows_the_epochs_it_trained_and_why_it_was_not_tested(folder):
    reservation = create_run(tiny_config(folder, epochs=9), paths.runs_dir())
    for event in execute(reservation):
        if isinstance(event, EpochEnded) and event.epoch == 2:
            request_stop(reservation.run_dir)
    run = store().get_run(reservation.run_dir.name)
    assert (run.status, run.started["counts"]["test"] > 0) == ("stopped", True)
    rows = open_page("runs").dataframe[0].value.set_index("Run")
    assert rows["Epochs"][run.run_id] == len(run.history.epochs) < 9
    said = " ".join(one.value for one in open_page("evaluate", run=run.run_id).warning)
    assert "The run has not finished, so its test images have not been evaluated." in said
    assert "There are no test images" not in said


def hidden_columns(table):
    """Return the names of the columns that a table does not show."""
    columns = json.loads(table.proto.columns)
    return {name for name, look in columns.items() if look.get("hidden")}


def test_columns_that_are_equal_for_all_runs_are_said_once_and_those_that_differ_are_shown(folder):
    one, other, probe = (
        place_run(trained_run(tiny_config(folder, **settings)), name)
        for name, settings in {
            "one": {"strategy": "last_block"},
            "other": {"strategy": "last_block", "learning_rate": 3e-3, "epochs": 3},
            "probe": {"strategy": "linear_probe"},
        }.items()
    )
    at = open_page("runs")
    [table] = at.dataframe
    rows = table.value.set_index("Run")
    assert {"Data", "Backbone", "Image size", "Seed"} <= hidden_columns(table)
    assert not {"Strategy", "Learning rate", "Epochs"} & hidden_columns(table)
    ids = [run.run_id for run in (one, other, probe)]
    assert list(rows["Learning rate"][ids]) == ["0.001", "0.003", ""]
    said = next(one.value for one in at.caption if one.value.startswith("All of them"))
    assert "32 px · seed 0" in said
    assert one.config.backbone in said.replace("\\", "")
    at.text_input(key="runs_search").set_value("linear").run()
    assert not {"Data", "Backbone", "Strategy"} & hidden_columns(at.dataframe[0])
    labels = open_page("train", run=one.run_id).selectbox(key="run_box").options
    of_one, of_other, of_probe = (
        next(label for label in labels if label.endswith(run.run_id[-4:]))
        for run in (one, other, probe)
    )
    assert "· last block · 2 epochs · lr 0.001 · finished" in of_one
    assert "· last block · 3 epochs · lr 0.003 · finished" in of_other
    assert "· linear probe · finished" in of_probe


def test_what_is_searched_for_is_shown_and_what_is_not_shown_is_not_selected(three_runs):
    _, second, _ = three_runs
    store().set_about(second, "", "the note of a careful person")
    at = select(open_page("runs"), *three_runs)
    assert "3 of 3 runs selected" in [one.value for one in at.caption]
    at.text_input(key="runs_search").set_value("CAREFUL efficientnet").run()
    assert list(at.dataframe[0].value["Run"]) == [second]
    assert "1 of 1 run selected" in [one.value for one in at.caption]
    at.text_input(key="runs_search").set_value("").run()
    assert at.session_state["selected_runs"] == [second]
    at.text_input(key="runs_search").set_value("nothing of the kind").run()
    assert "No run matches" in at.info[0].value


def test_selected_runs_are_compared_and_only_those_that_can_be(three_runs):
    first, second, cancelled = three_runs
    at = select(open_page("runs"), first, second, cancelled)
    assert button(at, "Compare").disabled
    at = select(at, first, second)
    press(at, "Compare")
    assert at.title[0].value == "Compare"
    assert set(at.query_params["runs"]) == {first, second}


def test_deleting_says_how_many_and_moves_them_to_the_trash(three_runs):
    first, second, cancelled = three_runs
    at = select(open_page("runs"), first, cancelled)
    button = at.button(key="confirm-delete")
    assert button.label == "Move 2 runs to the trash"
    button.click().run()
    assert [run.run_id for run in store().list_runs()] == [second]
    assert {one.name for one in (paths.runs_dir() / ".trash").iterdir()} == {first, cancelled}
    assert at.session_state["selected_runs"] == []


def test_the_settings_of_a_run_and_its_data_set_go_to_configure(runs):
    config = runs[0].config
    at = select(open_page("runs"), runs[0].run_id)
    assert not any("other settings now" in one.value for one in at.caption)
    save_split(config.data, config.split_settings | {"split_seed": 3})
    assert any("other settings now" in one.value for one in at.run().caption)
    press(at, "Use these settings again")
    assert at.title[0].value == "Configure"
    assert at.session_state["form_epochs"] == config.epochs
    assert at.session_state["form_image_size"] == config.image_size
    assert at.session_state["data_path"][1] == config.data
    assert at.session_state["settings_id"] == address(at)["settings"]


def test_waiting_runs_go_earlier_and_later_and_are_cancelled(folder, device_is_taken):
    first, *ids = [
        worker().submit(tiny_config(folder, device="cpu", seed=seed)) for seed in range(4)
    ]
    wait_until(lambda: store().get_run(first).status == "waiting")
    at = open_page("runs")
    assert [
        at.button(key=f"{name}-{ids[0]}").disabled for name in ("Earlier", "Later", "cancel")
    ] == [True, False, False]
    assert at.button(key=f"Later-{ids[2]}").disabled
    at.button(key=f"Later-{ids[0]}").click().run()
    at.button(key=f"Earlier-{ids[2]}").click().run()
    assert worker().list_queues() == [[first, ids[1], ids[2], ids[0]]]
    at.button(key=f"cancel-{ids[1]}").click().run()
    assert worker().list_queues() == [[first, ids[2], ids[0]]]
    assert store().get_run(ids[1]).status == "cancelled"

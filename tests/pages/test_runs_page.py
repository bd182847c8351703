"""The Runs page: the table, what can be done with the selected runs, and the queue; and a run's settings on Train."""

import inspect
import json

import pytest
from filelock import FileLock

from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.data.entry import save_split
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import RunStore
from pages.shared.runs.backend import worker
from pages.shared.runs.labels import run_label
from tests.pages.harness import button, open_page


def store():
    return RunStore(paths.runs_dir())


def select(at, *run_ids):
    """What clicks on the rows' boxes leave behind: the harness cannot click there."""
    at.session_state["selected_runs"] = list(run_ids)
    return at.run()


@pytest.fixture
def runs(trained_once, monkeypatch):
    """Ids of two finished runs, and of one that was cancelled."""
    monkeypatch.setenv("THAW_DATA_ROOTS", str(trained_once.data.parent))
    monkeypatch.setattr("finetune_core.training.device_turn._POLL", 0.05)
    first, second = (run_dir.name for run_dir in trained_once.copied(paths.runs_dir()))
    reservation = create_run(make_config({"data": str(trained_once.data)}), paths.runs_dir())
    request_stop(reservation.run_dir)
    list(execute(reservation))
    return first, second, reservation.run_dir.name


def test_the_table_tells_how_each_run_stands(runs):
    first, _, cancelled = runs
    store().describe(first, "baseline", "", ["paper"])
    [table] = open_page("runs").dataframe
    rows = table.value.set_index("Run")
    assert list(rows.index) == sorted(runs, reverse=True)
    assert [rows["Status"][run_id] for run_id in runs] == [
        ["Finished"],
        ["Finished"],
        ["Cancelled"],
    ]
    assert (rows["Name"][first], list(rows["Tags"][first]), rows["Data"][first]) == (
        "baseline",
        ["paper"],
        "images",
    )
    assert len(rows["By epoch"][first]) == 2
    assert rows["Accuracy"][first] == pytest.approx(
        100 * store().run(first).history.end["test_accuracy"]
    )
    low, high = rows["95 % interval"][first].removesuffix(" %").split(" – ")
    assert 0 <= float(low) < rows["Accuracy"][first] <= float(high) <= 100
    assert rows["Accuracy"].isna()[cancelled]


def test_what_is_searched_for_is_shown_and_what_is_not_shown_is_not_selected(runs):
    _, second, _ = runs
    store().describe(second, "", "the note of a careful person")
    at = select(open_page("runs"), *runs)
    assert "3 of 3 runs selected" in [one.value for one in at.caption]
    at.text_input(key="runs_search").set_value("CAREFUL efficientnet").run()
    assert list(at.dataframe[0].value["Run"]) == [second]
    assert "1 of 1 run selected" in [one.value for one in at.caption]
    at.text_input(key="runs_search").set_value("").run()
    assert at.session_state["selected_runs"] == [second]
    at.text_input(key="runs_search").set_value("nothing of the kind").run()
    assert "No run matches" in at.info[0].value


def test_selected_runs_are_compared_and_only_those_that_can_be(runs):
    first, second, cancelled = runs
    at = select(open_page("runs"), first, second, cancelled)
    assert button(at, "Compare").disabled
    at = select(at, first, second)
    button(at, "Compare").click().run()
    assert not at.exception
    assert at.title[0].value == "Compare"
    assert set(at.query_params["runs"]) == {first, second}


def test_deleting_says_how_many_and_moves_them_to_the_trash(runs):
    first, second, cancelled = runs
    at = select(open_page("runs"), first, cancelled)
    button = at.button(key="confirm-delete")
    assert button.label == "Move 2 runs to the trash"
    button.click().run()
    assert not at.exception
    assert [run.run_id for run in store().runs()] == [second]
    assert {one.name for one in (paths.runs_dir() / ".trash").iterdir()} == {first, cancelled}
    assert at.session_state["selected_runs"] == []


def test_the_settings_of_a_run_and_its_data_set_go_to_configure(runs, trained_once):
    first, _, _ = runs
    at = select(open_page("runs"), first)
    button(at, "Use these settings again").click().run()
    assert not at.exception
    assert at.title[0].value == "Configure"
    config = store().run(first).config
    assert (at.session_state["form_epochs"], at.session_state["form_image_size"]) == (
        config.epochs,
        config.image_size,
    )
    assert at.session_state["data_path"][1] == str(trained_once.data)
    assert at.session_state["settings_id"] in (
        at.query_params["settings"],
        at.query_params["settings"][0],
    )


def test_a_split_that_is_another_one_now_is_said_before_the_settings_are_used_again(
    runs, trained_once
):
    assert not any(
        "other settings now" in one.value for one in select(open_page("runs"), runs[0]).caption
    )
    save_split(trained_once.data, store().run(runs[0]).config.split_settings | {"split_seed": 3})
    assert any(
        "other settings now" in one.value for one in select(open_page("runs"), runs[0]).caption
    )


def test_waiting_runs_go_earlier_and_later_and_are_cancelled(trained_once, monkeypatch):
    monkeypatch.setenv("THAW_DATA_ROOTS", str(trained_once.data.parent))
    monkeypatch.setattr("finetune_core.training.device_turn._POLL", 0.05)
    (paths.home() / "locks").mkdir(parents=True)
    settings = {"data": str(trained_once.data), "image_size": 32, "device": "cpu"}
    with FileLock(paths.home() / "locks" / "cpu.lock"):
        first, *ids = [worker().submit(make_config(settings | {"seed": seed})) for seed in range(4)]
        at = open_page("runs")
        assert [
            at.button(key=f"{name}-{ids[0]}").disabled for name in ("Earlier", "Later", "cancel")
        ] == [True, False, False]
        assert at.button(key=f"Later-{ids[2]}").disabled
        at.button(key=f"Later-{ids[0]}").click().run()
        at.button(key=f"Earlier-{ids[2]}").click().run()
        assert worker().queues() == [[first, ids[1], ids[2], ids[0]]]
        at.button(key=f"cancel-{ids[1]}").click().run()
        assert not at.exception
        assert worker().queues() == [[first, ids[2], ids[0]]]
        assert store().run(ids[1]).status == "cancelled"
        for run_id in (ids[2], ids[0], first):
            worker().stop(run_id)


def test_a_label_that_was_shown_before_it_changed_still_means_its_run(runs):
    first, second, _ = runs
    at = open_page("evaluate", run=first)
    before = run_label(store().run(second))
    assert "finished" in before
    store().describe(second, "another name", "")
    at.run()
    box = at.selectbox(key="run_box")
    assert before not in box.options
    box.options.append(before)
    box.select(before).run()
    assert not at.exception
    assert at.query_params["run"] in (second, [second])
    assert at.selectbox(key="run_box").value == second


def test_a_run_gets_tags_where_it_gets_its_name(runs):
    first, second, _ = runs
    store().describe(second, "", "", ["paper"])
    at = open_page("train", run=first)
    tags = next(one for one in at.multiselect if one.label == "Tags")
    assert tags.options == ["paper"]
    tags.select("paper")
    button(at, "Save").click().run()
    assert not at.exception
    assert store().run(first).tags == ("paper",)
    assert any("paper" in one.value for one in at.markdown)


def test_other_runs_are_overlaid_and_the_address_keeps_them(runs):
    first, second, _ = runs
    at = open_page("train", run=first)
    before = len(at.get("vega_lite_chart"))
    at.multiselect(key="with_box").select(second).run()
    assert not at.exception
    assert at.query_params["with"] in (second, [second])
    charts = at.get("vega_lite_chart")
    assert len(charts) == before
    assert all(
        "Last block" in charts[at].spec and "Feature extraction" in charts[at].spec for at in (0, 1)
    )
    again = open_page("train", run=first, **{"with": second})
    assert again.multiselect(key="with_box").value == [second]


def test_the_settings_of_a_run_are_shown_as_changes_and_copied_as_command_and_as_json(runs):
    at = open_page("train", run=runs[1])
    config = store().run(runs[1]).config
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


def test_the_runs_to_overlay_are_chosen_outside_the_panel_that_refreshes_itself(runs, monkeypatch):
    within = []

    def chosen(*_, **__):
        within.append("live" in [frame.function for frame in inspect.stack()])
        return []

    monkeypatch.setattr("pages.shared.runs.overlay.choose_runs", chosen)
    open_page("train", run=runs[0])
    assert within == [False]


def test_a_run_that_can_be_resumed_has_one_primary_button(runs):
    first, _, cancelled = runs
    assert primary(open_page("train", run=first)) == ["See the evaluation"]
    assert primary(open_page("train", run=cancelled)) == ["Resume"]


def primary(at):
    return [one.label for one in at.button if one.proto.type == "primary"]

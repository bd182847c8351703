"""Compare: verdicts on runs, the choice of runs, and the form that starts a comparison."""

import json

import plotly.graph_objects as go
import pytest
import streamlit as st

from finetune_core import paths
from finetune_core.config import auto_setting_names
from finetune_core.data.recent import remember_source
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.comparison.pair_text import describe_pair
from finetune_core.reports.html import arm_verdict_text
from finetune_core.runs.stop_request import read_stop_request
from finetune_core.runs.store import RunStore
from pages.shared.runs.backend import worker
from tests.answers import answer_rightly
from tests.deadline import wait_until
from tests.factories import image_folder, shared_images, tiny_config, trained_run
from tests.pages.harness import (
    ANN,
    BEN,
    button_labels,
    open_page,
    place_run,
    press,
    primary_labels,
    tiny_form,
    unescaped_text,
)

SECTIONS = ("details", "cost", "curves", "disagree", "shift", "layers", "averages")


@pytest.fixture
def four_runs():
    """Copy two strategies with two seeds each into the app's own folder."""
    return [
        place_run(trained_run(epochs=1, strategy=strategy, seed=seed), f"{strategy}-{seed}")
        for strategy in ("feature_extraction", "last_block")
        for seed in (0, 1)
    ]


@pytest.fixture
def readable(monkeypatch):
    data = shared_images()
    monkeypatch.setenv("THAW_DATA_ROOTS", str(data))
    return data


@pytest.mark.train
def test_a_published_ordering_that_a_verdict_contradicts_is_named_with_its_source(four_runs):
    for run in four_runs:
        answer_rightly(run, run.config.strategy == "feature_extraction")
    comparison = compare_runs(four_runs)
    said = "“Last block” is said to beat “Feature extraction” (Yosinski et al. 2014)"
    assert (
        f"{said}; on these {comparison.images} images it is 100.0 points worse"
        in unescaped_text(open_page("compare", details="true"))
    )


def test_runs_get_a_verdict_their_numbers_and_their_figures(four_runs):
    comparison = compare_runs(four_runs)
    at = open_page("compare", **dict.fromkeys(SECTIONS, "true"))
    text = unescaped_text(at)
    assert all(text.count(line) == 1 for line in comparison.verdict.lines)
    verdicts = [arm_verdict_text(one) for one in comparison.arm_verdicts]
    assert sorted(at.dataframe[0].value["Verdict"]) == sorted(verdicts)
    scores = list(at.dataframe[0].value["Test accuracy"])
    assert scores == sorted(scores, reverse=True)
    pair = describe_pair(comparison.arms, comparison.pairs[0])
    assert pair.strategies in text
    assert pair.networks in text
    assert "blue-badge[:material/science: The method in general]" in text
    assert "violet-badge[:material/hub: These trained models]" in text
    folded = next(box for box in at.expander if box.label == "Details")
    assert any(pair.networks in one.value.replace("\\", "") for one in folded.markdown)
    assert list(at.dataframe[0].value["Seed numbers"]) == ["0, 1", "0, 1"]
    assert len(at.get("plotly_chart")) == 5
    assert "Test accuracy by first stage that trains" in text
    assert "Test accuracy by training set size" not in text
    assert {"Disagreements", "Layer diagnostics"} <= {box.label for box in at.expander}
    # Drawing the page anew would let go of the file.
    assert [one.proto.ignore_rerun for one in at.get("download_button")] == [True]


def test_a_folded_section_computes_nothing_and_its_address_opens_it(four_runs, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "pages.shared.evaluation.costs.plot_pareto_front",
        lambda *args: drawn.append(args) or go.Figure(),
    )
    at = open_page("compare")
    boxes = [box.label for box in at.expander]
    assert {"Details", "Cost", "Learning curves", "Distribution shift"} <= set(boxes)
    assert "Model soups and ensembles" in boxes
    assert len(at.get("plotly_chart")) == 1
    assert len(at.dataframe) == 1
    assert drawn == []
    at.session_state["cost"] = True
    at.run()
    assert drawn
    assert len(at.get("plotly_chart")) == 3
    drawn.clear()
    open_page("compare", cost="true")
    assert drawn


def test_beside_a_single_run_no_section_stands(four_runs):
    at = open_page("compare", runs=[four_runs[0].run_id])
    assert {box.label for box in at.expander} == {"Which runs", "Start a comparison"}


def test_the_page_follows_the_current_data_set(four_runs, readable, tmp_path, monkeypatch):
    """Check that runs of another data set are compared only if the address names them."""
    folder = image_folder(tmp_path / "other", {"red": 8, "blue": 8})
    monkeypatch.setenv("THAW_DATA_ROOTS", f"{readable}:{tmp_path}")
    at = open_page("compare", data=remember_source(readable))
    assert set(at.multiselect(key="runs_box").value) == {run.run_id for run in four_runs}
    at.session_state["data_id"] = remember_source(str(folder))
    at.run()
    assert at.multiselect(key="runs_box").value == []
    assert any("Choose two runs or more" in one.value for one in at.info)
    named = [run.run_id for run in four_runs[:2]]
    again = open_page("compare", data=remember_source(str(folder)), runs=named)
    assert again.multiselect(key="runs_box").value == named


@pytest.mark.train
def test_the_metric_is_in_the_address(four_runs):
    at = open_page("compare", judged_by="log_loss")
    assert at.segmented_control(key="judged_by").value == "log_loss"
    comparison = compare_runs(four_runs, "log_loss")
    assert comparison.verdict.answer in unescaped_text(at)
    assert "Log loss" in [one.value for one in at.header]
    at.segmented_control(key="judged_by").set_value("macro_f1").run()
    assert at.query_params["judged_by"] == "macro_f1"
    assert compare_runs(four_runs, "macro_f1").verdict.answer in unescaped_text(at)


def test_the_address_says_which_runs_and_says_when_one_is_gone(four_runs):
    some = [run.run_id for run in four_runs if run.config.seed == 0]
    at = open_page("compare", runs=[*some, "20200101-000000-gone"], details="true")
    assert at.multiselect(key="runs_box").value == some
    assert at.query_params["runs"] == some
    assert any("20200101-000000-gone" in one.value.replace("\\", "") for one in at.warning)
    assert "Three seeds or more" in unescaped_text(at)


def test_runs_on_other_images_are_refused(four_runs):
    other = place_run(trained_run(epochs=1, split_seed=5), "other")
    at = open_page("compare", runs=[other.run_id, *(run.run_id for run in four_runs)])
    assert "not evaluated on the same images" in unescaped_text(at)
    assert not at.get("plotly_chart")


def test_a_run_that_was_stopped_before_its_first_epoch_is_left_out_by_name(four_runs):
    run_dir = four_runs[0].run_dir
    lines = (run_dir / "events.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "events.jsonl").write_text(
        "".join(line for line in lines if "EpochEnded" not in line and "RunFinished" not in line)
    )
    at = open_page("compare", runs=[run.run_id for run in four_runs])
    warnings = [one.value.replace("\\", "") for one in at.warning]
    [warning] = [text for text in warnings if four_runs[0].run_id in text]
    assert "interrupted after 0 of 1 epoch" in warning
    assert not any(run.run_id in warning for run in four_runs[1:])
    assert "Test accuracy" in unescaped_text(at)


def test_one_seed_each_is_a_verdict_on_the_trained_models_only(four_runs):
    at = open_page("compare", runs=[run.run_id for run in four_runs if run.config.seed == 0])
    text = unescaped_text(at)
    assert "these trained models" in text
    assert "Train more seeds to compare the methods in general." in text
    assert "Take this one" not in text
    at.session_state["details"] = True
    at.run()
    verdicts = list(at.dataframe[0].value["Verdict"])
    assert sum("These trained models: " in one for one in verdicts) == len(verdicts) - 1
    assert at.dataframe[1].value["The method in general"][0] == "not compared yet"


def test_one_strategy_alone_is_not_to_be_taken(four_runs):
    for runs in ([four_runs[0]], [run for run in four_runs if run.config.strategy == "last_block"]):
        text = unescaped_text(open_page("compare", runs=[run.run_id for run in runs]))
        assert "Take this one" not in text
        assert "Add another strategy to compare it with." in text


def open_form(data):
    """Open Compare before any training, with data chosen and the quickest settings."""
    form, state = tiny_form()
    return open_page("compare", data=remember_source(data), form=form, state=state)


def find_start_button(at):
    return [label for label in button_labels(at) if label.startswith("Start ")]


def all_runs():
    return RunStore(paths.runs_dir()).list_runs()


@pytest.mark.train
def test_one_click_queues_strategies_by_seeds_and_their_verdict_follows(
    readable, wait_until_finished
):
    at = open_form(readable)
    at.button_group(key="compare_strategies").set_value(["feature_extraction", "last_block"])
    at.number_input(key="compare_seeds").set_value(2)
    at.run()
    assert list(at.dataframe[0].value["Forecast"]) == ["not timed yet"] * 2
    press(at, "Forecast")
    wait_until_finished(at)
    assert "4 runs in total: about" in unescaped_text(at).replace("*", "")
    assert "not timed yet" not in list(at.dataframe[0].value["Forecast"])
    press(at, "Start 4 runs")
    assert sorted((run.config.strategy, run.config.seed) for run in all_runs()) == [
        (strategy, seed) for strategy in ("feature_extraction", "last_block") for seed in (0, 1)
    ]
    own = {"strategy", "seed", *auto_setting_names()}
    others = {run.config.model_dump_json(exclude=own) for run in all_runs()}
    assert len(others) == 1
    assert sorted(at.query_params["runs"]) == sorted(run.run_id for run in all_runs())
    wait_until(lambda: not any(run.is_active for run in all_runs()))
    at.run()
    assert compare_runs(all_runs()).verdict.answer in unescaped_text(at)


@pytest.mark.train
def test_a_rate_is_searched_for_each_strategy_and_can_be_taken_back(readable, wait_until_finished):
    at = open_form(readable)
    at.button_group(key="compare_strategies").set_value(["feature_extraction", "last_block"])
    at.run()
    before = list(at.dataframe[0].value["Learning rate"])
    press(at, "Find a learning rate for each")
    wait_until_finished(at)
    assert len(set(before)) == 2, "that of the recipe for each"
    assert list(at.dataframe[0].value["Learning rate"]) != before
    press(at, "Undo the search")
    assert list(at.dataframe[0].value["Learning rate"]) == before


def test_cuts_and_shares_of_the_data_are_runs_of_their_own(readable):
    at = open_form(readable)
    at.button_group(key="compare_strategies").set_value(["full"])
    at.multiselect(key="compare_fractions").set_value([0.5, 1.0])
    at.multiselect(key="compare_cuts").set_value(["layer3"])
    at.run()
    assert sorted(at.dataframe[0].value["Strategy"]) == [
        "Custom from layer3 on · 100 % of the data",
        "Custom from layer3 on · 50 % of the data",
        "Full fine-tuning · 100 % of the data",
        "Full fine-tuning · 50 % of the data",
    ]
    assert find_start_button(at) == ["Start 12 runs"]


def test_settings_that_cannot_be_used_are_named_and_nothing_can_be_started(readable):
    at = open_form(readable)
    for strategies, rate, said in (
        ([], "0.001", "name at least one"),
        (["full"], "fast", "settings of the Configure page are invalid"),
    ):
        at.session_state["form_learning_rate"] = rate
        at.button_group(key="compare_strategies").set_value(strategies).run()
        assert said in unescaped_text(at)
        assert find_start_button(at) == []


def test_start_is_obeyed_before_anything_is_forecast(readable, monkeypatch, device_is_taken):
    at = open_form(readable)
    at.button_group(key="compare_strategies").set_value(["feature_extraction"])
    at.run()
    forecasts = []
    monkeypatch.setattr(
        "pages.shared.configure.comparison_form.forecast_arm", lambda *args: forecasts.append(args)
    )
    at.button(key="compare_start").click().run()
    assert forecasts == []
    assert len(all_runs()) == 3


def test_the_box_of_chosen_runs_has_a_label_that_never_changes(four_runs):
    at = open_page("compare", runs=[run.run_id for run in four_runs[:2]])
    assert "Which runs" in [box.label for box in at.expander]
    assert "2 of 4 runs chosen" in [one.value for one in at.caption]
    at.multiselect(key="runs_box").select(four_runs[2].run_id).run()
    assert "Which runs" in [box.label for box in at.expander]
    assert "3 of 4 runs chosen" in [one.value for one in at.caption]


@pytest.mark.train
def test_there_is_one_primary_button_with_the_form_open_and_closed(four_runs, readable):
    query = {"data": remember_source(readable), "runs": [run.run_id for run in four_runs]}
    at = open_page("compare", **query)
    assert primary_labels(at) == ["Try a run on new images"]
    at.session_state["start_box-0"] = True
    at.run()
    assert primary_labels(at) == ["Start 10 runs"]


def test_stop_all_stops_only_runs_that_one_may_change(readable, device_is_taken):
    hers, his = (
        worker().submit(tiny_config(device="cpu", seed=seed), owner["email"])
        for seed, owner in enumerate((ANN, BEN))
    )
    at = open_page("compare", user=ANN, runs=[hers, his])
    at.button(key="stop_all").click().run()
    wait_until(lambda: RunStore(paths.runs_dir()).get_run(hers).status == "cancelled")
    assert RunStore(paths.runs_dir()).get_run(his).is_active
    assert not read_stop_request(paths.runs_dir() / his)


def mark_as_trained_on_gpu(run_dir, device_bytes):
    """Rewrite a run as if it had been trained on an NVIDIA GPU."""
    file = run_dir / "events.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        if row["event"] == "RunStarted":
            row["device"] = "cuda"
        if row["event"] == "EpochEnded":
            row["device_bytes"] = device_bytes
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.train
def test_memory_of_a_gpu_and_of_a_processor_are_not_on_one_axis(four_runs):
    at = open_page("compare", cost="true")
    assert "Memory" in at.segmented_control(key="measure").options
    at.segmented_control(key="measure").set_value("memory_bytes").run()

    def redrawn(runs, device_bytes):
        for run in runs:
            mark_as_trained_on_gpu(run.run_dir, device_bytes)
        st.cache_data.clear()
        st.cache_resource.clear()
        at.run()
        return at.segmented_control(key="measure")

    measure = redrawn(four_runs[:2], 3 * 10**9)
    assert measure.options == ["Time", "Trainable parameters", "Size on disk"]
    assert measure.value == "seconds"
    assert "different devices (cpu, cuda)" in unescaped_text(at)
    assert set(at.dataframe[0].value["GPU memory"]) == {"3.0 GB", "none"}
    measure = redrawn(four_runs[2:], 4 * 10**9)
    assert measure.options == ["Time", "Trainable parameters", "GPU memory", "Size on disk"]
    measure.set_value("device_bytes").run()

"""Runs without epochs on the pages: their fit, no curves, and no settings of steps."""

import pytest

from finetune_core import paths
from finetune_core.evaluation.single_run.evaluate import HELD_OUT
from finetune_core.formatting import format_number
from finetune_core.models.network import network_stages
from finetune_core.runs.store import RunStore, summarize_run
from finetune_core.training.strategies.catalogue import BASELINE
from tests.deadline import wait_until
from tests.factories import shared_images, trained_run
from tests.pages.harness import button_labels, open_page, page_text, place_run, widget_keys

STEPS = {"epochs", "learning_rate", "batch_size", "optimizer", "augmentation", "ema"}


@pytest.fixture(autouse=True)
def readable(monkeypatch):
    monkeypatch.setenv("THAW_DATA_ROOTS", str(shared_images()))


def place(strategy=BASELINE, **settings):
    """Copy a finished run into the app's folder."""
    name = "-".join([strategy, *map(str, settings.values())])
    return place_run(trained_run(strategy=strategy, **settings), name)


@pytest.mark.train
@pytest.mark.parametrize("strategy", ["linear_probe", "prototypes", "nearest_neighbours"])
def test_train_shows_the_fit_and_no_epochs(strategy):
    at = open_page("train", run=place(strategy).run_id, state={"details_box": True})
    shown = page_text(at)
    assert "Its head was fitted without epochs." in shown
    assert "The classifier was fitted to 96 features" in shown
    assert "no epochs to follow" in shown
    assert "was the best and is kept" not in shown
    assert not at.get("arrow_vega_lite_chart")
    if strategy == "linear_probe":
        assert at.dataframe[0].value["C"].str.contains("chosen").sum() == 1
    assert ("was chosen among" in shown) == (strategy != "nearest_neighbours")


def test_other_pages_show_it_like_any_run():
    run = place()
    assert HELD_OUT in page_text(open_page("evaluate", run=run.run_id))
    open_page("predict", run=run.run_id)
    assert set(open_page("runs").dataframe[0].value["Strategy"]) == {"Linear probe"}


def test_a_comparison_of_runs_without_epochs_has_no_learning_curves():
    runs = [place(strategy) for strategy in ("linear_probe", "prototypes")]
    at = open_page("compare", runs=[run.run_id for run in runs])
    assert "Linear probe" in page_text(at)
    assert "Learning curves" not in [header.value for header in at.header]
    assert summarize_run(runs[0])["epochs"] == 0


@pytest.mark.train
def test_configure_hides_what_steers_steps(data_id_of, folder):
    at = open_page("configure", data=data_id_of(folder))

    def fields():
        shown = widget_keys(at, "number_input", "text_input", "selectbox")
        return {key.removeprefix("form_") for key in shown if key}

    assert {"epochs", "learning_rate", "image_size"} <= fields()
    at.number_input(key="form_epochs").set_value(7)
    at.session_state["form_strategy"] = "linear_probe"
    at.run()
    assert "image_size" in fields()
    assert not fields() & STEPS
    assert "training in steps are hidden" in page_text(at)
    assert "Find a learning rate" not in button_labels(at)
    at.session_state["form_strategy"] = "last_block"
    at.run()
    assert at.number_input(key="form_epochs").value == 7


@pytest.mark.train
def test_a_stage_to_take_features_from_is_offered_without_epochs_only(
    folder, data_id_of, drawn_stages
):
    at = open_page("configure", data=data_id_of(folder))
    assert "features_from" not in widget_keys(at, "selectbox")
    at.session_state["form_strategy"] = "prototypes"
    at.run()
    box = at.selectbox(key="features_from")
    assert (box.value, box.options[0], box.options[-1]) == (None, "stem", "block7")
    assert unused(drawn_stages) == []
    box.select("block3").run()
    assert unused(drawn_stages) == ["block4", "block5", "block6", "block7"]
    assert [tile["word"] for tile in drawn_stages[-1]][3:6] == ["frozen", "not used", "not used"]
    stages = network_stages("efficientnet_lite0", 2, features_from="block3")
    used = sum(stage.parameter_count for stage in stages)
    assert f"of {format_number(used)} parameters" in page_text(at)
    at.session_state["form_strategy"] = "last_block"
    at.run()
    assert "features_from" not in widget_keys(at, "selectbox")


def unused(drawn):
    return [tile["name"] for tile in drawn[-1] if tile["look"] == "unused"]


@pytest.mark.train
def test_a_run_on_features_of_an_earlier_stage_draws_what_it_does_not_use(drawn_stages):
    run = place(features_from="layer2")
    assert "The classifier was fitted to 48 features" in page_text(
        open_page("train", run=run.run_id)
    )
    assert unused(drawn_stages) == ["layer3", "layer4"]
    assert drawn_stages[-1][-1]["name"] == "head"
    for page in ("evaluate", "predict", "runs"):
        open_page(page, run=run.run_id)


@pytest.mark.train
def test_a_comparison_starts_with_the_baseline_unless_it_is_taken_off(data_id_of):
    at = open_page("compare", data=data_id_of(place().config.data))
    assert at.session_state["compare_strategies"][0] == BASELINE
    assert "compare_baseline" not in widget_keys(at)
    at.button_group(key="compare_strategies").set_value(["last_block"]).run()
    at.button(key="compare_baseline").click().run()
    assert BASELINE in at.session_state["compare_strategies"]
    assert "compare_baseline" not in widget_keys(at)


@pytest.mark.train
def test_one_click_fits_the_baseline_of_runs_that_were_compared_without_one():
    runs = [place("last_block", seed=seed) for seed in range(2)]
    at = open_page("compare", runs=[run.run_id for run in runs], details="true")

    def has_baseline():
        return any(
            said in page_text(at) for said in ("linear probe that took", "the linear probe by")
        )

    assert not has_baseline()
    at.button(key="start_baseline").click().run()
    ids = at.session_state["compared_runs"]
    assert ids[:2] == [run.run_id for run in runs]
    store = RunStore(paths.runs_dir())
    wait_until(lambda: not any(run.is_active for run in store.list_runs()))
    added = [store.get_run(run_id).config for run_id in ids[2:]]
    assert [(config.strategy, config.seed, config.data) for config in added] == [
        (BASELINE, 0, runs[0].config.data)
    ]
    at.run()
    assert has_baseline()
    assert "start_baseline" not in widget_keys(at)


def test_no_stage_of_it_is_drawn_with_a_learning_rate(data_id_of, folder, drawn_stages):
    assert "parameters are fitted" in page_text(open_page("train", run=place().run_id))
    at = open_page("configure", data=data_id_of(folder))
    for strategy in (BASELINE, "nearest_neighbours"):
        at.session_state["form_strategy"] = strategy
        at.run()
    assert "Nothing trains" in page_text(at)
    assert [(tiles[-1]["word"], tiles[-1]["rate"]) for tiles in drawn_stages] == [
        ("new, fitted", "no learning rate"),
        ("new, trains", "lr 0.001"),
        ("new, fitted", "no learning rate"),
        ("k-NN", "no learning rate"),
    ]

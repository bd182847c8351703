"""Runs without epochs on the pages: no curves that are not there, what was chosen, and no settings that mean nothing to them."""

import pytest

from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.formatting import number
from finetune_core.models.network import network_stages
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.store import RunStore, read_run, summary
from finetune_core.training.strategies import BASELINE
from tests.deadline import wait_until
from tests.pages.harness import open_page, words


@pytest.fixture
def fitted(image_folder, tmp_path, monkeypatch):
    """Trains a run of such a strategy among the app's runs; returns it."""
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))
    folder = image_folder(tmp_path / "images", {"red": 14, "blue": 14, "green": 14})

    def train(strategy=BASELINE, **settings):
        config = make_config(
            {"data": str(folder), "image_size": 32, "precision": "fp32", "strategy": strategy}
            | settings
        )
        reservation = create_run(config, paths.runs_dir())
        list(execute(reservation))
        return read_run(reservation.run_dir)

    return train


@pytest.mark.parametrize("strategy", ["linear_probe", "prototypes", "nearest_neighbours"])
def test_the_train_page_shows_the_fit_and_no_epochs(fitted, strategy):
    run = fitted(strategy)
    at = open_page("train", run=run.run_id)
    shown = words(at)
    assert "Its head was fitted without epochs." in shown
    assert "The classifier was fitted to 1,280 features" in shown
    assert "no epochs to follow" in shown
    assert "was the best and is kept" not in shown
    assert not at.get("arrow_vega_lite_chart")
    chosen = [frame.value for frame in at.dataframe]
    if strategy == "linear_probe":
        assert chosen[0]["C"].str.contains("chosen").sum() == 1
    assert ("was chosen among" in shown) == (strategy != "nearest_neighbours")


@pytest.mark.parametrize("page", ["evaluate", "predict", "runs"])
def test_other_pages_show_it_like_any_run(fitted, page):
    run = fitted()
    at = open_page(page, run=run.run_id)
    if page == "evaluate":
        assert "neither to train nor to choose anything" in words(at)
    if page == "runs":
        assert "Linear probe" in set(at.dataframe[0].value["Strategy"])


def test_a_comparison_of_runs_without_epochs_has_no_learning_curves(fitted):
    runs = [fitted(strategy) for strategy in ("linear_probe", "prototypes")]
    at = open_page("compare", runs=[run.run_id for run in runs])
    assert "Linear probe" in words(at)
    assert "Learning curves" not in [header.value for header in at.header]
    assert summary(runs[0])["epochs"] == 0


def test_configure_hides_what_steers_steps(known, image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))
    at = open_page(
        "configure", data=known(image_folder(tmp_path / "images", {"red": 14, "blue": 14}))
    )
    keys = {
        widget.key
        for kind in ("number_input", "text_input", "selectbox")
        for widget in at.get(kind)
    }
    assert {"form_epochs", "form_learning_rate", "form_image_size"} <= keys
    at.session_state["form_strategy"] = "linear_probe"
    at.run()
    keys = {
        widget.key
        for kind in ("number_input", "text_input", "selectbox")
        for widget in at.get(kind)
    }
    assert "form_image_size" in keys
    assert not keys & {
        "form_epochs",
        "form_learning_rate",
        "form_batch_size",
        "form_optimizer",
        "form_augmentation",
        "form_ema",
    }
    assert "mean nothing here" in words(at)
    assert not [button for button in at.button if button.label == "Find a learning rate"]
    at.session_state["form_strategy"] = "last_block"
    at.run()
    assert at.number_input(key="form_epochs").value == 10


def test_a_stage_to_take_features_from_is_offered_to_strategies_without_epochs_only(
    image_folder, known, tmp_path, monkeypatch
):
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))
    drawn = []
    monkeypatch.setattr(
        "pages.shared.configure.stages._ROW", lambda data, **_: drawn.append(data["tiles"])
    )
    at = open_page(
        "configure", data=known(image_folder(tmp_path / "images", {"red": 14, "blue": 14}))
    )
    assert not [box for box in at.selectbox if box.key == "features_from"]
    at.session_state["form_strategy"] = "prototypes"
    at.run()
    box = at.selectbox(key="features_from")
    assert (box.value, box.options[0], box.options[-1]) == (None, "stem", "block7")
    assert not [tile for tile in drawn[-1] if tile["look"] == "unused"]
    box.select("block3").run()
    assert not at.exception
    assert [tile["name"] for tile in drawn[-1] if tile["look"] == "unused"] == [
        "block4",
        "block5",
        "block6",
        "block7",
    ]
    assert [tile["word"] for tile in drawn[-1]][3:6] == ["frozen", "not used", "not used"]
    used = sum(
        stage.parameter_count
        for stage in network_stages("efficientnet_lite0", 2, features_from="block3")
    )
    assert f"of {number(used)} parameters" in words(at)
    at.session_state["form_strategy"] = "last_block"
    at.run()
    assert not at.exception
    assert not [box for box in at.selectbox if box.key == "features_from"]


def test_a_run_on_features_of_an_earlier_stage_draws_what_it_does_not_use(fitted, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "pages.shared.configure.stages._ROW", lambda data, **_: drawn.append(data["tiles"])
    )
    run = fitted(features_from="block3")
    at = open_page("train", run=run.run_id)
    assert "The classifier was fitted to 40 features" in words(at)
    assert [tile["name"] for tile in drawn[-1] if tile["look"] == "unused"] == [
        "block4",
        "block5",
        "block6",
        "block7",
    ]
    assert drawn[-1][-1]["name"] == "head"
    for page in ("evaluate", "predict", "runs"):
        open_page(page, run=run.run_id)


def test_a_comparison_starts_with_the_baseline_unless_it_is_taken_off(fitted, known):
    at = open_page("compare", data=known(fitted().config.data))
    assert at.session_state["compare_strategies"][0] == BASELINE
    assert not [button for button in at.button if button.key == "compare_baseline"]
    at.button_group(key="compare_strategies").set_value(["last_block"]).run()
    next(button for button in at.button if button.key == "compare_baseline").click().run()
    assert not at.exception
    assert BASELINE in at.session_state["compare_strategies"]
    assert not [button for button in at.button if button.key == "compare_baseline"]


def test_one_click_fits_the_baseline_of_runs_that_were_compared_without_one(fitted):
    runs = [fitted("last_block", epochs=1, learning_rate=1e-3, seed=seed) for seed in range(2)]
    at = open_page("compare", runs=[run.run_id for run in runs])
    assert "linear probe that took" not in words(at)
    assert "beats the linear probe by" not in words(at)
    at.button(key="fit_baseline").click().run()
    assert not at.exception
    ids = at.session_state["compared_runs"]
    assert ids[:2] == [run.run_id for run in runs]
    store = RunStore(paths.runs_dir())
    wait_until(lambda: not any(run.active for run in store.runs()))
    added = [store.run(run_id).config for run_id in ids[2:]]
    assert [(config.strategy, config.seed, config.data) for config in added] == [
        (BASELINE, seed, runs[0].config.data) for seed in range(2)
    ]
    at.run()
    assert "linear probe that took" in words(at) or "beats the linear probe by" in words(at)
    assert not [button for button in at.button if button.key == "fit_baseline"]


def test_home_offers_the_baseline_after_try_it_now():
    labels = [button.label for button in open_page("home").button]
    assert labels[:2] == ["Try it now", "Fit the baseline: linear probe"]


def test_no_stage_of_it_is_drawn_with_a_learning_rate(fitted, known, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "pages.shared.configure.stages._ROW", lambda *, data, **_: drawn.append(data["tiles"][-1])
    )
    run = fitted()
    at = open_page("train", run=run.run_id)
    assert "parameters are fitted (0.1 %)" in words(at)
    at = open_page("configure", data=known(run.config.data))
    for strategy in (BASELINE, "nearest_neighbours"):
        at.session_state["form_strategy"] = strategy
        at.run()
    assert "Nothing trains" in words(at)
    assert [(tile["word"], tile["rate"]) for tile in drawn] == [
        ("new, fitted", "no learning rate"),
        ("new, trains", "rate 0.0001"),
        ("new, fitted", "no learning rate"),
        ("k-NN", "no learning rate"),
    ]

"""Configure: cards, forecasts, presets, fields and their problems, and Start."""

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import streamlit as st

from finetune_core import paths
from finetune_core.config import auto_setting_names, make_config
from finetune_core.data.dataset import load_dataset
from finetune_core.errors import ConfigError, FinetuneError
from finetune_core.evaluation.comparison.arms import arm_titles
from finetune_core.evaluation.run_accuracy import (
    best_run,
    find_best_runs,
    run_accuracy,
    training_key,
)
from finetune_core.models.catalogue import backbone_info
from finetune_core.models.network import network_stages
from finetune_core.runs.store import RunStore
from finetune_core.training.checkpoints.files import load_checkpoint
from finetune_core.training.devices.speed_book import Speed, SpeedBook
from finetune_core.training.strategies.catalogue import STRATEGIES
from finetune_core.training.strategies.recipes import fill_auto
from finetune_core.work import Step
from pages.shared.configure.choices import ChoiceContext
from pages.shared.jobs import jobs
from tests.deadline import wait_until
from tests.factories import TINY_BACKBONE, image_folder, tiny_config, trained_run
from tests.pages.harness import (
    address,
    button,
    open_page,
    page_text,
    place_run,
    press,
    primary_labels,
    tiny_form,
    unescaped_text,
    widget_keys,
)

QUICK = {"image_size": 32, "batch_size": 8, "epochs": 2, "precision": "fp32"}
INPUT_FIELDS = ("form_mean", "form_std", "form_crop_pct")


@pytest.fixture
def configure(folder, data_id_of):
    """Open the page with settings in its form: ``configure(state, **form)``."""

    def opened(state=None, **form):
        shown = ALL_STRATEGIES | (state or {})
        return open_page("configure", data=data_id_of(folder), form=QUICK | form, state=shown)

    return opened


STRATEGY_CARDS = ("Strategies", "More strategies")
# What is folded is drawn only while it is open: the list of all networks, and most strategies.
FINDER, ALL_STRATEGIES = {"networks_open": True}, {"more_strategies": True}


def cards(at, *labels):
    drawn = (json.loads(one.proto.json) for one in at.get("bidi_component"))
    return {
        card["value"]: card
        for one in drawn
        if one.get("label") in (labels or STRATEGY_CARDS)
        for card in one["cards"]
    }


def test_each_strategy_has_a_card_with_its_share_and_its_paper_is_in_the_help(configure):
    at = configure()
    found = cards(at)
    assert {name: card["title"] for name, card in found.items()} == {
        name: one.title for name, one in STRATEGIES.items()
    }
    first = ["linear_probe", "last_block", "last_two_blocks", "full"]
    assert list(cards(at, "Strategies")) == first
    assert list(cards(configure({"more_strategies": False}))) == first
    assert list(cards(configure(strategy="lora"), "Strategies")) == [*first, "lora"]
    assert found["full"]["facts"] == "100 % of parameters"
    assert found["last_block"]["strip"] == ["frozen"] * 7 + ["warm", "head"]
    assert all(one.source in found[name]["tip"] for name, one in STRATEGIES.items())
    title = STRATEGIES["last_block"].title
    assert "Yosinski" in next(one for one in at.caption if title in one.value).help
    assert "Yosinski" not in unescaped_text(at)
    assert primary_labels(at) == ["Start training"]


def test_a_strategy_that_cannot_run_says_why_on_its_card(configure):
    found = cards(configure(epochs=1))
    assert "would thaw in epoch 2" in found["linear_probe_then_full"]["facts"]
    assert found["full"]["facts"] == "100 % of parameters"


@pytest.fixture
def buttons_for_cards(monkeypatch):
    """Replace each card by a button of its title, because JavaScript cannot be pressed here."""

    def drawn(_label, cards, _chosen, on_choice, key):
        for card in cards:
            st.button(card.title, key=f"{key}-{card.value}", on_click=on_choice, args=(card.value,))

    monkeypatch.setattr("pages.shared.configure.choices.choose_card", drawn)


@pytest.mark.train
def test_the_image_size_follows_the_backbone_as_long_as_it_is_the_backbones_own(
    configure, buttons_for_cards
):
    at = configure(FINDER, backbone="efficientnet_lite0", image_size=224)

    def by_card(name):
        return at.button(key=f"backbone_cards-{name}").click().run()

    def in_the_list(name):
        return at.selectbox(key="form_backbone").set_value(name).run()

    def size():
        return at.number_input(key="form_image_size").value

    for choose, name, own in (
        (by_card, "efficientnet_lite1", 240),
        (in_the_list, "efficientnet_lite0", 224),
    ):
        choose(name)
        assert (at.session_state["form_backbone"], size()) == (name, own)
    at.number_input(key="form_image_size").set_value(128).run()
    for choose in (by_card, in_the_list):
        choose("efficientnet_lite1")
        assert size() == 128
        at.session_state["form_backbone"] = "efficientnet_lite0"


def test_only_the_strategy_that_has_them_shows_settings_of_its_own(configure):
    at = configure(strategy="full")
    own = {"gradual_unfreezing": "form_thaw_every", "discriminative": "form_layer_decay"}
    assert not widget_keys(at, "number_input", "text_input") & set(own.values())
    for strategy, setting in own.items():
        at.session_state["form_strategy"] = strategy
        at.run()
        assert widget_keys(at, "number_input", "text_input") & set(own.values()) == {setting}


@pytest.mark.train
def test_the_forecast_is_on_every_card_and_can_be_measured_again(
    folder, data_id_of, wait_until_finished
):
    form, state = tiny_form(epochs=10, batch_size=4)
    at = open_page("configure", data=data_id_of(folder), form=form, state=state | ALL_STRATEGIES)
    assert " s · " not in cards(at)["full"]["facts"]
    press(at, "Forecast all strategies")
    wait_until_finished(at)
    assert all("MB" in card["facts"] for name, card in cards(at).items() if name != "custom")
    assert "MB" in cards(at, "Backbones")[TINY_BACKBONE]["facts"]
    assert "10 epochs · about " in unescaped_text(at)
    assert list(at.dataframe[0].value["Strategy"]) == [
        f"▸ {one.title}" if name == "last_block" else one.title
        for name, one in STRATEGIES.items()
        if name != "custom"
    ]
    measured = SpeedBook.get_speed
    before = {name: measured(SpeedBook(), config) for name, config in timed(form).items()}
    press(at, "Measure again")
    wait_until_finished(at)
    after = {name: measured(SpeedBook(), config) for name, config in timed(form).items()}
    assert before["full"]
    assert after != before


def timed(form):
    """Return strategy -> config that its forecast times."""
    return {
        name: make_config(
            {"data": "any", "weights": "none", "strategy": name, "optimizer": "adamw"} | form
        )
        for name in ("full", "last_block")
    }


def test_a_forecast_for_a_gpu_says_which_memory(configure, folder, gpu):
    config = make_config({"data": "any", "optimizer": "adamw"} | QUICK)
    speed = Speed(
        trunk=0.01, step=0.02, forward=0.005, activation_bytes=1000, step_bytes=5_000_000, exact=0.0
    )
    for strategy in STRATEGIES.keys() - {"custom"}:
        SpeedBook().learn(config.model_copy(update={"strategy": strategy}), speed)
    SpeedBook().learn_decoding(load_dataset(folder).fingerprint, config.image_size, 0.001)
    at = configure()
    assert "MB of GPU memory" in cards(at)["last_block"]["facts"]
    assert any("MB of GPU memory" in (one.help or "") for one in at.markdown)
    assert {"Memory", "GPU memory"} <= set(at.dataframe[0].value.columns)


def test_a_forecast_is_computed_once_and_none_where_the_strategy_does_not_fit(monkeypatch):
    asked = []

    def forecast(config, *_):
        asked.append(config.backbone)
        if config.backbone == "resnet18":
            raise ConfigError({"cut": "there is no stage block5"})
        return "some time"

    monkeypatch.setattr("pages.shared.configure.choices.forecast_run", forecast)
    known = ChoiceContext(dataset=object(), timed=True, best={})
    config = make_config({"data": "any", "strategy": "custom", "cut": "block5"})
    for one in (config, config.model_copy(update={"backbone": "resnet18"})) * 2:
        assert known.forecast(one) == (None if one.backbone == "resnet18" else "some time")
    assert asked == [config.backbone, "resnet18"]


@pytest.mark.train
def test_the_time_is_estimated_beside_the_page_without_being_asked(
    folder, data_id_of, wait_until_finished, monkeypatch
):
    monkeypatch.setattr("pages.shared.configure.forecasts._LARGEST", 10**9)
    form, state = tiny_form(epochs=10)
    at = open_page("configure", data=data_id_of(folder), form=form, state=state)
    assert "10 epochs · estimating the time …" in unescaped_text(at)
    assert not button(at, "Start training").disabled
    wait_until_finished(at)
    assert "10 epochs · about " in unescaped_text(at)


@pytest.mark.train
def test_nothing_is_timed_behind_a_run_that_trains(
    folder, data_id_of, device_is_taken, monkeypatch
):
    form, state = tiny_form(epochs=10)
    at = open_page("configure", data=data_id_of(folder), form=form, state=state)
    press(at, "Start training")
    monkeypatch.setattr("pages.shared.configure.forecasts._LARGEST", 10**9)
    at = open_page("configure", data=data_id_of(folder), form=form, state=state)
    assert not jobs().list_running()
    assert not button(at, "Profile the layers").disabled


@pytest.mark.train
def test_a_timing_that_fails_is_not_tried_again(
    folder, data_id_of, wait_until_finished, monkeypatch
):
    tried = []

    def calibrate(configs, *_, **__):
        tried.append(configs)
        yield Step(0, 1)
        raise FinetuneError("not enough memory")

    monkeypatch.setattr("pages.shared.configure.forecasts._LARGEST", 10**9)
    monkeypatch.setattr("pages.shared.configure.forecasts.calibrate", calibrate)
    at = wait_until_finished(open_page("configure", data=data_id_of(folder), form=QUICK))
    at.run()
    assert len(tried) == 1
    assert "estimating" not in unescaped_text(at)
    assert not button(at, "Start training").disabled


@pytest.fixture
def buttons_for_stages(monkeypatch):
    """Replace each stage by a button, because JavaScript cannot be pressed here."""

    def draw(*, data, key, on_clicked_change):
        def click(name):
            st.session_state[key] = SimpleNamespace(clicked=name)
            on_clicked_change()

        for tile in data["tiles"]:
            name = tile["name"]
            st.button(name, key=f"stage-{name}", on_click=click, args=(name,))

    monkeypatch.setattr("pages.shared.configure.stages._ROW", draw)


@pytest.mark.parametrize(
    ("strategy", "stage", "becomes"),
    [
        ("last_block", "block6", "last_two_blocks"),
        ("last_two_blocks", "block6", "last_block"),
        ("linear_probe", "block7", "last_block"),
        ("last_block", "block7", "feature_extraction"),
        ("last_block", "block3", "custom"),
    ],
)
def test_a_click_on_a_stage_selects_the_strategy_that_it_makes(
    configure, buttons_for_stages, strategy, stage, becomes
):
    at = configure(strategy=strategy)
    at.button(key=f"stage-{stage}").click().run()
    assert at.session_state["form_strategy"] == becomes


def test_settings_filled_in_for_another_data_set_are_named_and_can_be_put_back(
    configure, folder, data_id_of, tmp_path, monkeypatch
):
    other = image_folder(tmp_path / "other", {"red": 12, "blue": 12})
    monkeypatch.setenv("THAW_DATA_ROOTS", f"{folder}{os.pathsep}{tmp_path}")
    at = configure(learning_rate="0.01")
    assert "Filled in for" not in unescaped_text(at)
    at.session_state["data_id"] = data_id_of(other)
    at.run()
    assert "learning rate" in read_form(at)
    press(at, "Keep")
    assert not read_form(at)
    assert at.text_input(key="form_learning_rate").value == "0.01"
    at.number_input(key="form_epochs").set_value(3).run()
    assert not read_form(at), "it was filled in for this one"
    at.session_state["settings_for"] = "elsewhere"
    at.run()
    press(at, "Use defaults")
    assert not read_form(at)
    assert at.number_input(key="form_epochs").value is None
    assert at.text_input(key="form_learning_rate").value == ""


def read_form(at):
    lines = [one.value for one in at.markdown if "Filled in for" in one.value]
    return lines[0] if lines else ""


@pytest.mark.train
def test_what_was_reached_before_is_on_the_cards(folder, data_id_of):
    form, state = tiny_form()

    def opened(**changes):
        return open_page("configure", data=data_id_of(folder), form=form | changes, state=state)

    assert cards(opened())["full"]["before"] == ""
    config = tiny_config(folder, strategy="full", weights="none")
    runs = [
        place_run(trained_run(config.model_copy(update={"seed": seed})), f"run-{seed}")
        for seed in (0, 1)
    ]
    best = run_accuracy(best_run(runs))
    assert best.split == "test", "the best is chosen on validation images"
    said = f"best run: test accuracy {best.value * 100:.1f} %"
    at = opened()
    assert cards(at)["full"]["before"] == said
    assert cards(at)["last_block"]["before"] == ""
    assert cards(at, "Backbones")[TINY_BACKBONE]["before"] == said
    assert cards(opened(backbone="squeezenet1_1"))["full"]["before"] == ""


def test_only_finished_runs_on_the_same_data_count():
    run = trained_run()
    fingerprint = run.history.started["fingerprint"]
    assert find_best_runs([run], fingerprint) == {training_key(run.config): run}
    assert find_best_runs([run], "of other data") == {}
    assert find_best_runs([replace(run, status="stopped")], fingerprint) == {}


def test_an_empty_field_shows_what_the_recipe_chooses_and_what_is_typed_wins(data_id_of, folder):
    at = open_page("configure", data=data_id_of(folder))
    rate, epochs = at.text_input(key="form_learning_rate"), at.number_input(key="form_epochs")
    dataset = load_dataset(folder)
    first = make_config({"data": str(folder), "auto": auto_setting_names()})
    chosen = fill_auto(first, dataset.split_counts["train"])
    assert (rate.value, epochs.value) == ("", None)
    assert (rate.placeholder, epochs.placeholder) == (
        f"auto: {chosen.learning_rate:g}",
        f"auto: {chosen.epochs}",
    )
    at.number_input(key="form_epochs").set_value(3).run()
    press(at, "Auto")
    assert at.number_input(key="form_epochs").value is None


@pytest.mark.train
def test_a_preset_says_what_it_changed_until_it_is_taken_back_or_more_is_changed(configure):
    at = configure(learning_rate="0.01")
    press(at, "Tutorial, no download")
    assert "Learning rate 0.01 → **0.0001**" in unescaped_text(at)
    assert "Epochs 2 → **10**" in unescaped_text(at)
    assert "Backbone efficientnet" not in unescaped_text(at)
    press(at, "Undo")
    assert at.text_input(key="form_learning_rate").value == "0.01"
    assert at.number_input(key="form_epochs").value == 2
    assert "→" not in unescaped_text(at)
    press(at, "Tutorial, no download")
    at.number_input(key="form_epochs").set_value(3).run()
    assert "→" not in unescaped_text(at)


@pytest.mark.train
def test_a_preset_warns_before_it_switches_to_a_network_whose_weights_are_missing(
    configure, tmp_path, monkeypatch
):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    assert not backbone_info("resnet18").is_ready
    at = configure()
    press(at, "The tutorial's recipe")
    assert at.session_state["form_backbone"] == "efficientnet_lite0"
    assert "46.8 MB have to be downloaded" in unescaped_text(at)
    press(at, "Switch to resnet18")
    assert button(at, "Start training").disabled
    recipe = {
        "backbone": "resnet18",
        "strategy": "last_block",
        "optimizer": "adam",
        "learning_rate": "0.0001",
        "batch_size": 32,
        "epochs": 10,
        "image_size": 224,
    }
    assert {name: at.session_state[f"form_{name}"] for name in recipe} == recipe
    # no switch of the network: nothing to warn of
    press(at, "Feature extraction")
    assert at.session_state["form_strategy"] == "feature_extraction"
    assert at.session_state["form_learning_rate"] == "0.001"


def stage_looks(drawn):
    return [tile["look"] for tile in drawn[-1]]


@pytest.mark.parametrize("data", [True, False])
def test_the_strategy_is_drawn_and_stays_drawn_whatever_is_wrong(configure, drawn_stages, data):
    at = configure() if data else open_page("configure")
    assert stage_looks(drawn_stages) == ["frozen"] * 7 + ["warm", "head"]
    at.text_input(key="form_learning_rate").set_value("fast")
    at.text_input(key="form_weight_decay").set_value("-1")
    at.number_input(key="form_epochs").set_value(-1)
    at.number_input(key="form_image_size").set_value(5)
    at.number_input(key="form_batch_size").set_value(0)
    at.run()
    assert stage_looks(drawn_stages) == ["frozen"] * 7 + ["warm", "head"]
    assert {tile["rate"] for tile in drawn_stages[-1]} == {"", "lr ?"}
    assert "Epochs must be at least 1" in page_text(at)
    assert "Batch size must be at least 1" in page_text(at)
    assert "Learning rate must be a number" in page_text(at)
    if data:
        assert "5 settings cannot be used" in page_text(at)
        assert button(at, "Start training").disabled


@pytest.mark.train
def test_a_custom_strategy_is_drawn_by_its_first_stage_that_trains(configure, drawn_stages):
    at = configure(strategy="feature_extraction")
    assert stage_looks(drawn_stages) == ["frozen"] * 8 + ["head"]
    assert "2,562" in page_text(at)
    at.session_state["form_strategy"] = "custom"
    at.run()
    at.selectbox(key="custom_cut").set_value("block3").run()
    assert stage_looks(drawn_stages) == ["frozen"] * 3 + ["warm"] * 5 + ["head"]


@pytest.mark.train
def test_an_error_inside_more_settings_opens_it_and_errors_are_listed_beside_start(configure):
    at = configure(epochs=10, schedule="cosine")
    at.text_input(key="form_warmup_epochs").set_value("3").run()
    assert at.session_state["more_settings"] is False
    at.number_input(key="form_epochs").set_value(2).run()
    assert at.session_state["more_settings"] is True
    text = unescaped_text(at)
    assert "1 setting cannot be used" in text
    assert text.count("the warm-up must end") == 2  # beside its field, and beside the button
    at.session_state["more_settings"] = False
    at.run()
    assert at.session_state["more_settings"] is False, "it was closed on purpose"


@pytest.mark.train
def test_input_settings_are_the_networks_until_they_are_typed_and_survive_a_reload(configure):
    at = configure(FINDER)
    assert any("mean 0.5, 0.5, 0.5" in one.value for one in at.caption)
    fields = [at.text_input(key=key) for key in INPUT_FIELDS]
    assert [(field.value, field.placeholder) for field in fields] == [("", "from the network")] * 3
    at.text_input(key="form_mean").set_value("0.1, 0.2,0.3").run()
    at.text_input(key="form_crop_pct").set_value("90 %").run()
    again = open_page("configure", **address(at))
    shown = [again.text_input(key=key).value for key in INPUT_FIELDS]
    assert shown == ["0.1, 0.2, 0.3", "", "0.9"]
    for key in INPUT_FIELDS:
        again.text_input(key=key).set_value(" ")
    again.run()
    empty = open_page("configure", **address(again))
    assert [empty.text_input(key=key).value for key in INPUT_FIELDS] == ["", "", ""]
    assert not button(empty, "Start training").disabled


def test_what_is_wrong_with_input_settings_is_said_beside_them_all_at_once(configure):
    at = configure(mean="0.1, 0.2", std="0, 0, 0")
    assert "Input mean must be three numbers from 0 to 1" in unescaped_text(at)
    assert "Input standard deviation must be three numbers from 0.001 to 1" in unescaped_text(at)
    assert button(at, "Start training").disabled


@pytest.mark.train
def test_lora_shows_its_settings_and_tints_its_stages(configure, drawn_stages):
    at = configure(strategy="lora")
    assert at.number_input(key="form_lora_rank").value == 8
    assert at.text_input(key="form_lora_alpha").value == "16"
    assert at.selectbox(key="form_lora_norms").value == "frozen"
    box = at.selectbox(key="lora_from")
    assert (box.value, box.options[0], box.options[-1]) == (None, "stem", "block7")
    assert stage_looks(drawn_stages) == ["tinted"] * 8 + ["head"]
    box.select("block6").run()
    assert stage_looks(drawn_stages) == ["frozen"] * 6 + ["tinted"] * 2 + ["head"]
    stage = network_stages("efficientnet_lite0", 2)[6]
    trained = sum(min(8, *shape) * sum(shape) for shape in stage.matrices.values())
    assert drawn_stages[-1][6]["word"] == f"LoRA {100 * trained / stage.parameter_count:.1f} %"
    assert "LoRA's factors beside frozen weights" in page_text(at)
    again = open_page("configure", **address(at))
    assert again.selectbox(key="lora_from").value == "block6"
    again.session_state["form_strategy"] = "full"
    again.run()
    assert "lora_from" not in widget_keys(again, "selectbox")
    assert "LoRA" not in page_text(again)


@pytest.mark.train
def test_lora_is_trained_as_the_form_says(configure):
    at = configure({"lora_from": "block7"}, strategy="lora", lora_rank=4, epochs=1)
    button(at, "Start training").click().run()
    wait_until(lambda: all(run.history.end for run in RunStore(paths.runs_dir()).list_runs()))
    (run,) = RunStore(paths.runs_dir()).list_runs()
    assert (run.status, run.config.lora_from, run.config.lora_rank) == ("finished", "block7", 4)
    tensors, _ = load_checkpoint(run.run_dir, "best")
    whole = {name for name in tensors if "lora" not in name}
    assert whole == {"classifier.weight", "classifier.bias"}


def test_lora_with_a_setting_that_does_not_fit_is_refused_beside_its_field(configure):
    at = configure({"more_settings": True}, strategy="lora", l2_sp="0.1")
    assert "L2-SP pulls whole weights back" in unescaped_text(at)
    assert button(at, "Start training").disabled


def test_arms_of_lora_are_told_apart_by_the_first_stage_with_factors():
    whole, late = (
        make_config({"data": "x", "strategy": "lora", "lora_from": stage})
        for stage in (None, "block6")
    )
    assert arm_titles([whole, late]) == [
        "LoRA (low-rank updates)",
        "LoRA (low-rank updates) from block6 on",
    ]

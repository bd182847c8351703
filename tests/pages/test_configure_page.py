"""Configure: cards say what is known before anything is chosen, presets say what they changed, Start stays in sight."""

import json
from dataclasses import replace

import pytest
import streamlit as st

from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.data.dataset import load_dataset
from finetune_core.errors import ConfigError
from finetune_core.models.catalogue import backbone_info
from finetune_core.runs.earlier import best_before, way_to_train
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.store import RunStore, summary
from finetune_core.training.speed_book import Speed, SpeedBook
from finetune_core.training.strategies import STRATEGIES
from pages.shared.configure.choices import Known
from tests.pages.harness import button, open_page, unescaped

QUICK = {"image_size": 32, "batch_size": 8, "epochs": 2, "precision": "fp32"}


@pytest.fixture
def configure(folder, known):
    def opened(**form):
        return open_page("configure", data=known(folder), form=QUICK | form)

    return opened


@pytest.fixture
def trained(folder):
    def train(**settings):
        reservation = create_run(
            make_config({"data": str(folder)} | QUICK | settings), paths.runs_dir()
        )
        list(execute(reservation))
        return RunStore(paths.runs_dir()).run(reservation.run_dir.name)

    return train


def cards(at, label="Strategies"):
    drawn = (json.loads(one.proto.json) for one in at.get("bidi_component"))
    return {
        card["value"]: card for one in drawn if one.get("label") == label for card in one["cards"]
    }


def test_each_strategy_has_a_card_with_its_share_and_its_paper_is_in_the_help(configure):
    at = configure()
    found = cards(at)
    assert [card["title"] for card in found.values()] == [one.title for one in STRATEGIES.values()]
    assert found["full"]["facts"] == "100 % trains"
    assert found["last_block"]["strip"] == ["frozen"] * 7 + ["warm", "head"]
    assert all(one.source in found[name]["tip"] for name, one in STRATEGIES.items())
    chosen = next(
        caption for caption in at.caption if STRATEGIES["last_block"].title in caption.value
    )
    assert "Yosinski" in chosen.help
    assert "Yosinski" not in unescaped(at)


@pytest.fixture
def buttons_for_cards(monkeypatch):
    """Each card is a button of its title: what JavaScript draws cannot be pressed here."""

    def drawn(_label, cards, _chosen, on_choice, key):
        for card in cards:
            st.button(card.title, key=f"{key}-{card.value}", on_click=on_choice, args=(card.value,))

    monkeypatch.setattr("pages.shared.configure.choices.choose_card", drawn)


def test_the_image_size_follows_the_backbone_as_long_as_it_is_the_backbones_own(
    configure, buttons_for_cards
):
    at = configure(backbone="efficientnet_lite0", image_size=224)

    def by_card(name):
        return at.button(key=f"backbone_cards-{name}").click().run()

    def in_the_list(name):
        return at.selectbox(key="form_backbone").set_value(name).run()

    for choose in (by_card, in_the_list):
        for name, size in (
            ("efficientnet_lite1", 240),
            ("efficientnet_lite2", 260),
            ("efficientnet_lite0", 224),
        ):
            choose(name)
            assert (
                at.session_state["form_backbone"],
                at.number_input(key="form_image_size").value,
            ) == (name, size)
    at.number_input(key="form_image_size").set_value(128).run()
    for choose in (by_card, in_the_list):
        choose("efficientnet_lite1")
        choose("efficientnet_lite0")
        assert at.number_input(key="form_image_size").value == 128
    assert not at.exception


def test_a_strategy_that_cannot_run_says_why_on_its_card(configure):
    found = cards(configure(epochs=1))
    assert "would thaw in epoch 2" in found["linear_probe_then_full"]["facts"]
    assert found["full"]["facts"] == "100 % trains"


@pytest.mark.parametrize(
    ("strategy", "setting"),
    [
        ("gradual_unfreezing", "thaw_every"),
        ("linear_probe_then_full", "thaw_every"),
        ("discriminative", "layer_decay"),
    ],
)
def test_only_the_strategy_that_has_them_shows_settings_of_its_own(configure, strategy, setting):
    fields = {
        one.key
        for kind in ("number_input", "text_input")
        for one in configure(strategy=strategy).get(kind)
    }
    assert f"form_{setting}" in fields
    fields = {
        one.key
        for kind in ("number_input", "text_input")
        for one in configure(strategy="full").get(kind)
    }
    assert f"form_{setting}" not in fields


@pytest.mark.train
def test_the_forecast_is_on_every_card_and_can_be_measured_again(configure, finished):
    at = configure(epochs=10)
    assert " s · " not in cards(at)["full"]["facts"]
    button(at, "Forecast all strategies").click().run()
    finished(at)
    assert all("MB" in card["facts"] for name, card in cards(at).items() if name != "custom")
    assert "MB" in cards(at, "Backbones")["efficientnet_lite0"]["facts"]
    assert "training images · 10 epochs · about " in unescaped(at)
    config = make_config({"data": "any"} | QUICK | {"epochs": 10})
    before = SpeedBook().speed(config)
    button(at, "Measure again").click().run()
    finished(at)
    assert SpeedBook().speed(config) != before


def test_a_forecast_for_a_gpu_says_which_memory(configure, folder, gpu):
    config = make_config({"data": "any"} | QUICK)
    speed = Speed(
        trunk=0.01, step=0.02, forward=0.005, activation_bytes=1000, step_bytes=5_000_000, exact=0.0
    )
    for strategy in STRATEGIES.keys() - {"custom"}:
        SpeedBook().learn(config.model_copy(update={"strategy": strategy}), speed)
    SpeedBook().learn_decoding(load_dataset(folder).fingerprint, config.image_size, 0.001)
    at = configure()
    assert "MB of GPU memory" in cards(at)["last_block"]["facts"]
    assert "MB of GPU memory" in unescaped(at)
    assert {"Memory", "GPU memory"} <= set(at.dataframe[0].value.columns)


def test_what_was_reached_before_is_on_the_cards(configure, trained):
    assert cards(configure())["last_block"]["before"] == ""
    first, second = trained(), trained(seed=1)
    share = max(summary(run)["val_accuracy"] for run in (first, second)) * 100
    at = configure()
    assert cards(at)["last_block"]["before"] == f"best run: {share:.1f} %"
    assert cards(at)["full"]["before"] == ""
    assert cards(at, "Backbones")["efficientnet_lite0"]["before"] == f"best run: {share:.1f} %"
    assert cards(configure(backbone="squeezenet1_1"))["last_block"]["before"] == ""


def test_only_finished_runs_on_the_same_data_count(trained):
    run = trained()
    fingerprint = run.history.started["fingerprint"]
    assert best_before([run], fingerprint) == {
        way_to_train(run.config): summary(run)["val_accuracy"]
    }
    assert best_before([run], "of other data") == {}
    assert best_before([replace(run, status="stopped")], fingerprint) == {}


def test_a_preset_says_what_it_changed_and_is_taken_back(configure):
    at = configure(learning_rate="0.01")
    button(at, "Tutorial, no download").click().run()
    assert not at.exception
    assert "Learning rate 0.01 → **0.0001**" in unescaped(at)
    assert "Epochs 2 → **10**" in unescaped(at)
    assert "Backbone efficientnet" not in unescaped(at)
    button(at, "Undo").click().run()
    assert not at.exception
    assert at.text_input(key="form_learning_rate").value == "0.01"
    assert at.number_input(key="form_epochs").value == 2
    assert "→" not in unescaped(at)


def test_what_a_preset_changed_is_not_said_any_more_once_more_is_changed(configure):
    at = configure()
    button(at, "Tutorial, no download").click().run()
    assert "Epochs 2 → **10**" in unescaped(at)
    at.number_input(key="form_epochs").set_value(3).run()
    assert "→" not in unescaped(at)


def test_a_preset_warns_before_it_switches_to_a_network_whose_weights_are_missing(
    configure, tmp_path, monkeypatch
):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    assert not backbone_info("resnet18").ready
    at = configure()
    button(at, "The tutorial's recipe").click().run()
    assert at.session_state["form_backbone"] == "efficientnet_lite0"
    assert "46.8 MB have to be downloaded" in unescaped(at)
    button(at, "Switch to resnet18").click().run()
    assert not at.exception
    assert at.session_state["form_backbone"] == "resnet18"
    assert button(at, "Start training").disabled
    button(at, "Feature extraction").click().run()  # no switch: nothing to warn of
    assert at.session_state["form_strategy"] == "feature_extraction"


def test_the_page_has_one_primary_button(configure):
    primary = [one.label for one in configure().button if one.proto.type == "primary"]
    assert primary == ["Start training"]


def test_a_forecast_is_computed_once_and_none_where_the_strategy_does_not_fit(monkeypatch):
    asked = []

    def forecast(config, *_):
        asked.append(config.backbone)
        if config.backbone == "resnet18":
            raise ConfigError({"cut": "there is no stage block5"})
        return "some time"

    monkeypatch.setattr("pages.shared.configure.choices.expected", forecast)
    known = Known(dataset=object(), timed=True, best={})
    config = make_config({"data": "any", "strategy": "custom", "cut": "block5"})
    for one in (config, config.model_copy(update={"backbone": "resnet18"})) * 2:
        assert known.expects(one) == (None if one.backbone == "resnet18" else "some time")
    assert asked == [config.backbone, "resnet18"]

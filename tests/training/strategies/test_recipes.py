"""Tests of the rule that chooses settings which no person has set."""

import pytest

from finetune_core.config import auto_setting_names, make_config
from finetune_core.training.strategies.catalogue import STRATEGIES
from finetune_core.training.strategies.recipes import fill_auto


def fill(num_images, auto=None, **settings):
    config = make_config({"data": "any", "auto": auto_setting_names() if auto is None else auto})
    return fill_auto(config.model_copy(update=settings), num_images)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "custom"])
@pytest.mark.parametrize("num_images", [1, 100, 100_000])
def test_every_strategy_gets_settings_that_can_be_used(strategy, num_images):
    config = fill(num_images, strategy=strategy)
    assert make_config(config.model_dump()) == config


def test_few_images_are_shown_more_often_than_many():
    epochs = [fill(number, strategy="last_block").epochs for number in (10, 100, 1000, 100_000)]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[0] > epochs[-1]


def test_a_share_of_the_images_counts_as_that_many_images():
    assert fill(1000, train_fraction=0.1) == fill(100).model_copy(update={"train_fraction": 0.1})


def test_only_settings_that_are_left_to_the_rule_change():
    config = fill(100, auto=("learning_rate",), epochs=3, optimizer="sgd")
    assert (config.epochs, config.optimizer) == (3, "sgd")
    assert config.learning_rate == fill(100).learning_rate
    assert fill(100, auto=(), learning_rate=0.5).learning_rate == 0.5


def test_too_few_images_to_see_a_plateau_are_trained_to_the_end():
    assert fill(199).early_stopping == "off"
    assert fill(200).early_stopping == "val_loss"
    assert fill(1000, train_fraction=0.1).early_stopping == "off"


def test_warm_up_and_patience_follow_from_epochs_that_a_person_set():
    auto = [name for name in auto_setting_names() if name != "epochs"]
    config = fill(100, auto=auto, epochs=200)
    assert (config.epochs, config.warmup_epochs, config.patience) == (200, 20, 133)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "custom"])
def test_only_feature_extraction_begins_with_a_fitted_head(strategy):
    head = fill(100, strategy=strategy).initial_head
    assert head == ("probe" if strategy == "feature_extraction" else "random")


def test_a_head_that_is_fitted_first_takes_fewer_and_smaller_steps():
    fitted = fill(100, strategy="feature_extraction")
    random = fill(100, strategy="feature_extraction", backbone="squeezenet1_0")
    assert fitted.epochs < random.epochs
    assert fitted.learning_rate < random.learning_rate


@pytest.mark.parametrize(
    "settings",
    [
        {"weights": "none"},
        {"backbone": "squeezenet1_0"},
        {"backbone": "no_network"},
        {"auto": ()},
    ],
    ids=str,
)
def test_no_head_is_fitted_where_it_cannot_be_or_is_worth_nothing(settings):
    assert fill(100, strategy="feature_extraction", **settings).initial_head == "random"


def test_larger_batches_take_larger_steps():
    rates = [fill(100, batch_size=size).learning_rate for size in (8, 32, 128)]
    assert rates == pytest.approx([rates[1] / 2, rates[1], rates[1] * 2])

import json
import math
from typing import get_args

import pytest

from finetune_core.config import (
    DEMO_RECIPE,
    FEATURE_EXTRACTION_RECIPE,
    TUTORIAL_RECIPE,
    Optimizer,
    RunConfig,
    bounds,
    make_config,
    read_config,
)
from finetune_core.errors import ConfigError, FinetuneError

NUMBERS = [name for name, field in RunConfig.model_fields.items() if field.annotation in (int, float)]


def problems(**values):
    with pytest.raises(ConfigError) as caught:
        make_config({"data": "images"} | values)
    return caught.value.problems


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("learning_rate", 0, "more than 0"),
        ("learning_rate", -1e-4, "more than 0"),
        ("learning_rate", 11, "at most 10"),
        ("learning_rate", math.nan, "number"),
        ("learning_rate", math.inf, "number"),
        ("learning_rate", "fast", "must be a number"),
        ("weight_decay", 1.5, "at most 1"),
        ("epochs", 0, "at least 1"),
        ("epochs", 2.5, "whole number"),
        ("epochs", "many", "whole number"),
        ("batch_size", 0, "at least 1"),
        ("image_size", 31, "at least 32"),
        ("val_fraction", 0, "more than 0"),
        ("val_fraction", 0.9, "less than 0.9"),
        ("test_fraction", -0.1, "at least 0"),
        ("seed", -1, "at least 0"),
        ("seed", 2**31, "at most"),
        ("optimizer", "adagrad", "'adam', 'adamw' or 'sgd'"),
        ("strategy", "everything", "'feature_extraction'"),
        ("data", "", "not be empty"),
        ("colour", "red", "not a setting"),
    ],
)
def test_a_bad_value_is_named_with_its_field_in_words(field, value, said):
    found = problems(**{field: value})
    assert list(found) == [field]
    assert said in found[field]


def test_all_bad_fields_are_named_at_once():
    found = problems(epochs=0, learning_rate=-1, optimizer="x", batch_size="y")
    assert set(found) == {"epochs", "learning_rate", "optimizer", "batch_size"}


def test_fields_that_disagree_are_named_all_at_once():
    found = problems(cut="layer4", val_fraction=0.5, test_fraction=0.5, schedule="cosine", epochs=1, warmup_epochs=1)
    assert set(found) == {"strategy", "val_fraction", "warmup_epochs"}


def test_data_is_needed():
    with pytest.raises(ConfigError) as caught:
        make_config({})
    assert caught.value.problems == {"data": "is needed"}


def test_custom_strategy_needs_a_cut_or_rates_and_not_both():
    assert "strategy" in problems(strategy="custom")
    assert "strategy" in problems(strategy="custom", cut="layer4", stage_rates={"head": 1.0})
    assert make_config({"data": "x", "strategy": "custom", "cut": "layer4"}).cut == "layer4"
    assert make_config({"data": "x", "strategy": "custom", "stage_rates": {"head": 1.0}}).stage_rates == {"head": 1.0}


@pytest.mark.parametrize("rate", [-0.1, 1001, math.nan, math.inf])
def test_a_stage_rate_out_of_range_is_refused_by_the_stages_name(rate):
    found = problems(strategy="custom", stage_rates={"layer4": rate, "head": 1.0})
    assert "layer4" in found["stage_rates"]
    assert "head" not in found["stage_rates"]


@pytest.mark.parametrize("recipe", [TUTORIAL_RECIPE, FEATURE_EXTRACTION_RECIPE, DEMO_RECIPE])
def test_recipes_are_valid(recipe):
    config = make_config(recipe | {"data": "x"})
    assert {name: getattr(config, name) for name in recipe} == recipe


def test_the_tutorials_recipe_is_the_tutorials():
    config = make_config(TUTORIAL_RECIPE | {"data": "x"})
    assert (config.backbone, config.strategy, config.optimizer) == ("resnet18", "last_block", "adam")
    assert (config.learning_rate, config.batch_size, config.image_size, config.epochs) == (1e-4, 32, 224, 10)
    extraction = make_config(FEATURE_EXTRACTION_RECIPE | {"data": "x"})
    assert (extraction.strategy, extraction.learning_rate) == ("feature_extraction", 1e-3)


def test_a_config_survives_json(tmp_path):
    config = make_config({"data": "x", "strategy": "custom", "stage_rates": {"head": 1.0, "layer4": 0.1}, "seed": 7})
    file = tmp_path / "config.json"
    file.write_text(config.model_dump_json(), encoding="utf-8")
    assert make_config(read_config(file)) == config


def test_a_config_cannot_be_changed_afterwards():
    config = make_config({"data": "x"})
    with pytest.raises(ValueError, match="frozen"):
        config.epochs = 3


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b""])
def test_a_config_file_that_is_no_json_is_refused_by_name(tmp_path, content):
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json cannot be read as JSON"):
        read_config(file)


def test_a_config_file_that_holds_a_list_or_is_missing_is_refused(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps([1, 2]), encoding="utf-8")
    with pytest.raises(ConfigError, match="no settings"):
        read_config(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "other.json")


@pytest.mark.parametrize("field", NUMBERS)
def test_bounds_are_those_that_validation_uses(field):
    found = bounds(field)
    if "min" in found:
        assert field in problems(**{field: found["min"] - 1})
    if "max" in found:
        assert field in problems(**{field: found["max"] + 1})


def test_bounds_of_a_few_fields():
    assert (bounds("epochs")["min"], bounds("epochs")["max"]) == (1, 1000)
    assert (bounds("learning_rate")["min"], bounds("learning_rate")["max"]) == (0, 10)
    assert set(bounds("optimizer")) == {"help"}


def test_every_field_has_a_help_text():
    assert all(bounds(name)["help"] for name in RunConfig.model_fields)


def test_every_optimizer_is_accepted():
    for name in get_args(Optimizer):
        assert make_config({"data": "x", "optimizer": name}).optimizer == name


def test_a_config_error_is_one_of_thaws_own_and_its_text_has_a_line_a_problem():
    error = ConfigError({"epochs": "too few", "seed": "odd"})
    assert isinstance(error, FinetuneError)
    assert str(error) == "epochs: too few\nseed: odd"


def test_fields_that_do_not_agree_are_named_together_with_unsound_ones():
    with pytest.raises(ConfigError) as error:
        make_config({"data": "x", "learning_rate": -1, "strategy": "custom"})
    assert set(error.value.problems) == {"learning_rate", "strategy"}

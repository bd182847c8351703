import math
from typing import get_args

import pytest

from finetune_core.config import (
    RunConfig,
    all_settings,
    get_setting,
    make_config,
    read_config,
    setting_names,
)
from finetune_core.config.metadata import SECTIONS
from finetune_core.errors import ConfigError, FinetuneError
from finetune_core.training.strategies.recipes import (
    DEMO_RECIPE,
    FEATURE_EXTRACTION_RECIPE,
    TUTORIAL_RECIPE,
)

NUMBERS = [
    name for name, field in RunConfig.model_fields.items() if field.annotation in (int, float)
]


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


def test_all_unsound_and_disagreeing_fields_are_named_at_once():
    unsound = {"epochs": 0, "learning_rate": -1, "optimizer": "x", "batch_size": "y"}
    assert set(problems(**unsound)) == set(unsound)
    split = {"val_fraction": 0.5, "test_fraction": 0.5}
    found = problems(cut="layer4", schedule="cosine", epochs=1, warmup_epochs=1, **split)
    assert set(found) == {"strategy", "val_fraction", "warmup_epochs"}
    assert set(problems(learning_rate=-1, strategy="custom")) == {"learning_rate", "strategy"}


def test_data_is_needed():
    with pytest.raises(ConfigError) as caught:
        make_config({})
    assert caught.value.problems == {"data": "is needed"}


def test_custom_strategy_needs_a_cut_or_rates_and_not_both():
    assert "strategy" in problems(strategy="custom")
    assert "strategy" in problems(strategy="custom", cut="layer4", stage_rates={"head": 1.0})
    assert make_config({"data": "x", "strategy": "custom", "cut": "layer4"}).cut == "layer4"
    rates = {"head": 1.0}
    made = make_config({"data": "x", "strategy": "custom", "stage_rates": rates})
    assert made.stage_rates == rates


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
    assert TUTORIAL_RECIPE == TUTORIAL_RECIPE | {
        "backbone": "resnet18",
        "strategy": "last_block",
        "optimizer": "adam",
        "learning_rate": 1e-4,
        "batch_size": 32,
        "image_size": 224,
        "epochs": 10,
    }
    extraction = make_config(FEATURE_EXTRACTION_RECIPE | {"data": "x"})
    assert (extraction.strategy, extraction.learning_rate) == ("feature_extraction", 1e-3)


def test_a_config_survives_json(tmp_path):
    config = make_config(
        {"data": "x", "strategy": "custom", "stage_rates": {"head": 1.0, "layer4": 0.1}, "seed": 7}
    )
    file = tmp_path / "config.json"
    file.write_text(config.model_dump_json(), encoding="utf-8")
    assert make_config(read_config(file)) == config


def test_a_config_cannot_be_changed_afterwards():
    config = make_config({"data": "x"})
    with pytest.raises(ValueError, match="frozen"):
        config.epochs = 3


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", r"config\.json cannot be read as JSON"),
        (b"\xff\xfe\x00", r"config\.json cannot be read as JSON"),
        (b"", r"config\.json cannot be read as JSON"),
        (b"[1, 2]", "no settings"),
        (None, "cannot be read"),
    ],
)
def test_a_config_file_without_settings_is_refused_by_name(tmp_path, content, problem):
    file = tmp_path / "config.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=problem):
        read_config(file)


@pytest.mark.parametrize("field", NUMBERS)
def test_limits_are_those_that_validation_uses(field):
    past = {"ge": -1, "gt": 0, "le": 1, "lt": 0}
    for name, limit in get_setting(field).limits.items():
        assert field in problems(**{field: limit + past[name]})


def test_every_setting_has_a_label_a_help_text_a_section_and_words_for_its_choices():
    described = all_settings().values()
    for part in ("label", "help"):
        texts = [getattr(one, part) for one in described]
        assert all(texts)
        assert len(set(texts)) == len(texts)
    # without settings that no form shows
    assert all_settings().keys() - set(setting_names(*SECTIONS)) == {
        "data",
        "edits",
        "averaged",
        "auto",
    }
    for name, field in RunConfig.model_fields.items():
        if get_setting(name).kind == "choice":
            assert tuple(get_setting(name).choices) == get_args(field.annotation), name


@pytest.mark.parametrize(
    ("field", "typed", "meant"),
    [
        ("val_fraction", "20 %", 0.2),
        ("val_fraction", "20%", 0.2),
        ("val_fraction", " 14,3 % ", 0.143),
        ("val_fraction", "0,2", 0.2),
        ("val_fraction", "0.2", 0.2),
        ("train_fraction", "100 %", 1.0),
        ("learning_rate", "0,001", 0.001),
        ("learning_rate", "1e-4", 1e-4),
        ("clip_norm", "1,5", 1.5),
    ],
)
def test_numbers_may_be_written_as_people_write_them(field, typed, meant):
    assert getattr(make_config({"data": "x", field: typed}), field) == meant


@pytest.mark.parametrize(
    ("field", "typed"),
    [
        ("learning_rate", "20 %"),  # a share of what?
        ("clip_norm", "1,000"),  # a thousand or one?
        ("val_fraction", "0,2,1"),
        ("val_fraction", "%"),
        ("val_fraction", "a fifth"),
        ("val_fraction", "nan %"),
        ("val_fraction", "1e999999999999 %"),
    ],
)
def test_what_could_mean_two_numbers_or_none_is_refused(field, typed):
    assert field in problems(**{field: typed})


def test_a_config_error_is_one_of_thaws_own_and_its_text_has_a_line_a_problem():
    error = ConfigError({"epochs": "too few", "seed": "odd"})
    assert isinstance(error, FinetuneError)
    assert str(error) == "epochs: too few\nseed: odd"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("0.485, 0.456, 0.406", (0.485, 0.456, 0.406)),
        ("0.5,0.4,0.3", (0.5, 0.4, 0.3)),
        ("0,1,0", (0.0, 1.0, 0.0)),
        (" 0,5; 0,4; 0,3 ", (0.5, 0.4, 0.3)),
        ("0,5 0,4 0,3", (0.5, 0.4, 0.3)),
        ([0.1, 0.2, 1], (0.1, 0.2, 1.0)),
        ("", None),
        (None, None),
    ],
)
def test_three_numbers_as_people_write_them(written, read):
    config = make_config({"data": "x", "mean": written})
    assert config.mean == read
    assert make_config(config.model_dump(mode="json")) == config


def test_input_settings_that_cannot_be_used_are_named_all_at_once():
    found = problems(
        mean="0.5, 0.5",
        std="0, 0.5, 0.5",
        crop_pct="200 %",
        interpolation="nearest",
        image_size=1,
    )
    example = ", as in 0.485, 0.456, 0.406"
    assert found == {
        "mean": f"must be three numbers from 0 to 1{example}",
        "std": f"must be three numbers from 0.001 to 1{example}",
        "crop_pct": "must be at most 1, not 2.0",
        "interpolation": "must be 'auto', 'bilinear' or 'bicubic', not 'nearest'",
        "image_size": "must be at least 32, not 1",
    }
    for wrong in ("a, b, c", [0.1, float("nan"), 0.2], 5, {"r": 1}):
        with pytest.raises(ConfigError, match="mean: must be three numbers"):
            make_config({"data": "x", "mean": wrong})

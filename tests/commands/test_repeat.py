"""The command copied from a run's settings trains with the same settings again."""

import shlex

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as some

from finetune_core.commands.repeat import train_command
from finetune_core.config import Edit, all_settings, make_config
from finetune_core.config.changes import format_setting_value, list_changed_settings
from finetune_core.data.edits import save_edits
from finetune_core.data.entry import save_split
from finetune_core.errors import ConfigError
from tests.command_line import config_of

STAGES = ("stem", "block5", "head")


def values_of(one):
    """Return values that a setting may have, and some that it may not."""
    low, high = (
        one.limits.get("ge", one.limits.get("gt", 0)),
        one.limits.get("le", one.limits.get("lt", 1000)),
    )
    return {
        "choice": some.sampled_from(list(one.choices)),
        "integer": some.integers(low, high),
        "number": some.floats(low, high),
        "numbers": some.tuples(*[some.floats(0, 1)] * 3),
        "text": some.text(
            some.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20
        ),
        "structure": some.dictionaries(some.sampled_from(STAGES), some.floats(0, 10), min_size=1),
    }[one.kind]


@some.composite
def configs(draw):
    """Generate valid settings, several of them not at their defaults."""
    listed = [
        one
        for one in all_settings().values()
        if one.section and one.name not in ("backbone", "from_run", "groups", "strategy")
    ]
    found = {
        one.name: draw(values_of(one))
        for one in draw(some.lists(some.sampled_from(listed), max_size=5, unique_by=id))
    }
    if draw(some.booleans()):
        found["groups"] = draw(some.text(max_size=5)).replace("\0", "") + "{group}_*"
    if {"cut", "stage_rates"} & found.keys():
        found["strategy"] = "custom"
        found.pop("cut" if "stage_rates" in found else "", None)
    found |= {
        "data": str(draw(some.sampled_from(("/pictures", "/it's here/a b", "/tmp/$HOME;`x`")))),
        "backbone": "resnet18",
    }
    try:
        return make_config(found)
    except ConfigError:
        reject()


def config_again(line):
    """Return the config that a command line would train."""
    program, command, *arguments = shlex.split(line)
    assert (program, command) == ("thaw", "train")
    return config_of(*arguments)[0]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(configs())
def test_the_command_line_of_any_settings_gives_the_same_settings(config):
    assert config_again(train_command(config, "unused")) == config


def test_what_was_set_for_the_data_set_meanwhile_does_not_change_it(image_folder, tmp_path):
    data = str(image_folder(tmp_path / "pets", {"red": 3, "blue": 3}))
    config = make_config({"data": data, "learning_rate": 3e-4, "seed": 7})
    save_split(data, config.split_settings | {"split_seed": 5})
    save_edits(data, [Edit(action="exclude", paths=("red/000.png",))])
    line = train_command(config, tmp_path / "config.json")
    assert line == (
        f"thaw train {data} --as-is --recipe tutorial --backbone efficientnet_lite0 --lr 0.0003 "
        "--seed 7"
    )
    assert config_again(line) == config


@pytest.mark.parametrize("backbone", ["timm/test_vit2", "efficientnet_lite0"])  # 160, 224 px
def test_the_size_of_images_is_repeated_whatever_the_backbones_own_is(tmp_path, backbone):
    for size in (160, 96, 224):
        config = make_config({"data": str(tmp_path), "backbone": backbone, "image_size": size})
        assert config_again(train_command(config, "unused")) == config


def test_what_no_option_can_say_is_repeated_from_the_runs_file(tmp_path):
    edits = [Edit(action="exclude", paths=("a.png",))]
    for changes in ({"edits": edits}, {"from_run": str(tmp_path / "gone")}):
        config = make_config({"data": str(tmp_path), "epochs": 2} | changes)
        file = tmp_path / "the run" / "config.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(config.model_dump_json())
        assert config_again(train_command(config, file)) == config


def test_changes_are_written_as_the_form_shows_them():
    assert list_changed_settings(make_config({"data": "x"})) == []
    values = {
        "data": "x",
        "optimizer": "sgd",
        "learning_rate": 1.5e-5,
        "strategy": "custom",
        "stage_rates": {"head": 1, "stem": 0.1},
    }
    text = {
        one.label: format_setting_value(one, value)
        for one, value in list_changed_settings(make_config(values))
    }
    assert text == {
        "Strategy": "custom",
        "Learning-rate multipliers": "head 1, stem 0.1",
        "Optimizer": "SGD with momentum",
        "Learning rate": "1.5e-05",
    }
    assert format_setting_value(all_settings()["views"], None) == "chosen by Thaw"

"""The train command: the settings that follow from options and data set, and its refusals."""

import json
import zipfile
from pathlib import Path

import pytest

from finetune_core.config import Edit, auto_setting_names
from finetune_core.data.edits import save_edits
from tests.command_line import config_of, thaw, thaw_json, tiny_options
from tests.factories import shared_images, tiny_config, trained_run


@pytest.fixture(scope="module")
def data(home_of_shared_fixtures):
    return shared_images(**{"red": 12, "blue <b>": 12})


def test_options_become_settings(data):
    options = ["--train-fraction", "50 %", "--sampling", "balanced", "--mixup", 0.2, "--cutmix", 1]
    options += ["--cache", "off", "--strategy", "custom", "--stage-rates", "block7=0.1,head=1"]
    config, _ = config_of(data, *options)
    assert (config.train_fraction, config.sampling) == (0.5, "balanced")
    assert (config.mixup, config.cutmix, config.cache) == (0.2, 1, "off")
    assert config.stage_rates == {"block7": 0.1, "head": 1.0}
    refused = thaw("train", data, "--strategy", "custom", "--stage-rates", "block7")
    assert (refused.returncode, "--stage-rates" in refused.stderr) == (2, True)


def test_the_recipe_chooses_what_no_option_sets(data, tmp_path):
    config, _ = config_of(data, "--epochs", 1, "--image-size", 32)
    assert (config.optimizer, config.schedule, config.epochs) == ("adamw", "cosine", 1)
    assert set(auto_setting_names()) - set(config.auto) == {"epochs"}
    # A run repeats with its own numbers; what was left to the recipe stays left to it.
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert config_of("--config", tmp_path / "config.json")[0] == config
    tutorial, _ = config_of(data, "--recipe", "tutorial", "--image-size", 32)
    assert (tutorial.auto, tutorial.optimizer, tutorial.epochs) == ((), "adam", 10)
    refused = thaw("train", data, "--recipe", "best")
    assert (refused.returncode, "--recipe" in refused.stderr) == (2, True)


def test_saved_edits_are_used_and_said_unless_the_images_are_taken_as_they_are(data, tmp_path):
    excluded = Edit(action="exclude", paths=("red/000.png",))
    relabelled = Edit(action="relabel", paths=("red/001.png",), to="blue <b>")
    ignored = Edit(action="ignore", paths=("red",), kind="few_images")
    save_edits(data, [excluded, ignored, relabelled])
    config, said = config_of(data)
    assert config.edits == (excluded, relabelled)
    assert "1 image excluded, 1 image relabelled" in said
    as_is, said = config_of(data, "--as-is")
    assert (as_is.edits, "excluded" in said) == ((), False)
    # A run repeats with its own edits, whatever happens to the data set afterwards.
    save_edits(data, [])
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert config_of("--config", tmp_path / "config.json")[0] == config


def test_an_archive_is_unpacked_and_needed_no_more_when_the_run_is_repeated(data, tmp_path):
    archive = tmp_path / "pictures.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(data.rglob("*.png")):
            file.write(path, path.relative_to(data))
    config, _ = config_of(archive)
    assert sorted(path.name for path in Path(config.data).iterdir()) == ["blue <b>", "red"]
    archive.unlink()
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert config_of("--config", tmp_path / "config.json")[0] == config


def test_a_run_starts_from_another_one_and_says_so(data, tmp_path):
    parent = trained_run(tiny_config(data))
    options = ["--from", parent.run_dir, "--epochs", 1, "--strategy", "full"]
    done = thaw("train", data, *options, "--runs-dir", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    started = result["started_from"]
    assert (started["run"], started["strategy"]) == (parent.run_id, "last_block")
    assert (started["data"], started["backbone"]) == (data.name, parent.config.backbone)
    assert {"epoch", "accuracy", "weights"} < set(started)
    assert result["head_kept"] is True
    said = f"Started from run {parent.run_id} (last block on {data.name}, best epoch "
    assert said in done.words
    config = json.loads(Path(result["run_dir"], "config.json").read_text())
    assert (config["from_run"], config["image_size"]) == (str(parent.run_dir), 32)


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_run_to_start_from_names_the_backbone_and_has_to_be_there(data, tmp_path, command):
    parent, runs = trained_run(tiny_config(data)).run_dir, ["--runs-dir", tmp_path / "runs"]
    done = thaw(command, data, "--from", parent, "--backbone", "resnet18", *runs)
    assert done.returncode == 2
    assert "--backbone: follows from the run to start from" in done.words
    assert "has timm/test_resnet, not resnet18" in done.words
    done = thaw(command, data, "--from", tmp_path / "nowhere", *runs)
    assert (done.returncode, "--from: There is no run in" in done.stderr) == (2, True)


def test_a_single_class_and_a_runs_folder_that_is_a_file_are_refused(data, tmp_path):
    single = shared_images(red=12)
    done = thaw("train", single, *tiny_options(), "--runs-dir", tmp_path / "runs")
    assert done.returncode == 2
    assert "There is only one class with training images: “red”." in done.words
    (tmp_path / "file").write_text("")
    done = thaw("train", data, *tiny_options(), "--runs-dir", tmp_path / "file")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def test_the_cache_can_be_switched_off(data, tmp_path):
    options = [*tiny_options(cache="off"), "--runs-dir", tmp_path]
    run_dir = Path(thaw_json("train", data, *options)["run_dir"])
    assert '"where": "off"' in (run_dir / "events.jsonl").read_text()

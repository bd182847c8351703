"""The inspect command: its arguments, its findings, and its omissions."""

import zipfile
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from finetune_core.commands.inspect import inspect_data, print_inspection
from finetune_core.config import Edit
from finetune_core.data.edits import save_edits
from finetune_core.data.entry import load_split, save_split
from finetune_core.errors import DataError
from tests.command_line import thaw, thaw_json
from tests.factories import shared_images


@pytest.fixture(scope="module")
def data(home_of_shared_fixtures):
    return shared_images(**{"red": 12, "blue <b>": 12})


def test_folders_archives_and_manifests_are_taken_and_nothing_is_computed(
    data, tmp_path, monkeypatch
):
    monkeypatch.setattr("finetune_core.inspection.deep.inspect_deeply", None)
    result = thaw_json("inspect", data)
    assert result["counts"]["red"] == {"train": 8, "val": 2, "test": 2}
    assert result["findings"] != []  # fewer than ten training images per class
    assert "deep" not in result

    files = sorted(data.rglob("*.png"))
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for path in files:
            archive.write(path, Path("holiday", path.relative_to(data)))
    unpacked = thaw_json("inspect", tmp_path / "pictures.zip")
    assert (unpacked["images"], unpacked["counts"]) == (24, result["counts"])
    assert Path(unpacked["data"]).is_dir()

    splits = ["val" if number % 4 == 0 else "train" for number in range(24)]
    rows = [f"{a},{a.parent.name.upper()},{b}" for a, b in zip(files, splits, strict=True)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    listed = thaw_json("inspect", tmp_path / "list.csv")
    assert listed["given_splits"] is True
    assert listed["counts"] == {name: {"train": 9, "val": 3} for name in ("BLUE <B>", "RED")}


@pytest.mark.parametrize("command", [["inspect", "--deep"], ["train"]])
def test_archives_and_manifests_without_images_are_refused_in_one_line(tmp_path, command):
    archive, listed = tmp_path / "pictures.zip", tmp_path / "list.csv"
    members = {"escaping": "../outside.png", "empty": "notes.txt"}
    for name in ("no archive", *members):
        archive.write_bytes(b"PK\x03\x04 and then nothing that makes sense")
        if name in members:
            with zipfile.ZipFile(archive, "w") as file:
                file.writestr(members[name], b"x")
        done = thaw(*command, archive, "--json")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), name
        assert done.stderr.startswith("pictures.zip was not imported: ")
    assert not (tmp_path / "outside.png").exists()
    listed.write_text("path,label\na.png,\n")
    done = thaw(*command, listed, "--json")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "rows without a label: 2" in done.stderr


def test_saved_edits_show_and_can_be_left_out(data):
    excluded = Edit(action="exclude", paths=("red/000.png", "red/001.png"))
    save_edits(
        data, [excluded, Edit(action="ignore", paths=("red", "blue <b>"), kind="few_images")]
    )
    result = thaw_json("inspect", data)
    assert result["images"] == 22
    assert [edit["action"] for edit in result["edits"]] == ["exclude", "ignore"]
    assert "few_images" not in [one["kind"] for one in result["findings"]]
    assert "2 images excluded" in thaw("inspect", data).stdout
    result = thaw_json("inspect", data, "--as-is")
    assert (result["images"], result["edits"]) == (24, [])
    assert "few_images" in [one["kind"] for one in result["findings"]]


def test_the_split_set_in_the_app_is_used_and_said_unless_an_option_goes_before_it(data):
    save_split(data, load_split(data) | {"val_fraction": 0.5, "test_fraction": 0.0})
    assert "--val-fraction 0.5, --test-fraction 0.0" in thaw("inspect", data).stderr
    assert thaw_json("inspect", data)["splits"] == {"train": 12, "val": 12}
    other = thaw_json("inspect", data, "--val-fraction", "0.25")
    assert other["splits"] == {"train": 18, "val": 6}
    usual = thaw("inspect", data, "--as-is")
    assert ("Split as it was set" in usual.stderr, "test" in usual.stdout) == (False, True)


def test_an_unknown_fit_is_refused_in_words(data):
    done = thaw("inspect", data, "--fit", "stretch")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--fit: must be 'crop' or 'pad', not 'stretch'" in done.stderr


@pytest.fixture
def small(monkeypatch):
    """Inspect deeply at 32 pixels, and without a map, which the command does not show."""
    monkeypatch.setattr("finetune_core.models.catalogue.default_image_size", lambda _: 32)
    monkeypatch.setattr("finetune_core.inspection.deep.lay_out", None)


@pytest.mark.train
def test_a_deep_inspection_adds_findings_a_probe_of_each_stage_and_a_suggestion(
    image_folder, tmp_path, small, capsys
):
    layout = {"train/red": 24, "train/blue": 24, "val/red": 14, "val/blue": 14}
    data = image_folder(tmp_path / "images", layout)
    for file in (data / "val").rglob("*.png"):
        ImageOps.invert(Image.open(file)).save(file)
    inspection = inspect_data(str(data), {}, deep=True, backbone=None, fit="crop", as_is=False)
    result = inspection.to_json()
    (shift,) = (one for one in result["findings"] if one["kind"] == "shift")
    assert (shift["count"], shift["action"]) == (28, None)
    deep = result["deep"]
    assert (deep["backbone"], deep["image_size"], set(deep["auc"])) == (
        "efficientnet_lite0",
        32,
        {"val"},
    )
    stages = ["stem", *(f"block{number}" for number in range(1, 8))]
    assert [one["stage"] for one in deep["probes"]] == stages
    assert set(deep["suggestion"]) == {"strategy", "cut", "reason"}
    print_inspection(inspection)
    printed = capsys.readouterr().out
    assert "Validation accuracy of a linear probe" in " ".join(printed.split())
    assert deep["suggestion"]["reason"] in printed


@pytest.mark.train
def test_a_deep_inspection_where_nothing_can_be_probed_is_printed_too(data, small):
    done = thaw("inspect", data, "--deep")  # four validation images
    assert (done.returncode, "linear probe" in done.stdout) == (0, False)


def test_a_deep_inspection_takes_images_of_the_networks_own_size(data, monkeypatch):
    asked = []

    def refuse(_dataset, backbone, image_size, fit, **_):
        asked.append((backbone, image_size, fit))
        raise DataError("enough")
        yield

    monkeypatch.setattr("finetune_core.inspection.deep.inspect_deeply", refuse)
    options = ("--deep", "--backbone", "efficientnet_lite1", "--fit", "pad")
    assert thaw("inspect", data, *options).returncode == 2
    assert asked == [("efficientnet_lite1", 240, "pad")]
    done = thaw("inspect", data, "--deep", "--backbone", "resnet0", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("--backbone: ")

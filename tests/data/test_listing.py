import os
import subprocess
from pathlib import Path

import pytest

from finetune_core.data.listing import check_data, image_root, is_within, list_data
from finetune_core.errors import ConfigError, DataError
from tests.factories import image_folder

links = pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")


def list_splits(data, **settings):
    """Return {id: (class, split)}, and the notes."""
    listing = list_data(data, **settings)
    files = listing.files
    return dict(
        zip(files["id"], zip(files["class"], files["split"], strict=True), strict=True)
    ), set(listing.notes)


def list_classes(data):
    return sorted(set(list_data(data).files["class"]))


@links
def test_a_tree_deeper_than_pythons_recursion_is_listed(tmp_path):
    deep = tmp_path / "red"
    deep.mkdir()
    before = os.getcwd()
    try:
        os.chdir(deep)  # the whole path is too long for one call
        for _ in range(1400):
            os.mkdir("d")
            os.chdir("d")
        image_folder(Path("."), {".": 1})
    finally:
        os.chdir(before)
    image_folder(tmp_path, {"blue": 1})
    try:
        found = list_data(tmp_path).files
    finally:
        subprocess.run(["rm", "-r", str(deep)], check=True)  # Python's own way recurses
    assert sorted(found["class"]) == ["blue", "red"]
    assert found["id"].max().count("/") == 1401


def test_class_folders_say_the_class_and_no_split(tmp_path):
    image_folder(tmp_path, {"red": 1, "blue/deep/down": 1})
    files = {"blue/deep/down/000.png": ("blue", ""), "red/000.png": ("red", "")}
    assert list_splits(tmp_path) == (files, set())
    image_folder(tmp_path / "one", {"red": 2})
    assert list_classes(tmp_path / "one") == ["red"]  # no wrapping


def test_sizes_and_times_are_the_files_own(tmp_path):
    image_folder(tmp_path, {"red": 1})
    os.utime(tmp_path / "red" / "000.png", ns=(1, 1_234_567_891_234_567_891))
    row = list_data(tmp_path).files.iloc[0]
    assert (row["bytes"], row["changed"]) == (
        (tmp_path / "red" / "000.png").stat().st_size,
        1_234_567_891_234_567_891,
    )


SPELLINGS = [("train", "val", "test"), ("training", "valid", "testing")]
SPELLINGS += [("Train", "VALIDATION", "Test"), ("training_set", "validation_set", "test_set")]
SPELLINGS += [("training_set/training_set", "val", "test_set/test_set")]  # packed once too often


@pytest.mark.parametrize("folders", SPELLINGS)
def test_split_folders_are_known_by_what_people_call_them(tmp_path, folders):
    for folder in folders:
        (tmp_path / folder / "red").mkdir(parents=True)
        (tmp_path / folder / "red" / "a.png").touch()
    names = zip(folders, ("train", "val", "test"), strict=True)
    files, _ = list_splits(tmp_path)
    assert files == {f"{folder}/red/a.png": ("red", split) for folder, split in names}


@pytest.mark.parametrize("wrapping", ["pets", "a/b/c"])
@pytest.mark.parametrize(
    "inside", [{"red": 1, "blue": 1}, {"train/red": 1, "val/red": 1, "train/blue": 1}]
)
def test_folders_around_a_data_set_are_no_classes(tmp_path, wrapping, inside):
    image_folder(tmp_path / wrapping, inside)
    image_folder(tmp_path, {"__MACOSX": 1})
    (tmp_path / "README.txt").write_text("pets")
    assert list_classes(tmp_path) == ["blue", "red"]
    files, _ = list_splits(tmp_path)
    assert set(files) == {f"{wrapping}/{folder}/000.png" for folder in inside}
    assert {split for _, split in files.values()} == ({""} if "red" in inside else {"train", "val"})


def test_what_systems_leave_behind_is_passed_over_without_a_word(tmp_path):
    image_folder(
        tmp_path, {"red": 1, "__MACOSX/red": 1, ".cache": 1, "red/.thumbs": 1, "red/__MACOSX": 1}
    )
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._000.png"):
        (tmp_path / name).touch()
        (tmp_path / "red" / name).touch()
    assert list_splits(tmp_path) == ({"red/000.png": ("red", "")}, set())


def test_what_is_passed_over_is_noted(tmp_path):
    image_folder(tmp_path, {"train/red": 1, "other": 1, "train/empty": 0, "": 1, "train": 1})
    (tmp_path / "train" / "red" / "notes.txt").touch()
    files, notes = list_splits(tmp_path)
    assert set(files) == {"train/red/000.png"}
    assert notes == {
        ("ignored_folder", "other"),
        ("empty_class", "train/empty"),
        ("no_class", "000.png"),
        ("no_class", "train/000.png"),
        ("not_an_image", "train/red/notes.txt"),
    }


def test_endings_of_images_in_any_case(tmp_path):
    (tmp_path / "red").mkdir()
    suffixes = ["JPG", "jpeg", "jfif", "Png", "webp", "TIFF", "pgm", "gif", "bmp"]
    for suffix in (*suffixes, "txt", "jpgx"):
        (tmp_path / "red" / f"a.{suffix}").touch()
    assert set(list_splits(tmp_path)[0]) == {f"red/a.{suffix}" for suffix in suffixes}


OUT_OF_THE_ROOTS = {
    "a file": ("red/000.png", "red/000.png", {"blue": 1, "red": 0}),
    "a class": ("red", "red", {"blue": 1}),
    "a split": ("train", "train/red", {"training/blue": 1, "val/blue": 1}),
}


@links
@pytest.mark.parametrize("what", OUT_OF_THE_ROOTS)
def test_links_that_lead_out_of_the_roots_are_left_out_and_noted(tmp_path, what):
    linked, noted, layout = OUT_OF_THE_ROOTS[what]
    root, outside = (
        image_folder(tmp_path / "root", layout),
        image_folder(tmp_path / "outside", {"red": 2}),
    )
    (root / linked).symlink_to(outside if what == "a split" else outside / linked)
    files, notes = list_splits(root, roots=[root])
    assert {name for name, _ in files.values()} == {"blue"}
    assert ("outside", noted) in notes
    for roots in ([], [root, outside]):
        files, notes = list_splits(root, roots=roots)
        assert {name for name, _ in files.values()} == {"blue", "red"}
        assert not notes


@links
def test_links_to_folders_within_a_class_are_not_followed(tmp_path):
    image_folder(tmp_path, {"red": 1, "blue": 1})
    (tmp_path / "red" / "more").symlink_to(tmp_path / "blue")
    assert set(list_splits(tmp_path)[0]) == {"red/000.png", "blue/000.png"}


@links
def test_links_that_stay_within_the_roots_are_followed(tmp_path):
    image_folder(tmp_path, {"red": 1, "blue": 1})
    (tmp_path / "red" / "again.png").symlink_to(tmp_path / "blue" / "000.png")
    files, notes = list_splits(tmp_path, roots=[tmp_path])
    assert "red/again.png" in files
    assert not notes


@links
def test_loops_of_links_end(tmp_path):
    image_folder(tmp_path, {"red": 1, "blue": 1})
    (tmp_path / "red" / "loop").symlink_to(tmp_path)
    (tmp_path / "blue" / "loop.png").symlink_to(tmp_path / "blue" / "loop.png")
    listing = list_data(tmp_path)
    assert listing.files.set_index("id")["bytes"].to_dict()["blue/loop.png"] == -1
    assert len(listing.files) == 3


@links
def test_a_folder_that_holds_nothing_but_itself(tmp_path):
    (tmp_path / "self").symlink_to(tmp_path)
    with pytest.raises(DataError, match="no images"):
        list_data(tmp_path)


def test_a_folder_that_may_not_be_read_is_said(tmp_path, monkeypatch):
    image_folder(tmp_path, {"red": 1, "blue": 1})
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "red":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"red cannot be read: Permission denied"):
        list_data(tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "a" * 300, "~nobody-of-that-name/x", "a\0b"])
def test_names_of_nothing(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        list_data(name)
    with pytest.raises(ConfigError, match="there is no folder"):
        check_data(name)


def test_folders_and_manifests_are_data(tmp_path):
    (tmp_path / "a.csv").touch()
    check_data(tmp_path)
    check_data(tmp_path / "a.csv")
    (tmp_path / "a.txt").touch()
    with pytest.raises(ConfigError):
        check_data(tmp_path / "a.txt")


def test_ids_are_relative_to_the_folder_or_to_the_one_the_manifest_lies_in(tmp_path):
    image_folder(tmp_path / "a", {"red": 1})
    (tmp_path / "a" / "m.csv").write_text("path,label\nred/000.png,red\n")
    for data in (tmp_path / "a", tmp_path / "a" / "m.csv"):
        listing = list_data(data)
        assert image_root(data) == listing.root == tmp_path.resolve() / "a"
        assert listing.files["id"].tolist() == ["red/000.png"]


def test_a_folder_named_like_a_manifest_is_a_folder(tmp_path):
    image_folder(tmp_path / "pets.csv", {"red": 1, "blue": 1})
    assert list_classes(tmp_path / "pets.csv") == ["blue", "red"]
    assert image_root(tmp_path / "pets.csv") == tmp_path / "pets.csv"


@links
def test_within_means_after_all_links(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "out").symlink_to(tmp_path)
    assert is_within(tmp_path / "in" / "x", [tmp_path / "in"])
    assert is_within(tmp_path / "in" / "out" / "in", [tmp_path / "in"])
    assert not is_within(tmp_path / "in" / "out" / "x", [tmp_path / "in"])
    assert not is_within(tmp_path / "in" / ".." / "x", [tmp_path / "in"])
    assert not is_within(tmp_path / "inside", [tmp_path / "in"])

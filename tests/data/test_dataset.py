import io
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from finetune_core.data.dataset import index_dataset, load_dataset
from finetune_core.errors import DataError

ODD_NAMES = ["with space", "it's", 'double"quote', "<script>alert(1)</script>", "otter 🦦", "naïve, 100%"]
if os.name != "posix":
    ODD_NAMES = [name for name in ODD_NAMES if not set(name) & set('"<>')]
# No "/" in a file name: the tag is closed without one.
ODD_NAMES = [name.replace("/", "∕") for name in ODD_NAMES]


def finding(dataset, kind):
    return next((found for found in dataset.findings if found.kind == kind), None)


def drained(generator):
    steps = []
    while True:
        try:
            steps.append(next(generator))
        except StopIteration as finished:
            return steps, finished.value


def truncated_jpeg():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


def test_given_splits_are_kept(image_folder, tmp_path):
    image_folder(tmp_path, {"train/red": 5, "train/blue": 4, "val/red": 2, "val/blue": 1, "test/red": 1, "test/blue": 1})
    dataset = load_dataset(tmp_path)
    assert dataset.given_splits
    assert dataset.classes == ("blue", "red")
    assert dataset.counts().to_dict("index") == {
        "blue": {"train": 4, "val": 1, "test": 1},
        "red": {"train": 5, "val": 2, "test": 1},
    }
    assert all(row.id.startswith(f"{row.split}/") for row in dataset.table.itertuples())
    assert {row.id.split("/")[1] for row in dataset.table.itertuples() if row.label == 1} == {"red"}


@pytest.mark.parametrize(("train", "val"), [("Train", "VALID"), ("training", "validation")])
def test_other_spellings_of_the_split_folders(image_folder, tmp_path, train, val):
    image_folder(tmp_path, {f"{train}/red": 3, f"{val}/red": 2})
    dataset = load_dataset(tmp_path)
    assert dataset.counts().loc["red"].to_dict() == {"train": 3, "val": 2}


def test_a_train_folder_alone_is_split_into_train_and_val_only(image_folder, tmp_path):
    image_folder(tmp_path, {"train/red": 10, "train/blue": 10})
    dataset = load_dataset(tmp_path, val_fraction=0.2, test_fraction=0.2)
    assert dataset.counts().to_numpy().tolist() == [[8, 2], [8, 2]]
    assert not dataset.given_splits


def test_train_and_test_folders_keep_the_test_images(image_folder, tmp_path):
    image_folder(tmp_path, {"train/red": 10, "train/blue": 10, "test/red": 3, "test/blue": 3})
    dataset = load_dataset(tmp_path, val_fraction=0.2)
    assert dataset.counts().loc["red"].to_dict() == {"train": 8, "val": 2, "test": 3}
    assert dataset.table.loc[dataset.table["split"] == "test", "id"].str.startswith("test/").all()


def test_plain_class_folders_are_split(image_folder, tmp_path):
    image_folder(tmp_path, {"red": 20, "blue": 10})
    dataset = load_dataset(tmp_path, val_fraction=0.2, test_fraction=0.1)
    assert dataset.counts().to_dict("index") == {
        "blue": {"train": 7, "val": 2, "test": 1},
        "red": {"train": 14, "val": 4, "test": 2},
    }
    assert not dataset.given_splits


def test_images_in_nested_folders_belong_to_the_class_folder(image_folder, tmp_path):
    image_folder(tmp_path, {"red/a/b": 6, "red": 4, "blue": 6})
    dataset = load_dataset(tmp_path)
    assert dataset.counts().sum(axis=1).to_dict() == {"blue": 6, "red": 10}


def test_the_table_says_what_the_headers_say(image_folder, tmp_path):
    image_folder(tmp_path, {"red": 4, "blue": 4}, size=(40, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (30, 20)).save(tmp_path / "red" / "turned.jpg", exif=exif)
    table = load_dataset(tmp_path).table.set_index("id")
    assert table.loc["blue/000.png", ["width", "height", "mode"]].tolist() == [40, 32, "RGB"]
    assert table.loc["red/turned.jpg", ["width", "height", "mode"]].tolist() == [20, 30, "L"]
    assert table.loc["red/turned.jpg", "bytes"] == (tmp_path / "red" / "turned.jpg").stat().st_size


def test_paths_of_rows_are_the_files(image_folder, tmp_path):
    image_folder(tmp_path, {"red": 4, "blue": 4})
    dataset = load_dataset(tmp_path)
    assert all(path.is_file() for path in dataset.paths(dataset.table))
    assert dataset.paths(dataset.table.head(1)) == [tmp_path.resolve() / "blue" / "000.png"]


def test_indexing_tells_its_progress(image_folder, tmp_path):
    image_folder(tmp_path, {"red": 4, "blue": 3})
    steps, _ = drained(index_dataset(tmp_path, val_fraction=0.2, test_fraction=0.2, split_seed=0))
    assert steps == [*((done, 7) for done in range(1, 8)), (7, 7)]  # looked at one by one, then compared


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_of_classes_and_files_work(image_folder, tmp_path, name):
    image_folder(tmp_path, {name: 4, "plain": 4})
    (tmp_path / name / "000.png").rename(tmp_path / name / f"{name}.png")
    dataset = load_dataset(tmp_path)
    assert name in dataset.classes
    assert f"{name}/{name}.png" in set(dataset.table["id"])
    assert len(dataset.fingerprint) == 16
    assert finding(dataset, "damaged") is None


@pytest.mark.skipif(os.name != "posix", reason="elsewhere names are always Unicode")
def test_a_name_that_is_not_unicode_is_named_and_left_out(image_folder, tmp_path):
    image_folder(tmp_path, {"red": 4, "blue": 4})
    broken = os.fsencode(tmp_path / "red") + b"/caf\xe9.png"
    try:
        shutil.copy(tmp_path / "red" / "000.png", broken)
    except OSError:
        pytest.skip("this file system refuses such names")
    dataset = load_dataset(tmp_path)
    assert len(dataset.table) == 8
    assert finding(dataset, "bad_name").count == 1


def test_hidden_files_and_system_folders_are_passed_over(image_folder, tmp_path):
    image_folder(tmp_path, {"red": 4, "blue": 4, "__MACOSX": 2, ".git": 2, "red/.thumbs": 2})
    (tmp_path / "red" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "red" / "Thumbs.db").write_bytes(b"x")
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("blue", "red")
    assert len(dataset.table) == 8
    assert finding(dataset, "not_an_image") is None


def test_an_empty_class_folder_is_named_and_left_out(image_folder, tmp_path):
    image_folder(tmp_path, {"red": 4, "blue": 4})
    (tmp_path / "green").mkdir()
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("blue", "red")
    assert finding(dataset, "empty_class").paths == ("green",)


def test_a_single_class_works_and_is_said(image_folder, tmp_path):
    image_folder(tmp_path, {"red": 6})
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("red",)
    assert "red" in finding(dataset, "single_class").message


def test_a_class_seen_only_in_val_is_said(image_folder, tmp_path):
    image_folder(tmp_path, {"train/red": 4, "train/blue": 4, "val/red": 2, "val/green": 2})
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("blue", "green", "red")
    assert finding(dataset, "class_not_trained").classes == ("green",)
    assert finding(dataset, "class_not_validated").classes == ("blue",)
    assert dataset.counts().loc["green"].to_dict() == {"train": 0, "val": 2}


def test_few_images_and_imbalance_are_said(image_folder, tmp_path):
    image_folder(tmp_path, {"train/red": 30, "train/blue": 3, "val/red": 2, "val/blue": 2})
    dataset = load_dataset(tmp_path)
    assert finding(dataset, "few_images").classes == ("blue",)
    assert "10 times" in finding(dataset, "imbalance").message


def test_a_balanced_folder_has_no_findings(image_folder, tmp_path):
    image_folder(tmp_path, {"train/red": 10, "train/blue": 10, "val/red": 2, "val/blue": 2})
    assert load_dataset(tmp_path).findings == ()


def test_files_that_cannot_be_read_are_named_and_left_out(image_folder, tmp_path):
    image_folder(tmp_path, {"red": 5, "blue": 5})
    (tmp_path / "red" / "text.jpg").write_text("no picture")
    (tmp_path / "red" / "empty.png").write_bytes(b"")
    (tmp_path / "blue" / "labels.csv").write_text("a,b")
    dataset = load_dataset(tmp_path)
    assert len(dataset.table) == 10
    for kind, path in (("unreadable", "red/text.jpg"), ("empty_file", "red/empty.png")):
        found = finding(dataset, kind)
        assert (found.paths, found.count, found.severity) == ((path,), 1, "error")
        assert path.split("/")[1] in found.message
    assert len(dataset.unreadable) == 2
    assert finding(dataset, "not_an_image").paths == ("blue/labels.csv",)


def test_a_class_whose_images_all_fail_is_left_out_and_its_files_are_named(image_folder, tmp_path):
    image_folder(tmp_path, {"red": 4, "blue": 4})
    (tmp_path / "green").mkdir()
    (tmp_path / "green" / "a.png").write_bytes(b"")
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("blue", "red")
    assert finding(dataset, "empty_file").paths == ("green/a.png",)


def test_a_truncated_image_that_the_header_does_not_betray_is_left_out(image_folder, tmp_path):
    image_folder(tmp_path, {"red": 4, "blue": 4})
    (tmp_path / "red" / "half.jpg").write_bytes(truncated_jpeg())
    dataset = load_dataset(tmp_path)
    assert len(dataset.table) == 8
    assert finding(dataset, "damaged").paths == ("red/half.jpg",)
    assert "half.jpg" in finding(dataset, "damaged").message


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match=r"There is no folder .*nowhere"):
        load_dataset(tmp_path / "nowhere")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(DataError, match="neither a folder of images, nor"):
        load_dataset(tmp_path / "x.zip")


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match="holds no images"):
        load_dataset(tmp_path)


def test_only_empty_class_folders(tmp_path):
    (tmp_path / "red").mkdir()
    with pytest.raises(DataError, match=r"class folders in .* hold no images"):
        load_dataset(tmp_path)


def test_images_without_class_folders(image_folder, tmp_path):
    image_folder(tmp_path, {"": 3})
    with pytest.raises(DataError, match="3 images, but no class folders"):
        load_dataset(tmp_path)


def test_nothing_but_unreadable_images(tmp_path):
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"None of the 1 image files .* a\.png"):
        load_dataset(tmp_path)


def test_too_few_images_to_validate(image_folder, tmp_path):
    image_folder(tmp_path, {"red": 2, "blue": 2})
    with pytest.raises(DataError, match="too few images"):
        load_dataset(tmp_path)


def test_only_validation_images_can_be_read(image_folder, tmp_path):
    image_folder(tmp_path, {"val/red": 2})
    (tmp_path / "train" / "red").mkdir(parents=True)
    (tmp_path / "train" / "red" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="no training image"):
        load_dataset(tmp_path)


def test_splits_do_not_depend_on_where_the_folder_is_or_in_which_order_files_were_written(image_folder, tmp_path):
    image_folder(tmp_path / "one", {"red": 12, "blue": 9})
    for file in sorted((tmp_path / "one").glob("*/*.png"), reverse=True):
        target = tmp_path / "two" / file.relative_to(tmp_path / "one")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    one, two = load_dataset(tmp_path / "one"), load_dataset(tmp_path / "two")
    pd.testing.assert_frame_equal(one.table, two.table)
    assert one.fingerprint == two.fingerprint


def test_the_split_seed_changes_the_split_and_the_fingerprint(image_folder, tmp_path):
    image_folder(tmp_path, {"red": 20, "blue": 20})
    first, second = load_dataset(tmp_path, split_seed=0), load_dataset(tmp_path, split_seed=1)
    assert first.table["split"].tolist() != second.table["split"].tolist()
    assert first.fingerprint != second.fingerprint


CHANGES = {
    "added": lambda root: shutil.copy(root / "train/red/000.png", root / "train/red/new.png"),
    "removed": lambda root: (root / "train/red/000.png").unlink(),
    "renamed": lambda root: (root / "train/red/000.png").rename(root / "train/red/new.png"),
    "relabelled": lambda root: (root / "train/red/000.png").rename(root / "train/blue/new.png"),
    "moved to val": lambda root: (root / "train/red/000.png").rename(root / "val/red/new.png"),
    "resized": lambda root: Image.new("RGB", (80, 64), "red").save(root / "train/red/000.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_changes_when_an_image_is(image_folder, tmp_path, change):
    image_folder(tmp_path, {"train/red": 4, "train/blue": 4, "val/red": 2, "val/blue": 2})
    before = load_dataset(tmp_path).fingerprint
    assert load_dataset(tmp_path).fingerprint == before
    CHANGES[change](tmp_path)
    assert load_dataset(tmp_path).fingerprint != before


def test_an_empty_val_folder_is_not_a_given_split(image_folder, tmp_path):
    image_folder(tmp_path, {"train/red": 10, "train/blue": 10})
    (tmp_path / "val" / "red").mkdir(parents=True)
    assert not load_dataset(tmp_path).given_splits


def kinds(dataset):
    return {finding.kind: finding for finding in dataset.findings}


def test_images_in_no_class_folder_are_named(image_folder, tmp_path):
    folder = image_folder(tmp_path / "x", {"red": 12, "blue": 12})
    (folder / "loose.png").write_bytes((folder / "red" / "000.png").read_bytes())
    assert kinds(load_dataset(folder))["no_class"].paths == ("loose.png",)


def test_images_in_train_but_in_no_class_are_named(image_folder, tmp_path):
    folder = image_folder(tmp_path / "x", {"train/red": 12, "train/blue": 12, "val/red": 3, "val/blue": 3})
    (folder / "train" / "loose.png").write_bytes((folder / "train" / "red" / "000.png").read_bytes())
    assert kinds(load_dataset(folder))["no_class"].paths == ("train/loose.png",)


def test_folders_beside_train_are_named(image_folder, tmp_path):
    folder = image_folder(tmp_path / "x", {"train/red": 12, "train/blue": 12, "other/red": 12})
    assert kinds(load_dataset(folder))["ignored_folder"].paths == ("other",)


def test_a_class_may_be_named_train(image_folder, tmp_path):
    assert load_dataset(image_folder(tmp_path / "x", {"train": 12, "bus": 12})).classes == ("bus", "train")


def test_the_fingerprint_sees_an_image_that_was_turned(image_folder, tmp_path):
    folder = image_folder(tmp_path / "x", {"red": 12, "blue": 12}, suffix=".bmp")
    before = load_dataset(folder).fingerprint
    with Image.open(folder / "red" / "000.bmp") as image:
        turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.save(folder / "red" / "000.bmp")
    assert load_dataset(folder).fingerprint != before

import io
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from finetune_core.config import Edit
from finetune_core.data.dataset import index_dataset, load_dataset
from finetune_core.data.entry import entry_folder
from finetune_core.data.sources import resolve_data
from finetune_core.errors import DataError
from finetune_core.work import Step
from tests.drain import drained

ODD_NAMES = [
    "with space",
    "it's",
    'double"quote',
    "<script>alert(1)</script>",
    "otter 🦦",
    "naïve, 100%",
]
if os.name != "posix":
    ODD_NAMES = [name for name in ODD_NAMES if not set(name) & set('"<>')]
# No "/" in a file name: the tag is closed without one.
ODD_NAMES = [name.replace("/", "∕") for name in ODD_NAMES]


def finding(dataset, kind):
    return next((found for found in dataset.findings if found.kind == kind), None)


def truncated_jpeg():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)).save(
        buffer, "JPEG"
    )
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


def test_given_splits_are_kept(image_folder, tmp_path):
    image_folder(
        tmp_path,
        {
            "train/red": 5,
            "train/blue": 4,
            "val/red": 2,
            "val/blue": 1,
            "test/red": 1,
            "test/blue": 1,
        },
    )
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
    paths = dataset.paths(dataset.table)
    assert [path.is_file() for path in paths] == [True] * 8
    assert [path.name for path in paths[3:5]] == ["003.png", "000.png"]
    assert paths[np.int64(-1)].parts[-2:] == ("red", "003.png")
    assert list(dataset.paths(dataset.table.head(1))) == [tmp_path.resolve() / "blue" / "000.png"]


def test_indexing_tells_its_progress(image_folder, tmp_path):
    image_folder(tmp_path, {"red": 4, "blue": 3})
    steps, _ = drained(index_dataset(tmp_path, val_fraction=0.2, test_fraction=0.2, split_seed=0))
    # looked at one by one, then compared
    assert steps == [*(Step(done, 7) for done in range(1, 8)), Step(7, 7)]


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


def test_splits_do_not_depend_on_where_the_folder_is_or_in_which_order_files_were_written(
    image_folder, tmp_path
):
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
    folder = image_folder(
        tmp_path / "x", {"train/red": 12, "train/blue": 12, "val/red": 3, "val/blue": 3}
    )
    (folder / "train" / "loose.png").write_bytes(
        (folder / "train" / "red" / "000.png").read_bytes()
    )
    assert kinds(load_dataset(folder))["no_class"].paths == ("train/loose.png",)


def test_folders_beside_train_are_named(image_folder, tmp_path):
    folder = image_folder(tmp_path / "x", {"train/red": 12, "train/blue": 12, "other/red": 12})
    assert kinds(load_dataset(folder))["ignored_folder"].paths == ("other",)


def test_a_class_may_be_named_train(image_folder, tmp_path):
    assert load_dataset(image_folder(tmp_path / "x", {"train": 12, "bus": 12})).classes == (
        "bus",
        "train",
    )


def test_the_fingerprint_sees_an_image_that_was_turned(image_folder, tmp_path):
    folder = image_folder(tmp_path / "x", {"red": 12, "blue": 12}, suffix=".bmp")
    before = load_dataset(folder).fingerprint
    with Image.open(folder / "red" / "000.bmp") as image:
        turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.save(folder / "red" / "000.bmp")
    assert load_dataset(folder).fingerprint != before


def splits_of(data, **settings):
    """{id: split}"""
    table = load_dataset(data, **settings).table
    return dict(zip(table["id"], table["split"], strict=True))


def darkened(file, target):
    with Image.open(file) as image:
        image.point(lambda value: value * 0.9).save(target)


def test_files_that_are_added_move_no_others_and_the_shares_hold(image_folder, tmp_path):
    folder = image_folder(tmp_path / "x", {"red": 40, "blue": 20})
    before = splits_of(folder, val_fraction=0.2, test_fraction=0.1)
    for batch in ("early", "late"):
        image_folder(tmp_path / batch, {f"{batch}/red": 40})
        for number, file in enumerate(sorted((tmp_path / batch).glob("*/*/*.png"))):
            shutil.copy(
                file, folder / "red" / (f"!{number}.png" if batch == "early" else f"z{number}.png")
            )
        after = splits_of(folder, val_fraction=0.2, test_fraction=0.1)
        assert before.items() <= after.items()
        red = pd.Series(
            [split for name, split in after.items() if name.startswith("red")]
        ).value_counts(normalize=True)
        assert red.round(2).to_dict() == {"train": 0.7, "val": 0.2, "test": 0.1}
        before = after
    assert splits_of(folder, val_fraction=0.2, test_fraction=0.1) == before


@pytest.mark.parametrize(
    "other",
    [
        {"split_seed": 1},
        {"val_fraction": 0.3},
        {"test_fraction": 0.3},
        {"near_duplicates": "apart"},
        {"groups": "{group}_*"},
    ],
)
def test_another_rule_is_another_split_and_the_first_one_comes_back(image_folder, tmp_path, other):
    folder = image_folder(tmp_path / "x", {"red": 30, "blue": 30})
    for name in ("red", "blue"):
        for number, file in enumerate(sorted((folder / name).glob("*.png"))):
            file.rename(folder / name / f"{number // 4}_{number}.png")
        shutil.copy(folder / name / "0_0.png", folder / name / "5_copy.png")
    first = splits_of(folder)
    assert splits_of(folder, **other) != first
    assert splits_of(folder) == first


def test_a_split_that_is_lost_or_damaged_is_made_again(image_folder, tmp_path):
    folder = image_folder(tmp_path / "x", {"red": 12, "blue": 12})
    before = splits_of(folder)
    for file in entry_folder(folder).glob("split-*"):
        file.write_bytes(b"x")
    assert splits_of(folder) == before
    shutil.rmtree(entry_folder(folder))
    assert splits_of(folder) == before


def test_a_home_that_cannot_be_written_gives_the_same_split(image_folder, tmp_path, monkeypatch):
    folder = image_folder(tmp_path / "x", {"red": 12, "blue": 12})
    before = splits_of(folder)
    (tmp_path / "file").touch()
    monkeypatch.setenv("THAW_HOME", str(tmp_path / "file" / "home"))
    assert splits_of(folder) == before


def straddling(table):
    """The groups that lie in more than one split."""
    grouped = table[table["group"] != ""].groupby("group")["split"].nunique()
    return set(grouped[grouped > 1].index)


@pytest.fixture
def patients(image_folder, tmp_path):
    """60 images of 12 patients, of whom each has both classes, and one image of nobody."""
    folder = image_folder(tmp_path / "x", {"red": 30, "blue": 31})
    for name in ("red", "blue"):
        for number, file in enumerate(sorted((folder / name).glob("*.png"))):
            if number < 30:
                file.rename(folder / name / f"p{number % 12}_{number}.png")
    return folder


def test_groups_by_a_pattern_never_straddle(patients):
    plain, grouped = load_dataset(patients), load_dataset(patients, groups="{group}_*")
    assert (plain.table["group"] == "").all()
    assert grouped.table["group"].nunique() == 13
    assert grouped.table.set_index("id").loc["blue/030.png", "group"] == ""
    assert straddling(plain.table.assign(group=grouped.table["group"])) != set()
    assert straddling(grouped.table) == set()
    assert set(grouped.table["split"]) == {"train", "val", "test"}


def test_groups_hold_when_images_are_added(patients):
    load_dataset(patients, groups="{group}_*")
    for number in range(12):
        darkened(patients / "red" / "p0_0.png", patients / "red" / f"p{number}_new.png")
    assert (
        straddling(load_dataset(patients, groups="{group}_*", near_duplicates="apart").table)
        == set()
    )
    assert straddling(load_dataset(patients, groups="{group}_*").table) == set()


def test_groups_of_a_manifest_never_straddle_and_go_before_the_pattern(patients):
    files = sorted(file.relative_to(patients).as_posix() for file in patients.glob("*/*.png"))
    table = pd.DataFrame(
        {
            "path": files,
            "label": [name.split("/")[0] for name in files],
            "group": [n % 7 for n in range(len(files))],
        }
    )
    table.to_csv(patients / "m.csv", index=False)
    for pattern in ("", "{group}_*"):
        dataset = load_dataset(patients / "m.csv", groups=pattern)
        assert dataset.table["group"].nunique() == 7
        assert straddling(dataset.table) == set()
        assert set(dataset.table["split"]) == {"train", "val", "test"}


def test_groups_that_a_manifest_names_later_are_kept_together_from_then_on(patients):
    files = sorted(file.relative_to(patients).as_posix() for file in patients.glob("*/*.png"))
    table = pd.DataFrame({"path": files, "label": [name.split("/")[0] for name in files]})
    table.to_csv(patients / "m.csv", index=False)
    before = splits_of(patients / "m.csv")
    table["group"] = [n % 7 if n < 40 else "" for n in range(len(files))]
    table.to_csv(patients / "m.csv", index=False)
    after = load_dataset(patients / "m.csv")
    assert straddling(after.table) == set()
    alone = after.table[after.table["group"] == ""]
    assert all(before[row.id] == row.split for row in alone.itertuples())


@pytest.fixture
def copied(image_folder, tmp_path):
    """Of 60 images, 24 have a copy, exact or nearly."""
    folder = image_folder(tmp_path / "x", {"red": 30, "blue": 30})
    for name in ("red", "blue"):
        for number in range(12):
            source = folder / name / f"{number:03d}.png"
            target = folder / name / f"copy{number:03d}.png"
            darkened(source, target) if number % 2 else shutil.copy(source, target)
    return folder


def apart(split):
    return [
        name
        for name, side in split.items()
        if "copy" in name and side != split[name.replace("copy", "")]
    ]


def test_copies_and_near_duplicates_are_on_one_side_unless_they_are_to_be_apart(copied):
    together = load_dataset(copied)
    assert apart(dict(zip(together.table["id"], together.table["split"], strict=True))) == []
    assert set(together.table["split"]) == {"train", "val", "test"}
    assert not {"leakage", "near_leakage"} & set(kinds(together))
    torn = load_dataset(copied, near_duplicates="apart")
    assert apart(dict(zip(torn.table["id"], torn.table["split"], strict=True))) != []
    assert {"leakage", "near_leakage"} <= set(kinds(torn))


def test_copies_that_are_added_join_their_originals(image_folder, tmp_path):
    folder = image_folder(tmp_path / "x", {"red": 30, "blue": 30})
    before = splits_of(folder)
    for number in range(20):
        darkened(folder / "red" / f"{number:03d}.png", folder / "red" / f"copy{number:03d}.png")
    after = splits_of(folder)
    assert before.items() <= after.items()
    assert apart(after) == []


def test_given_splits_are_kept_whatever_is_copied(image_folder, tmp_path):
    image_folder(tmp_path, {"train/red": 10, "train/blue": 10, "val/red": 3, "val/blue": 3})
    shutil.copy(tmp_path / "train/red/000.png", tmp_path / "val/red/copy.png")
    split = splits_of(tmp_path, groups="{group}.png")
    assert (split["train/red/000.png"], split["val/red/copy.png"]) == ("train", "val")


@pytest.mark.parametrize(
    "why", [{"near_duplicates": "together"}, {"near_duplicates": "apart", "groups": "{group}_*"}]
)
def test_nothing_but_one_group_a_class_is_said(image_folder, tmp_path, why):
    folder = image_folder(tmp_path / "x", {"red": 1, "blue": 1})
    for name in ("red", "blue"):
        (folder / name / "000.png").rename(folder / name / "a_0.png")
        for number in range(1, 6):
            shutil.copy(folder / name / "a_0.png", folder / name / f"a_{number}.png")
    with pytest.raises(DataError, match="one group, or nothing but near-duplicates"):
        load_dataset(folder, **why)
    assert set(splits_of(folder, near_duplicates="apart").values()) == {"train", "val", "test"}


def test_hashes_of_the_table_are_whole(image_folder, tmp_path):
    image_folder(tmp_path, {"red": 6, "blue": 6})
    first, second = load_dataset(tmp_path), load_dataset(tmp_path)
    assert first.table["content"].dtype == second.table["content"].dtype == np.uint64
    assert first.table["content"].tolist() == second.table["content"].tolist()
    assert first.fingerprint == second.fingerprint


def test_edits_are_applied_after_the_split_and_recorded(image_folder, tmp_path):
    image_folder(tmp_path, {"red": 12, "blue": 12})
    before = splits_of(tmp_path)
    trained = [name for name, split in before.items() if split == "train"]
    edits = (
        Edit(action="exclude", paths=(trained[0],)),
        Edit(action="move", paths=(trained[1],), to="test"),
        Edit(action="relabel", paths=(trained[2],), to="green"),
        Edit(action="ignore", paths=(trained[3],), kind="dark"),
    )
    dataset = load_dataset(tmp_path, edits=edits)
    assert dataset.edits == edits
    assert dataset.classes == ("blue", "green", "red")
    rows = dataset.table.set_index("id")
    assert trained[0] not in rows.index
    assert rows.loc[trained[1], "split"] == "test"
    assert rows.loc[trained[2], ["class", "label"]].tolist() == ["green", 1]
    after = dict(zip(dataset.table["id"], dataset.table["split"], strict=True))
    assert {name for name in after if after[name] != before[name]} == {trained[1]}
    assert splits_of(tmp_path) == before


@pytest.mark.parametrize("action", ["exclude", "move", "relabel"])
def test_the_fingerprint_changes_with_an_edit_and_comes_back_without(
    image_folder, tmp_path, action
):
    image_folder(tmp_path, {"train/red": 4, "train/blue": 4, "val/red": 2, "val/blue": 2})
    edit = Edit(
        action=action,
        paths=("train/red/000.png",),
        to={"move": "test", "relabel": "blue"}.get(action, ""),
    )
    before = load_dataset(tmp_path).fingerprint
    assert load_dataset(tmp_path, edits=[edit]).fingerprint != before
    assert load_dataset(tmp_path).fingerprint == before
    assert (
        load_dataset(
            tmp_path, edits=[Edit(action="ignore", paths=edit.paths, kind="dark")]
        ).fingerprint
        == before
    )


def test_a_class_whose_images_are_all_excluded_is_no_class(image_folder, tmp_path):
    image_folder(tmp_path, {"red": 6, "blue": 6, "green": 3})
    gone = Edit(action="exclude", paths=tuple(f"green/00{n}.png" for n in range(3)))
    assert load_dataset(tmp_path, edits=[gone]).classes == ("blue", "red")


def test_excluding_everything_or_all_that_trains_is_refused(image_folder, tmp_path):
    image_folder(tmp_path, {"train/red": 2, "val/red": 2})
    trained, validated = (
        tuple(f"{split}/red/00{n}.png" for n in range(2)) for split in ("train", "val")
    )
    with pytest.raises(DataError, match="Every image of this data set is excluded"):
        load_dataset(tmp_path, edits=[Edit(action="exclude", paths=trained + validated)])
    with pytest.raises(DataError, match="no training image"):
        load_dataset(tmp_path, edits=[Edit(action="exclude", paths=trained)])
    with pytest.raises(DataError, match="validation"):
        load_dataset(tmp_path, edits=[Edit(action="exclude", paths=validated)])


def test_a_data_set_as_a_manifest_names_groups_only_where_there_are_some(image_folder, tmp_path):
    image_folder(tmp_path, {"red": 6, "blue": 6})
    assert load_dataset(tmp_path).manifest().columns.tolist() == ["path", "label", "split"]
    assert load_dataset(tmp_path, groups="{group}.png").manifest().columns.tolist() == [
        "path",
        "label",
        "split",
        "group",
    ]


def test_a_manifest_with_some_splits_leaves_the_others_to_thaw(image_folder, tmp_path):
    image_folder(tmp_path, {"red": 20, "blue": 20})
    names = [f"{name}/{n:03d}.png" for name in ("red", "blue") for n in range(20)]
    lines = [
        f"{name},{name.split('/')[0]},{'test' if int(name[-6:-4]) < 5 else ''}" for name in names
    ]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,split", *lines]))
    dataset = load_dataset(tmp_path / "m.csv", val_fraction=0.2, test_fraction=0.2)
    assert not dataset.given_splits
    assert dataset.counts().loc["red"].to_dict() == {"train": 12, "val": 3, "test": 5}
    assert {name for name in names if int(name[-6:-4]) < 5} == set(
        dataset.table.loc[dataset.table["split"] == "test", "id"]
    )


@pytest.mark.parametrize("name", ["a" * 300, "~nobody-of-that-name/x", "a\0b"])
def test_names_that_nothing_can_have_are_refused(name):
    with pytest.raises(DataError, match="cannot be read"):
        drained(resolve_data(name))

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
from tests.drain import drain
from tests.factories import image_folder, shared_images

ODD_NAMES = ["with space", "it's", "otter 🦦", "naïve, 100%"]
if os.name == "posix":
    # No "/" in a file name: the tag is closed with another sign.
    ODD_NAMES += ['double"quote', "<script>alert(1)<∕script>"]


def finding(dataset, kind):
    return next((found for found in dataset.findings if found.kind == kind), None)


TRAIN = {"train/red": 10, "train/blue": 10}
# Folders -> images of red in each split, and whether the splits are given.
LAYOUTS = {
    "all splits": (
        TRAIN | {"val/red": 2, "val/blue": 1, "test/red": 1, "test/blue": 1},
        {"train": 10, "val": 2, "test": 1},
        True,
    ),
    "train alone": (TRAIN, {"train": 8, "val": 2}, False),
    "train and an empty val": (TRAIN | {"val/red": 0}, {"train": 8, "val": 2}, False),
    "train and test": (
        TRAIN | {"test/red": 3, "test/blue": 3},
        {"train": 8, "val": 2, "test": 3},
        False,
    ),
    "classes": ({"red": 20, "blue": 10}, {"train": 14, "val": 4, "test": 2}, False),
}


@pytest.mark.parametrize(("layout", "counts", "given"), LAYOUTS.values(), ids=LAYOUTS)
def test_splits_are_those_of_the_folders_or_drawn(layout, counts, given):
    dataset = load_dataset(shared_images(**layout), val_fraction=0.2, test_fraction=0.1)
    assert dataset.classes == ("blue", "red")
    assert dataset.count_images().loc["red"].to_dict() == counts
    assert dataset.given_splits == given
    for row in dataset.table.itertuples():
        *split, name, _ = row.id.split("/")
        assert ("blue", "red")[row.label] == name
        assert not split or split[0] == row.split or (split[0], row.split) == ("train", "val")


def test_the_table_says_what_the_headers_say(tmp_path):
    image_folder(tmp_path, {"red": 4, "blue": 4}, size=(40, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (30, 20)).save(tmp_path / "red" / "turned.jpg", exif=exif)
    table = load_dataset(tmp_path).table.set_index("id")
    assert table.loc["blue/000.png", ["width", "height", "mode"]].tolist() == [40, 32, "RGB"]
    assert table.loc["red/turned.jpg", ["width", "height", "mode"]].tolist() == [20, 30, "L"]
    assert table.loc["red/turned.jpg", "bytes"] == (tmp_path / "red" / "turned.jpg").stat().st_size


def test_paths_of_rows_are_the_files():
    folder = shared_images(red=4, blue=4)
    dataset = load_dataset(folder)
    paths = dataset.get_paths(dataset.table)
    assert [path.is_file() for path in paths] == [True] * 8
    assert [path.name for path in paths[3:5]] == ["003.png", "000.png"]
    assert paths[np.int64(-1)].parts[-2:] == ("red", "003.png")
    assert list(dataset.get_paths(dataset.table.head(1))) == [folder.resolve() / "blue" / "000.png"]


def test_indexing_tells_its_progress(tmp_path):
    image_folder(tmp_path, {"red": 4, "blue": 3})
    steps, _ = drain(index_dataset(tmp_path, val_fraction=0.2, test_fraction=0.2, split_seed=0))
    # looked at one by one, then compared
    assert steps == [*(Step(done, 7) for done in range(1, 8)), Step(7, 7)]


def test_odd_names_of_classes_and_files_work(tmp_path):
    image_folder(tmp_path, dict.fromkeys(ODD_NAMES, 4))
    for name in ODD_NAMES:
        (tmp_path / name / "000.png").rename(tmp_path / name / f"{name}.png")
    dataset = load_dataset(tmp_path)
    assert dataset.classes == tuple(sorted(ODD_NAMES))
    assert {f"{name}/{name}.png" for name in ODD_NAMES} < set(dataset.table["id"])
    assert len(dataset.fingerprint) == 16
    assert finding(dataset, "damaged") is None


def test_files_that_cannot_be_read_are_named_and_left_out(tmp_path):
    image_folder(tmp_path, {"red": 5, "blue": 5, "green": 0})
    (tmp_path / "red" / "text.jpg").write_text("no picture")
    (tmp_path / "green" / "empty.png").write_bytes(b"")
    (tmp_path / "blue" / "labels.csv").write_text("a,b")
    dataset = load_dataset(tmp_path)
    assert len(dataset.table) == 10
    assert dataset.classes == ("blue", "red")
    for kind, path in (("unreadable", "red/text.jpg"), ("empty_file", "green/empty.png")):
        found = finding(dataset, kind)
        assert (found.paths, found.count, found.severity) == ((path,), 1, "error")
        assert path.split("/")[1] in found.message
    assert len(dataset.unreadable) == 2
    assert finding(dataset, "not_an_image").paths == ("blue/labels.csv",)


UNUSABLE = {
    "nothing": (None, r"There is no folder .*nowhere"),
    "empty folder": ({}, "holds no images"),
    "empty class folders": ({"red": 0}, r"class folders in .* hold no images"),
    "no class folders": ({"": 3}, "3 images, but no class folders"),
    "unreadable image": ({"red": [b""]}, r"None of the 1 image files .* 0\.png"),
    "too few images": ({"red": 2, "blue": 2}, "too few images"),
    "no training image": ({"val/red": 2, "train/red": [b""]}, "no training image"),
}


@pytest.mark.parametrize(("layout", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_folder_that_cannot_be_used_is_refused(tmp_path, layout, reason):
    root = tmp_path / "nowhere"
    for folder, images in (layout or {}).items():
        if isinstance(images, int):
            image_folder(root, {folder: images})
            continue
        (root / folder).mkdir(parents=True)
        for number, content in enumerate(images):
            (root / folder / f"{number}.png").write_bytes(content)
    if layout == {}:
        root.mkdir()
    with pytest.raises(DataError, match=reason):
        load_dataset(root)


def test_file_is_no_folder(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(DataError, match="neither a folder of images, nor"):
        load_dataset(tmp_path / "x.zip")


def test_splits_depend_neither_on_the_place_nor_on_the_order_of_files(tmp_path):
    image_folder(tmp_path / "one", {"red": 12, "blue": 9})
    for file in sorted((tmp_path / "one").glob("*/*.png"), reverse=True):
        target = tmp_path / "two" / file.relative_to(tmp_path / "one")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    one, two = load_dataset(tmp_path / "one"), load_dataset(tmp_path / "two")
    pd.testing.assert_frame_equal(one.table, two.table)
    assert one.fingerprint == two.fingerprint


def turn(file):
    with Image.open(file) as image:
        turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.save(file)


# What is done to train/red/000.bmp in a folder.
CHANGES = {
    "copied": lambda file, root: shutil.copy(file, root / "train/red/new.bmp"),
    "removed": lambda file, root: file.unlink(),
    "renamed": lambda file, root: file.rename(root / "train/red/new.bmp"),
    "relabelled": lambda file, root: file.rename(root / "train/blue/new.bmp"),
    "moved to val": lambda file, root: file.rename(root / "val/red/new.bmp"),
    "resized": lambda file, root: Image.new("RGB", (80, 64), "red").save(file),
    "turned": lambda file, root: turn(file),
}
WITH_SPLITS = {"train/red": 4, "train/blue": 4, "val/red": 2, "val/blue": 2}


@pytest.mark.train
def test_fingerprint_changes_when_an_image_is_changed(tmp_path):
    image_folder(tmp_path / "before", WITH_SPLITS, suffix=".bmp")
    fingerprints = {load_dataset(tmp_path / "before").fingerprint for _ in range(2)}
    assert len(fingerprints) == 1
    for name, change in CHANGES.items():
        root = shutil.copytree(tmp_path / "before", tmp_path / name)
        change(root / "train/red/000.bmp", root)
        fingerprints.add(load_dataset(root).fingerprint)
    assert len(fingerprints) == 1 + len(CHANGES)


def kinds(dataset):
    return {finding.kind: finding for finding in dataset.findings}


def test_class_may_be_named_train():
    dataset = load_dataset(shared_images(train=12, bus=12))
    assert dataset.classes == ("bus", "train")


def get_splits(data, **settings):
    """Return {id: split}."""
    table = load_dataset(data, **settings).table
    return dict(zip(table["id"], table["split"], strict=True))


def darken(file, target):
    with Image.open(file) as image:
        image.point(lambda value: value * 0.9).save(target)


@pytest.mark.train
def test_files_that_are_added_move_no_others_and_the_shares_hold(tmp_path):
    folder = image_folder(tmp_path / "x", {"red": 40, "blue": 20})
    before = get_splits(folder, val_fraction=0.2, test_fraction=0.1)
    for batch in ("early", "late"):
        image_folder(tmp_path / batch, {f"{batch}/red": 40})
        for number, file in enumerate(sorted((tmp_path / batch).glob("*/*/*.png"))):
            shutil.copy(
                file, folder / "red" / (f"!{number}.png" if batch == "early" else f"z{number}.png")
            )
        after = get_splits(folder, val_fraction=0.2, test_fraction=0.1)
        assert before.items() <= after.items()
        red = pd.Series(
            [split for name, split in after.items() if name.startswith("red")]
        ).value_counts(normalize=True)
        assert red.round(2).to_dict() == {"train": 0.7, "val": 0.2, "test": 0.1}
        before = after
    assert get_splits(folder, val_fraction=0.2, test_fraction=0.1) == before


@pytest.mark.train
def test_another_rule_is_another_split_and_the_first_one_comes_back(tmp_path):
    folder = image_folder(tmp_path / "x", {"red": 30, "blue": 30})
    for name in ("red", "blue"):
        for number, file in enumerate(sorted((folder / name).glob("*.png"))):
            file.rename(folder / name / f"{number // 4}_{number}.png")
        shutil.copy(folder / name / "0_0.png", folder / name / "5_copy.png")
    first, fingerprint = get_splits(folder), load_dataset(folder).fingerprint
    assert load_dataset(folder, split_seed=1).fingerprint != fingerprint
    rules = {"split_seed": 1, "val_fraction": 0.3, "test_fraction": 0.3}
    for rule, value in {**rules, "near_duplicates": "apart", "groups": "{group}_*"}.items():
        assert get_splits(folder, **{rule: value}) != first
    assert get_splits(folder) == first


@pytest.mark.train
def test_split_that_is_lost_damaged_or_cannot_be_kept_is_the_same_again(tmp_path, monkeypatch):
    folder = image_folder(tmp_path / "x", {"red": 12, "blue": 12})
    before = get_splits(folder)
    for file in entry_folder(folder).glob("split-*"):
        file.write_bytes(b"x")
    assert get_splits(folder) == before
    shutil.rmtree(entry_folder(folder))
    assert get_splits(folder) == before
    (tmp_path / "file").touch()
    monkeypatch.setenv("THAW_HOME", str(tmp_path / "file" / "home"))
    assert get_splits(folder) == before


def find_straddling(table):
    """Return the groups that lie in more than one split."""
    grouped = table[table["group"] != ""].groupby("group")["split"].nunique()
    return set(grouped[grouped > 1].index)


@pytest.fixture
def patients(tmp_path):
    """Return 60 images of 12 patients, each in both classes, and one image without a group."""
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
    assert find_straddling(plain.table.assign(group=grouped.table["group"])) != set()
    assert find_straddling(grouped.table) == set()
    assert set(grouped.table["split"]) == {"train", "val", "test"}


@pytest.mark.train
def test_groups_hold_when_images_are_added(patients):
    load_dataset(patients, groups="{group}_*")
    for number in range(12):
        darken(patients / "red" / "p0_0.png", patients / "red" / f"p{number}_new.png")
    assert (
        find_straddling(load_dataset(patients, groups="{group}_*", near_duplicates="apart").table)
        == set()
    )
    assert find_straddling(load_dataset(patients, groups="{group}_*").table) == set()


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
        assert find_straddling(dataset.table) == set()
        assert set(dataset.table["split"]) == {"train", "val", "test"}


def test_groups_that_a_manifest_names_later_are_kept_together_from_then_on(patients):
    files = sorted(file.relative_to(patients).as_posix() for file in patients.glob("*/*.png"))
    table = pd.DataFrame({"path": files, "label": [name.split("/")[0] for name in files]})
    table.to_csv(patients / "m.csv", index=False)
    before = get_splits(patients / "m.csv")
    table["group"] = [n % 7 if n < 40 else "" for n in range(len(files))]
    table.to_csv(patients / "m.csv", index=False)
    after = load_dataset(patients / "m.csv")
    assert find_straddling(after.table) == set()
    alone = after.table[after.table["group"] == ""]
    assert all(before[row.id] == row.split for row in alone.itertuples())


@pytest.fixture
def folder_with_copies(tmp_path):
    """Return 60 images, 24 of which have an exact copy or a near-duplicate."""
    folder = image_folder(tmp_path / "x", {"red": 30, "blue": 30})
    for name in ("red", "blue"):
        for number in range(12):
            source = folder / name / f"{number:03d}.png"
            target = folder / name / f"copy{number:03d}.png"
            darken(source, target) if number % 2 else shutil.copy(source, target)
    return folder


def apart(split):
    return [
        name
        for name, side in split.items()
        if "copy" in name and side != split[name.replace("copy", "")]
    ]


@pytest.mark.train
def test_copies_and_near_duplicates_are_on_one_side_unless_they_are_to_be_apart(folder_with_copies):
    together = load_dataset(folder_with_copies)
    assert apart(dict(zip(together.table["id"], together.table["split"], strict=True))) == []
    assert set(together.table["split"]) == {"train", "val", "test"}
    assert not {"leakage", "near_leakage"} & set(kinds(together))
    torn = load_dataset(folder_with_copies, near_duplicates="apart")
    assert apart(dict(zip(torn.table["id"], torn.table["split"], strict=True))) != []
    assert {"leakage", "near_leakage"} <= set(kinds(torn))


@pytest.mark.train
def test_copies_that_are_added_join_their_originals(tmp_path):
    folder = image_folder(tmp_path / "x", {"red": 30, "blue": 30})
    before = get_splits(folder)
    for number in range(20):
        darken(folder / "red" / f"{number:03d}.png", folder / "red" / f"copy{number:03d}.png")
    after = get_splits(folder)
    assert before.items() <= after.items()
    assert apart(after) == []


def test_given_splits_are_kept_whatever_is_copied(tmp_path):
    image_folder(tmp_path, {"train/red": 10, "train/blue": 10, "val/red": 3, "val/blue": 3})
    shutil.copy(tmp_path / "train/red/000.png", tmp_path / "val/red/copy.png")
    split = get_splits(tmp_path, groups="{group}.png")
    assert (split["train/red/000.png"], split["val/red/copy.png"]) == ("train", "val")


@pytest.mark.parametrize(
    "why", [{"near_duplicates": "together"}, {"near_duplicates": "apart", "groups": "{group}_*"}]
)
def test_nothing_but_one_group_a_class_is_said(tmp_path, why):
    folder = image_folder(tmp_path / "x", {"red": 1, "blue": 1})
    for name in ("red", "blue"):
        (folder / name / "000.png").rename(folder / name / "a_0.png")
        for number in range(1, 6):
            shutil.copy(folder / name / "a_0.png", folder / name / f"a_{number}.png")
    with pytest.raises(DataError, match="one group, or nothing but near-duplicates"):
        load_dataset(folder, **why)
    assert set(get_splits(folder, near_duplicates="apart").values()) == {"train", "val", "test"}


def test_hashes_of_the_table_are_whole(tmp_path):
    image_folder(tmp_path, {"red": 6, "blue": 6})
    first, second = load_dataset(tmp_path), load_dataset(tmp_path)
    assert first.table["content"].dtype == second.table["content"].dtype == np.uint64
    assert first.table["content"].tolist() == second.table["content"].tolist()
    assert first.fingerprint == second.fingerprint


def test_edits_are_applied_after_the_split_and_recorded(tmp_path):
    image_folder(tmp_path, {"red": 12, "blue": 12})
    before = get_splits(tmp_path)
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
    assert get_splits(tmp_path) == before


def test_fingerprint_changes_with_every_edit_but_an_ignored_finding():
    folder, paths = shared_images(**WITH_SPLITS), ("train/red/000.png",)
    edits = [("exclude", "", ""), ("move", "test", ""), ("relabel", "blue", "")]
    fingerprints = [
        load_dataset(folder, edits=[Edit(action=action, paths=paths, to=to, kind=kind)]).fingerprint
        for action, to, kind in (*edits, ("ignore", "", "dark"))
    ]
    assert len(set(fingerprints)) == 4
    assert load_dataset(folder).fingerprint == fingerprints[-1]


def test_a_class_whose_images_are_all_excluded_is_no_class(tmp_path):
    image_folder(tmp_path, {"red": 6, "blue": 6, "green": 3})
    gone = Edit(action="exclude", paths=tuple(f"green/00{n}.png" for n in range(3)))
    assert load_dataset(tmp_path, edits=[gone]).classes == ("blue", "red")


def test_excluding_everything_or_all_that_trains_is_refused(tmp_path):
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


def test_a_data_set_as_a_manifest_names_groups_only_where_there_are_some(tmp_path):
    image_folder(tmp_path, {"red": 6, "blue": 6})
    assert load_dataset(tmp_path).to_manifest().columns.tolist() == ["path", "label", "split"]
    assert load_dataset(tmp_path, groups="{group}.png").to_manifest().columns.tolist() == [
        "path",
        "label",
        "split",
        "group",
    ]


def test_a_manifest_with_some_splits_leaves_the_others_to_thaw(tmp_path):
    image_folder(tmp_path, {"red": 20, "blue": 20})
    names = [f"{name}/{n:03d}.png" for name in ("red", "blue") for n in range(20)]
    lines = [
        f"{name},{name.split('/')[0]},{'test' if int(name[-6:-4]) < 5 else ''}" for name in names
    ]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,split", *lines]))
    dataset = load_dataset(tmp_path / "m.csv", val_fraction=0.2, test_fraction=0.2)
    assert not dataset.given_splits
    assert dataset.count_images().loc["red"].to_dict() == {"train": 12, "val": 3, "test": 5}
    assert {name for name in names if int(name[-6:-4]) < 5} == set(
        dataset.table.loc[dataset.table["split"] == "test", "id"]
    )


@pytest.mark.parametrize("name", ["a" * 300, "~nobody-of-that-name/x", "a\0b"])
def test_names_that_nothing_can_have_are_refused(name):
    with pytest.raises(DataError, match="cannot be read"):
        drain(resolve_data(name))

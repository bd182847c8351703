"""Recordings with a camera: messages of the browser, storage, and splits."""

import base64
import errno
import io
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from finetune_core.data import frames
from finetune_core.data.camera import (
    MOST_OF_CLASS,
    StorageError,
    choose_split,
    count_deleted_frames,
    delete_frames,
    group_frames,
    list_frames_by_class,
    list_recordings,
    manifest_path,
    recordings_folder,
    restore_frames,
    store_frames,
    validate_name,
)
from finetune_core.data.dataset import index_data, load_dataset
from finetune_core.data.entry import load_split, save_split
from finetune_core.data.frames import Batch, read_batch
from finetune_core.errors import DataError
from finetune_core.files import write_bytes
from finetune_core.work import finish


def jpeg(seed=0, side=64, kind="JPEG"):
    """Return a different picture for each seed, with shapes that survive scaling."""
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR).save(buffer, kind)
    return buffer.getvalue()


def encode_base64(content):
    return base64.b64encode(content).decode()


def make_message(**changed):
    return {
        "id": "a1",
        "press": "p1",
        "first": 0,
        "frames": [encode_base64(jpeg())],
        "recording": "mugs",
        "class": "cup",
    } | changed


def press(name, class_name, pictures, recording="mugs", person=""):
    """Store the frames of one press of the button, in batches as the browser sends them."""
    for start in range(0, len(pictures), 6):
        folder = store_frames(
            Batch("a1", name, start, tuple(pictures[start : start + 6]), recording, class_name),
            person,
        )
    return folder


def split_of(folder):
    manifest = finish(choose_split(folder))
    return load_dataset(manifest, **load_split(manifest)).table


def test_a_batch_is_what_was_sent():
    content = jpeg()
    batch = read_batch(make_message(frames=[encode_base64(content)] * 2, first=6))
    assert batch == Batch("a1", "p1", 6, (content, content), "mugs", "cup")


HOSTILE = {
    "no record": [None, "frames", [make_message()]],
    "its id": [make_message(id="../a"), make_message(press="a/b"), make_message(press="a" * 33)],
    "no text": [
        make_message(press=7),
        make_message(recording=["mugs"]),
        make_message(frames=[7]),
        make_message(**{"class": None}),
    ],
    "number of its first": [make_message(first=first) for first in (-1, "0", True, 10**12)],
    "between 1 and": [
        make_message(frames=frames)
        for frames in (encode_base64(jpeg()), [], [encode_base64(jpeg())] * 1000)
    ],
    "not base64": [make_message(frames=["no base64!"]), make_message(frames=["ü" * 40])],
    "cannot be decoded": [
        make_message(frames=[encode_base64(one)]) for one in (b"no picture", jpeg()[:-200])
    ],
    "no JPEG": [
        make_message(frames=[encode_base64(one)]) for one in (jpeg(kind="PNG"), jpeg(side=2049))
    ],
}


@pytest.mark.parametrize("words", HOSTILE)
def test_batch_that_is_anything_else_is_refused(words):
    for hostile in HOSTILE[words]:
        with pytest.raises(DataError, match=words):
            read_batch(hostile)


def test_a_hundred_megabytes_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(frames.base64, "b64decode", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(DataError, match="larger than"):
        read_batch(make_message(frames=["A" * 100_000_000]))


ELSEWHERE = ["../up", "a/b", "a\\b", "/etc", "C:", ".hidden", "..", "", "  ", "a\0b", "a\nb"]


@pytest.mark.parametrize("name", [*ELSEWHERE, "CON", "lpt1.txt", "dot.", "a" * 61, "\ud800"])
def test_name_that_leads_elsewhere_or_that_some_system_refuses_is_refused(name, home):
    for recording, class_name in (("mugs", name), (name, "cup")):
        with pytest.raises(DataError, match="needs another name"):
            store_frames(Batch("a1", "p1", 0, (jpeg(),), recording, class_name))
    assert not (home / "data").exists()


def test_names_that_differ_in_case_only_are_one_too_many():
    assert validate_name(" Tasse groß ", "class", ["cup"]) == "Tasse groß"
    assert validate_name("cup", "class", ["cup"]) == "cup"
    with pytest.raises(DataError, match="“cup” already"):
        validate_name("Cup", "class", ["cup"])


def test_frames_become_an_image_folder_and_frames_sent_again_replace_themselves(
    home,
):
    folder = press("p1", "cup", [jpeg(seed) for seed in range(8)])
    assert folder == home / "data" / "camera" / "mugs"
    assert press("p1", "cup", [jpeg(seed) for seed in range(8)]) == folder
    assert list_frames_by_class(folder) == {"cup": [f"p1_{number:05d}.jpg" for number in range(8)]}
    assert (folder / "cup" / "p1_00003.jpg").read_bytes() == jpeg(3)
    press("p2", "cup", [jpeg(9)])
    table = pd.read_csv(manifest_path(folder))
    assert table["path"].tolist() == [f"cup/{name}" for name in list_frames_by_class(folder)["cup"]]
    assert table["group"].tolist() == ["p1"] * 8 + ["p2"]
    assert list_recordings() == ["mugs"]


def test_a_full_disk_loses_nothing_that_was_stored_and_takes_the_rest_later(home, monkeypatch):
    folder = press("p1", "cup", [jpeg(seed) for seed in range(6)])
    more = Batch("a2", "p1", 6, (jpeg(6), jpeg(7)), "mugs", "cup")
    written = []

    def full(path, content):
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        write_bytes(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("finetune_core.data.camera.write_bytes", full)
        with pytest.raises(StorageError, match="No space left on device"):
            store_frames(more)
    assert len(finish(index_data(manifest_path(folder))).rows) == 6
    store_frames(more)
    assert len(pd.read_csv(manifest_path(folder))) == 8


def test_manifest_follows_images_that_are_added_or_deleted_by_hand(home):
    folder = press("p1", "cup", [jpeg(seed) for seed in range(6)])
    (folder / "cup" / "p1_00002.jpg").unlink()
    (folder / "cup" / "photo.jpg").write_bytes(jpeg(77))
    press("p2", "pen", [jpeg(seed) for seed in range(20, 26)])
    (folder / "cup" / "p1_00003.jpg").unlink()
    table = split_of(folder)
    assert set(table.loc[table["class"] == "cup", "id"]) == {
        f"cup/{name}" for name in ("photo.jpg", *(f"p1_0000{n}.jpg" for n in (0, 1, 4, 5)))
    }


def test_two_sessions_that_record_the_same_data_set_lose_nothing_of_each_other(home):
    def record(name):
        return press(f"{name}1", name, [jpeg(seed) for seed in range(24)])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(record, ("cup", "pen")))
    [folder] = recordings_folder().iterdir()
    both = {"cup": 24, "pen": 24}
    assert {name: len(files) for name, files in list_frames_by_class(folder).items()} == both
    assert pd.read_csv(manifest_path(folder))["label"].value_counts().to_dict() == both


def test_a_class_takes_no_more_than_the_most(home, monkeypatch):
    monkeypatch.setattr("finetune_core.data.camera.MOST_OF_CLASS", 7)
    press("p1", "cup", [jpeg(seed) for seed in range(6)])
    with pytest.raises(DataError, match="which is the most"):
        press("p2", "cup", [jpeg(7), jpeg(8)])
    assert MOST_OF_CLASS > 7


def test_each_person_has_recordings_of_their_own(home):
    press("p1", "cup", [jpeg()], person="ann@example.org")
    assert list_recordings("ann@example.org") == ["mugs"]
    assert list_recordings("bob@example.org") == list_recordings() == []
    other = press("p1", "cup", [jpeg(1)], person="bob@example.org")
    assert (
        recordings_folder("ann@example.org") / "mugs" / "cup" / "p1_00000.jpg"
    ).read_bytes() == jpeg()
    assert (other / "cup" / "p1_00000.jpg").read_bytes() == jpeg(1)


def test_what_was_deleted_last_comes_back(home):
    folder = press("p1", "cup", [jpeg(seed) for seed in range(4)])
    press("p2", "pen", [jpeg(seed) for seed in range(10, 13)])
    delete_frames(folder, ["cup/p1_00001.jpg", "../../../etc/passwd", "cup/nowhere.jpg"])
    assert len(list_frames_by_class(folder)["cup"]) == 3
    assert "cup/p1_00001.jpg" not in manifest_path(folder).read_text()
    delete_frames(folder, [f"pen/{file}" for file in list_frames_by_class(folder)["pen"]])
    assert list(list_frames_by_class(folder)) == ["cup"]
    assert count_deleted_frames(folder) == 3
    restore_frames(folder)
    assert {name: len(files) for name, files in list_frames_by_class(folder).items()} == {
        "cup": 3,
        "pen": 3,
    }
    assert manifest_path(folder).read_text().count("pen/") == 3
    assert count_deleted_frames(folder) == 0


@pytest.mark.parametrize("made", [2, 3])
def test_no_press_is_in_two_splits(home, made):
    for class_number, name in enumerate(("cup", "pen")):
        for number in range(made):
            start = 1000 * class_number + 100 * number
            folder = press(
                f"{name}{number}", name, [jpeg(start + one) for one in range(9 + number)]
            )
    table = split_of(folder)
    assert (table.groupby("group")["split"].nunique() == 1).all()
    assert set(table.loc[table["class"] == "cup", "split"]) >= {"train", "val"}
    assert set(table.loc[table["class"] == "pen", "split"]) >= {"train", "val"}


def test_the_only_press_of_a_class_is_parted_into_blocks_in_time(home):
    for class_number, name in enumerate(("cup", "pen")):
        folder = press(f"{name}0", name, [jpeg(1000 * class_number + one) for one in range(30)])
    table = split_of(folder).sort_values("id")
    for _, rows in table.groupby("class"):
        changes = rows["split"].ne(rows["split"].shift()).sum()
        assert set(rows["split"]) == {"train", "val", "test"}
        assert changes == 3
        assert rows["split"].iloc[:21].eq("train").all()


def test_a_second_press_makes_the_first_one_whole(home):
    for class_number, name in enumerate(("cup", "pen")):
        folder = press(f"{name}0", name, [jpeg(1000 * class_number + one) for one in range(12)])
    split_of(folder)
    press("cup1", "cup", [jpeg(500 + one) for one in range(12)])
    table = split_of(folder)
    cups = table[table["class"] == "cup"]
    assert (cups.groupby("group")["split"].nunique() == 1).all()
    assert set(cups["split"]) == {"train", "val"}


def test_an_object_that_is_held_still_can_be_trained_on_all_the_same(home):
    for class_number, name in enumerate(("cup", "pen")):
        folder = press(f"{name}0", name, [jpeg(class_number)] * 30)
    table = split_of(folder)
    assert load_split(manifest_path(folder))["near_duplicates"] == "apart"
    assert set(table["split"]) == {"train", "val", "test"}


def test_presses_that_look_alike_stay_together_while_others_are_left(home):
    for class_number, name in enumerate(("cup", "pen")):
        for number, seed in enumerate((0, 0, 50)):
            folder = press(
                f"{name}{number}", name, [jpeg(100 * class_number + seed + one) for one in range(3)]
            )
    table = split_of(folder)
    assert load_split(manifest_path(folder))["near_duplicates"] == "together"
    alike = table[table["group"].isin(["cup0", "cup1"])]
    assert alike["split"].nunique() == 1


def test_settling_leaves_the_other_settings_of_the_split(home):
    folder = press("p1", "cup", [jpeg(seed) for seed in range(5)])
    save_split(manifest_path(folder), load_split(manifest_path(folder)) | {"val_fraction": 0.3})
    finish(choose_split(folder))
    assert load_split(manifest_path(folder))["val_fraction"] == 0.3


def test_images_from_elsewhere_are_no_presses():
    assert group_frames(["own.jpg", "p1_00000.jpg"]) == {"own.jpg": "", "p1_00000.jpg": "p1"}

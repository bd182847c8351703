import io
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from finetune_core.data import image_stats, index
from finetune_core.data.entry import entry_folder, read_table, write_table
from finetune_core.data.image_stats import measure_image
from finetune_core.data.index import read_index
from finetune_core.data.listing import list_data
from finetune_core.files import open_regular
from finetune_core.work import Step
from tests.drain import drain
from tests.factories import image_folder


def read_whole_index(data):
    return drain(read_index(data, list_data(data)))[1]


def index_file(data):
    return entry_folder(data) / "index.parquet"


@pytest.fixture
def looked(monkeypatch):
    """Names of the files that were read since the list was last cleared."""
    names = []

    def count_calls(path):
        names.append(path.name)
        return measure_image(path)

    monkeypatch.setattr(index, "measure_image", count_calls)
    return names


@pytest.fixture
def folder(tmp_path):
    return image_folder(tmp_path / "pets", {"red": 6, "blue": 6})


def list_everything(root):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}


def test_a_row_says_what_a_look_says(folder):
    _, rows = drain(read_index(folder, list_data(folder), thumbs=True))
    seen = measure_image(folder / "red" / "000.png")
    row = rows.set_index("id").loc["red/000.png"]
    assert len(rows) == 12
    assert (row["class"], row["problem"], row["content"], row["thumb"]) == (
        "red",
        "",
        seen.content,
        seen.thumb,
    )
    assert (row["width"], row["height"], row["sharpness"]) == (40, 32, seen.sharpness)


def test_it_is_kept_below_the_home_and_nothing_is_written_into_the_folder(home, folder):
    before = list_everything(folder.parent)
    read_whole_index(folder)
    assert list_everything(folder.parent) == before
    files = [path for path in home.rglob("*") if path.is_file()]
    assert files == [index_file(folder)]
    assert files[0].parent.parent == home / "datasets"
    assert len(pd.read_parquet(files[0])) == 12


def test_data_sets_of_one_name_have_entries_of_their_own(tmp_path):
    one, two = (
        image_folder(tmp_path / place / "pets", {"red": number, "blue": 1})
        for number, place in ((1, "a"), (2, "b"))
    )
    assert entry_folder(one) != entry_folder(two)
    assert [len(read_whole_index(data)) for data in (one, two, one)] == [2, 3, 2]


@pytest.mark.parametrize("name", ["x" * 250, "naïve 🦦", "a b/../c d", "-", ".hidden", 'quote"s'])
def test_entries_have_harmless_names(home, tmp_path, name):
    entry = entry_folder(tmp_path / name)
    assert entry.parent == home / "datasets"
    assert set(entry.name) <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
    )
    assert len(entry.name) <= 60


def test_second_reading_looks_at_no_file_and_writes_nothing(folder, looked):
    first = read_whole_index(folder)
    written = index_file(folder).stat().st_mtime_ns
    assert len(looked) == 12
    second = read_whole_index(folder)
    assert len(looked) == 12
    pd.testing.assert_frame_equal(first, second, check_dtype=False)
    assert index_file(folder).stat().st_mtime_ns == written


# What is done to red/003.png -> what is looked at.
CHANGES = {
    "added": (lambda file: shutil.copy(file, file.with_name("new.png")), ["new.png"]),
    "changed": (lambda file: Image.new("RGB", (9, 7), "green").save(file), ["003.png"]),
    "later": (lambda file: os.utime(file, ns=(1, 1)), ["003.png"]),
    "renamed": (lambda file: file.rename(file.parents[1] / "blue" / "moved.png"), ["moved.png"]),
    "deleted": (lambda file: file.unlink(), []),
}


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES)
def test_only_what_changed_is_looked_at(folder, looked, change, expected):
    read_whole_index(folder)
    looked.clear()
    change(folder / "red" / "003.png")
    rows = read_whole_index(folder)
    assert looked == expected
    listed = list_data(folder).files
    assert rows[["id", "class", "bytes"]].equals(listed[["id", "class", "bytes"]])
    assert set(pd.read_parquet(index_file(folder))["id"]) == set(listed["id"])
    sizes = {row.id: (row.width, row.height) for row in rows.itertuples()}
    seen = {path: measure_image(folder / path) for path in listed["id"]}
    assert sizes == {path: (look.width, look.height) for path, look in seen.items()}
    read_whole_index(folder)
    assert looked == expected


def test_thumbnails_are_read_only_where_they_are_asked_for(folder, looked):
    assert "thumb" not in read_whole_index(folder)
    kept = pd.read_parquet(index_file(folder)).set_index("id")["thumb"]
    _, rows = drain(read_index(folder, list_data(folder), thumbs=True))
    assert rows["thumb"].tolist() == kept[rows["id"]].tolist()
    pd.testing.assert_frame_equal(rows.drop(columns="thumb"), read_whole_index(folder))
    assert len(looked) == 12


def test_what_is_seen_of_more_images_than_are_held_as_objects_is_in_their_order(
    folder, monkeypatch
):
    monkeypatch.setattr(index, "_AT_ONCE", 5)
    read_whole_index(folder)
    image_folder(folder, {"aqua": 7, "green": 6})
    rows = read_whole_index(folder)
    assert rows["id"].tolist() == list_data(folder).files["id"].tolist()
    assert rows["content"].tolist() == [
        measure_image(folder / sample).content for sample in rows["id"]
    ]


def drop_sharpness(content):
    buffer = io.BytesIO()
    pd.read_parquet(io.BytesIO(content)).drop(columns="sharpness").to_parquet(buffer)
    return buffer.getvalue()


DAMAGES = {
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "text": lambda content: b"not a table",
    "one byte changed": lambda content: content[:400] + bytes([content[400] ^ 255]) + content[401:],
    "another version": drop_sharpness,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_made_again(folder, looked, damage):
    first = read_whole_index(folder)
    file = index_file(folder)
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    looked.clear()
    pd.testing.assert_frame_equal(read_whole_index(folder), first)
    assert len(looked) == 12
    assert len(pd.read_parquet(file)) == 12


def test_damaged_tables_never_stop_a_reading(tmp_path):
    """Any changed byte is noticed, or is harmless."""
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {"id": [f"red/{n}.png" for n in range(50)], "thumb": [random.bytes(50) for _ in range(50)]}
    )
    write_table(tmp_path / "t.parquet", table)
    content = (tmp_path / "t.parquet").read_bytes()
    noticed = 0
    for position in random.integers(0, len(content), 120):
        changed = bytearray(content)
        changed[position] ^= int(random.integers(1, 256))
        (tmp_path / "t.parquet").write_bytes(changed)
        read = read_table(tmp_path / "t.parquet")
        noticed += read is None
        assert (
            read is None
            or read.to_numpy().tolist() == table.to_numpy().tolist()
            or set(read) != set(table)
        )
    assert noticed > 80


def test_what_an_interrupted_reading_saw_is_kept(folder, looked):
    reading = read_index(folder, list_data(folder))
    for _ in range(5):
        next(reading)
    reading.close()
    looked.clear()
    steps, rows = drain(read_index(folder, list_data(folder)))
    assert len(looked) == 12 - 5
    assert steps[0] == Step(1, 7)
    assert (rows["near"] >= 0).all()


def test_a_reading_that_is_interrupted_while_it_compares_has_seen_all(folder, looked):
    reading = read_index(folder, list_data(folder))
    for _ in range(13):  # the first step of comparing
        next(reading)
    reading.close()
    looked.clear()
    shutil.copy(folder / "red" / "000.png", folder / "red" / "copy.png")
    rows = read_whole_index(folder).set_index("id")
    assert looked == ["copy.png"]
    assert rows.loc["red/copy.png", "near"] == rows.loc["red/000.png", "near"]


def test_an_interrupted_second_reading_forgets_nothing(folder, looked):
    read_whole_index(folder)
    image_folder(folder, {"green": 6})
    reading = read_index(folder, list_data(folder))
    next(reading)
    reading.close()
    looked.clear()
    assert len(read_whole_index(folder)) == 18
    assert len(looked) == 5


def test_a_home_that_cannot_be_written_does_not_stop_the_reading(
    folder, tmp_path, monkeypatch, looked
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("THAW_HOME", str(tmp_path / "file" / "home"))
    assert len(read_whole_index(folder)) == len(read_whole_index(folder)) == 12
    assert len(looked) == 24


def test_a_disk_that_is_full_does_not_stop_the_reading(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert len(read_whole_index(folder)) == 12
    assert not index_file(folder).exists()


def test_hashes_keep_all_their_bits_on_disk_and_among_new_rows(folder):
    def wrong():
        rows = read_whole_index(folder)
        assert rows["content"].dtype == np.uint64
        return [
            row.id
            for row in rows.itertuples()
            if row.content != measure_image(folder / row.id).content
        ]

    assert (read_whole_index(folder)["content"] > 2**63).any()  # which is where int64 ends
    assert wrong() == []  # read back
    image_folder(folder, {"green": 6})
    assert wrong() == []  # old and new ones
    assert wrong() == []
    (folder / "red" / "broken.png").write_bytes(b"")
    (folder / "red" / "000.png").unlink()
    assert wrong() == []


def test_what_is_broken_is_looked_at_once_too(folder, looked):
    (folder / "red" / "broken.png").write_bytes(b"no image")
    (folder / "red" / "empty.png").touch()
    rows = read_whole_index(folder).set_index("id")
    assert rows.loc[["red/broken.png", "red/empty.png"], "problem"].tolist() == [
        "unreadable",
        "empty_file",
    ]
    looked.clear()
    assert len(read_whole_index(folder)) == 14
    assert looked == []


def test_a_file_that_could_not_be_opened_is_tried_again(folder, looked, monkeypatch):
    """Granting access changes neither size nor modification time."""

    def refuse(path, **settings):
        if path.name == "003.png":
            raise PermissionError(13, "Permission denied")
        return open_regular(path, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(image_stats, "open_regular", refuse)
        assert (read_whole_index(folder)["problem"] == "unreadable").sum() == 2
    looked.clear()
    assert (read_whole_index(folder)["problem"] == "").all()
    assert looked == ["003.png", "003.png"]


def test_a_missing_file_makes_nobody_compare_all_images_again(folder, monkeypatch):
    (folder / "m.csv").write_text("path,label\nred/000.png,a\nred/001.png,a\nred/gone.png,a\n")
    assert read_whole_index(folder / "m.csv")["problem"].tolist() == ["", "", "missing_file"]
    monkeypatch.setattr(index, "find_near_duplicates", lambda *_: pytest.fail("compared again"))
    assert len(read_whole_index(folder / "m.csv")) == 3
    monkeypatch.undo()
    shutil.copy(folder / "red" / "002.png", folder / "red" / "gone.png")
    assert (read_whole_index(folder / "m.csv")["problem"] == "").all()


def test_copies_are_found_among_old_and_new_files(folder):
    read_whole_index(folder)
    shutil.copy(folder / "red" / "000.png", folder / "blue" / "copy.png")
    near = read_whole_index(folder).set_index("id")["near"]
    assert near["blue/copy.png"] == near["red/000.png"]
    assert near.nunique() == 12
    (folder / "red" / "000.png").unlink()
    assert read_whole_index(folder)["near"].nunique() == 12

"""Images without labels that are unpacked, uploaded or recorded: they belong to one data set."""

import io
import zipfile

import pytest

from finetune_core.config import Edit
from finetune_core.data.camera import MOST_OF_CLASS, store_unlabelled_frames
from finetune_core.data.dataset import load_dataset
from finetune_core.data.entry import unlabelled_folder
from finetune_core.data.frames import Batch
from finetune_core.data.sources import list_data_roots
from finetune_core.errors import DataError
from finetune_core.labelling.pool import (
    Unlabelled,
    add_folder,
    add_images,
    add_uploads,
    find_pool,
    load_unlabelled,
)
from finetune_core.work import finish
from tests.factories import image_folder


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path / "pictures"))
    return image_folder(tmp_path / "pictures" / "data", {"red": 12, "green": 12})


@pytest.fixture
def other(data):
    return image_folder(data.parent / "other", {"red": 4, "blue": 4})


@pytest.fixture
def loose(tmp_path):
    """Return images of no class in a folder that the app may not read."""
    return sorted(image_folder(tmp_path / "loose", {"blue": 9}).rglob("*.png"))


def pack_zip(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in files:
            archive.write(file, f"holiday/{file.name}")
    return buffer.getvalue()


def roots():
    return list_data_roots(home_too=False)


def list_waiting(data):
    pool = finish(find_pool(load_dataset(data, roots=roots()), load_unlabelled(data), roots()))
    return pool["id"].tolist()


def test_an_archive_is_unpacked_beside_the_data_set_and_its_images_can_be_labelled(data, loose):
    archive = data.parent / "holiday.zip"
    archive.write_bytes(pack_zip(loose))
    assert finish(add_images(data, str(archive), roots=roots())) == load_unlabelled(data)
    ids = list_waiting(data)
    assert len(ids) == len(loose)
    edits = [Edit(action="label", paths=tuple(ids), to="blue")]
    labelled = load_dataset(data, edits=edits, roots=roots())
    assert set(labelled.by_id.loc[ids, "class"]) == {"blue"}
    assert not list(data.glob("*holiday*"))


def test_uploaded_images_and_archives_are_added_at_once(data, loose):
    content = [file.read_bytes() for file in loose]
    uploads = [(f"{number}.png", io.BytesIO(content[number])) for number in (0, 1)]
    uploads.append(("more.zip", io.BytesIO(pack_zip(loose[2:]))))
    assert len(finish(add_uploads(data, uploads, roots=roots())).folders) == 2
    assert len(list_waiting(data)) == len(loose)


def test_what_was_refused_leaves_what_came_before_it(data, loose):
    uploads = [
        ("good.zip", io.BytesIO(pack_zip(loose))),
        ("bad.zip", io.BytesIO(b"PK\x03\x04")),
    ]
    with pytest.raises(DataError, match=r"bad\.zip was not imported"):
        finish(add_uploads(data, uploads, roots=roots()))
    assert len(list_waiting(data)) == len(loose)


def test_an_archive_outside_of_what_may_be_read_is_not_unpack_zip(data, tmp_path, loose):
    archive = tmp_path / "secret.zip"
    archive.write_bytes(pack_zip(loose))
    with pytest.raises(DataError, match="outside"):
        finish(add_images(data, str(archive), roots=roots()))
    assert not unlabelled_folder(data).exists()


def test_another_data_set_cannot_take_what_was_brought_to_one(data, other, loose):
    finish(add_uploads(data, [("a.zip", io.BytesIO(pack_zip(loose)))], roots=roots()))
    folder = load_unlabelled(data).folders[0]
    with pytest.raises(DataError, match="is a data set of its own"):
        add_folder(other, folder, roots=roots())
    assert load_unlabelled(other) == Unlabelled()
    paths = tuple(list_waiting(data))
    edits = [Edit(action="label", paths=paths, to="blue")]
    assert not set(paths) & set(load_dataset(other, edits=edits, roots=roots()).table["id"])
    # nor by a manifest that names the files
    stolen = other / "stolen.csv"
    own = [f"{name}/{number:03d}.png,{name}" for name in ("red", "blue") for number in range(4)]
    lines = [*(f"{path},blue" for path in paths), *own]
    stolen.write_text("\n".join(["path,label", *lines]))
    assert not set(paths) & set(load_dataset(stolen, roots=roots()).table["id"])


def test_recorded_frames_wait_for_a_label(data, loose):
    folder = unlabelled_folder(data) / "camera-1"
    content = tuple(file.read_bytes() for file in loose)
    for _ in range(2):  # frames that are sent again replace themselves
        store_unlabelled_frames(Batch("a", "p1", 0, content[:5], "", ""), folder)
    store_unlabelled_frames(Batch("b", "p1", 5, content[5:], "", ""), folder)
    add_folder(data, str(folder), roots=roots())
    assert len(list_waiting(data)) == len(loose)
    with pytest.raises(DataError, match="no press"):
        store_unlabelled_frames(Batch("c", "", 0, content, "", ""), folder)
    for number in range(len(content), MOST_OF_CLASS):
        (folder / f"p2_{number:05d}.jpg").touch()
    with pytest.raises(DataError, match="Label these first"):
        store_unlabelled_frames(Batch("d", "p3", 0, content[:1], "", ""), folder)

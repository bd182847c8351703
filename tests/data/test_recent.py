import os

import pytest

from finetune_core import paths
from finetune_core.data.camera import recordings_folder
from finetune_core.data.entry import entry_folder
from finetune_core.data.public import PUBLIC_SETS
from finetune_core.data.recent import (
    check_private,
    data_id,
    list_recent_sources,
    remember_source,
    resolve_source,
)
from finetune_core.data.sample import SAMPLE_NAME, write_digits_folder
from finetune_core.errors import DataError


@pytest.fixture
def folders(tmp_path):
    made = [tmp_path / "pets", tmp_path / "two words, ünïcode", tmp_path / "third"]
    for folder in made:
        folder.mkdir()
    return made


def test_an_id_stands_for_its_folder_and_is_fit_for_an_address(folders):
    for folder in folders:
        name = remember_source(folder)
        assert name == data_id(folder)
        assert name.replace("-", "").replace("_", "").isascii()
        assert resolve_source(name) == str(folder)


def test_what_was_brought_into_the_apps_folder_is_shown_to_its_owners_only(tmp_path):
    own = paths.data_dir()
    upload, unknown, recording = own / "pets-0123abcd", own / "old", recordings_folder("ann") / "x"
    shared = [own / SAMPLE_NAME, own / next(iter(PUBLIC_SETS)), tmp_path]
    for folder in (upload / "red", unknown, recording, *shared):
        folder.mkdir(parents=True, exist_ok=True)
    remember_source(upload, "ann")
    (tmp_path / "link").symlink_to(upload)
    for folder in (upload, upload / "red", tmp_path / "link", recording):
        check_private(folder, "ann")
        for other in ("ben", ""):
            with pytest.raises(DataError, match="not shown to people who sign in"):
                check_private(folder, other)
    for folder in (unknown, own, own.parent, recording.parents[1], recordings_folder("ben") / ".."):
        with pytest.raises(DataError, match="not shown to people who sign in"):
            check_private(folder, "ann")
    for folder in shared:
        check_private(folder, "ben")


@pytest.mark.train
def test_the_sample_has_the_same_id_everywhere():
    assert data_id(write_digits_folder()) == SAMPLE_NAME
    assert resolve_source(SAMPLE_NAME) == str(write_digits_folder())
    remember_source(write_digits_folder())
    assert list_recent_sources([write_digits_folder().parent], 9) == []


@pytest.mark.parametrize(
    "asked",
    ["", "nothing-123456789abc", "../../etc", "a/b", "x" * 500, "a\x00b", "\ud800", ".", "..", "~"],
)
def test_an_id_that_is_not_known_is_refused_in_words(asked):
    with pytest.raises(DataError, match="is not known here"):
        resolve_source(asked)


DAMAGES = [b"", b"[]", b"{}", b"{", b'{"path": 3, "people": []}', b'{"path": "/x", "people": 3}']


@pytest.mark.parametrize("content", [*DAMAGES, b'{"path": "/etc", "people": []}', b"[" * 19_000])
def test_a_damaged_or_foreign_note_is_no_data_set(folders, content):
    name = remember_source(folders[0])
    (entry_folder(folders[0]) / "source.json").write_bytes(content)
    with pytest.raises(DataError, match="is not known here"):
        resolve_source(name)
    assert list_recent_sources([folders[0].parent], 9) == []


def test_recent_ones_come_latest_first_and_those_gone_or_out_of_bounds_are_left_out(
    folders, tmp_path_factory
):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for age, folder in enumerate([elsewhere, *folders]):
        remember_source(folder)
        os.utime(entry_folder(folder) / "source.json", (age, age))
    roots = [folders[0].parent]
    assert [one.path for one in list_recent_sources(roots, 9)] == [
        str(folder) for folder in reversed(folders)
    ]
    folders[1].rmdir()
    assert [one.path for one in list_recent_sources(roots, 9)] == [str(folders[2]), str(folders[0])]


def test_with_people_each_sees_what_they_have_opened(folders):
    roots = [folders[0].parent]
    remember_source(folders[0], "ann")
    remember_source(folders[1], "ben")
    remember_source(folders[1], "ann")
    remember_source(folders[2])
    assert {one.path for one in list_recent_sources(roots, 9, "ann")} == {
        str(folders[0]),
        str(folders[1]),
    }
    assert {one.path for one in list_recent_sources(roots, 9, "ben")} == {str(folders[1])}
    assert list_recent_sources(roots, 9, "") == []
    assert len(list_recent_sources(roots, 9)) == 3
    assert len(list_recent_sources(roots, 2)) == 2

import shutil
from pathlib import Path
from urllib.parse import quote

import pytest

from finetune_core.data import sample
from finetune_core.data.sources import (
    check_roots,
    list_data_roots,
    list_imported_folders,
    resolve_data,
    resolve_path,
)
from finetune_core.errors import DataError
from finetune_core.work import finish
from tests.factories import image_folder


def resolve(name):
    return finish(resolve_data(name))


def test_the_word_digits_names_the_sample_unless_there_is_such_a_folder(
    home, tmp_path, monkeypatch
):
    monkeypatch.setattr(sample, "_write_digits", lambda folder: None)
    monkeypatch.chdir(tmp_path)
    assert resolve("digits") == str(home / "data" / "digits")
    (tmp_path / "digits").mkdir()
    assert resolve("digits") == str((tmp_path / "digits").resolve())


def test_other_names_become_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("pets") == str((tmp_path / "pets").resolve())
    assert resolve("~/pets") == str((tmp_path / "pets").resolve())


def test_a_public_set_that_is_not_here_says_how_to_get_it(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"fetch cifar10"):
        resolve("cifar10")
    (home / "data" / "cifar10").mkdir(parents=True)
    assert resolve("cifar10") == str(home / "data" / "cifar10")


def test_an_archive_is_what_it_unpacks_to(home, tmp_path):
    image_folder(tmp_path / "images", {"red": 2, "blue": 2})
    archive = shutil.make_archive(str(tmp_path / "pets"), "zip", tmp_path / "images")
    folder = Path(resolve(archive))
    assert folder.parent == home / "data"
    assert len(list(folder.glob("*/*.png"))) == 4
    assert list_imported_folders() == [folder]


def test_the_home_folder_may_be_read_only_where_nobody_signs_in(home, monkeypatch):
    monkeypatch.delenv("THAW_DATA_ROOTS", raising=False)
    assert list_data_roots(home_too=True) == (home / "data", Path.home())
    assert list_data_roots(home_too=False) == (home / "data",)


def test_named_roots_replace_the_home_folder(home, tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path / "a"))
    assert list_data_roots(home_too=True) == (home / "data", tmp_path / "a")


@pytest.mark.parametrize("way", ["../elsewhere", "link", "sub/../../elsewhere"])
def test_what_lies_outside_the_roots_is_refused_by_whatever_way(tmp_path, way):
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    check_roots(tmp_path / "root" / "sub", [tmp_path / "root"])
    with pytest.raises(DataError, match="THAW_DATA_ROOTS"):
        check_roots(tmp_path / "root" / way, [tmp_path / "root"])


WRITTEN = ["'{path}'", '"{path}"', "“{path}”", "  {path} ", "file://{url}", "file:{url}"]


@pytest.mark.parametrize("written", [*WRITTEN, "FILE://localhost{url}", "'file://{url}'"])
def test_path_in_quotes_or_as_a_file_url_is_that_path(tmp_path, written):
    folder = tmp_path / "my pets 100% #1 é"
    folder.mkdir()
    name = written.format(path=folder, url=quote(str(folder)))
    assert resolve_path(name) == folder
    assert resolve(name) == str(folder)


@pytest.mark.parametrize("name", ["'", '"', "it's", "'a", "100%25", "a'b'"])
def test_a_quote_or_a_percent_sign_in_a_plain_name_stays(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert resolve_path(name) == tmp_path / name


def test_file_urls_of_other_machines_and_of_no_file_are_refused(tmp_path):
    with pytest.raises(DataError, match="another machine, nas"):
        resolve_path("file://nas/pets")
    with pytest.raises(DataError, match="cannot be read"):
        resolve_path("file:///pets%00")
    (tmp_path / "root").mkdir()
    with pytest.raises(DataError, match="THAW_DATA_ROOTS"):
        check_roots(resolve_path(f"file://{tmp_path}/root/%2e%2e/elsewhere"), [tmp_path / "root"])

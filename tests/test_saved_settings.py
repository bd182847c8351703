import os

import pytest

from finetune_core import paths, saved_settings
from finetune_core.errors import ConfigError
from finetune_core.saved_settings import save_settings


def test_what_is_saved_is_found_and_equal_values_have_one_id():
    name = save_settings({"epochs": 3, "rates": {"a": 1e-4}})
    assert save_settings({"rates": {"a": 1e-4}, "epochs": 3}) == name
    assert saved_settings.load_settings(name) == {"epochs": 3, "rates": {"a": 1e-4}}
    assert save_settings({"epochs": 4}) != name


@pytest.mark.parametrize(
    "asked", ["", "0" * 12, "../config", "x" * 400, "ABCDEF012345", "\x00" * 12]
)
def test_an_id_under_which_nothing_is_saved_is_refused_in_words(asked):
    with pytest.raises(ConfigError, match="nothing is saved"):
        saved_settings.load_settings(asked)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[" * 40_000, b'{"epochs": 7}', b" " * 100_000],
    ids=["empty", "half", "deep", "other", "big"],
)
def test_a_damaged_or_changed_file_is_refused(content):
    name = save_settings({"epochs": 3})
    (paths.home() / "settings" / f"{name}.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"damaged|changed"):
        saved_settings.load_settings(name)


@pytest.mark.skipif(os.name != "posix", reason="files that only POSIX has")
@pytest.mark.parametrize("make", [os.mkfifo, lambda file: file.symlink_to("/dev/zero")])
def test_what_is_no_regular_file_is_refused(make):
    name = save_settings({"epochs": 3})
    file = paths.home() / "settings" / f"{name}.json"
    file.unlink()
    make(file)
    with pytest.raises(ConfigError, match="damaged"):
        saved_settings.load_settings(name)
    assert save_settings({"epochs": 3}) == name
    assert saved_settings.load_settings(name) == {"epochs": 3}


def test_files_of_other_names_are_not_deleted(monkeypatch):
    monkeypatch.setattr(saved_settings, "MOST_FILES", 2)
    folder = paths.home() / "settings"
    folder.mkdir(parents=True)
    (folder / "annotations.json").write_bytes(b"mine")
    os.utime(folder / "annotations.json", (0, 0))
    for number in range(4):
        save_settings({"epochs": number})
    assert (folder / "annotations.json").read_bytes() == b"mine"
    assert len(list(folder.iterdir())) == 3


def test_their_number_is_bounded_and_those_in_use_stay(monkeypatch):
    monkeypatch.setattr(saved_settings, "MOST_FILES", 5)
    folder = paths.home() / "settings"
    names = []
    for number in range(12):
        names.append(save_settings({"epochs": number}))
        for age, name in enumerate(names):
            if (file := folder / f"{name}.json").exists() and name != names[0]:
                os.utime(file, (age, age))
        save_settings({"epochs": 0})  # used again and again
    assert len(list(folder.iterdir())) == 5
    assert (folder / f"{names[0]}.json").exists()
    assert (folder / f"{names[-1]}.json").exists()


def test_what_is_too_large_is_not_kept():
    name = save_settings({"x": "y" * 100_000})
    assert not (paths.home() / "settings" / f"{name}.json").exists()

"""Tests that compiled code of this user is loaded, and nothing else."""

import hashlib
import os
import sys

import pytest

from finetune_core import paths
from finetune_core.training.compile.packages import read_package, write_package
from tests.other_user import AS_ROOT, as_another_user, open_to_all

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="compiled under Linux only"
)


def kept_file():
    (file,) = paths.private_dir().iterdir()
    return file


def test_what_was_kept_comes_back():
    write_package("one", b"code")
    assert read_package("one") == b"code"
    assert read_package("another") is None
    assert kept_file().stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("at", [0, 31, 32, -1])
def test_one_that_is_damaged_is_not_loaded(at):
    write_package("one", b"code" * 10)
    content = bytearray(kept_file().read_bytes())
    content[at] ^= 1
    kept_file().write_bytes(content)
    assert read_package("one") is None


def test_one_of_another_part_is_not_loaded():
    write_package("one", b"code")
    kept_file().rename(kept_file().with_name("another.pt2"))
    assert read_package("another") is None


def test_one_that_others_can_read_is_not_loaded():
    write_package("one", b"code")
    kept_file().chmod(0o640)
    assert read_package("one") is None
    write_package("one", b"code")
    assert read_package("one") == b"code"


def test_the_cache_holds_no_code(monkeypatch, tmp_path):
    monkeypatch.setenv("THAW_CACHE_DIR", str(tmp_path))
    write_package("one", b"code")
    assert os.listdir(tmp_path) == []


@AS_ROOT
def test_code_of_another_user_is_not_loaded(tmp_path, monkeypatch):
    for variable in ("THAW_HOME", "THAW_CACHE_DIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    open_to_all(tmp_path)
    private = paths.private_dir()

    def plant():
        private.mkdir(mode=0o700)
        digest = hashlib.sha256(b"one\0" + b"evil").digest()
        (private / "one.pt2").write_bytes(digest + b"evil")
        (private / "one.pt2").chmod(0o600)

    assert as_another_user(plant)
    assert read_package("one") is None
    write_package("one", b"code")
    assert read_package("one") is None

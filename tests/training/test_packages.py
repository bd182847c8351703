"""Compiled code in the cache: what this installation has kept is loaded, and nothing else."""

import sys

import pytest

from finetune_core.data.rowcache import CACHE
from finetune_core.training.packages import keep_package, kept_package

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="compiled under Linux only"
)


def test_what_was_kept_comes_back():
    keep_package("one", b"code")
    assert kept_package("one") == b"code"
    assert kept_package("another") is None
    assert (CACHE.folder / "packages.key").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("at", [0, 31, 32, -1])
def test_one_that_was_changed_is_not_loaded(at):
    keep_package("one", b"code" * 10)
    (file,) = CACHE.folder.glob("*.kept")
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)
    assert kept_package("one") is None


def test_one_of_another_part_is_not_loaded():
    keep_package("one", b"code")
    (file,) = CACHE.folder.glob("*.kept")
    file.rename(file.with_stem("another"))
    assert kept_package("another") is None


def test_one_of_another_installation_is_not_loaded():
    keep_package("one", b"code")
    (CACHE.folder / "packages.key").unlink()
    keep_package("another", b"code")
    assert kept_package("one") is None
    assert kept_package("another") == b"code"


def test_a_key_that_others_can_read_signs_nothing():
    keep_package("one", b"code")
    key = CACHE.folder / "packages.key"
    known = key.read_bytes()
    key.chmod(0o640)
    assert kept_package("one") is None
    keep_package("another", b"code")
    assert key.read_bytes() != known
    assert kept_package("another") == b"code"

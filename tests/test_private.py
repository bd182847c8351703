"""Private files are out of reach of other users, whoever owns the parent folders."""

import os
import re
import time

import pytest

from finetune_core import paths
from finetune_core.private import evict_oldest, read_private, write_private
from tests.other_user import AS_ROOT, as_another_user, open_to_all

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")

FILES = re.compile(r"[a-z]+")


def test_what_was_written_is_read_again():
    assert read_private("one", 10) is None
    write_private("one", b"code")
    write_private("one", b"newer code")
    assert read_private("one", 10) == b"newer code"
    assert os.listdir(paths.private_dir()) == ["one"]
    assert paths.private_dir().stat().st_mode & 0o777 == 0o700
    assert (paths.private_dir() / "one").stat().st_mode & 0o777 == 0o600


def shared_folder(file):
    file.parent.chmod(0o711)


def shared_file(file):
    file.chmod(0o644)


def link(file):
    file.rename(file.with_name("another"))
    file.symlink_to("another")


def link_to_the_folder(file):
    file.parent.rename(file.parent.with_name("another"))
    file.parent.symlink_to("another")


def fifo(file):
    file.unlink()
    os.mkfifo(file, 0o600)


def endless(file):
    file.unlink()
    file.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    "change", [shared_folder, shared_file, link, link_to_the_folder, fifo, endless]
)
def test_what_others_may_have_changed_is_refused(change):
    write_private("one", b"code")
    change(paths.private_dir() / "one")
    with pytest.raises(OSError, match=r"one|private"):
        read_private("one", 10)


def test_what_is_too_large_is_refused():
    write_private("one", b"code")
    with pytest.raises(OSError, match="too large"):
        read_private("one", 3)


def test_the_oldest_make_room_and_nothing_else_goes():
    for age, name in enumerate(("new", "old", "oldest", "key.pem", ".thaw-half-0123456789abcdef")):
        write_private(name, b"x" * 10)
        os.utime(paths.private_dir() / name, (time.time() - age * 7200,) * 2)
    evict_oldest(FILES, 20)
    assert sorted(os.listdir(paths.private_dir())) == ["key.pem", "new", "old"]


@AS_ROOT
def test_another_user_who_may_write_to_the_folder_around_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_HOME", str(tmp_path))
    open_to_all(tmp_path)
    write_private("one", b"code")
    private = paths.private_dir()
    assert not as_another_user(lambda: os.listdir(private))
    assert not as_another_user(lambda: (private / "one").read_bytes())
    assert not as_another_user(lambda: (private / "one").write_bytes(b"evil"))

    def replace():
        private.rename(private.with_name("away"))
        private.mkdir(mode=0o700)
        (private / "one").write_bytes(b"evil")
        (private / "one").chmod(0o600)

    assert as_another_user(replace)
    with pytest.raises(PermissionError):
        read_private("one", 10)
    with pytest.raises(PermissionError):
        write_private("one", b"code")

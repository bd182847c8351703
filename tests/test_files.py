import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune_core.errors import ConfigError
from finetune_core.files import (
    check_output,
    publish_folder,
    replace_atomically,
    staging_folder,
    temporary_folder,
    write_bytes,
    write_output,
)
from tests.other_user import AS_ROOT, as_another_user, open_to_all


def permissions(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_write_bytes_makes_folders_replaces_a_file_and_lets_others_read_it(tmp_path):
    file = tmp_path / "a" / "b" / "c.bin"
    write_bytes(file, b"a longer old content")
    write_bytes(file, b"new")
    assert file.read_bytes() == b"new"
    assert os.listdir(file.parent) == ["c.bin"]
    assert permissions(file) == 0o644


def test_the_old_file_is_read_until_the_block_has_ended(tmp_path):
    file = tmp_path / "c.bin"
    file.write_bytes(b"old")
    with replace_atomically(file) as opened:
        opened.write(b"new")
        opened.flush()
        assert file.read_bytes() == b"old"
    assert file.read_bytes() == b"new"


FAILURES = pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])


@FAILURES
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    file = tmp_path / "c.bin"
    file.write_bytes(b"old")
    with pytest.raises(error), replace_atomically(file) as opened:  # noqa: PT012
        opened.write(b"half of")
        raise error
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["c.bin"]


def test_a_staged_folder_is_there_once_it_is_settled(tmp_path):
    with staging_folder(tmp_path / "data", "new") as staging:
        assert staging.parent.parent == tmp_path / "data"
        assert re.fullmatch(r"\.thaw-new-.{8}", staging.parent.name)
        (staging / "1.jpg").write_bytes(b"x")
        publish_folder(staging, tmp_path / "data" / "pets")
    assert os.listdir(tmp_path / "data") == ["pets"]
    assert os.listdir(tmp_path / "data" / "pets") == ["1.jpg"]
    assert os.name != "posix" or permissions(tmp_path / "data" / "pets") == 0o755


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_permissions_are_not_changed_through_a_link_in_the_place_of_the_staging_folder(
    tmp_path, monkeypatch
):
    secret, mkdir = tmp_path / "secret", os.mkdir
    secret.write_bytes(b"mine")
    secret.chmod(0o600)
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "new").symlink_to(secret)

    def swap_after(name, *arguments, **options):
        mkdir(name, *arguments, **options)
        if Path(name).name == "new":
            (own,) = (tmp_path / "shared").iterdir()
            own.rename(tmp_path / "shared" / "taken")
            evil.rename(own)

    (tmp_path / "shared").mkdir()
    monkeypatch.setattr("os.mkdir", swap_after)
    with staging_folder(tmp_path / "shared", "new"):
        pass
    assert not evil.exists()
    assert permissions(secret) == 0o600


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_nothing_is_deleted_through_a_link_in_the_place_of_the_staging_folder(tmp_path):
    mail = tmp_path / "mail" / "new" / "1"
    mail.parent.mkdir(parents=True)
    mail.write_bytes(b"kept")
    (tmp_path / "shared").mkdir()
    with staging_folder(tmp_path / "shared", "new") as staging:
        (staging / "1.jpg").write_bytes(b"x")
        staging.parent.rename(tmp_path / "shared" / "taken")
        staging.parent.symlink_to(tmp_path / "mail")
    assert mail.read_bytes() == b"kept"
    assert os.listdir(tmp_path / "shared" / "taken") == []


@FAILURES
def test_a_block_that_fails_leaves_no_staging_folder(tmp_path, error):
    with pytest.raises(error), staging_folder(tmp_path, "new") as staging:  # noqa: PT012
        (staging / "cat").mkdir()
        (staging / "cat" / "1.jpg").write_bytes(b"half of")
        raise error
    assert os.listdir(tmp_path) == []


def test_whoever_settled_first_wins(tmp_path):
    with staging_folder(tmp_path, "new") as staging:
        (staging / "mine").mkdir()
        (tmp_path / "pets" / "theirs").mkdir(parents=True)
        publish_folder(staging, tmp_path / "pets")
    assert os.listdir(tmp_path) == ["pets"]
    assert os.listdir(tmp_path / "pets") == ["theirs"]


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "pets").write_bytes(b"")
    with staging_folder(tmp_path, "new") as staging, pytest.raises(OSError, match="pets"):
        publish_folder(staging, tmp_path / "pets")


KILLED = """
import os, signal, sys
from pathlib import Path
from finetune_core.files import staging_folder

with staging_folder(Path(sys.argv[1]), "new") as folder:
    (folder / "half").write_bytes(bytes(1000))
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print("ready", flush=True)
    sys.stdin.read()
"""


def staging_process(folder, how):
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, folder, how],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def aged(folder):
    os.utime(folder, (time.time() - 120,) * 2)


@pytest.mark.skipif(os.name != "posix", reason="no such signal")
def test_folders_of_killed_processes_go_those_of_living_ones_and_of_others_stay(tmp_path):
    staging_process(tmp_path, "killed").communicate()
    (left,) = tmp_path.iterdir()
    living = staging_process(tmp_path, "living")
    assert living.stdout.readline() == b"ready\n"
    (held,) = set(tmp_path.iterdir()) - {left}
    others = [".new-mybackup", ".thaw-new-mybackup1", ".thaw-new-backup_1", ".thaw-other-abcd_123"]
    for name in others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(b"x")
    for folder in tmp_path.iterdir():
        aged(folder)
    with staging_folder(tmp_path, "new") as staging:
        there = {one.name for one in tmp_path.iterdir()}
        assert there == {staging.parent.name, held.name, *others}
        assert (held / "new" / "half").exists()
    living.communicate()
    assert sorted(os.listdir(tmp_path)) == sorted(others)


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_nothing_is_swept_through_a_link(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "lock").write_bytes(b"")
    (tmp_path / "data").mkdir()
    link = tmp_path / "data" / ".thaw-new-abcd_123"
    link.symlink_to(tmp_path / "kept")
    os.utime(link, (0, 0), follow_symlinks=False)
    with staging_folder(tmp_path / "data", "new"):
        assert os.listdir(tmp_path / "kept") == ["lock"]
        assert link.is_symlink()


@AS_ROOT
def test_what_is_staged_is_out_of_reach_of_other_users(tmp_path):
    open_to_all(tmp_path)
    with staging_folder(tmp_path, "new") as staging:
        assert as_another_user(lambda: os.listdir(tmp_path))
        assert not as_another_user(lambda: os.listdir(staging))
        assert not as_another_user(lambda: (staging / "mine").write_bytes(b""))


@AS_ROOT
def test_a_staging_folder_of_another_user_is_left_alone(tmp_path):
    open_to_all(tmp_path)
    theirs = tmp_path / ".thaw-new-abcd_123"

    def make():
        theirs.mkdir()
        (theirs / "lock").write_bytes(b"")
        aged(theirs)

    assert as_another_user(make)
    with staging_folder(tmp_path, "new"):
        pass
    assert (theirs / "lock").exists()


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_temporary_folder_that_others_can_replace_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary_folder("code") as folder:
        assert permissions(folder.parent) == 0o700
    tmp_path.chmod(0o777)
    with pytest.raises(PermissionError), temporary_folder("code"):
        pass
    inner = tmp_path / "inner"
    inner.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(inner))
    with pytest.raises(PermissionError), temporary_folder("code"):
        pass
    tmp_path.chmod(0o1777)
    for place in (inner, tmp_path):
        monkeypatch.setattr("tempfile.tempdir", str(place))
        with temporary_folder("code"):
            pass
    assert os.listdir(tmp_path) == ["inner"]
    assert os.listdir(inner) == []


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_a_link_in_the_place_of_a_half_written_file_is_not_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"mine")
    secret.chmod(0o600)
    (tmp_path / "shared").mkdir()
    with replace_atomically(tmp_path / "shared" / "c.bin") as file:
        file.write(b"new")
        (half,) = (tmp_path / "shared").iterdir()
        half.unlink()
        half.symlink_to(secret)
    assert permissions(secret) == 0o600
    assert secret.read_bytes() == b"mine"


def test_a_folder_that_was_deleted_is_not_made_again_where_that_is_not_wanted(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_bytes(tmp_path / "run" / "c.bin", b"x", make_folder=False)
    assert os.listdir(tmp_path) == []


def test_what_killed_processes_left_of_a_file_is_swept_when_it_is_written_again_and_nothing_else(
    tmp_path,
):
    left, fresh = tmp_path / ".thaw-c.bin-abcd_123", tmp_path / ".thaw-c.bin-efgh5678"
    names = (".c.bin-20240131", ".thaw-c.bin-note", ".thaw-d.bin-abcd_123", "c.bin-abcd_123")
    others = [tmp_path / name for name in names]
    for file in (left, fresh, *others):
        file.write_bytes(b"half")
    for file in (left, *others):
        os.utime(file, (time.time() - 7200,) * 2)
    write_bytes(tmp_path / "c.bin", b"whole")
    assert set(tmp_path.iterdir()) == {fresh, *others, tmp_path / "c.bin"}


def test_what_killed_processes_left_of_an_output_is_swept(tmp_path):
    left = tmp_path / ".thaw-report.html-0123abcd"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    write_output(tmp_path / "report.html", b"whole", "--report")
    assert os.listdir(tmp_path) == ["report.html"]


@AS_ROOT
def test_a_half_written_file_of_another_user_is_left_alone(tmp_path):
    open_to_all(tmp_path)
    theirs = tmp_path / ".thaw-c.bin-abcd_123"
    assert as_another_user(lambda: theirs.write_bytes(b"theirs"))
    os.utime(theirs, (0, 0))
    write_bytes(tmp_path / "c.bin", b"mine")
    assert theirs.read_bytes() == b"theirs"


def test_an_output_that_a_person_named_keeps_its_permissions_and_a_new_one_follows_the_umask(
    tmp_path,
):
    private, shared, new = (tmp_path / name for name in ("private", "shared", "a/new"))
    for file, mode in ((private, 0o600), (shared, 0o664)):
        file.write_text("old")
        file.chmod(mode)
    before = os.umask(0o077)
    try:
        for file in (private, shared, new):
            write_output(file, b"new", "csv")
    finally:
        os.umask(before)
    assert {file.read_text() for file in (private, shared, new)} == {"new"}
    assert [permissions(file) for file in (private, shared, new)] == [0o600, 0o664, 0o600]
    assert sorted(os.listdir(tmp_path)) == ["a", "private", "shared"]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away"
)
def test_an_output_keeps_its_owner(tmp_path):
    file = tmp_path / "theirs"
    file.write_text("old")
    os.chown(file, 4321, 4322)
    file.chmod(0o640)
    write_output(file, b"new", "csv")
    found = file.stat()
    assert (found.st_uid, found.st_gid, permissions(file)) == (4321, 4322, 0o640)


def make_device(path):
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 7))  # as /dev/full
    except OSError:
        pytest.skip("no devices can be made here")


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (make_device, "a device"),
        (os.mkfifo, "a FIFO"),
        (os.mkdir, "a folder"),
        (lambda path: path.symlink_to(path.with_name("target")), "a link"),
        (lambda path: path.symlink_to(path.with_name("gone")), "a link"),
    ],
)
def test_an_output_replaces_regular_files_only(tmp_path, make, problem):
    (tmp_path / "target").write_text("old")
    named = tmp_path / "out.csv"
    make(named)
    before = os.lstat(named)
    for check in (lambda: check_output(named, "csv"), lambda: write_output(named, b"new", "csv")):
        with pytest.raises(ConfigError, match=f"^csv: .*out.csv is {problem}"):
            check()
    assert os.lstat(named).st_ino == before.st_ino
    assert os.lstat(named).st_mode == before.st_mode
    assert (tmp_path / "target").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["out.csv", "target"]


@pytest.mark.parametrize("name", ["nul\0byte", "n" * 300])
def test_an_output_whose_name_no_system_takes_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot be written"):
        write_output(tmp_path / name, b"", "report")
    assert not os.listdir(tmp_path)

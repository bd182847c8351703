import os

import pytest

from finetune_core.files import replacing, write_bytes


def test_write_bytes_writes_the_whole_file_and_makes_its_folders(tmp_path):
    file = tmp_path / "a" / "b" / "c.bin"
    write_bytes(file, b"hello")
    assert file.read_bytes() == b"hello"
    assert os.listdir(file.parent) == ["c.bin"]


def test_an_existing_file_is_replaced(tmp_path):
    file = tmp_path / "c.bin"
    file.write_bytes(b"a longer old content")
    write_bytes(file, b"new")
    assert file.read_bytes() == b"new"


def test_the_old_file_is_read_until_the_block_has_ended(tmp_path):
    file = tmp_path / "c.bin"
    file.write_bytes(b"old")
    with replacing(file) as opened:
        opened.write(b"new")
        opened.flush()
        assert file.read_bytes() == b"old"
    assert file.read_bytes() == b"new"


def fail_halfway(file, error):
    with replacing(file) as opened:
        opened.write(b"half of")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    file = tmp_path / "c.bin"
    file.write_bytes(b"old")
    with pytest.raises(error):
        fail_halfway(file, error)
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["c.bin"]


def test_a_block_that_fails_leaves_nothing_where_nothing_was(tmp_path):
    with pytest.raises(ValueError, match="no"), replacing(tmp_path / "c.bin"):
        raise ValueError("no")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_the_file_can_be_read_by_others(tmp_path):
    write_bytes(tmp_path / "c.bin", b"x")
    assert (tmp_path / "c.bin").stat().st_mode & 0o777 == 0o644

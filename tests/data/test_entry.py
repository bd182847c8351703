"""Files that are kept about data sets are input: nobody waits for a FIFO in the place of one."""

import os

import pandas as pd
import pytest

from finetune_core.data.edits import load_edits
from finetune_core.data.entry import entry_folder, load_split, read_table, save_split, write_table
from finetune_core.data.recent import data_id, recent_sources, remember, source_of
from finetune_core.errors import DataError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="files that only POSIX has")


def endless(file):
    file.symlink_to("/dev/zero")


def nested(file):
    file.write_text("[" * 15_000)


@pytest.fixture(params=[os.mkfifo, endless, nested, os.mkdir])
def put(request, tmp_path):
    """Puts something else in the place of a file of a data set's entry."""

    def put(name):
        file = entry_folder(tmp_path) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        request.param(file)
        return file

    return put


def test_tables(put, tmp_path):
    file = put("index.parquet")
    assert read_table(file) is None
    if not file.is_dir():
        write_table(file, pd.DataFrame({"a": [1]}))
        assert read_table(file).to_dict("list") == {"a": [1]}


def test_split(put, tmp_path):
    put("split.json")
    with pytest.raises(DataError, match=r"Repair or delete"):
        load_split(tmp_path)


def test_edits(put, tmp_path):
    put("edits.json")
    with pytest.raises(DataError, match=r"Repair or delete"):
        load_edits(tmp_path)


def test_source(put, tmp_path):
    remember(tmp_path)
    assert source_of(data_id(tmp_path)) == str(tmp_path)
    put("source.json")
    with pytest.raises(DataError, match="not known here"):
        source_of(data_id(tmp_path))
    assert recent_sources([tmp_path.parent], 10) == []


def test_a_split_that_was_saved_is_read_again(tmp_path):
    split = load_split(tmp_path)
    save_split(tmp_path, split)
    assert load_split(tmp_path) == split

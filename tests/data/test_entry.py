"""Files about data sets are untrusted input: a FIFO in place of one blocks nobody."""

import os

import pandas as pd
import pytest

from finetune_core.data.edits import load_edits
from finetune_core.data.entry import entry_folder, load_split, read_table, save_split, write_table
from finetune_core.data.recent import data_id, list_recent_sources, remember_source, resolve_source
from finetune_core.errors import DataError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="files that only POSIX has")


def endless(file):
    file.symlink_to("/dev/zero")


def nested(file):
    file.write_text("[" * 15_000)


@pytest.fixture(params=[os.mkfifo, endless, nested, os.mkdir])
def put(request, tmp_path):
    """Replace a file of a data set's entry by something else."""

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


@pytest.mark.parametrize("load", [load_split, load_edits])
def test_split_and_edits(put, tmp_path, load):
    put("split.json")
    put("edits.json")
    with pytest.raises(DataError, match=r"Repair or delete"):
        load(tmp_path)


def test_source(put, tmp_path):
    remember_source(tmp_path)
    assert resolve_source(data_id(tmp_path)) == str(tmp_path)
    put("source.json")
    with pytest.raises(DataError, match="not known here"):
        resolve_source(data_id(tmp_path))
    assert list_recent_sources([tmp_path.parent], 10) == []


def test_split_is_kept_with_its_data_set(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    usual = load_split(one)
    wanted = usual | {"val_fraction": 0.3, "split_seed": 7, "groups": "{group}_*"}
    save_split(one, wanted)
    assert load_split(one) == wanted
    assert load_split(other) == usual


@pytest.mark.parametrize("content", ["{", "[]", '{"val_fraction": 5}', '{"split_seed": "x"}'])
def test_damaged_split_is_not_silently_another_one(tmp_path, content):
    save_split(tmp_path, load_split(tmp_path))
    (entry_folder(tmp_path) / "split.json").write_text(content)
    with pytest.raises(DataError, match="Repair or delete that file"):
        load_split(tmp_path)

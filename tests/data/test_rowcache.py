import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from finetune_core import paths
from finetune_core.data.rowcache import RowCache
from finetune_core.errors import ConfigError
from finetune_core.work import finish

KEYS = np.arange(10, 30, dtype=np.uint64)
ROWS = torch.randn(20, 3, 4, 4)
MARKER = "CACHEDIR.TAG"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def cache(folder):
    return RowCache(lambda: folder)


@pytest.fixture
def disk_only(monkeypatch):
    monkeypatch.setenv("THAW_CACHE_MEMORY_GB", "0")


def batches(rows=ROWS, size=8):
    for start in range(0, len(rows), size):
        yield np.arange(start, min(len(rows), start + size)), rows[start : start + size]


def fill_table(cache, name="t", keys=KEYS, rows=ROWS):
    return finish(cache.fill(name, keys, batches(rows)))


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        ROWS.to(memory_format=torch.channels_last),
        ROWS.bfloat16(),
        ROWS.half(),
        torch.randn(20, 7),
    ],
)
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_rows_come_back_as_they_were(cache, rows, where, monkeypatch):
    if where == "disk":
        monkeypatch.setenv("THAW_CACHE_MEMORY_GB", "0")
    assert fill_table(cache, rows=rows) == where
    found = cache.get_table("t").lookup(KEYS[::-1].copy())
    assert found.where == where
    chosen = found.batch(np.array([0, 5, 3]))
    assert torch.equal(chosen, rows[[19, 14, 16]])
    assert chosen.dtype == rows.dtype
    if rows.ndim == 4 and not rows.is_contiguous():
        assert chosen.is_contiguous(memory_format=torch.channels_last)


def test_rows_of_several_blocks_mix(cache):
    fill_table(cache, keys=KEYS[:12], rows=ROWS[:12])
    assert cache.get_table("t").find_missing(KEYS).tolist() == [False] * 12 + [True] * 8
    fill_table(cache, keys=KEYS[12:], rows=ROWS[12:])
    order = np.array([15, 2, 11, 12])
    assert torch.equal(cache.get_table("t").lookup(KEYS).batch(order), ROWS[order])


def test_an_abandoned_fill_leaves_nothing(cache, folder, disk_only):
    stream = cache.fill("t", KEYS, batches())
    next(stream)
    stream.close()
    assert set(os.listdir(folder)) <= {MARKER}
    assert cache.get_table("t").find_missing(KEYS).all()


def test_another_process_finds_rows_on_disk(cache, folder, disk_only):
    fill_table(cache)
    again = RowCache(lambda: folder).get_table("t")
    assert torch.equal(again.lookup(KEYS).batch(np.arange(20)), ROWS)


def test_keys_are_distinguished_to_the_last_bit(cache, folder, disk_only):
    keys = np.array([2**63 + 1, 2**64 - 1, 0, 2**63], dtype=np.uint64)
    fill_table(cache, keys=keys, rows=ROWS[:4])
    for one in (cache, RowCache(lambda: folder)):
        table = one.get_table("t")
        assert torch.equal(table.lookup(keys).batch(np.arange(4)), ROWS[:4])
        assert table.find_missing(keys ^ np.uint64(2)).all()


def test_of_two_rows_of_a_key_the_newest_counts(cache):
    fill_table(cache)
    fill_table(cache, keys=KEYS[5:8], rows=ROWS[10:13])
    assert torch.equal(
        cache.get_table("t").lookup(KEYS).batch(np.arange(4, 9)), ROWS[[4, 10, 11, 12, 8]]
    )


def test_rows_on_a_device_are_those_of_all_blocks_each_once(cache):
    fill_table(cache, keys=KEYS[:12], rows=ROWS[:12])
    fill_table(cache, keys=KEYS[12:], rows=ROWS[12:])
    lookup = cache.get_table("t").lookup(np.concatenate([KEYS, KEYS]))
    positions = np.array([25, 3, 17, 5, 13])  # the first is a second time the fourth
    assert lookup.count_bytes(positions) == 4 * lookup.row_bytes
    there = lookup.copy_to(torch.device("cpu"), positions)
    assert torch.equal(there.batch(positions), ROWS[[5, 3, 17, 5, 13]])
    assert sorted(there.blocks[0].keys) == sorted(KEYS[[3, 5, 13, 17]])
    assert not there.has_rows(np.array([0]))


def flip_a_bit(file):
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)


def replace_with(make, suffix=".json"):
    def damage(file):
        file.with_suffix(suffix).unlink()
        make(file.with_suffix(suffix))

    return damage


def describe_as(**fields):
    def damage(file):
        text = json.loads(file.with_suffix(".json").read_text()) | fields
        kept = {name: value for name, value in text.items() if value is not None}
        file.with_suffix(".json").write_text(json.dumps(kept))

    return damage


DAMAGES = {
    "flipped bit": flip_a_bit,
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-10]),
    "no description": lambda file: file.with_suffix(".json").unlink(),
    "fewer keys": describe_as(keys=KEYS[:-1].tolist()),
    "other keys": describe_as(keys=[10, 11]),
    "keys as text": describe_as(keys=""),
    "FIFO for rows": replace_with(os.mkfifo, ".rows"),
    "FIFO for a description": replace_with(os.mkfifo),
    "link to a device": replace_with(lambda file: file.symlink_to("/dev/zero")),
    "deep description": replace_with(lambda file: file.write_text("[" * 100_000)),
    "list for a description": replace_with(lambda file: file.write_text("[]")),
    "no order of channels": describe_as(channels_last=None),
    "order of no channels": describe_as(channels_last=True, shape=[48]),
    "no checksum": describe_as(checksum=None),
    "large shape": describe_as(shape=[2**70]),
    "shape beyond floats": describe_as(shape=[10**400]),
    "negative shape": describe_as(shape=[-3, -4, 4]),
    "shape that is a number": describe_as(shape=3),
    "dtype that is none": describe_as(dtype="load"),
    "dtype that is a list": describe_as(dtype=["float32"]),
}


@pytest.mark.skipif(os.name != "posix", reason="files that only POSIX has")
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_or_foreign_file_is_dropped_and_filled_again(cache, folder, disk_only, damage):
    fill_table(cache)
    DAMAGES[damage](next(folder.glob("*.rows")))
    again = RowCache(lambda: folder)
    assert again.get_table("t").find_missing(KEYS).all()
    if damage in ("flipped bit", "cut short", "no description", "fewer keys"):
        assert os.listdir(folder) == [MARKER]
    assert fill_table(again) == "disk"
    assert torch.equal(again.get_table("t").lookup(KEYS).batch(np.arange(20)), ROWS)


def test_a_full_disk_means_nowhere_and_leaves_nothing(cache, folder, disk_only, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert fill_table(cache) is None
    assert set(os.listdir(folder)) <= {MARKER}
    assert cache.get_table("t").find_missing(KEYS).all()


def test_without_room_anywhere_nothing_is_computed(cache, disk_only, monkeypatch):
    monkeypatch.setenv("THAW_CACHE_DISK_GB", "0")
    assert fill_table(cache) is None


def test_the_least_recently_used_table_makes_room_in_memory(cache, monkeypatch):
    size = ROWS.numel() * 4
    monkeypatch.setenv("THAW_CACHE_MEMORY_GB", str(2.5 * size / 1e9))
    fill_table(cache, "old")
    fill_table(cache, "used")
    kept = cache.get_table("old").lookup(KEYS)
    fill_table(cache, "new")
    assert cache.get_table("used").find_missing(KEYS).all()
    assert not cache.get_table("old").find_missing(KEYS).any()
    assert cache.memory_bytes() <= 2.5 * size
    assert torch.equal(kept.batch(np.arange(20)), ROWS)


def test_oldest_files_make_room_on_disk_and_are_forgotten(cache, folder, disk_only, monkeypatch):
    size = ROWS.numel() * 4
    monkeypatch.setenv("THAW_CACHE_DISK_GB", str(1.5 * size / 1e9))
    fill_table(cache, "old")
    fill_table(cache, "new")
    (file,) = folder.glob("*.rows")
    assert file.name.split("-")[1] == "new"
    assert file.stat().st_size == size
    assert cache.get_table("old").find_missing(KEYS).all()


def test_rows_that_a_run_still_reads_count_towards_the_budget(cache, monkeypatch):
    size = ROWS.numel() * 4
    monkeypatch.setenv("THAW_CACHE_MEMORY_GB", str(1.5 * size / 1e9))
    fill_table(cache, "first")
    reading = cache.get_table("first").lookup(KEYS)
    assert fill_table(cache, "second") == "disk"
    assert torch.equal(reading.batch(np.arange(20)), ROWS)


def test_a_table_that_grows_stays_within_the_budget(cache, monkeypatch):
    size = ROWS.numel() * 4
    monkeypatch.setenv("THAW_CACHE_MEMORY_GB", str(1.5 * size / 1e9))
    fill_table(cache)
    assert fill_table(cache, keys=KEYS + np.uint64(100)) == "disk"
    assert cache.memory_bytes() == size
    both = cache.get_table("t").lookup(np.concatenate([KEYS[:2], KEYS[:2] + np.uint64(100)]))
    assert torch.equal(both.batch(np.arange(4)), ROWS[[0, 1, 0, 1]])


def test_a_row_that_is_not_there_is_not_read_from_another(cache):
    fill_table(cache)
    with pytest.raises(KeyError):
        cache.get_table("t").lookup(np.array([10, 999], dtype=np.uint64)).batch(np.array([0, 1]))


def test_old_leftovers_of_killed_processes_are_cleared_away(cache, folder, disk_only):
    fill_table(cache)
    (folder / "thaw-t-deaddead.part").write_bytes(b"half")
    (folder / "thaw-t-90909090.json").write_text("{}")
    others = {"annotations.json", "download.part", "big.rows", "thaw-notes.json"}
    for name in others:
        (folder / name).write_bytes(b"somebody's")
    for file in folder.iterdir():
        os.utime(file, (0, 0))
    (folder / "thaw-t-a11fea11.part").write_bytes(b"half")
    fill_table(cache, "another")
    left = {name for name in os.listdir(folder) if name.startswith("thaw-t-")}
    assert len(left) == 3
    assert {name[-5:] for name in left} == {".rows", ".json", ".part"}
    assert others < set(os.listdir(folder))


def test_no_file_of_somebody_else_is_deleted(tmp_path, disk_only, monkeypatch):
    """THAW_CACHE_DIR may name a folder that holds other files, too."""
    monkeypatch.setenv("THAW_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("THAW_CACHE_DISK_GB", str(1.5 * ROWS.numel() * 4 / 1e9))
    names = ["annotations.json", "download.part", "table.rows", "thaw-x-00000000.rows"]
    for name in names:
        (tmp_path / name).write_bytes(bytes(10**6))
        os.utime(tmp_path / name, (0, 0))
    cache = RowCache(paths.rows_dir)
    for name in ("one", "two"):
        assert fill_table(cache, name) == "disk"
    assert {*names, paths.rows_dir().name} == set(os.listdir(tmp_path))
    assert len(list(paths.rows_dir().glob("*.rows"))) == 1


def occupy(folder):
    folder.mkdir()
    (folder / "thaw-t-00000000.rows").write_bytes(b"mine")


def link(folder):
    (folder.parent / "mine").mkdir()
    (folder.parent / "mine" / "thaw-t-00000000.rows").write_bytes(b"mine")
    (folder.parent / "mine" / MARKER).write_bytes(b"Signature: 8a477f597d28d172789f06886806bc55")
    folder.symlink_to("mine")


@pytest.mark.parametrize("take", [occupy, link])
def test_a_folder_of_somebody_else_is_not_used(cache, folder, disk_only, take):
    take(folder)
    assert fill_table(cache) is None
    assert (folder / "thaw-t-00000000.rows").read_bytes() == b"mine"


@pytest.mark.parametrize("variable", ["THAW_CACHE_MEMORY_GB", "THAW_CACHE_DISK_GB"])
@pytest.mark.parametrize("said", ["lots", "inf", "-inf", "nan", "-1", "1e400", "1,5"])
def test_a_limit_that_cannot_be_one_names_its_variable(
    cache, monkeypatch, disk_only, variable, said
):
    monkeypatch.setenv(variable, said)
    with pytest.raises(ConfigError, match=f"{variable} must be a number of gigabytes"):
        fill_table(cache)


@pytest.mark.train
def test_tables_are_filled_by_several_threads_at_once(cache, monkeypatch):
    monkeypatch.setenv("THAW_CACHE_MEMORY_GB", "1")
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns often
    try:
        with ThreadPoolExecutor(4) as pool:
            for number in range(300):
                fill_table(cache, f"held{number}", KEYS[:1], ROWS[:1])
            places = list(
                pool.map(lambda n: fill_table(cache, f"t{n}", KEYS[:1], ROWS[:1]), range(400))
            )
    finally:
        sys.setswitchinterval(before)
    assert places == ["memory"] * 400


def make_rows_of_keys(keys):
    """Return rows that hold nothing but their key."""
    return torch.from_numpy(keys.astype(np.float32))[:, None].expand(-1, 3).contiguous()


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_threads_that_fill_one_table_never_read_each_others_rows(cache, where, monkeypatch):
    if where == "disk":
        monkeypatch.setenv("THAW_CACHE_MEMORY_GB", "0")
    threads, fills, images = 4, 12, 5
    keys = np.random.default_rng(0).permutation(threads * fills * images).astype(np.uint64)

    def fill_and_read(portion):
        table = cache.get_table("t")
        own = keys[np.arange(len(keys)) % threads == portion]
        for end in range(images, len(own) + 1, images):
            some, known = own[end - images : end], own[:end]
            assert finish(cache.fill("t", some, batches(make_rows_of_keys(some)))) == where
            assert not table.find_missing(known).any()
            read = table.lookup(known).batch(np.arange(len(known)))
            assert torch.equal(read, make_rows_of_keys(known))
            found = table.lookup(keys)
            there = np.flatnonzero(found.places[:, 0] >= 0)
            assert torch.equal(found.batch(there), make_rows_of_keys(keys[there]))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns often
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill_and_read, range(threads)))
    finally:
        sys.setswitchinterval(before)


def test_no_positions_have_no_rows(cache):
    fill_table(cache)
    nothing = np.empty(0, int)
    lookup = cache.get_table("t").lookup(KEYS)
    for held in (lookup, lookup.copy_to(torch.device("cpu"), nothing)):
        assert held.batch(nothing).shape == (0, 3, 4, 4)
        assert held.count_bytes(nothing) == 0
        assert held.row_bytes == 3 * 4 * 4 * 4

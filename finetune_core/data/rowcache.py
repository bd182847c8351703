"""Tables of equally shaped rows by key, computed once and shared by every run of the process.

The tables hold decoded images and activations. They are kept in memory while they fit a share of
the free memory, else in checksummed files within a disk budget. If they fit nowhere, the caller
computes the rows again each time. Unused tables make room for new ones, the least recently used
first.
"""

import base64
import errno
import json
import math
import os
import re
import shutil
import stat
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, RLock
from typing import Literal, NamedTuple
from weakref import WeakSet

import numpy as np
import psutil
import torch
from pydantic import NonNegativeInt, PositiveInt, TypeAdapter

from finetune_core import paths
from finetune_core.errors import ConfigError
from finetune_core.files import open_regular, read_regular, stat_regular, write_bytes
from finetune_core.transfers import copy_to_device
from finetune_core.work import Step, Work

Where = Literal["memory", "disk"]

_MEMORY_SHARE = 0.5  # of free memory; memory of the cache counts as free
_DISK_SHARE = 0.25  # of the free disk; files of the cache count as free
_LEFTOVER_SECONDS = 3600
_SENT_AT_ONCE = 2**26  # bytes
_LARGEST_DESCRIPTION = 2**28  # bytes; a row takes eleven
# The marker of a cache (https://bford.info/cachedir), which backups skip.
_MARKER = "CACHEDIR.TAG"
_TAG = b"""Signature: 8a477f597d28d172789f06886806bc55
# Rows that Thaw has cached. Delete this folder at any time while Thaw does not run.
"""
_OURS = re.compile(r"thaw-(?P<table>.+)-[0-9a-f]{8}\.(?P<kind>rows|json|part)")
_MEMORY_VARIABLE, _DISK_VARIABLE = "THAW_CACHE_MEMORY_GB", "THAW_CACHE_DISK_GB"


class Layout(NamedTuple):
    """The layout of a table's rows.

    Attributes:
        shape: shape of a row in the table.
        dtype: type of the values.
        channels_last: whether rows are stored as ``[n, h, w, c]`` and read as ``[n, c, h, w]``.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool

    @classmethod
    def from_rows(cls, rows: torch.Tensor) -> "Layout":
        """Return the layout for rows ``[n, *shape]``.

        It is the memory order of the rows, if that is a usual one.
        """
        plain, nhwc = (
            rows.is_contiguous(),
            rows.ndim == 4 and rows.is_contiguous(memory_format=torch.channels_last),
        )
        channels_last = nhwc and not plain
        return cls(
            tuple((rows.permute(0, 2, 3, 1) if channels_last else rows).shape[1:]),
            rows.dtype,
            channels_last,
        )

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * self.dtype.itemsize

    def empty(self, count: int) -> torch.Tensor:
        """Return an uninitialised contiguous tensor for ``count`` rows."""
        return torch.empty((count, *self.shape), dtype=self.dtype)

    def to_stored(self, rows: torch.Tensor) -> torch.Tensor:
        """Convert rows from the order in which they are read to the stored order, contiguous."""
        return (rows.permute(0, 2, 3, 1) if self.channels_last else rows).contiguous()

    def from_stored(self, laid: torch.Tensor) -> torch.Tensor:
        """Convert rows from the stored order to the order in which they are read."""
        return laid.permute(0, 3, 1, 2) if self.channels_last else laid


@dataclass(frozen=True, eq=False)
class Block:
    """Rows that were computed together.

    Attributes:
        keys: uint64 ``[n]``.
        rows: contiguous ``[n, *shape]``, in memory, mapped from ``file``, or on a device.
        file: the file of the rows on disk; None in memory or on a device.
        channels_last: see ``Layout``.
    """

    keys: np.ndarray
    rows: torch.Tensor
    file: Path | None
    channels_last: bool

    @property
    def layout(self) -> Layout:
        """Layout of the rows."""
        return Layout(tuple(self.rows.shape[1:]), self.rows.dtype, self.channels_last)

    def gather(self, numbers: np.ndarray) -> torch.Tensor:
        """Return the rows of the given numbers."""
        return self.rows.index_select(
            0, copy_to_device(torch.from_numpy(numbers), self.rows.device)
        )

    @property
    def bytes(self) -> int:
        """Bytes of all rows."""
        return self.rows.numel() * self.rows.element_size()


class _Contents(NamedTuple):
    """The rows of a table at one moment. Adding rows makes a new object.

    The position of each row is stored in two arrays, because a dict of tuples takes ten times the
    memory.

    Attributes:
        blocks: the blocks.
        keys: uint64 ``[n]``, sorted.
        places: int64 ``[n, 2]``: block and row of each key.
    """

    blocks: tuple[Block, ...] = ()
    keys: np.ndarray = np.empty(0, np.uint64)
    places: np.ndarray = np.empty((0, 2), np.int64)

    def with_block(self, block: Block) -> "_Contents":
        """Return the contents with one more block, whose rows replace those of equal keys."""
        count = len(block.keys)
        places = np.stack([np.full(count, len(self.blocks)), np.arange(count)], axis=1)
        keys, first = np.unique(np.concatenate([block.keys[::-1], self.keys]), return_index=True)
        return _Contents(
            (*self.blocks, block), keys, np.concatenate([places[::-1], self.places])[first]
        )

    def lookup(self, keys: np.ndarray) -> "Lookup":
        """Return the rows by position in ``keys``."""
        found = np.full((len(keys), 2), -1)
        if len(self.keys):
            position = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
            known = self.keys[position] == keys
            found[known] = self.places[position[known]]
        return Lookup(self.blocks, found)


class Table:
    """All rows of one kind. Any thread may read them while another adds rows.

    Attributes:
        name: the name.
        seconds_per_row: time to compute one row; None before any was computed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.seconds_per_row: float | None = None
        # Readers take this reference once, so blocks and places always match. The lock keeps one
        # thread from overwriting the rows that another has just added.
        self._contents = _Contents()
        self._lock = Lock()

    @property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks of the table."""
        return self._contents.blocks

    def find_missing(self, keys: np.ndarray) -> np.ndarray:
        """Return which keys have no row yet, boolean ``[n]``."""
        return self.lookup(keys).missing

    def add(self, block: Block) -> None:
        """Add rows. The newest row of a key replaces older ones."""
        with self._lock:
            self._contents = self._contents.with_block(block)

    def lookup(self, keys: np.ndarray) -> "Lookup":
        """Return the rows that the table holds now, by position in ``keys``."""
        return self._contents.lookup(keys)


@dataclass(frozen=True)
class Lookup:
    """Rows by position in a list of keys.

    The blocks stay alive even if the cache evicts them.

    Attributes:
        blocks: the blocks.
        places: int64 ``[n, 2]``: block and row; -1 without a row.
    """

    blocks: tuple[Block, ...]
    places: np.ndarray

    @property
    def missing(self) -> np.ndarray:
        """Positions without a row, as boolean ``[n]``."""
        absent: np.ndarray = self.places[:, 0] < 0
        return absent

    def has_rows(self, positions: np.ndarray) -> bool:
        """Return whether every position has a row."""
        return bool((self.places[positions] >= 0).all())

    def batch(self, positions: np.ndarray) -> torch.Tensor:
        """Return the rows of some positions, ``[len(positions), *shape]``.

        Raises:
            KeyError: if a position has no row.
        """
        if not self.has_rows(positions):  # -1 would quietly read the last row
            raise KeyError("a row that the cache does not hold")
        return self.blocks[0].layout.from_stored(self._gather_stored(self.places[positions]))

    def count_bytes(self, positions: np.ndarray) -> int:
        """Return the bytes that the rows of some positions take, each row counted once.

        Every position must have a row.
        """
        return len(self._number_rows(positions)[0]) * self.row_bytes

    def copy_to(self, device: torch.device, positions: np.ndarray) -> "Lookup":
        """Copy the rows of some positions to a device, as one block.

        In the copy, other positions have no row. Every given position must have one.
        """
        used, numbers = self._number_rows(positions)
        first, at_once = self.blocks[0], max(1, _SENT_AT_ONCE // self.row_bytes)
        rows = torch.empty(
            (len(used), *first.rows.shape[1:]), dtype=first.rows.dtype, device=device
        )
        for start in range(0, len(used), at_once):
            some = used[start : start + at_once]
            rows[start : start + len(some)] = copy_to_device(self._gather_stored(some), device)
        keys = np.empty(len(used), np.uint64)
        for number in np.unique(used[:, 0]):
            here = used[:, 0] == number
            keys[here] = self.blocks[int(number)].keys[used[here, 1]]
        places = np.full_like(self.places, -1)
        places[positions, 0], places[positions, 1] = 0, numbers
        return Lookup((Block(keys, rows, None, first.channels_last),), places)

    def _number_rows(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number the different rows of some positions.

        Returns:
            Block and row of each different row, int64 ``[m, 2]``, in order; and for each position
            the number of its row.
        """
        longest = max((len(block.keys) for block in self.blocks), default=1)
        numbered, inverse = np.unique(
            self.places[positions] @ np.array([longest, 1]), return_inverse=True
        )
        return np.stack(np.divmod(numbered, longest), axis=1), inverse

    def _gather_stored(self, places: np.ndarray) -> torch.Tensor:
        """Return the rows at ``places`` in the blocks' layout, or ``[0, *shape]`` without any."""
        used = np.unique(places[:, 0])
        first = self.blocks[int(used[0]) if len(used) else 0]
        if len(used) <= 1:
            return first.gather(places[:, 1])
        found = torch.empty((len(places), *first.rows.shape[1:]), dtype=first.rows.dtype)
        for number in used:
            here = np.flatnonzero(places[:, 0] == number)
            found[torch.from_numpy(here)] = self.blocks[int(number)].gather(places[here, 1])
        return found

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; 0 without rows."""
        return self.blocks[0].layout.row_bytes if self.blocks else 0

    @property
    def where(self) -> Where:
        """Place of the rows: ``disk`` if any block has a file, else ``memory``."""
        return "disk" if any(block.file for block in self.blocks) else "memory"


class RowCache:
    """The tables of the process and their budgets.

    Attributes:
        shared: whether other processes of this machine will want the same rows. Then the rows go to
            disk first.
    """

    def __init__(self, folder: Callable[[], Path]) -> None:
        self._folder, self.shared = folder, False
        self._tables: OrderedDict[str, Table] = OrderedDict()
        self._alive: WeakSet[Block] = WeakSet()
        self._lock = RLock()

    def get_table(self, name: str) -> Table:
        """Return the table of that name, with its valid rows on disk.

        The table is then the most recently used one.
        """
        with self._lock:
            if name not in self._tables:
                self._tables[name] = Table(name)
                self._read_files(name, _list_table_files(self._folder(), name))
            self._tables.move_to_end(name)
            return self._tables[name]

    def _read_files(self, name: str, files: list[Path]) -> None:
        for block in _load_blocks(files):
            self._tables[name].add(block)
            self._alive.add(block)

    def refresh(self, name: str) -> None:
        """Read the files of a table again, if other processes may have written or evicted some.

        A table in memory stays as it is. Files that are known are not read again.
        """
        with self._lock:
            if not self.shared or name not in self._tables:
                return
            known, files = (
                {block.file for block in self._tables[name].blocks},
                _list_table_files(self._folder(), name),
            )
            if None in known:
                return
            if known <= set(files):
                self._read_files(name, [file for file in files if file not in known])
            else:
                del self._tables[name]

    def clear(self) -> None:
        """Forget all tables. Files on disk remain."""
        with self._lock:
            self._tables.clear()

    def memory_bytes(self) -> int:
        """Return the bytes in memory, including evicted tables that a run still reads."""
        with self._lock:  # the set must not grow during the iteration
            return sum(block.bytes for block in self._alive if block.file is None)

    def make_room(self, needed: int, keep: str) -> Where | None:
        """Make room for ``needed`` bytes, and return the place.

        Args:
            needed: the number of bytes.
            keep: name of the table that must stay.

        Returns:
            The place; None if the rows fit nowhere.
        """
        rooms: list[tuple[Where, Callable[[], bool]]] = [
            ("memory", lambda: self._make_room_in_memory(needed, keep)),
            ("disk", lambda: self._make_room_on_disk(needed)),
        ]
        return next(
            (
                where
                for where, has_room in (reversed(rooms) if self.shared else rooms)
                if has_room()
            ),
            None,
        )

    def _make_room_in_memory(self, needed: int, keep: str) -> bool:
        budget = self._memory_budget()
        if needed > budget:
            return False
        self._evict(needed, keep, budget)
        return self.memory_bytes() + needed <= budget

    def _make_room_on_disk(self, needed: int) -> bool:
        if needed > self._disk_budget():
            return False
        self._evict_files(self._disk_budget() - needed)
        return True

    def fill(
        self, name: str, keys: np.ndarray, batches: Iterator[tuple[np.ndarray, torch.Tensor]]
    ) -> Work[Where | None]:
        """Add rows to a table.

        Keys that ``batches`` never yields get no row. If the rows fit nowhere, or the disk fills
        up, nothing is added.

        Args:
            name: name of the table.
            keys: uint64 ``[n]``.
            batches: yields (positions in ``keys``, rows) for all rows that can be computed.

        Yields:
            Steps that count rows.

        Returns:
            The place of the rows; None if there is none, and then ``batches`` was not consumed, or
            only in part.
        """
        writer: _MemoryWriter | _DiskWriter | None = None
        order, done = [keys[:0]], 0
        try:
            for positions, rows in batches:
                if writer is None:
                    writer = self._make_writer(name, len(keys), rows)
                    if writer is None:
                        return None
                writer.write(rows)
                order.append(keys[positions])
                done += len(positions)
                yield Step(done, len(keys))
            if writer is None:
                return "memory"
            block = writer.finish(np.concatenate(order))
        except OSError:  # the disk is full or gone
            if writer:
                writer.discard()
            return None
        except BaseException:
            if writer:
                writer.discard()
            raise
        with self._lock:  # the table must not be evicted before the block is added
            self._alive.add(block)
            self.get_table(name).add(block)
        return writer.where

    def _make_writer(
        self, name: str, count: int, first: torch.Tensor
    ) -> "_MemoryWriter | _DiskWriter | None":
        layout = Layout.from_rows(first)
        where = self.make_room(count * layout.row_bytes, name)
        if where == "memory":
            return _MemoryWriter(count, layout)
        return _DiskWriter(self._folder(), name, layout) if where == "disk" else None

    def _memory_budget(self) -> int:
        if (limit := _read_limit(_MEMORY_VARIABLE)) is not None:
            return limit
        return int(_MEMORY_SHARE * (psutil.virtual_memory().available + self.memory_bytes()))

    def _disk_budget(self) -> int:
        if (limit := _read_limit(_DISK_VARIABLE)) is not None:
            return limit
        folder = self._folder()
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        return int(
            _DISK_SHARE
            * (shutil.disk_usage(existing).free + sum(size for _, size in _list_row_files(folder)))
        )

    def _evict(self, needed: int, keep: str, budget: int) -> None:
        """Drop the least recently used tables in memory until ``needed`` bytes fit the budget."""
        with self._lock:
            for name in list(self._tables):
                if self.memory_bytes() + needed <= budget:
                    return
                if name != keep and any(block.file is None for block in self._tables[name].blocks):
                    del self._tables[name]

    def _evict_files(self, budget: int) -> None:
        """Delete the oldest files until the rest fits ``budget`` bytes, and forget their tables.

        Files that a run has mapped stay readable until the run releases them.
        """
        files = _list_row_files(self._folder())
        total = sum(size for _, size in files)
        deleted = set()
        for file, size in files:
            if total <= budget:
                break
            total -= size
            deleted.add(file)
            _delete(file)
        with self._lock:
            for name, table in list(self._tables.items()):
                if any(block.file in deleted for block in table.blocks):
                    del self._tables[name]


class _MemoryWriter:
    """Writer that stores rows in memory, in order."""

    where: Where = "memory"

    def __init__(self, count: int, layout: Layout) -> None:
        self._layout, self._rows, self._done = layout, layout.empty(count), 0

    def write(self, rows: torch.Tensor) -> None:
        """Append rows."""
        self._rows[self._done : self._done + len(rows)] = self._layout.to_stored(rows)
        self._done += len(rows)

    def finish(self, keys: np.ndarray) -> Block:
        """Return the rows as a block."""
        return Block(keys, self._rows[: self._done], None, self._layout.channels_last)

    def discard(self) -> None:
        """Drop the rows."""
        del self._rows


class _DiskWriter:
    """Writer that stores rows in a temporary file, in order, with a running checksum.

    The file is renamed last. It is written, not mapped: a full disk is then an error that can be
    caught, and not a killed process.
    """

    where: Where = "disk"

    def __init__(self, folder: Path, name: str, layout: Layout) -> None:
        self._layout = layout
        _claim(folder)
        _delete_leftovers(folder)
        self._final = folder / f"thaw-{name}-{os.urandom(4).hex()}.rows"
        self._temporary = self._final.with_suffix(".part")
        self._file = self._temporary.open("xb")
        self._checksum = 0

    def write(self, rows: torch.Tensor) -> None:
        """Append rows, and update the checksum."""
        data = self._layout.to_stored(rows).view(-1).view(torch.uint8).numpy().tobytes()
        self._file.write(data)
        self._checksum = zlib.crc32(data, self._checksum)

    def finish(self, keys: np.ndarray) -> Block:
        """Write the description, publish the file, and return the rows as a block, mapped."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        described = {
            "keys": base64.b64encode(keys.astype("<u8").tobytes()).decode(),
            "shape": list(self._layout.shape),
            "dtype": str(self._layout.dtype).removeprefix("torch."),
            "channels_last": self._layout.channels_last,
            "checksum": self._checksum,
        }
        with self._final.with_suffix(".json").open("x") as file:
            json.dump(described, file)
        self._temporary.rename(self._final)
        rows = _map_rows(self._final, (len(keys), *self._layout.shape), self._layout.dtype)
        return Block(keys, rows, self._final, self._layout.channels_last)

    def discard(self) -> None:
        """Delete all files."""
        with suppress(OSError):  # closing flushes, and the disk may still be full
            self._file.close()
        self._temporary.unlink(missing_ok=True)
        _delete(self._final)


def _claim(folder: Path) -> None:
    """Make the folder of rows, with the marker of a cache.

    Raises:
        OSError: if the folder cannot be made, or another program's folder has its name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if _is_ours(folder):
        return
    # Another thread or process may be writing the marker now, and rows right after it.
    holds_other_files = any(_MARKER not in name for name in os.listdir(folder))
    if _is_ours(folder):
        return
    if holds_other_files or not _is_own_folder(folder):
        raise FileExistsError(errno.EEXIST, "it is somebody else's", str(folder))
    write_bytes(folder / _MARKER, _TAG)


def _is_ours(folder: Path) -> bool:
    """Return whether a folder was made by Thaw for its rows."""
    with suppress(OSError):
        return _is_own_folder(folder) and read_regular(folder / _MARKER, len(_TAG)) == _TAG
    return False


def _is_own_folder(folder: Path) -> bool:
    found = os.lstat(folder)
    return stat.S_ISDIR(found.st_mode) and (os.name != "posix" or found.st_uid == os.getuid())


def _list_own_files(folder: Path) -> list[tuple[Path, "re.Match[str]"]]:
    """Return the files that Thaw has made in its folder of rows, in order of their names."""
    with suppress(FileNotFoundError):  # another process may have emptied the cache
        if _is_ours(folder):
            found = ((name, _OURS.fullmatch(name)) for name in sorted(os.listdir(folder)))
            return [(folder / name, match) for name, match in found if match]
    return []


def _list_table_files(folder: Path, name: str) -> list[Path]:
    """Return the files of a table, in order."""
    return [
        file
        for file, match in _list_own_files(folder)
        if match["kind"] == "rows" and match["table"] == name
    ]


@dataclass(frozen=True)
class _Description:
    """Description of a file of rows, written beside the file.

    Attributes:
        keys: uint64, little-endian, in base64.
        shape: of a row.
        dtype: name of the torch type.
        channels_last: see ``Layout``.
        checksum: CRC-32 of the rows.
    """

    keys: str
    shape: list[PositiveInt]
    dtype: str
    channels_last: bool
    checksum: NonNegativeInt


_DESCRIPTION = TypeAdapter(_Description)


def _load_blocks(files: list[Path]) -> Iterator[Block]:
    """Yield the blocks in files, and delete files that are damaged or half written."""
    for file in files:
        try:
            block = _load_block(file)
        except (OSError, ValueError, RuntimeError):
            _delete(file)
            continue
        yield block


def _load_block(file: Path) -> Block:
    """Map a file of rows.

    Raises:
        OSError: if the file or its description cannot be read, or is no regular file.
        ValueError: if the file does not match its description, or the description is damaged.
        RuntimeError: if the file cannot be mapped.
    """
    described = _DESCRIPTION.validate_json(
        read_regular(file.with_suffix(".json"), _LARGEST_DESCRIPTION), strict=True
    )
    keys = _decode_keys(described.keys)
    dtype = getattr(torch, described.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError("type")
    if described.channels_last and len(described.shape) != 3:
        raise ValueError("layout")
    rows = _map_rows(file, (len(keys), *described.shape), dtype)
    if _checksum(file) != described.checksum:
        raise ValueError("checksum")
    return Block(keys, rows, file, described.channels_last)


def _decode_keys(described: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(described, validate=True), dtype="<u8").astype(np.uint64)


def _map_rows(file: Path, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    count, found = math.prod(shape), stat_regular(file)
    if not count or found is None or found.st_size != count * dtype.itemsize:
        raise ValueError("size")
    return torch.from_file(str(file), shared=False, size=count, dtype=dtype).view(shape)


def _checksum(file: Path) -> int:
    checksum = 0
    with open(open_regular(file), "rb") as opened:
        while chunk := opened.read(1 << 24):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _read_limit(variable: str) -> int | None:
    """Return the bytes that the environment allows, or None if the variable is not set."""
    text = os.environ.get(variable, "").strip()
    try:
        limit = int(float(text) * 1e9) if text else None
    except (ValueError, OverflowError):  # words, nan; inf
        limit = -1
    if limit is not None and limit < 0:
        raise ConfigError(
            {"cache": f"{variable} must be a number of gigabytes, 0 or more, not {text!r}"}
        )
    return limit


def _list_row_files(folder: Path) -> list[tuple[Path, int]]:
    """Return the files of rows and their bytes, the oldest first.

    Other processes may delete some meanwhile.
    """
    found = []
    for file, match in _list_own_files(folder):
        if match["kind"] == "rows":
            with suppress(FileNotFoundError):
                status = file.lstat()
                found.append((status.st_mtime, file, status.st_size))
    return [(file, size) for _, file, size in sorted(found)]


def _delete(file: Path) -> None:
    with suppress(OSError):
        file.unlink(missing_ok=True)
        file.with_suffix(".json").unlink(missing_ok=True)


def _delete_leftovers(folder: Path) -> None:
    """Delete files that killed processes have left half written.

    Young files stay, because a process may still be writing them.
    """
    for file, match in _list_own_files(folder):
        with suppress(OSError):
            lost = match["kind"] == "part" or not file.with_suffix(".rows").exists()
            if lost and time.time() - file.lstat().st_mtime > _LEFTOVER_SECONDS:
                file.unlink()


CACHE = RowCache(paths.rows_dir)

"""Exchange of cached rows between machines, so that no row is computed on two of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from finetune_core.data.rowcache import CACHE, Layout, Lookup
from finetune_core.training.devices.ranks import Ranks
from finetune_core.work import Step, Work

# The largest number of bytes that a machine sends, and receives, before it writes them.
AT_ONCE = 2**25


def find_cached_nowhere(ranks: Ranks, missing: np.ndarray) -> np.ndarray:
    """Return which rows no rank has cached, boolean ``[n]``.

    Args:
        ranks: The processes that train the run together.
        missing: Rows that this rank has not cached, boolean ``[n]``.
    """
    return _unpack_flags(
        np.bitwise_and.reduce(ranks.all_gather(np.packbits(missing))), len(missing)
    )


@dataclass(frozen=True)
class _CachedRows:
    """The rows that one machine has cached.

    Attributes:
        missing: One bit per row.
        layout: Layout of the rows. None where there are none.
    """

    missing: np.ndarray
    layout: Layout | None


def gather_rows(ranks: Ranks, name: str, keys: np.ndarray) -> Work[bool]:
    """Copy cached rows of a table from any machine to all machines.

    The first rank of each machine sends and writes. Rows whose layout differs between machines stay
    where they are.

    Args:
        ranks: The processes that train the run together.
        name: Name of the table.
        keys: uint64 ``[n]``, equal on all ranks.

    Yields:
        Steps that count rows.

    Returns:
        Whether all machines had the space. All ranks return the same.
    """
    if not ranks.spans_machines:
        return True
    CACHE.refresh(name)
    table = CACHE.get_table(name)
    # One lookup for everything: another thread may add rows to the table meanwhile.
    lookup = table.lookup(keys)
    layout = lookup.blocks[0].layout if lookup.blocks else None
    stock = _CachedRows(np.packbits(lookup.missing), layout) if ranks.local_rank == 0 else None
    stocks_by_rank = ranks.all_gather(stock)
    stocks = {rank: stock for rank, stock in enumerate(stocks_by_rank) if stock}
    layouts = {stock.layout for stock in stocks.values() if stock.layout}
    if len(layouts) != 1:
        return True
    plan = _Plan.from_missing(
        {rank: _unpack_flags(stock.missing, len(keys)) for rank, stock in stocks.items()}
    )
    exchange = _Exchange(ranks, plan, lookup, layouts.pop())
    incoming, has_space = plan.incoming(ranks.rank), True
    if len(incoming):
        has_space = (
            yield from CACHE.fill(name, keys[incoming], exchange.receive_rows(incoming))
        ) is not None
    else:
        for done, _ in enumerate(exchange.run_rounds(), start=1):
            yield Step(done, exchange.count)
    return exchange.all_continue(has_space)


def _unpack_flags(bits: np.ndarray, count: int) -> np.ndarray:
    return np.unpackbits(bits, count=count).astype(bool)


@dataclass(frozen=True)
class _Plan:
    """Plan of the exchange. Machines are identified by the number of their first rank.

    Attributes:
        outgoing: For each machine, the rows that it sends to any other. The first machine that has
            a row sends it.
        missing: For each machine, the rows that it lacks, boolean ``[n]``.
    """

    outgoing: dict[int, np.ndarray]
    missing: dict[int, np.ndarray]

    @classmethod
    def from_missing(cls, missing: dict[int, np.ndarray]) -> "_Plan":
        table = np.stack(list(missing.values()))
        sender, is_sent = table.argmin(axis=0), table.any(axis=0) & ~table.all(axis=0)
        return cls(
            {
                rank: np.flatnonzero(is_sent & (sender == number))
                for number, rank in enumerate(missing)
            },
            missing,
        )

    def incoming(self, machine: int) -> np.ndarray:
        """Return the rows that a machine receives, in order.

        A rank that is not the first of its machine receives none.
        """
        given = np.sort(np.concatenate(list(self.outgoing.values())))
        return given[self.missing[machine][given]] if machine in self.missing else given[:0]


class _Exchange:
    """Execution of a plan in rounds. All ranks meet before each round."""

    def __init__(self, ranks: Ranks, plan: _Plan, lookup: Lookup, layout: Layout) -> None:
        self._ranks, self._plan, self._lookup, self._layout = ranks, plan, lookup, layout
        self._size = max(1, AT_ONCE // (layout.row_bytes * len(plan.missing)))
        self.count = max(-(-len(rows) // self._size) for rows in plan.outgoing.values())
        self._has_ended = False

    def all_continue(self, can_continue: bool) -> bool:
        """Return whether all ranks go on.

        If one of them cannot, all have stopped in the same round.
        """
        self._has_ended = self._has_ended or not all(self._ranks.all_gather(can_continue))
        return not self._has_ended

    def receive_rows(self, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Yield (positions in ``wanted``, rows) as they arrive.

        Args:
            wanted: The rows that this machine receives.
        """
        for numbers, rows in self.run_rounds():
            if len(numbers):
                yield np.searchsorted(wanted, numbers), rows

    def run_rounds(self) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Yield the row numbers and the rows that arrive in each round."""
        own_rank = self._ranks.rank
        for number in range(self.count):
            given = {
                rank: rows[number * self._size :][: self._size]
                for rank, rows in self._plan.outgoing.items()
            }
            sent = self._pack_rows(given.pop(own_rank)) if own_rank in given else {}
            numbers = (
                {rank: rows[self._plan.missing[own_rank][rows]] for rank, rows in given.items()}
                if own_rank in self._plan.missing
                else {}
            )
            received = self._layout.empty(sum(map(len, numbers.values())))
            parts = received.split([len(rows) for rows in numbers.values()])
            if not self.all_continue(True):
                return
            self._ranks.exchange(
                sent,
                {rank: place for rank, place in zip(numbers, parts, strict=True) if len(place)},
            )
            yield (
                np.concatenate([np.empty(0, int), *numbers.values()]),
                self._layout.from_stored(received),
            )

    def _pack_rows(self, given: np.ndarray) -> dict[int, torch.Tensor]:
        """Return the rows, of those given, that each other machine lacks, by machine."""
        wanted = {
            rank: missing[given]
            for rank, missing in self._plan.missing.items()
            if missing[given].any()
        }
        if not wanted:
            return {}
        rows = self._layout.to_stored(self._lookup.batch(given))
        return {
            rank: rows if some.all() else rows[torch.from_numpy(some)]
            for rank, some in wanted.items()
        }

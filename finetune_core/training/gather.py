"""Rows that the cache of one machine has go to the machines that lack them: what one has computed, none computes again."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from finetune_core.data.rowcache import CACHE, Layout, Lookup
from finetune_core.training.ranks import Ranks
from finetune_core.work import Step, Work

AT_ONCE = 2**25  # bytes that a machine sends at most, and is sent at most, before it writes them


def known_nowhere(ranks: Ranks, lacks: np.ndarray) -> np.ndarray:
    """Boolean ``[n]``: which rows no rank finds in its cache, of those that this one ``lacks``."""
    return _flags(np.bitwise_and.reduce(ranks.meet(np.packbits(lacks))), len(lacks))


@dataclass(frozen=True)
class _Stock:
    """What the cache of a machine holds of some rows.

    Attributes:
        lacks: a bit per row.
        layout: of the rows; None where there are none.
    """

    lacks: np.ndarray
    layout: Layout | None


def gathered(ranks: Ranks, name: str, keys: np.ndarray) -> Work[bool]:
    """Have the rows of a table that are in the cache of any machine in those of all. The first rank of each machine sends and writes.

    Args:
        name: of the table.
        keys: uint64 ``[n]``, the same on all ranks.

    Yields:
        Steps that count rows.

    Returns:
        Whether all of them had room, the same on all ranks. Rows that lie differently on two machines stay where they are.
    """
    if not ranks.machines:
        return True
    CACHE.look_again(name)
    table = CACHE.table(name)
    # All of it from one lookup: another thread may add rows to the table meanwhile.
    lookup = table.lookup(keys)
    layout = lookup.blocks[0].layout if lookup.blocks else None
    stock = _Stock(np.packbits(lookup.missing), layout) if ranks.local_rank == 0 else None
    words = ranks.meet(stock)
    stocks = {rank: stock for rank, stock in enumerate(words) if stock}
    layouts = {stock.layout for stock in stocks.values() if stock.layout}
    if len(layouts) != 1:
        return True
    plan = _Plan.of({rank: _flags(stock.lacks, len(keys)) for rank, stock in stocks.items()})
    exchange = _Exchange(ranks, plan, lookup, layouts.pop())
    mine, took = plan.incoming(ranks.rank), True
    if len(mine):
        took = (yield from CACHE.fill(name, keys[mine], exchange.arrivals(mine))) is not None
    else:
        for done, _ in enumerate(exchange.rounds(), start=1):
            yield Step(done, exchange.count)
    return exchange.agreed(took)


def _flags(bits: np.ndarray, count: int) -> np.ndarray:
    return np.unpackbits(bits, count=count).astype(bool)


@dataclass(frozen=True)
class _Plan:
    """Who gives which rows to whom; machines go by the number of their first rank.

    Attributes:
        outgoing: machine -> the rows that it gives to any other: of those that have a row, the first one does.
        lacks: machine -> boolean ``[n]``.
    """

    outgoing: dict[int, np.ndarray]
    lacks: dict[int, np.ndarray]

    @classmethod
    def of(cls, lacks: dict[int, np.ndarray]) -> "_Plan":
        table = np.stack(list(lacks.values()))
        giver, given = table.argmin(axis=0), table.any(axis=0) & ~table.all(axis=0)
        return cls(
            {rank: np.flatnonzero(given & (giver == number)) for number, rank in enumerate(lacks)},
            lacks,
        )

    def incoming(self, machine: int) -> np.ndarray:
        """The rows that a machine gets, in order; none for a rank that is not the first of its machine."""
        given = np.sort(np.concatenate(list(self.outgoing.values())))
        return given[self.lacks[machine][given]] if machine in self.lacks else given[:0]


class _Exchange:
    """A plan, carried out in rounds, before each of which all ranks meet."""

    def __init__(self, ranks: Ranks, plan: _Plan, lookup: Lookup, layout: Layout) -> None:
        self._ranks, self._plan, self._lookup, self._layout = ranks, plan, lookup, layout
        self._size = max(1, AT_ONCE // (layout.row_bytes * len(plan.lacks)))
        self.count = max(-(-len(rows) // self._size) for rows in plan.outgoing.values())
        self._over = False

    def agreed(self, going: bool) -> bool:
        """Whether all ranks go on; where one could not, all have stopped in the same round."""
        self._over = self._over or not all(self._ranks.meet(going))
        return not self._over

    def arrivals(self, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """(positions in ``wanted``, rows) as they come; ``wanted`` is what this machine gets."""
        for numbers, rows in self.rounds():
            if len(numbers):
                yield np.searchsorted(wanted, numbers), rows

    def rounds(self) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """What came in each round: numbers of rows, and the rows."""
        own = self._ranks.rank
        for number in range(self.count):
            given = {
                rank: rows[number * self._size :][: self._size]
                for rank, rows in self._plan.outgoing.items()
            }
            sent = self._parcels(given.pop(own)) if own in given else {}
            numbers = (
                {rank: rows[self._plan.lacks[own][rows]] for rank, rows in given.items()}
                if own in self._plan.lacks
                else {}
            )
            came = self._layout.empty(sum(map(len, numbers.values())))
            places = came.split([len(rows) for rows in numbers.values()])
            if not self.agreed(True):
                return
            self._ranks.exchange(
                sent,
                {rank: place for rank, place in zip(numbers, places, strict=True) if len(place)},
            )
            yield np.concatenate([np.empty(0, int), *numbers.values()]), self._layout.read(came)

    def _parcels(self, given: np.ndarray) -> dict[int, torch.Tensor]:
        """What each other machine lacks of these rows, by machine."""
        wanted = {
            rank: lacks[given] for rank, lacks in self._plan.lacks.items() if lacks[given].any()
        }
        if not wanted:
            return {}
        rows = self._layout.laid(self._lookup.batch(given))
        return {
            rank: rows if some.all() else rows[torch.from_numpy(some)]
            for rank, some in wanted.items()
        }

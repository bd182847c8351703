"""The processes that train one run together, one per device: torch.distributed, as torchrun starts them.

Ranks are equal between two steps: same weights, same optimizer, same position. What they tell each other goes through ``meet``, where
each says its word and hears everyone's; sums of gradients (``GradientSum``) directly follow one. So a rank that ends, for whatever
reason, says so in the place of its word, and nobody waits for one that is gone.

A process that is alone is a rank, too: then every function here gives back what it was given, and costs nothing.
"""

import os
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
import torch.distributed as dist

from finetune_core.data.rowcache import CACHE
from finetune_core.data.threads import usable_cores
from finetune_core.errors import ConfigError, TrainingError, is_out_of_memory
from finetune_core.files import temporary_folder
from finetune_core.formatting import things

Word = TypeVar("Word")

# a run may wait for its device; that a rank has died is noticed by who launched them
_PATIENCE = timedelta(days=7)
_VISIBLE = "CUDA_VISIBLE_DEVICES"


class LeaderEnded(Exception):
    """The first rank has ended, for whatever reason, which it reports itself: the others end, too."""


class RankLost(TrainingError):
    """A rank is gone without a word: the run is cut off, and can be resumed."""


@dataclass(frozen=True)
class _Left:
    """In the place of a word: a rank has ended, and why, where it broke."""

    reason: str


class Ranks:
    """What this process is among those that train the same run.

    Attributes:
        rank: 0 leads: it alone writes to the run's folder and speaks to people.
        world: how many there are.
        local_rank, local_world: the same among those of this machine, whose ranks follow one another.
        broke_off: whether this rank has failed where it could not tell the others.

    Args:
        place: the ``meeting_point`` of the ranks, when the process that started them has given each
            its device. None under torchrun, which says where they find each other.
    """

    def __init__(
        self,
        rank: int = 0,
        world: int = 1,
        local_rank: int = 0,
        local_world: int = 1,
        place: Path | None = None,
    ) -> None:
        self.rank, self.world, self.local_rank, self.local_world = (
            rank,
            world,
            local_rank,
            local_world,
        )
        self._place, self._over, self.broke_off = place, False, False

    @property
    def several(self) -> bool:
        return self.world > 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def machines(self) -> bool:
        """Whether they are on several machines."""
        return self.world > self.local_world

    def meet(self, word: Word) -> list[Word]:
        """Every rank's word, in the order of the ranks, once all have said theirs.

        Raises:
            LeaderEnded: when the first rank has ended.
            TrainingError: when another one could not go on; RankLost when one is gone.
        """
        if not self.several:
            return [word]
        with self.breaking_off():
            words = self._hear(word)
        self._over = any(isinstance(said, _Left) for said in words)
        if isinstance(words[0], _Left):
            raise LeaderEnded
        for rank, said in enumerate(words):
            if isinstance(said, _Left):
                raise TrainingError(f"Rank {rank} of {self.world} could not go on: {said.reason}")
        return words

    def decided(self, answer: Word) -> Word:
        """What the first rank says."""
        return self.meet(answer)[0]

    def _hear(self, word: Any) -> list[Any]:
        words = [None] * self.world
        with _in_words():
            dist.all_gather_object(words, word)
        return words

    def share(self, count: int) -> slice:
        """Which of ``count`` images of a batch are this rank's: a stretch, nearly as long as everyone's. Nobody gets a single one of
        several, on which BatchNorm could not train: rather the last ranks have none."""
        busy = max(1, min(self.world, count // 2))
        if self.rank >= busy:
            return slice(count, count)
        return slice(self.rank * count // busy, (self.rank + 1) * count // busy)

    def exchange(
        self, sent: Mapping[int, torch.Tensor], expected: Mapping[int, torch.Tensor]
    ) -> None:
        """Send tensors to other ranks, and fill those that are expected of others: contiguous, in the processor's memory. All who take part
        have just met, and nothing is left to them that could fail: who waits for a rank does not hear why it has ended."""
        ways = [dist.P2POp(dist.isend, _bytes(tensor), rank) for rank, tensor in sent.items()]
        ways += [dist.P2POp(dist.irecv, _bytes(tensor), rank) for rank, tensor in expected.items()]
        with self.breaking_off(), _in_words():
            for work in dist.batch_isend_irecv(ways) if ways else ():
                work.wait()

    def rank_share(self, rows: np.ndarray, batch: int) -> np.ndarray:
        """The rows that this rank computes for all: whole batches, so that each is computed as by one rank alone."""
        return _whole_batches(rows, batch, [self.rank], self.world)

    def machine_share(self, rows: np.ndarray, batch: int) -> np.ndarray:
        """Those that the ranks of this machine compute for all."""
        first = self.rank - self.local_rank
        return _whole_batches(rows, batch, range(first, first + self.local_world), self.world)

    def local_share(self, rows: np.ndarray, batch: int) -> np.ndarray:
        """Those that this rank computes, where its machine computes all of them."""
        return _whole_batches(rows, batch, [self.local_rank], self.local_world)

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Within the block this rank takes part; who leaves it, for whatever reason, ends the others, and waits for them.

        Raises:
            FinetuneError: when there are too few GPUs, or the others cannot be reached.
        """
        if not self.several:
            yield
            return
        if not self._place:
            see_one_device(self.local_rank, self.local_world)
        CACHE.shared = True
        with _in_words():
            self._find_each_other()
        try:
            yield
        except Exception as error:
            self._part(str(error) or type(error).__name__)
            raise
        else:
            self._part("")
        finally:
            # Else the end of the process closes the connections: NCCL would wait for the others here.
            if not self.broke_off:
                dist.destroy_process_group()

    @contextmanager
    def breaking_off(self) -> Iterator[None]:
        """Mark this rank as broken when the block fails, in which the others wait for it.

        Such a rank cannot tell the others why: they hear no words before their sum or exchange ends.
        Its process has to end with a status other than 0. That closes its connections, on which the
        others fail, too, and whoever launched them ends those that do not notice.
        """
        try:
            yield
        except Exception:
            self._over = self.broke_off = self.several
            raise

    def _find_each_other(self) -> None:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if self._place:
            # They have nothing to say on a network, where torch.distributed would listen.
            os.environ |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), _loopback())
            # Not as a URI: torch does not decode one, and waits for the wrong file.
            store = dist.FileStore(str(self._place), self.world)  # type: ignore[attr-defined]
            store.set_timeout(_PATIENCE)
            dist.init_process_group(
                backend, store=store, rank=self.rank, world_size=self.world, timeout=_PATIENCE
            )
        else:
            dist.init_process_group(backend, timeout=_PATIENCE)

    def _part(self, reason: str) -> None:
        if self.broke_off:
            return
        # where one is gone without a word, the others learn it as this one did
        with suppress(RankLost):
            if not self._over:
                self._over = True
                self._hear(_Left(reason))
            # nobody goes while the first rank still writes: whoever launched them would end it, too
            self._hear(None)


ALONE = Ranks()


def _whole_batches(rows: np.ndarray, batch: int, which: Collection[int], among: int) -> np.ndarray:
    """Every batch whose number is one of ``which``, where batches are numbered from 0 to ``among - 1`` again and again."""
    share: np.ndarray = rows[np.isin(np.arange(len(rows)) // batch % among, list(which))]
    return share


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1).view(torch.uint8)


class GradientSum:
    """Sums tensors over the ranks, in place, in one buffer that is kept: what it takes is known before the ranks meet."""

    BUCKET = 2**23  # numbers: the first are summed while the last are still sent

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._buffer = torch.empty(0)

    def reserve(self, tensors: Sequence[torch.Tensor]) -> None:
        """Make room for float32 tensors of one device."""
        needed = sum(tensor.numel() for tensor in tensors)
        if self._buffer.numel() < needed or self._buffer.device != tensors[0].device:
            self._buffer = torch.empty(needed, device=tensors[0].device)

    @torch.no_grad()
    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put the ranks' sum into each tensor; there is room, and all ranks have just met."""
        sizes = [tensor.numel() for tensor in tensors]
        flat = self._buffer[: sum(sizes)]
        pieces = [
            piece.view(tensor.shape)
            for piece, tensor in zip(flat.split(sizes), tensors, strict=True)
        ]
        torch._foreach_copy_(pieces, list(tensors))
        with _in_words():
            for sum_ in [dist.all_reduce(part, async_op=True) for part in flat.split(self.BUCKET)]:
                sum_.wait()
        torch._foreach_copy_(list(tensors), pieces)


@contextmanager
def meeting_point() -> Iterator[Path]:
    """Yield a file through which the ranks of this machine find each other within the block.

    No other user can open it. On Linux it has no name in the file system, so that a process that is
    killed leaves nothing behind.
    """
    if sys.platform == "linux":
        with tempfile.TemporaryFile() as file:
            yield Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
    else:
        with temporary_folder("ranks") as folder:
            yield folder / "meeting-point"


def launched() -> Ranks:
    """Return this process's place among those that torchrun started, or ``ALONE`` without torchrun."""
    if not dist.is_torchelastic_launched():
        return ALONE
    rank, world, local_rank, local_world = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    return Ranks(rank, world, local_rank, local_world)


def _loopback() -> str:
    """The name of the network interface that leads nowhere else."""
    interfaces: dict[str, Any] = psutil.net_if_addrs()
    return next(
        name
        for name, addresses in interfaces.items()
        if any(one.address == "127.0.0.1" for one in addresses)
    )


def see_one_device(local_rank: int, local_world: int) -> None:
    """Leave this process one GPU, which is then the only one for all of its threads; before CUDA is asked for anything.

    Raises:
        ConfigError: as ``check_gpus``.
    """
    check_gpus(local_world)
    if there := _gpus():
        os.environ[_VISIBLE] = there[local_rank]


def check_gpus(devices: int) -> None:
    """Whether that many processes of this machine have a GPU each; where there is none at all, they share the processor.

    Raises:
        ConfigError: when there are too few.
    """
    if 0 < len(_gpus()) < devices:
        raise ConfigError(
            {
                "devices": f"this machine has {things(len(_gpus()), 'GPU')}, not {devices}: start fewer processes, or set {_VISIBLE} to "
                "nothing, to train on the processor"
            }
        )


def most_devices() -> int:
    """On how many devices of this machine one run can train: GPUs, or where there is none, processor cores that this process may use."""
    return len(_gpus()) or usable_cores()


def _gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them; CUDA is not asked for anything."""
    if named := os.environ.get(_VISIBLE):
        names = takewhile(_names_gpu, (name.strip() for name in named.split(",")))
        # CUDA shows no GPU at all where one is named twice.
        return [] if len(set(found := list(names))) < len(found) else found
    return [] if named == "" else [str(number) for number in range(torch.cuda.device_count())]


def _names_gpu(name: str) -> bool:
    """Return whether CUDA takes ``name`` for a GPU. It ignores the first other name and all after it."""
    return name.isdecimal() or name.startswith(("GPU-", "MIG-"))


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not _is_connection_error(error):
            raise
        # Behind the reason gloo gives advice on debugging.
        reason = str(error).partition("\n")[0].partition(". This is typically")[0]
        raise RankLost(
            "Another process of the run has ended, or cannot be reached. Resume the run, on as many "
            f"devices as there are. ({reason})"
        ) from error


def _is_connection_error(error: RuntimeError) -> bool:
    """Return whether torch.distributed reports a peer that is gone. gloo has no class for it."""
    if is_out_of_memory(error):
        return False
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)

"""The processes that train one run together, one per device.

They use torch.distributed, and are started as torchrun starts them.

Between two steps all ranks are equal: same weights, same optimizer state, same position. They
exchange values through ``all_gather``. Sums of gradients (``GradientSum``) directly follow such a
call. So a rank that ends for any reason sends a failure instead of a value, and no rank waits for
one that is gone.

A single process is a rank, too. Every function here then returns what it was given, at no cost.
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
from finetune_core.data.threads import count_usable_cores
from finetune_core.errors import ConfigError, TrainingError, is_out_of_memory
from finetune_core.files import temporary_folder
from finetune_core.formatting import pluralize

Value = TypeVar("Value")

# A run may wait long for its device. The launcher notices when a rank has died.
_TIMEOUT = timedelta(days=7)
_VISIBLE = "CUDA_VISIBLE_DEVICES"


class MainProcessEnded(Exception):
    """Signal that rank 0 has ended, for a reason it reports itself. The other ranks end, too."""


class RankLost(TrainingError):
    """Loss of a rank without a message. The run is cut off and can be resumed."""


@dataclass(frozen=True)
class _Failure:
    """Sent instead of a value by a rank that has ended.

    Attributes:
        reason: Why it failed. Empty where it ended without an error.
    """

    reason: str


class Ranks:
    """This process's position among those that train the same run.

    Attributes:
        rank: Index of this process. Rank 0 alone writes to the run directory and reports to people.
        world_size: Number of ranks.
        local_rank: Index of this process on its machine. Ranks of one machine follow one another.
        local_world_size: Number of ranks on this machine.
        is_broken: Whether this rank has failed where it could not tell the others.

    Args:
        place: The ``rendezvous_file`` of the ranks, if the process that started them has given each
            its device. None under torchrun, which says where the ranks find each other.
    """

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        local_rank: int = 0,
        local_world_size: int = 1,
        place: Path | None = None,
    ) -> None:
        self.rank, self.world_size, self.local_rank, self.local_world_size = (
            rank,
            world_size,
            local_rank,
            local_world_size,
        )
        self._rendezvous, self._has_ended, self.is_broken = place, False, False

    @property
    def is_distributed(self) -> bool:
        """True if more than one rank trains the run."""
        return self.world_size > 1

    @property
    def is_main_process(self) -> bool:
        """True if this is rank 0, which writes to the run directory and reports."""
        return self.rank == 0

    @property
    def spans_machines(self) -> bool:
        """True if the ranks are on several machines."""
        return self.world_size > self.local_world_size

    def all_gather(self, value: Value) -> list[Value]:
        """Gather one value from every rank, in rank order.

        Raises:
            MainProcessEnded: If rank 0 has ended.
            TrainingError: If another rank could not go on. RankLost if one is gone.
        """
        if not self.is_distributed:
            return [value]
        with self.mark_broken_on_error():
            values = self._all_gather(value)
        self._has_ended = any(isinstance(other, _Failure) for other in values)
        if isinstance(values[0], _Failure):
            raise MainProcessEnded
        for rank, other in enumerate(values):
            if isinstance(other, _Failure):
                raise TrainingError(
                    f"Rank {rank} of {self.world_size} could not go on: {other.reason}"
                )
        return values

    def broadcast(self, value: Value) -> Value:
        """Return rank 0's value on every rank."""
        return self.all_gather(value)[0]

    def _all_gather(self, value: Any) -> list[Any]:
        values = [None] * self.world_size
        with _translate_connection_errors():
            dist.all_gather_object(values, value)
        return values

    def batch_slice(self, count: int) -> slice:
        """Return the slice of a batch of ``count`` images that this rank computes.

        Slices are nearly equal in length. No rank gets a single image of several, on which
        BatchNorm could not train: the last ranks then have none.
        """
        num_sharing = max(1, min(self.world_size, count // 2))
        if self.rank >= num_sharing:
            return slice(count, count)
        return slice(self.rank * count // num_sharing, (self.rank + 1) * count // num_sharing)

    def exchange(
        self, sent: Mapping[int, torch.Tensor], expected: Mapping[int, torch.Tensor]
    ) -> None:
        """Send tensors to other ranks, and fill the expected ones from theirs.

        Tensors are contiguous and in the processor's memory. All ranks that take part have just
        met, and nothing may fail in them before the exchange: a rank that waits for another does
        not hear why that one has ended.

        Args:
            sent: Tensors to send, by receiving rank.
            expected: Tensors to fill in place, by sending rank.
        """
        operations = [
            dist.P2POp(dist.isend, _as_bytes(tensor), rank) for rank, tensor in sent.items()
        ]
        operations += [
            dist.P2POp(dist.irecv, _as_bytes(tensor), rank) for rank, tensor in expected.items()
        ]
        with self.mark_broken_on_error(), _translate_connection_errors():
            for work in dist.batch_isend_irecv(operations) if operations else ():
                work.wait()

    def rank_rows(self, rows: np.ndarray, batch: int) -> np.ndarray:
        """Return the rows that this rank computes for all ranks.

        Shares are whole batches, so that each batch is computed as by a single rank.
        """
        return _select_batches(rows, batch, [self.rank], self.world_size)

    def machine_rows(self, rows: np.ndarray, batch: int) -> np.ndarray:
        """Return the rows that the ranks of this machine compute for all ranks."""
        first = self.rank - self.local_rank
        return _select_batches(
            rows, batch, range(first, first + self.local_world_size), self.world_size
        )

    def local_rows(self, rows: np.ndarray, batch: int) -> np.ndarray:
        """Return the rows that this rank computes where its machine computes all of them."""
        return _select_batches(rows, batch, [self.local_rank], self.local_world_size)

    @contextmanager
    def connect(self) -> Iterator[None]:
        """Connect this rank to the others within the block.

        A rank that leaves the block, for any reason, ends the other ranks and waits for them.

        Raises:
            FinetuneError: If there are too few GPUs, or the other ranks cannot be reached.
        """
        if not self.is_distributed:
            yield
            return
        if not self._rendezvous:
            select_device(self.local_rank, self.local_world_size)
        CACHE.shared = True
        with _translate_connection_errors():
            self._connect()
        try:
            yield
        except Exception as error:
            self._leave(str(error) or type(error).__name__)
            raise
        else:
            self._leave("")
        finally:
            # A broken rank leaves its connections to the end of the process: NCCL would wait for
            # the other ranks here.
            if not self.is_broken:
                dist.destroy_process_group()

    @contextmanager
    def mark_broken_on_error(self) -> Iterator[None]:
        """Mark this rank as broken if the block fails, in which the others wait for it.

        Such a rank cannot tell the others why: they receive no values before their sum or exchange
        ends. Its process has to end with a status other than 0. That closes its connections, on
        which the others fail, too. The launcher ends those that do not notice.
        """
        try:
            yield
        except Exception:
            self._has_ended = self.is_broken = self.is_distributed
            raise

    def _connect(self) -> None:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if self._rendezvous:
            # Keep torch.distributed off the network, where it would listen.
            os.environ |= dict.fromkeys(
                ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), _loopback_interface()
            )
            # Not a URI: torch does not decode one, and waits for the wrong file.
            store = dist.FileStore(str(self._rendezvous), self.world_size)  # type: ignore[attr-defined]
            store.set_timeout(_TIMEOUT)
            dist.init_process_group(
                backend, store=store, rank=self.rank, world_size=self.world_size, timeout=_TIMEOUT
            )
        else:
            dist.init_process_group(backend, timeout=_TIMEOUT)

    def _leave(self, reason: str) -> None:
        if self.is_broken:
            return
        # If a rank is gone without a message, the others notice it as this one did.
        with suppress(RankLost):
            if not self._has_ended:
                self._has_ended = True
                self._all_gather(_Failure(reason))
            # No rank exits while rank 0 still writes: the launcher would end rank 0, too.
            self._all_gather(None)


ALONE = Ranks()


def _select_batches(
    rows: np.ndarray, batch: int, numbers: Collection[int], cycle: int
) -> np.ndarray:
    """Return the rows of every batch whose number is one of ``numbers``.

    Batches are numbered from 0 to ``cycle - 1``, again and again.
    """
    selected: np.ndarray = rows[np.isin(np.arange(len(rows)) // batch % cycle, list(numbers))]
    return selected


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1).view(torch.uint8)


class GradientSum:
    """Sum of tensors over all ranks, in place, in one buffer that is reused.

    Memory for the buffer is taken before the ranks meet.
    """

    # Numbers. The first buckets are summed while the last are still being sent.
    BUCKET = 2**23

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._buffer = torch.empty(0)

    def reserve(self, tensors: Sequence[torch.Tensor]) -> None:
        """Allocate the buffer for float32 tensors of one device."""
        needed = sum(tensor.numel() for tensor in tensors)
        if self._buffer.numel() < needed or self._buffer.device != tensors[0].device:
            self._buffer = torch.empty(needed, device=tensors[0].device)

    @torch.no_grad()
    def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its sum over all ranks.

        The buffer is reserved, and all ranks have just met.
        """
        sizes = [tensor.numel() for tensor in tensors]
        buffer = self._buffer[: sum(sizes)]
        views = [
            piece.view(tensor.shape)
            for piece, tensor in zip(buffer.split(sizes), tensors, strict=True)
        ]
        torch._foreach_copy_(views, list(tensors))
        with _translate_connection_errors():
            for work in [
                dist.all_reduce(bucket, async_op=True) for bucket in buffer.split(self.BUCKET)
            ]:
                work.wait()
        torch._foreach_copy_(list(tensors), views)


@contextmanager
def rendezvous_file() -> Iterator[Path]:
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


def read_torchrun_ranks() -> Ranks:
    """Return this process's rank as torchrun started it, or ``ALONE`` without torchrun."""
    if not dist.is_torchelastic_launched():
        return ALONE
    rank, world_size, local_rank, local_world_size = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    return Ranks(rank, world_size, local_rank, local_world_size)


def _loopback_interface() -> str:
    """Return the name of the loopback network interface."""
    interfaces: dict[str, Any] = psutil.net_if_addrs()
    return next(
        name
        for name, addresses in interfaces.items()
        if any(one.address == "127.0.0.1" for one in addresses)
    )


def select_device(local_rank: int, local_world_size: int) -> None:
    """Leave this process one GPU, which is then the only one for all its threads.

    Call before CUDA is initialised.

    Raises:
        ConfigError: As ``check_gpus``.
    """
    check_gpus(local_world_size)
    if gpus := _visible_gpus():
        os.environ[_VISIBLE] = gpus[local_rank]


def check_gpus(devices: int) -> None:
    """Check that this machine has a GPU for each of that many processes.

    Where there is no GPU at all, they share the processor.

    Raises:
        ConfigError: If there are too few.
    """
    if 0 < len(_visible_gpus()) < devices:
        raise ConfigError(
            {
                "devices": f"this machine has {pluralize(len(_visible_gpus()), 'GPU')}, not "
                f"{devices}: start fewer processes, or set {_VISIBLE} to nothing, to train on the "
                "processor"
            }
        )


def max_devices() -> int:
    """Return on how many devices of this machine one run can train.

    These are its GPUs, or without GPUs the processor cores that this process may use.
    """
    return len(_visible_gpus()) or count_usable_cores()


def _visible_gpus() -> list[str]:
    """Return the NVIDIA GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them.

    CUDA is not initialised.
    """
    if value := os.environ.get(_VISIBLE):
        names = takewhile(_is_gpu_name, (name.strip() for name in value.split(",")))
        # CUDA shows no GPU at all where one is named twice.
        return [] if len(set(visible := list(names))) < len(visible) else visible
    return [] if value == "" else [str(number) for number in range(torch.cuda.device_count())]


def _is_gpu_name(name: str) -> bool:
    """Return whether CUDA takes ``name`` for a GPU.

    CUDA ignores the first name that is no GPU's, and all names after it.
    """
    return name.isdecimal() or name.startswith(("GPU-", "MIG-"))


@contextmanager
def _translate_connection_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not _is_connection_error(error):
            raise
        # After the reason, gloo gives advice on debugging.
        reason = str(error).partition("\n")[0].partition(". This is typically")[0]
        raise RankLost(
            "Another process of the run has ended, or cannot be reached. Resume the run, on as "
            f"many devices as there are. ({reason})"
        ) from error


def _is_connection_error(error: RuntimeError) -> bool:
    """Return whether torch.distributed reports a peer that is gone. gloo has no class for it."""
    if is_out_of_memory(error):
        return False
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)

"""Where runs train: in this process, one per device at a time, or wherever another executor has them trained."""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from finetune_core.config import RunConfig
from finetune_core.errors import ConfigError
from finetune_core.runs.record import Reservation, execute
from finetune_core.runs.together import execute_together
from finetune_core.training.device import choose_device
from finetune_core.training.events import Event
from finetune_core.training.prepare import check_devices
from finetune_core.training.ranks import ALONE, Ranks, most_devices

if TYPE_CHECKING:
    from finetune_core.runs.ray_executor import RayExecutor


@dataclass(frozen=True)
class Machine:
    """What a machine of a cluster has for runs."""

    host: str
    gpus: int
    cores: int


class Executor(Protocol):
    """Trains reserved runs.

    Attributes:
        elsewhere: whether on other machines, whose devices differ from this one's.
    """

    elsewhere: bool

    def queue_of(self, config: RunConfig) -> str:
        """The name of the queue that a run waits in."""
        ...

    def places(self, queue: str) -> int:
        """How many runs of a queue can train at a time, as far as is known now; 1 or more."""
        ...

    def places_of(self, devices: int) -> int:
        """How many of these places a run on so many devices takes, as far as is known now."""
        ...

    def check(self, config: RunConfig, devices: int) -> None:
        """To be asked before there is a run.

        Raises:
            ConfigError: when a run cannot be shared by so many devices, or, as far as is known now, no machine has them.
        """
        ...

    def machines(self) -> list[int]:
        """How many runs each machine can train at a time, as far as is known now."""
        ...

    def most_devices(self) -> int:
        """On how many devices of one machine a run can train, as far as is known now."""
        ...

    def cluster(self) -> list[Machine]:
        """The machines themselves, as far as is known now; none where this process trains."""
        ...

    def execute(
        self, reservation: Reservation, roots: Sequence[Path] = ()
    ) -> Generator[Event, None, None]:
        """See a run through to its end: as ``record.execute``."""
        ...


class InProcess:
    """In this process, or, on several devices, in processes that it starts: runs on one kind of device wait for each other, those on
    different kinds do not.

    Args:
        ranks: where several processes train each run: this is the first of them.
    """

    elsewhere = False

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks

    def queue_of(self, config: RunConfig) -> str:
        return choose_device(config.device).kind

    def places(self, queue: str) -> int:
        return 1

    def places_of(self, devices: int) -> int:
        return 1

    def check(self, config: RunConfig, devices: int) -> None:
        check_devices(config, devices)

    def machines(self) -> list[int]:
        return [1]

    def most_devices(self) -> int:
        return most_devices()

    def cluster(self) -> list[Machine]:
        return []

    def execute(
        self, reservation: Reservation, roots: Sequence[Path] = ()
    ) -> Generator[Event, None, None]:
        if reservation.devices > 1:
            return execute_together(reservation, roots)
        return execute(reservation, roots, self._ranks)


def app_executor() -> Executor:
    """The app's: this process, or Ray where ``THAW_RAY_ADDRESS`` names the head of a cluster, or ``local`` for one of this machine's own."""
    address = os.environ.get("THAW_RAY_ADDRESS", "").strip()
    if not address:
        return InProcess()
    executor = _ray("" if address == "local" else address)
    executor.connect_meanwhile()
    return executor


@contextmanager
def executor_of(
    name: str, ray_address: str | None = None, ranks: Ranks = ALONE
) -> Iterator[Executor]:
    """The executor of that name: ``here`` or ``ray``, ready to train.

    Args:
        ray_address: see ``RayExecutor``.
        ranks: see ``InProcess``.

    Raises:
        ConfigError: when there is none, or it is not installed.
        RunError: when it cannot be reached.
    """
    if name not in ("here", "ray"):
        raise ConfigError({"executor": f"there is no {name}; choose here or ray"})
    if name == "here":
        if ray_address is not None:
            raise ConfigError({"ray_address": "goes with --executor ray"})
        yield InProcess(ranks)
        return
    if ranks.several:
        raise ConfigError(
            {
                "executor": "Ray starts the processes of a run itself: "
                "use --devices, without torchrun"
            }
        )
    executor = _ray(ray_address or "")
    try:
        executor.driver()
        yield executor
    finally:
        executor.close()


def _ray(address: str) -> "RayExecutor":
    from finetune_core.runs.ray_executor import RayExecutor

    return RayExecutor(address)

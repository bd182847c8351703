"""Executors, which train runs in this process or elsewhere.

In this process one run per device trains at a time.
"""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from finetune_core.config import RunConfig
from finetune_core.errors import ConfigError
from finetune_core.runs.executors.together import execute_on_devices
from finetune_core.runs.record import Reservation, execute
from finetune_core.training.devices.device import choose_device
from finetune_core.training.devices.ranks import ALONE, Ranks, max_devices
from finetune_core.training.events import Event
from finetune_core.training.prepare import check_devices

if TYPE_CHECKING:
    from finetune_core.runs.executors.ray_executor import RayExecutor


@dataclass(frozen=True)
class Machine:
    """Resources of a machine of a cluster.

    Attributes:
        host: its name.
        gpus: number of GPUs.
        cores: number of cores.
    """

    host: str
    gpus: int
    cores: int


class Executor(Protocol):
    """Trains reserved runs.

    Attributes:
        remote: whether the runs train on other machines, whose devices differ from this one's.
    """

    remote: bool

    def queue_name(self, config: RunConfig) -> str:
        """Return the name of the queue that a run waits in."""
        ...

    def slots(self, queue: str) -> int:
        """Return how many runs of a queue can train at a time, at least 1, as far as is known."""
        ...

    def slots_needed(self, devices: int) -> int:
        """Return how many of these slots a run on so many devices takes, as far as is known now."""
        ...

    def check(self, config: RunConfig, devices: int) -> None:
        """Check that a run can train on so many devices. Call this before the run is created.

        Raises:
            ConfigError: if the run cannot be shared by so many devices, or no machine is known to
                have them.
        """
        ...

    def slots_by_machine(self) -> list[int]:
        """Return how many runs each machine can train at a time, as far as is known now."""
        ...

    def max_devices(self) -> int:
        """Return the largest number of devices of one machine, as far as is known now."""
        ...

    def list_machines(self) -> list[Machine]:
        """Return the machines of the cluster that are known now; none if this process trains."""
        ...

    def execute(
        self, reservation: Reservation, roots: Sequence[Path] = ()
    ) -> Generator[Event, None, None]:
        """Train a run to its end, as ``record.execute`` does."""
        ...


class InProcess:
    """Executor that trains in this process, or on several devices in processes that it starts.

    Runs on one kind of device wait for each other. Runs on different kinds do not.

    Args:
        ranks: the ranks, if several processes train each run; this process is rank 0.
    """

    remote = False

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks

    def queue_name(self, config: RunConfig) -> str:
        """Return the kind of device that the run trains on."""
        return choose_device(config.device).kind

    def slots(self, queue: str) -> int:
        """Return 1: runs of a queue train one after the other."""
        return 1

    def slots_needed(self, devices: int) -> int:
        """Return 1, for any number of devices."""
        return 1

    def check(self, config: RunConfig, devices: int) -> None:
        """Check that a run can train on so many devices of this machine."""
        check_devices(config, devices)

    def slots_by_machine(self) -> list[int]:
        """Return the one slot of this machine."""
        return [1]

    def max_devices(self) -> int:
        """Return the number of devices of this machine that a run can train on."""
        return max_devices()

    def list_machines(self) -> list[Machine]:
        """Return no machine, because there is no cluster."""
        return []

    def execute(
        self, reservation: Reservation, roots: Sequence[Path] = ()
    ) -> Generator[Event, None, None]:
        """Train a run in this process, or in one process per device."""
        if reservation.devices > 1:
            return execute_on_devices(reservation, roots)
        return execute(reservation, roots, self._ranks)


def make_app_executor() -> Executor:
    """Return the executor of the app.

    It is Ray if ``THAW_RAY_ADDRESS`` names the head of a cluster, or is ``local`` for a Ray of this
    machine; else this process.
    """
    address = os.environ.get("THAW_RAY_ADDRESS", "").strip()
    if not address:
        return InProcess()
    executor = _make_ray_executor("" if address == "local" else address)
    executor.connect_in_background()
    return executor


@contextmanager
def create_executor(
    name: str, ray_address: str | None = None, ranks: Ranks = ALONE
) -> Iterator[Executor]:
    """Open the executor ``here`` or ``ray``, ready to train.

    Args:
        name: name of the executor.
        ray_address: see ``RayExecutor``.
        ranks: see ``InProcess``.

    Raises:
        ConfigError: if there is no such executor, or it is not installed.
        RunError: if it cannot be reached.
    """
    if name not in ("here", "ray"):
        raise ConfigError({"executor": f"there is no {name}; choose here or ray"})
    if name == "here":
        if ray_address is not None:
            raise ConfigError({"ray_address": "goes with --executor ray"})
        yield InProcess(ranks)
        return
    if ranks.is_distributed:
        raise ConfigError(
            {
                "executor": "Ray starts the processes of a run itself: "
                "use --devices, without torchrun"
            }
        )
    executor = _make_ray_executor(ray_address or "")
    try:
        executor.driver()
        yield executor
    finally:
        executor.close()


def _make_ray_executor(address: str) -> "RayExecutor":
    from finetune_core.runs.executors.ray_executor import RayExecutor

    return RayExecutor(address)

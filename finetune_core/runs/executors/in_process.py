"""Executor that trains in this process, or on several devices of this machine.

One run per device trains at a time.
"""

from collections.abc import Generator, Sequence
from pathlib import Path

from finetune_core.config import RunConfig
from finetune_core.runs.executors.protocol import Machine
from finetune_core.runs.executors.together import execute_on_devices
from finetune_core.runs.record import Reservation, execute
from finetune_core.training.devices.device import choose_device
from finetune_core.training.devices.ranks import ALONE, Ranks, max_devices
from finetune_core.training.events import Event
from finetune_core.training.prepare import check_devices


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

"""Protocol of executors, which train runs in this process or elsewhere."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from finetune_core.config import RunConfig
from finetune_core.runs.record import Reservation
from finetune_core.training.events import Event


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

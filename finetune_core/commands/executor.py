"""The executor that the command line asks for."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.markup import escape

from finetune_core.commands.terminal import err
from finetune_core.runs.executors.create import create_executor
from finetune_core.runs.executors.protocol import Executor
from finetune_core.training.devices.ranks import ALONE, Ranks


@contextmanager
def open_executor(name: str, ray_address: str | None, ranks: Ranks = ALONE) -> Iterator[Executor]:
    """Open an executor by name, and report slow starts on stderr.

    Raises:
        ConfigError, RunError: as ``create_executor`` does.
    """
    if name == "ray":
        err.print(
            escape(
                f"Connecting to Ray at {ray_address}"
                if ray_address
                else "Starting Ray on this machine"
            )
        )
    with create_executor(name, ray_address, ranks) as executor:
        yield executor

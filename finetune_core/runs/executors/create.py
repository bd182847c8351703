"""The executor that the app or a command has asked for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from finetune_core.errors import ConfigError
from finetune_core.runs.executors.in_process import InProcess
from finetune_core.runs.executors.protocol import Executor
from finetune_core.runs.executors.ray_executor import RayExecutor
from finetune_core.training.devices.ranks import ALONE, Ranks


def make_app_executor() -> Executor:
    """Return the executor of the app.

    It is Ray if ``THAW_RAY_ADDRESS`` names the head of a cluster, or is ``local`` for a Ray of this
    machine; else this process.
    """
    address = os.environ.get("THAW_RAY_ADDRESS", "").strip()
    if not address:
        return InProcess()
    executor = RayExecutor("" if address == "local" else address)
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
    executor = RayExecutor(ray_address or "")
    try:
        executor.driver()
        yield executor
    finally:
        executor.close()

"""The memory of a GPU that this process holds: counted for each run, handed back after it."""

import gc
from collections.abc import Callable

import torch

from finetune_core.training.device import Device


def count_anew(device: Device) -> None:
    """A run begins: what others held before does not count. The device is in use already: torch counts nothing before that."""
    if device.kind == "cuda":
        torch.cuda.reset_peak_memory_stats(device.torch_device)


def bytes_held(device: Device, step_bytes: int) -> int | None:
    """What torch has held of a GPU's memory since ``count_anew``, at most; None for a processor.

    Args:
        step_bytes: what the last step kept for its backward pass. Of Apple's GPU torch says only what is held now: these are added.
    """
    if device.kind == "cuda":
        return torch.cuda.max_memory_allocated(device.torch_device)
    return torch.mps.current_allocated_memory() + step_bytes if device.kind == "mps" else None


def bytes_taken(device: Device, work: Callable[[], object]) -> int:
    """What work takes of a GPU's memory while it goes on, at most; 0 where torch does not count it. Nobody else may be counting."""
    if device.kind != "cuda":
        work()
        return 0
    count_anew(device)
    before = torch.cuda.memory_allocated(device.torch_device)
    work()
    return torch.cuda.max_memory_allocated(device.torch_device) - before


def release_memory(kind: str) -> None:
    """Hand back what nothing uses any more: torch would keep it for this process, and other programs could not have it.

    Args:
        kind: of the device; nothing is kept of a processor's memory.
    """
    if kind == "cpu":
        return
    gc.collect()  # networks are cycles
    (torch.cuda if kind == "cuda" else torch.mps).empty_cache()

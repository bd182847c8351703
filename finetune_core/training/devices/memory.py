"""GPU memory that this process holds: counted for each run, released after it."""

import gc
from collections.abc import Callable

import torch

from finetune_core.training.devices.device import Device


def reset_peak_memory(device: Device) -> None:
    """Reset the peak at the start of a run, so that earlier use of the memory does not count.

    The device must be in use already: torch counts nothing before that.
    """
    if device.kind == "cuda":
        torch.cuda.reset_peak_memory_stats(device.torch_device)


def peak_memory_bytes(device: Device, step_bytes: int) -> int | None:
    """Return the peak of a GPU's memory since ``reset_peak_memory``, or None for a processor.

    Args:
        device: The device that computes.
        step_bytes: What the last step kept for its backward pass. It is added on Apple's GPU, where
            torch knows only what is held now.
    """
    if device.kind == "cuda":
        return torch.cuda.max_memory_allocated(device.torch_device)
    return torch.mps.current_allocated_memory() + step_bytes if device.kind == "mps" else None


def measure_peak_bytes(device: Device, work: Callable[[], object]) -> int:
    """Return the peak of a GPU's memory that some work takes, or 0 where torch does not count it.

    Nothing else may be counting meanwhile.
    """
    if device.kind != "cuda":
        work()
        return 0
    reset_peak_memory(device)
    before = torch.cuda.memory_allocated(device.torch_device)
    work()
    return torch.cuda.max_memory_allocated(device.torch_device) - before


def release_memory(kind: str) -> None:
    """Release memory that nothing uses any more.

    torch would keep it for this process, and other programs could not have it.

    Args:
        kind: Kind of the device. A processor's memory is not kept.
    """
    if kind == "cpu":
        return
    # Networks are reference cycles.
    gc.collect()
    (torch.cuda if kind == "cuda" else torch.mps).empty_cache()

"""The memory of a GPU that this process holds."""

import gc

import torch


def release_memory(kind: str) -> None:
    """Hand back what nothing uses any more: torch would keep it for this process, and other programs could not have it.

    Args:
        kind: of the device; nothing is kept of a processor's memory.
    """
    if kind == "cpu":
        return
    gc.collect()  # networks are cycles
    (torch.cuda if kind == "cuda" else torch.mps).empty_cache()

"""Placement of a run's rows: decoded images or activations.

They live on the run's device where there is space. Otherwise they stay where they are, and each
batch is sent.
"""

from collections.abc import Sequence

import numpy as np
import torch

from finetune_core.data.rowcache import Lookup
from finetune_core.errors import is_out_of_memory
from finetune_core.training.devices.device import Device

# The memory of a step is known only after the first one, and on a full device the step would have
# to be cut into parts. Half of the memory leaves each step as much as the rows have. A batch of
# rows that do not fit is sent in less time than most networks take for it.
_SHARE = 0.5


def measure_row_budget(device: Device) -> int:
    """Return how many bytes of a device's own memory rows may take.

    It is 0 on a processor and on Apple's GPU, for which rows are in the right memory already.
    """
    if device.kind != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info()
    return int(_SHARE * (free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()))


def get_idle_row_budget(device: Device) -> int:
    """Return how many bytes rows may take on a device that nothing uses yet."""
    if device.kind != "cuda":
        return 0
    return int(_SHARE * torch.cuda.get_device_properties(device.torch_device).total_memory)


def place_lookups(
    lookups: Sequence[Lookup], used: np.ndarray, device: torch.device, free_bytes: int
) -> list[Lookup]:
    """Move lookups to the device, one after the other, as long as there is space.

    The other lookups stay as they are.

    Args:
        lookups: The lookups, in the order in which they are moved.
        used: Positions whose rows are needed. Where a lookup has none, it needs none.
        device: The device to move to.
        free_bytes: Space in bytes.
    """
    if not free_bytes:
        return list(lookups)
    placed = []
    for lookup in lookups:
        known_rows = used[lookup.places[used, 0] >= 0]
        num_bytes = lookup.count_bytes(known_rows)
        if 0 < num_bytes <= free_bytes:
            lookup, free_bytes = _move_lookup(lookup, device, known_rows), free_bytes - num_bytes
        placed.append(lookup)
    return placed


def _move_lookup(lookup: Lookup, device: torch.device, known_rows: np.ndarray) -> Lookup:
    try:
        return lookup.copy_to(device, known_rows)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return lookup

"""The memory that a run takes, counted from its tensors.

What the system says of a process depends on what the process did before: freed memory stays with it, and is used again, so that a
second or a resumed run would seem to take none. The same tensors count the same in every process, on every device.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from finetune_core.data.rowcache import Lookup
from finetune_core.training.job import Job
from finetune_core.training.weight_ema import WeightEMA

Storages = dict[int, int]  # address -> bytes


@contextmanager
def kept_for_backward(forward: nn.Module) -> Iterator[Storages]:
    """What the steps within keep for their backward pass: storages that are not ``forward``'s own weights."""
    own, kept = _storages([*forward.parameters(), *forward.buffers()]), {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        yield kept


def footprint(job: Job, optimizer: torch.optim.Optimizer, average: WeightEMA | None, step_bytes: int) -> int:
    """Bytes: the networks, gradients, the optimizer's state, averaged weights, images and activations that are held in memory, and what a
    step keeps for its backward pass."""
    training = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    held = [
        *job.network.model.state_dict().values(),
        *job.network.pretrained.state_dict().values(),
        *(parameter.grad for parameter in training if parameter.grad is not None),
        *(value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)),
        *(average.tensors.values() if average else ()),
    ]
    return sum(_storages(held).values()) + sum(map(_in_memory, job.source.lookups)) + step_bytes


def _storages(tensors: Iterable[torch.Tensor]) -> Storages:
    """Each once, however many tensors share it."""
    return {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}


def _in_memory(lookup: Lookup) -> int:
    return lookup.row_bytes * int((lookup.places[:, 0] >= 0).sum()) if lookup.where == "memory" else 0

"""The memory that a run takes: in the program's own, counted from its tensors, and, apart from that, in a GPU's.

What the system says of a process depends on what the process did before: freed memory stays with it, and is used again, so that a
second or a resumed run would seem to take none. The same tensors count the same in every process. A GPU's memory is counted by
torch, which hands every run's back when it ends.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from finetune_core.data.rowcache import Lookup
from finetune_core.training.device_memory import bytes_held
from finetune_core.training.job import Job
from finetune_core.training.weight_ema import WeightEMA

Storages = dict[int, int]  # address -> bytes


@dataclass(frozen=True)
class Footprint:
    """Bytes that a run takes.

    Attributes:
        host: in the program's own memory.
        device: in the GPU's; None where the processor trains.
    """

    host: int
    device: int | None


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


def footprint(
    job: Job, optimizer: torch.optim.Optimizer, average: WeightEMA | None, step_bytes: int
) -> Footprint:
    """Of the networks, gradients, the optimizer's state, averaged weights, images and activations that are held in memory, and what a step
    keeps for its backward pass: ``step_bytes``, of one that has just been made."""
    training = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    held = [
        *job.network.model.state_dict().values(),
        *job.network.pretrained.state_dict().values(),
        *(parameter.grad for parameter in training if parameter.grad is not None),
        *(
            value
            for state in optimizer.state.values()
            for value in state.values()
            if torch.is_tensor(value)
        ),
        *(average.tensors.values() if average else ()),
        *job.low_rank.tensors.values(),
    ]
    device = bytes_held(job.device, step_bytes)
    host = sum(_storages(tensor for tensor in held if tensor.device.type == "cpu").values())
    if device is None:  # the gradients that were turned into the factors', and are gone again
        host += sum(one.weight.nbytes for one in job.low_rank.factors.values())
    return Footprint(
        host + sum(map(_in_memory, job.source.lookups)) + (step_bytes if device is None else 0),
        device,
    )


def footprint_of_fit(job: Job, features: torch.Tensor) -> Footprint:
    """Return the memory of the networks, of the features that a head was fitted to, and their copy."""
    held = footprint_beside(job, [features])
    return replace(held, host=held.host + (features.nbytes if features.device.type == "cpu" else 0))


def footprint_beside(job: Job, tensors: Iterable[torch.Tensor]) -> Footprint:
    """Of the networks of a run that takes no steps, what it holds of its images, and these tensors."""
    own = [
        *job.network.model.state_dict().values(),
        *job.network.pretrained.state_dict().values(),
        *tensors,
    ]
    host = sum(_storages(tensor for tensor in own if tensor.device.type == "cpu").values())
    return Footprint(
        host + sum(map(_in_memory, job.source.lookups)), bytes_held(job.device, step_bytes=0)
    )


def most(found: Sequence[Footprint], now: int | None) -> Footprint:
    """The most of either memory.

    Args:
        now: ``bytes_held`` at the moment.
    """
    host = max((one.host for one in found), default=0)
    return Footprint(host, None if now is None else max([now, *(one.device or 0 for one in found)]))


def _storages(tensors: Iterable[torch.Tensor]) -> Storages:
    """Each once, however many tensors share it."""
    return {
        storage.data_ptr(): storage.nbytes()
        for storage in (tensor.untyped_storage() for tensor in tensors)
    }


def _in_memory(lookup: Lookup) -> int:
    if lookup.where == "disk" or lookup.blocks[0].rows.device.type != "cpu":
        return 0
    return lookup.row_bytes * int((lookup.places[:, 0] >= 0).sum())

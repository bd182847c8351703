"""Memory that a run takes.

The program's own memory is counted from the run's tensors. What the system reports for a process
depends on what the process did before: freed memory stays with it and is used again, so that a
second or a resumed run would seem to take none. The same tensors count the same in every process.

A GPU's memory is counted apart from that. torch counts it, and every run releases its memory when
it ends.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from finetune_core.data.rowcache import Lookup
from finetune_core.training.devices.memory import peak_memory_bytes
from finetune_core.training.job import Job
from finetune_core.training.step.weight_ema import WeightEMA

Storages = dict[int, int]  # address -> bytes


@dataclass(frozen=True)
class Footprint:
    """Bytes that a run takes.

    Attributes:
        host: In the program's own memory.
        device: In the GPU's memory. None where the processor trains.
    """

    host: int
    device: int | None


@contextmanager
def record_saved_storages(forward: nn.Module) -> Iterator[Storages]:
    """Collect the storages that steps within the block keep for their backward pass.

    The weights of ``forward`` do not count.
    """
    own_storages, saved = _unique_storages([*forward.parameters(), *forward.buffers()]), {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own_storages:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        yield saved


def measure_footprint(
    job: Job, optimizer: torch.optim.Optimizer, average: WeightEMA | None, step_bytes: int
) -> Footprint:
    """Count the memory of a run that trains in steps.

    These are the networks, gradients, the optimizer's state, averaged weights, and images and
    activations held in memory.

    Args:
        job: The job that trains.
        optimizer: The optimizer after a step.
        average: The averaged weights. None where the run does not average.
        step_bytes: What the latest step kept for its backward pass.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    tensors = [
        *job.network.model.state_dict().values(),
        *job.network.pretrained.state_dict().values(),
        *(parameter.grad for parameter in parameters if parameter.grad is not None),
        *(
            value
            for state in optimizer.state.values()
            for value in state.values()
            if torch.is_tensor(value)
        ),
        *(average.tensors.values() if average else ()),
        *job.low_rank.tensors.values(),
    ]
    device = peak_memory_bytes(job.device, step_bytes)
    host = sum(
        _unique_storages(tensor for tensor in tensors if tensor.device.type == "cpu").values()
    )
    # The weights' gradients, which were turned into the factors' and freed.
    if device is None:
        host += sum(one.weight.nbytes for one in job.low_rank.factors.values())
    return Footprint(
        host
        + sum(map(_bytes_in_memory, job.source.lookups))
        + (step_bytes if device is None else 0),
        device,
    )


def measure_fit_footprint(job: Job, features: torch.Tensor) -> Footprint:
    """Count the memory of the networks, and of the features that a head was fitted to, twice.

    The second time is for a copy of the features.
    """
    memory = measure_stepless_footprint(job, [features])
    return replace(
        memory, host=memory.host + (features.nbytes if features.device.type == "cpu" else 0)
    )


def measure_stepless_footprint(job: Job, tensors: Iterable[torch.Tensor]) -> Footprint:
    """Count the memory of a run that takes no steps: networks, images and these tensors."""
    own = [
        *job.network.model.state_dict().values(),
        *job.network.pretrained.state_dict().values(),
        *tensors,
    ]
    host = sum(_unique_storages(tensor for tensor in own if tensor.device.type == "cpu").values())
    return Footprint(
        host + sum(map(_bytes_in_memory, job.source.lookups)),
        peak_memory_bytes(job.device, step_bytes=0),
    )


def max_footprint(footprints: Sequence[Footprint], now: int | None) -> Footprint:
    """Return the largest amount of either memory.

    Args:
        footprints: Memory at each measurement. May be empty.
        now: Present value of ``peak_memory_bytes``.
    """
    host = max((one.host for one in footprints), default=0)
    return Footprint(
        host, None if now is None else max([now, *(one.device or 0 for one in footprints)])
    )


def _unique_storages(tensors: Iterable[torch.Tensor]) -> Storages:
    """Return each storage once, however many tensors share it."""
    return {
        storage.data_ptr(): storage.nbytes()
        for storage in (tensor.untyped_storage() for tensor in tensors)
    }


def _bytes_in_memory(lookup: Lookup) -> int:
    if lookup.where == "disk" or lookup.blocks[0].rows.device.type != "cpu":
        return 0
    return lookup.row_bytes * int((lookup.places[:, 0] >= 0).sum())

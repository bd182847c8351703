"""Rows on their way through a network: loaded ahead, sent to the device, computed, brought back."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from finetune_core.training.data_pipeline.batches import prefetch, split_batches
from finetune_core.training.devices.device import Device, Forward
from finetune_core.training.devices.out_of_memory import run_in_parts
from finetune_core.transfers import PendingTensor, Transfers

# Images. With more of them a processor gains nothing.
_BATCH = 32
# With fewer, much of a large GPU is idle.
_BATCH_ON_CUDA = 256


@dataclass(frozen=True)
class Feed:
    """Inputs of a network, by row.

    Attributes:
        load: Function of rows that returns what is sent to the device. It runs in another thread,
            ahead of time.
        finish: Function of (what was loaded, on the device; its rows) that returns the network's
            input.
    """

    load: Callable[[np.ndarray], torch.Tensor]
    finish: Callable[[torch.Tensor, np.ndarray], torch.Tensor] = lambda loaded, rows: loaded


def forward_batch_size(device: Device) -> int:
    """Return how many images go through a network at a time where nothing trains."""
    return _BATCH_ON_CUDA if device.kind == "cuda" else _BATCH


def load_batches(
    load: Callable[[np.ndarray], tuple[np.ndarray, torch.Tensor]],
    batches: Sequence[np.ndarray],
    device: Device,
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Yield what ``load`` returns for each batch, with its tensor on the device.

    It is loaded and sent while the batches before are used.

    Raises:
        TrainingError: If memory does not even hold a batch by itself.
    """
    transfers = Transfers(device.torch_device)

    def send(rows: np.ndarray) -> tuple[np.ndarray, PendingTensor]:
        left, loaded = load(rows)
        return left, transfers.to_device(loaded)

    # On a processor, preparing a second batch takes memory and gains nothing: both use the same
    # cores.
    for _, (left, arrival) in prefetch(send, batches, ahead=2 if device.is_gpu else 1):
        yield left, arrival()
        transfers.throttle()


def pad_batch(inputs: torch.Tensor, size: int) -> torch.Tensor:
    """Fill a batch up to ``size`` with its last image, in the layout that it has.

    Kernels are chosen by shape, and different ones round differently. In batches of one size an
    image's output does not depend on how many others happen to be computed with it.
    """
    if len(inputs) >= size:
        return inputs
    is_nhwc = inputs.ndim == 4 and inputs.is_contiguous(memory_format=torch.channels_last)
    padded = torch.empty(
        (size, *inputs.shape[1:]),
        dtype=inputs.dtype,
        device=inputs.device,
        memory_format=torch.channels_last if is_nhwc else torch.contiguous_format,
    )
    padded[: len(inputs)] = inputs
    padded[len(inputs) :] = inputs[-1]
    return padded


def stream_outputs(
    forward: Forward, device: Device, rows: np.ndarray, feed: Feed, *, pad: bool = False
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Compute the network's output for rows, batch by batch.

    Args:
        forward: Function of a batch on the device that returns its output.
        device: The device that computes.
        rows: int ``[n]``, rows whose inputs ``feed`` loads.
        feed: Inputs of the network, by row.
        pad: Compute batches of one size only, unless memory runs out.

    Yields:
        Positions in ``rows``, and the output for them in the processor's memory.
    """
    return copy_to_processor(_compute_batches(forward, device, rows, feed, pad), device)


def _compute_batches(
    forward: Forward, device: Device, rows: np.ndarray, feed: Feed, pad: bool
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    position, size = 0, forward_batch_size(device)
    for batch, loaded in load_batches(
        lambda batch_rows: (batch_rows, feed.load(batch_rows)), split_batches(rows, size), device
    ):

        def part(
            numbers: torch.Tensor, batch: np.ndarray = batch, loaded: torch.Tensor = loaded
        ) -> torch.Tensor:
            first, last = int(numbers[0]), int(numbers[-1]) + 1
            inputs = device.move_inputs(feed.finish(loaded[first:last], batch[first:last]))
            with device.autocast():
                return forward(pad_batch(inputs, len(numbers)))

        # Positions after the last image repeat that image.
        count = size if pad else len(batch)
        numbers = torch.arange(max(count, len(batch))).clamp(max=len(batch) - 1)
        with torch.no_grad():
            output, size = run_in_parts(part, numbers, size)
        yield np.arange(position, position + len(batch)), output[: len(batch)]
        # Free this output before the next one is computed.
        del output
        position += len(batch)


def copy_to_processor(
    batches: Iterator[tuple[np.ndarray, torch.Tensor]], device: Device
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Yield rows or positions with their outputs in the processor's memory.

    From a GPU, each output is copied while the next one is computed.
    """
    if not device.is_gpu:
        yield from batches
        return
    transfers, previous = Transfers(device.torch_device), None
    for positions, output in batches:
        current = positions, transfers.to_cpu(output)
        del output
        if previous:
            yield previous[0], previous[1]()
        previous = current
    if previous:
        yield previous[0], previous[1]()

"""Copies of tensors between CPU and device memory while the device computes."""

from collections import deque
from collections.abc import Callable

import torch

_MAX_IN_FLIGHT = 2  # batches: one computes, one waits

PendingTensor = Callable[[], torch.Tensor]


def copy_to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a CPU tensor to a device. On NVIDIA GPUs the copy does not wait for the GPU."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Transfers:
    """Copies to and from a device, in parallel to its computation.

    On an NVIDIA GPU the copies use pinned memory and a stream of their own. Elsewhere a copy is
    made when it is asked for: CPU tensors are already in place, and Apple's GPU must be used by one
    thread at a time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._events: deque[torch.cuda.Event] = deque()

    def to_device(self, tensor: torch.Tensor) -> PendingTensor:
        """Start a copy to the device, from any thread.

        Returns:
            A function that returns the tensor to the computing thread. Call it once.
        """
        if self._stream is None or tensor.device.type == "cuda":
            return lambda: tensor.to(self._device)
        with torch.cuda.stream(self._stream):
            copy = copy_to_device(tensor, self._device)
            copied = self._stream.record_event()

        def wait() -> torch.Tensor:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(copied)
            # The memory must not be reused before the computation has finished with it.
            copy.record_stream(computing)
            return copy

        return wait

    def throttle(self) -> None:
        """Wait while more than two batches are unfinished on the device. Call after each batch.

        Otherwise a faster CPU would send more and more batches, whose memory stays occupied until
        they are used.
        """
        if self._stream is None:
            return
        self._events.append(torch.cuda.current_stream(self._device).record_event())
        if len(self._events) > _MAX_IN_FLIGHT:
            self._events.popleft().synchronize()

    def to_cpu(self, tensor: torch.Tensor) -> PendingTensor:
        """Start a copy to the CPU of a result that this thread has told the device to compute.

        Returns:
            A function that waits for this result, and for nothing after it, and returns the tensor.
        """
        # The output for a batch whose images are all lost is already on the CPU.
        if self._stream is None or tensor.device.type == "cpu":
            return lambda: tensor.cpu()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            copy = torch.empty_like(tensor, device="cpu", pin_memory=True)
            copy.copy_(tensor, non_blocking=True)
            tensor.record_stream(self._stream)
            copied = self._stream.record_event()

        def wait() -> torch.Tensor:
            copied.synchronize()
            return copy

        return wait

"""Tensors on their way between the processor's memory and a device's, while that device computes."""

from collections import deque
from collections.abc import Callable

import torch

_IN_FLIGHT = 2  # batches: one is computed, one waits

Arrival = Callable[[], torch.Tensor]


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the processor's on a device; on its way to an NVIDIA GPU nobody waits for what that still has to do."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Transfers:
    """Copies to and from a device: on an NVIDIA GPU from and to pinned memory, in a stream of their own, beside what it computes.

    Elsewhere a copy is made when it is asked for: a processor's tensors are where they belong, and Apple's GPU is to be used by one
    thread at a time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._given: deque[torch.cuda.Event] = deque()

    def to_device(self, tensor: torch.Tensor) -> Arrival:
        """Begin a copy, in any thread. What comes back gives it to whoever computes; it may be called once."""
        if self._stream is None or tensor.device.type == "cuda":
            return lambda: tensor.to(self._device)
        with torch.cuda.stream(self._stream):
            copy = sent(tensor, self._device)
            copied = self._stream.record_event()

        def arrived() -> torch.Tensor:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(copied)
            # its memory must not be used again before that is done with it
            copy.record_stream(computing)
            return copy

        return arrived

    def keep_up(self) -> None:
        """Call it after each batch that the device was given to compute: it waits while more than two are not done.

        Otherwise a processor that is faster would send ever more of them, and what was sent keeps its memory until it is used.
        """
        if self._stream is None:
            return
        self._given.append(torch.cuda.current_stream(self._device).record_event())
        if len(self._given) > _IN_FLIGHT:
            self._given.popleft().synchronize()

    def to_processor(self, tensor: torch.Tensor) -> Arrival:
        """Begin a copy of what this thread has given the device to compute. What comes back waits for it, and for nothing after it."""
        # The output for a batch whose images are all lost is on the processor already.
        if self._stream is None or tensor.device.type == "cpu":
            return lambda: tensor.cpu()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            copy = torch.empty_like(tensor, device="cpu", pin_memory=True)
            copy.copy_(tensor, non_blocking=True)
            tensor.record_stream(self._stream)
            copied = self._stream.record_event()

        def arrived() -> torch.Tensor:
            copied.synchronize()
            return copy

        return arrived

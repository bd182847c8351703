"""Handling of exhausted memory: the same work, with a part of the batch at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from finetune_core.errors import TrainingError, is_out_of_memory_in_network

Result = TypeVar("Result")


@contextmanager
def explain_out_of_memory(advice: str) -> Iterator[None]:
    """Turn exhausted memory within the block into a TrainingError with this advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory_in_network(error):
            raise
        raise TrainingError(f"There is not enough memory {advice}") from None


def run_halving(work: Callable[[int], Result], size: int) -> tuple[Result, int]:
    """Return ``work(size)``, with half the size for as long as memory runs out.

    Returns:
        The result, and the size that fitted.

    Raises:
        TrainingError: If not even a size of one fits.
    """
    while size > 1:
        try:
            return work(size), size
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory_in_network(error):
                raise
        # Only after the error is gone, and with it the tensors that its traceback holds.
        size = -(-size // 2)
    with explain_out_of_memory(
        "for a single image. Choose a smaller image size, or freeze more stages."
    ):
        return work(size), size


def split_parts(tensor: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """Split a batch into as few and as equal parts of at most ``size`` as possible.

    BatchNorm must not be left with a single image.
    """
    return tensor.tensor_split(max(1, -(-len(tensor) // size)))


def run_in_parts(
    forward: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, size: int
) -> tuple[torch.Tensor, int]:
    """Return ``forward(inputs)``, at most ``size`` images at a time.

    Fewer go through where memory runs out.

    Returns:
        The output, and the size that fitted.

    Raises:
        TrainingError: If not even a single image fits.
    """

    def run(size: int) -> torch.Tensor:
        outputs = [forward(part) for part in split_parts(inputs, size)]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    return run_halving(run, max(1, min(size, len(inputs))))

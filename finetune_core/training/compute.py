"""A network put on its device, and the one training step: forward, loss, backward, step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from finetune_core.errors import TrainingError
from finetune_core.models.network import Network
from finetune_core.randomness import seeded
from finetune_core.training.device import Device
from finetune_core.training.strategies import Strategy, keep_depthwise_exact


def place(network: Network, strategy: Strategy, device: Device) -> None:
    """Move a network to its device, in the memory layout and with the exceptions from bf16 that are fastest there."""
    network.model.to(device.torch_device, memory_format=torch.channels_last)
    if device.kind == "cpu" and device.precision == "bf16":
        keep_depthwise_exact(strategy, network.stages, network.model)


def train_step(
    forward: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, optimizer: torch.optim.Optimizer, device: Device, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of gradient descent on the cross-entropy.

    Args:
        forward: a network, or its tail.
        inputs, labels: one batch, on the device; ``labels`` int64 ``[n]``.
        seed: of dropout.

    Returns:
        The loss, and the logits ``[n, classes]``.

    Raises:
        TrainingError: when BatchNorm is left with a single value.
    """
    optimizer.zero_grad(set_to_none=True)
    with seeded(seed), device.autocast(), _batchnorm_in_words():
        logits = forward(inputs)
    loss = cross_entropy(logits.float(), labels)
    loss.backward()
    optimizer.step()
    return loss, logits


@contextmanager
def _batchnorm_in_words() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            "BatchNorm cannot train on a single image at this image size. Use a batch size of 2 or more, or larger images."
        ) from None

"""Layers that compute in fp32 where the rest of the network is in bf16."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from finetune_core.models.network import Network
from finetune_core.models.stages import Stage
from finetune_core.training.stage_plan import Strategy


def keep_depthwise_exact(strategy: Strategy, stages: Sequence[Stage], model: nn.Module) -> None:
    """Run the depthwise convolutions of the stages that train in fp32: in bf16 their backward pass on a processor takes longer than
    all the others together (``benchmarks/depthwise.py``)."""
    for stage, plan in zip(stages, strategy, strict=True):
        for path in () if plan.frozen else stage.modules:
            for module in model.get_submodule(path).modules():
                if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
                    vars(module)["forward"] = _without_autocast(module.forward)  # of this one, not of its class


@contextmanager
def exact_head(network: Network) -> Iterator[None]:
    """Within: a network, and each part of it, computes its head in fp32. Logits in bf16 are multiples of 1/16 from 8 to 16, so classes tie."""
    for head in network.head_layers:
        vars(head)["forward"] = _without_autocast(head.forward)
    try:
        yield
    finally:
        for head in network.head_layers:
            del vars(head)["forward"]


def _without_autocast(forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def exact(inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast(inputs.device.type, enabled=False):
            return forward(inputs.float())

    return exact

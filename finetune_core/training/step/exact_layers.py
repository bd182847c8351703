"""Layers that compute in fp32 where the rest of the network is in bf16."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from finetune_core.models.network import Network
from finetune_core.models.stages import Stage
from finetune_core.training.strategies.stage_plan import Strategy


def keep_depthwise_exact(strategy: Strategy, stages: Sequence[Stage], model: nn.Module) -> None:
    """Run the depthwise convolutions of the stages that train in fp32.

    In bf16 their backward pass on a processor takes longer than that of all other layers together
    (``benchmarks/peak.py --without depthwise``).
    """
    for stage, plan in zip(stages, strategy, strict=True):
        for path in () if plan.frozen else stage.modules:
            for module in model.get_submodule(path).modules():
                if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
                    # Of this module, not of its class.
                    vars(module)["forward"] = _disable_autocast(module.forward)


@contextmanager
def use_exact_head(network: Network) -> Iterator[None]:
    """Compute the head in fp32 within the block, in the network and each part of it.

    Logits in bf16 are multiples of 1/16 from 8 to 16, so classes tie.
    """
    with ExitStack() as stack:
        for head in network.head_layers:
            stack.enter_context(_replace_forward(head, _disable_autocast(head.forward)))
        yield


@contextmanager
def bypass_head(network: Network) -> Iterator[None]:
    """Make a network of one head output that head's inputs within the block.

    These are features ``[n, d]``. Each part of the network does so, too.
    """
    (head,) = network.head_layers
    with _replace_forward(head, lambda inputs: inputs):
        yield


@contextmanager
def _replace_forward(
    module: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Replace the forward pass of this one module, not of its class, within the block."""
    before = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
        if before is not None:
            vars(module)["forward"] = before


def _disable_autocast(
    forward: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[torch.Tensor], torch.Tensor]:
    def exact(inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast(inputs.device.type, enabled=False):
            return forward(inputs.float())

    return exact

"""Placement of a network on its device, and the training step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from finetune_core.errors import TrainingError, is_out_of_memory_in_network
from finetune_core.models.network import Network
from finetune_core.randomness import make_generator, use_generator
from finetune_core.training.devices.device import Device
from finetune_core.training.devices.out_of_memory import (
    explain_out_of_memory,
    run_halving,
    split_parts,
)
from finetune_core.training.devices.ranks import GradientSum, Ranks
from finetune_core.training.step.exact_layers import keep_depthwise_exact
from finetune_core.training.step.loss_scale import LossScale
from finetune_core.training.step.optimizers import take_step
from finetune_core.training.step.weight_gradients import slice_trained, use_products
from finetune_core.training.strategies.lora import NONE, LowRank
from finetune_core.training.strategies.stage_plan import Strategy


def place_network(network: Network, strategy: Strategy, device: Device) -> None:
    """Move a network to its device, in the memory layout that is fastest there.

    Layers with a faster or safer way to compute get that, too.
    """
    device.move_module(network.model)
    if device.kind == "cpu":
        slice_trained(strategy, network.stages, network.model)
    if device.kind == "cpu" and device.precision == "bf16":
        keep_depthwise_exact(strategy, network.stages, network.model)
        use_products(strategy, network.stages, network.model)


@dataclass(frozen=True)
class StepRule:
    """Options of a step beside forward, backward and optimizer.

    Attributes:
        label_smoothing: Share of each label that is spread over all classes (Szegedy et al. 2016).
        class_weights: ``[classes]`` on the device. None for equal weights.
        clip_norm: Largest norm of the gradient. 0 is off.
        micro_batch: Images that go through the network at a time. None for all.
        l2_sp: Strength of L2-SP (Li et al. 2018), and (parameter, its pretrained value) for each
            parameter that is pulled.
        mix: Function of (images, labels) that returns blended images and labels ``[n, classes]``.
            None to leave them as they are.
        low_rank: Factors that train in place of weights.
    """

    label_smoothing: float = 0.0
    class_weights: torch.Tensor | None = None
    clip_norm: float = 0.0
    micro_batch: int | None = None
    l2_sp: tuple[float, tuple[tuple[nn.Parameter, torch.Tensor], ...]] = (0.0, ())
    mix: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None
    low_rank: LowRank = NONE


@dataclass(frozen=True)
class SharedStep:
    """A rank's part of a step that several ranks take together.

    Attributes:
        gradients: Sum of gradients over the ranks.
        images: Number of the batch's images on each rank.
        labels: int64 ``[n]``, on the device: labels of the whole batch.
        drawn: Seed that all ranks share. How images are mixed follows from it.
        num_partners: Number of images at the end of this rank's own that only take part in mixing.
    """

    ranks: Ranks
    gradients: GradientSum
    images: Sequence[int]
    labels: torch.Tensor
    drawn: int
    num_partners: int = 0


@dataclass(frozen=True)
class StepResult:
    """Results of a step.

    Tensors stay on the device: reading one waits for everything that a GPU still has to do.

    Attributes:
        loss: Mean over the batch.
        logits: ``[n, classes]``, of this rank's images.
        gradient_norm: Norm of the gradient of all trained parameters, before clipping.
        skipped: 1 where that norm is not finite, else 0. Then neither weights nor the optimizer's
            state have changed. On Apple's GPU they have, because its kernels do not look at it.
        loss_scale: Loss scale after the step. 0 where the loss is not scaled.
        micro_batch: Images that went through the network at a time: fewer than requested where
            memory ran out.
    """

    loss: torch.Tensor
    logits: torch.Tensor
    gradient_norm: torch.Tensor
    skipped: torch.Tensor
    loss_scale: torch.Tensor
    micro_batch: int


PLAIN = StepRule()


def train_step(
    forward: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    device: Device,
    seed: int,
    rule: StepRule = PLAIN,
    scale: LossScale | None = None,
    together: SharedStep | None = None,
) -> StepResult:
    """Take one step of gradient descent on the cross-entropy, without waiting for the device.

    Where memory runs out, half as many images go through at a time, and their gradients add up to
    the same step. BatchNorm's statistics are then only those of the pass that succeeded.

    Ranks that take a step together do so alike, and are equal after it. BatchNorm normalises by the
    statistics of each rank's images. Its running statistics become the ranks' mean, weighted by
    images.

    Args:
        forward: A network, or its tail.
        inputs: One batch on the device. With ``together``: this rank's share of it.
        labels: int64 ``[n]``, on the device.
        optimizer: A fused one.
        device: The device that computes.
        seed: Seed of dropout.
        rule: Options of the step. By default all are off.
        scale: Scale of the loss in fp16. It is updated by the step.
        together: Given where several ranks take the step.

    Raises:
        TrainingError: If BatchNorm is left with a single value, or memory does not hold one image
            or the optimizer's step.
    """

    def attempt(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        optimizer.zero_grad(set_to_none=True)
        rule.low_rank.clear_gradients()
        with (
            _restore_statistics_on_error(forward),
            _fail_on_all_ranks(together, forward, optimizer),
        ):
            return _accumulate_gradients(
                forward, inputs, labels, device, seed, rule, size, scale, together
            )

    largest_share = max(together.images) if together else len(inputs)
    (loss, logits), size = run_halving(
        attempt, min(rule.micro_batch or largest_share, largest_share)
    )
    with explain_out_of_memory(
        "for the optimizer's step. Freeze more stages, or choose SGD. Then start again, or resume "
        "from the last checkpoint."
    ):
        with together.ranks.mark_broken_on_error() if together else nullcontext():
            rule.low_rank.convert_gradients()
            if together:
                _all_reduce(together, optimizer, forward, loss)
        norm, skipped = _apply_gradients(optimizer, rule, scale)
    return StepResult(
        loss, logits, norm, skipped, scale.factor.clone() if scale else torch.zeros_like(loss), size
    )


@contextmanager
def _fail_on_all_ranks(
    together: SharedStep | None, forward: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """Make a pass within the block fail on all ranks, if some lack the memory for it.

    After it all ranks have gradients of the same parameters.

    Raises:
        MemoryError: If it failed on another rank only.
    """
    if together is None:
        yield
        return
    parameters = list(forward.parameters())
    failure: BaseException | None = None
    try:
        yield
        together.gradients.reserve(
            [*_trained_parameters(optimizer), *_running_statistics(forward), torch.zeros(())]
        )
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory_in_network(error):
            raise
        failure = error
    has_gradient = None if failure else [parameter.grad is not None for parameter in parameters]
    gathered = together.ranks.all_gather(has_gradient)
    if any(value is None for value in gathered):
        try:
            raise failure or MemoryError
        finally:
            # Its traceback would hold the tensors of the pass.
            failure = None
    for parameter, is_used in zip(parameters, map(any, zip(*gathered, strict=True)), strict=True):
        # This rank has no images of the batch.
        if is_used and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def _all_reduce(
    together: SharedStep, optimizer: torch.optim.Optimizer, forward: nn.Module, loss: torch.Tensor
) -> None:
    """Replace this rank's gradients, loss and mean statistics by those of the whole batch."""
    statistics = _running_statistics(forward)
    if statistics:
        torch._foreach_mul_(statistics, together.images[together.ranks.rank] / sum(together.images))
    gradients = [
        parameter.grad for parameter in _trained_parameters(optimizer) if parameter.grad is not None
    ]
    together.gradients.all_reduce([*gradients, *statistics, loss])


def _trained_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _running_statistics(forward: nn.Module) -> list[torch.Tensor]:
    """Return the running means and variances that a pass in training mode changes."""
    norms = [
        one
        for one in forward.modules()
        if isinstance(one, nn.modules.batchnorm._NormBase) and one.training
    ]
    return [
        kept for norm in norms for kept in (norm.running_mean, norm.running_var) if kept is not None
    ]


def _apply_gradients(
    optimizer: torch.optim.Optimizer, rule: StepRule, scale: LossScale | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take the optimizer's step along the present gradients, unless they are not finite.

    Returns:
        The gradient's norm before clipping, and whether the step was skipped.
    """
    parameters = [
        p for group in optimizer.param_groups for p in group["params"] if p.grad is not None
    ]
    gradients = [parameter.grad for parameter in parameters]
    if scale:
        scale.unscale(gradients)
    _pull_back(*rule.l2_sp)
    norm = nn.utils.get_total_norm(gradients)
    if rule.clip_norm:
        nn.utils.clip_grads_with_norm_(parameters, rule.clip_norm, norm)
    is_skipped = norm.isfinite().logical_not().float()
    take_step(optimizer, is_skipped)
    rule.low_rank.merge()
    if scale:
        scale.update(is_skipped)
    return norm, is_skipped


@torch.no_grad()
def _pull_back(
    strength: float, parameters_and_starts: Sequence[tuple[nn.Parameter, torch.Tensor]]
) -> None:
    """Add the gradient of half the squared distance from the pretrained weights (L2-SP)."""
    moved = [
        (parameter, start, parameter.grad)
        for parameter, start in parameters_and_starts
        if parameter.grad is not None
    ]
    if moved:
        parameters, starts, gradients = map(list, zip(*moved, strict=True))
        torch._foreach_add_(gradients, torch._foreach_sub(parameters, starts), alpha=strength)


def _accumulate_gradients(
    forward: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    device: Device,
    seed: int,
    rule: StepRule,
    size: int,
    scale: LossScale | None,
    together: SharedStep | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Accumulate the gradients of a batch, ``size`` images at a time.

    Returns:
        The batch's loss and logits. For a rank's share of a batch: its part of the whole loss.
    """
    if not len(inputs):
        return torch.zeros((), device=device.torch_device), torch.empty(
            0, 1, device=device.torch_device
        )
    weights = rule.class_weights
    losses, logits = [], []
    generator = make_generator(seed, device.kind)
    if rule.mix:
        mix_seed = together.drawn if together else seed
        # The mixing is drawn on the processor.
        with use_generator(
            generator if device.kind == "cpu" and mix_seed == seed else make_generator(mix_seed)
        ):
            inputs, labels = rule.mix(inputs, labels)
    if together:
        inputs, labels = (mixed[: len(mixed) - together.num_partners] for mixed in (inputs, labels))
    total_weight = _total_weight(together.labels if together else labels, weights)
    for images, targets in zip(split_parts(inputs, size), split_parts(labels, size), strict=True):
        with use_generator(generator), device.autocast(), _explain_batchnorm_error():
            output = forward(images).float()
        loss = (
            cross_entropy(
                output,
                targets,
                weight=weights,
                label_smoothing=rule.label_smoothing,
                reduction="sum",
            )
            / total_weight
        )
        (loss * scale.factor if scale else loss).backward()
        losses.append(loss.detach())
        logits.append(output.detach())
    return torch.stack(losses).sum(), torch.cat(logits)


def _total_weight(labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor | int:
    """Return the total weight of a batch.

    ``labels`` are class numbers ``[n]`` or shares ``[n, classes]``.
    """
    if weights is None:
        return len(labels)
    return weights[labels].sum() if labels.ndim == 1 else (labels * weights).sum()


@contextmanager
def _restore_statistics_on_error(forward: nn.Module) -> Iterator[None]:
    """Restore BatchNorm's statistics if the pass within the block fails.

    They are what a pass in training mode changes beside gradients.
    """
    buffers = [
        buffer
        for module in forward.modules()
        if module.training
        for buffer in module.buffers(recurse=False)
    ]
    before = [torch.empty_like(buffer) for buffer in buffers]
    if buffers:
        torch._foreach_copy_(before, buffers)
    try:
        yield
    except BaseException:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        raise


@contextmanager
def _explain_batchnorm_error() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            "BatchNorm cannot train on a single image at this image size. Use a batch size of 2 or "
            "more, or larger images."
        ) from None

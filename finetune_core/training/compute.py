"""A network put on its device, and the one training step: forward, loss, backward, step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from finetune_core.errors import TrainingError, ran_out
from finetune_core.models.network import Network
from finetune_core.randomness import drawing_from, stream
from finetune_core.training.device import Device
from finetune_core.training.exact_layers import keep_depthwise_exact
from finetune_core.training.lora import NONE, LowRank
from finetune_core.training.loss_scale import LossScale
from finetune_core.training.optimizers import take_step
from finetune_core.training.out_of_memory import explained, halving, parts
from finetune_core.training.ranks import GradientSum, Ranks
from finetune_core.training.stage_plan import Strategy
from finetune_core.training.weight_gradients import slice_trained, use_products


def place(network: Network, strategy: Strategy, device: Device) -> None:
    """Move a network to its device, in the memory layout and with the exceptions that are fastest there."""
    device.hold(network.model)
    if device.kind == "cpu":
        slice_trained(strategy, network.stages, network.model)
    if device.kind == "cpu" and device.precision == "bf16":
        keep_depthwise_exact(strategy, network.stages, network.model)
        use_products(strategy, network.stages, network.model)


@dataclass(frozen=True)
class StepRule:
    """What a step does beside forward, backward and step.

    Attributes:
        label_smoothing: share of each label that is spread over all classes (Szegedy et al. 2016).
        class_weights: ``[classes]`` on the device, or None for equal ones.
        clip_norm: the longest gradient; 0 is off.
        micro_batch: images that go through the network at a time; None: all.
        l2_sp: strength of L2-SP (Li et al. 2018), and (parameter, its pretrained value) for each that is pulled.
        mix: (images, labels) -> blended images and labels ``[n, classes]``; None: they stay as they are.
        low_rank: the factors that train in place of weights.
    """

    label_smoothing: float = 0.0
    class_weights: torch.Tensor | None = None
    clip_norm: float = 0.0
    micro_batch: int | None = None
    l2_sp: tuple[float, tuple[tuple[nn.Parameter, torch.Tensor], ...]] = (0.0, ())
    mix: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None
    low_rank: LowRank = NONE


@dataclass(frozen=True)
class Together:
    """How a rank takes its part of a step.

    Attributes:
        gradients: where they are added up.
        images: how many each rank has of the batch.
        labels: int64 ``[n]``, on the device: of the whole batch.
        drawn: the seed that all ranks have in common: how images are mixed follows from it.
        partners: how many images, at the end of this rank's own, only take part in mixing.
    """

    ranks: Ranks
    gradients: GradientSum
    images: Sequence[int]
    labels: torch.Tensor
    drawn: int
    partners: int = 0


@dataclass(frozen=True)
class StepResult:
    """What came of a step; tensors stay on the device: reading one waits for all that a GPU still has to do.

    Attributes:
        loss: mean over the batch.
        logits: ``[n, classes]``, of this rank's images.
        gradient_norm: of all that trains, before clipping.
        skipped: 1 where that is not finite, else 0: then neither weights nor the optimizer's state have changed (on Apple's GPU,
            whose kernels do not look at it, they have).
        loss_scale: after the step; 0 where the loss is not scaled.
        micro_batch: images that went through the network at a time: fewer than asked where memory ran out.
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
    together: Together | None = None,
) -> StepResult:
    """One step of gradient descent on the cross-entropy. Nothing in it waits for the device.

    Where memory runs out, half as many images go through at a time, and their gradients add up to the same step. BatchNorm's
    statistics are then those of the pass that succeeded, only. Ranks that take a step together do so alike, and are equal after it:
    BatchNorm computes with the statistics of each rank's images, and its running statistics become the ranks' mean, weighted by images.

    Args:
        forward: a network, or its tail.
        inputs, labels: one batch, on the device; ``labels`` int64 ``[n]``. With ``together``: this rank's share of it.
        optimizer: a fused one.
        seed: of dropout.
        scale: of the loss, in fp16; it learns from the step.
        together: where several ranks take the step.

    Raises:
        TrainingError: when BatchNorm is left with a single value, or memory holds not even one image, or not the optimizer's step.
    """

    def attempt(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        optimizer.zero_grad(set_to_none=True)
        rule.low_rank.forget_gradients()
        with _statistics_kept_if_it_fails(forward), _agreed(together, forward, optimizer):
            return _accumulated(forward, inputs, labels, device, seed, rule, size, scale, together)

    most = max(together.images) if together else len(inputs)
    (loss, logits), size = halving(attempt, min(rule.micro_batch or most, most))
    with explained(
        "for the optimizer's step. Freeze more stages, or choose SGD. Then start again, or resume from the last checkpoint."
    ):
        with together.ranks.breaking_off() if together else nullcontext():
            rule.low_rank.take_gradients()
            if together:
                _add_up(together, optimizer, forward, loss)
        norm, skipped = _descend(optimizer, rule, scale)
    return StepResult(
        loss, logits, norm, skipped, scale.factor.clone() if scale else torch.zeros_like(loss), size
    )


@contextmanager
def _agreed(
    together: Together | None, forward: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """Within: a pass that some ranks have no memory for fails on all of them. After it all have gradients of the same parameters.

    Raises:
        MemoryError: where it failed on another rank only.
    """
    if together is None:
        yield
        return
    parameters = list(forward.parameters())
    failed: BaseException | None = None
    try:
        yield
        together.gradients.reserve([*_trained(optimizer), *_statistics(forward), torch.zeros(())])
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        failed = error
    has_gradient = None if failed else [parameter.grad is not None for parameter in parameters]
    words = together.ranks.meet(has_gradient)
    if any(word is None for word in words):
        try:
            raise failed or MemoryError
        finally:
            failed = None  # with its traceback it would hold the tensors of the pass
    for parameter, found in zip(parameters, map(any, zip(*words, strict=True)), strict=True):
        if found and parameter.grad is None:  # a rank that has no images of this batch
            parameter.grad = torch.zeros_like(parameter)


def _add_up(
    together: Together, optimizer: torch.optim.Optimizer, forward: nn.Module, loss: torch.Tensor
) -> None:
    """Put the whole batch's gradients, loss and mean statistics in the place of this rank's."""
    statistics = _statistics(forward)
    if statistics:
        torch._foreach_mul_(statistics, together.images[together.ranks.rank] / sum(together.images))
    gradients = [parameter.grad for parameter in _trained(optimizer) if parameter.grad is not None]
    together.gradients.add_up([*gradients, *statistics, loss])


def _trained(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _statistics(forward: nn.Module) -> list[torch.Tensor]:
    """Running means and variances that a pass in training mode moves."""
    norms = [
        one
        for one in forward.modules()
        if isinstance(one, nn.modules.batchnorm._NormBase) and one.training
    ]
    return [
        kept for norm in norms for kept in (norm.running_mean, norm.running_var) if kept is not None
    ]


def _descend(
    optimizer: torch.optim.Optimizer, rule: StepRule, scale: LossScale | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The optimizer's step along the gradients that are there, unless they are not finite; their norm before clipping, and whether
    it was skipped."""
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
    skipped = norm.isfinite().logical_not().float()
    take_step(optimizer, skipped)
    rule.low_rank.merge()
    if scale:
        scale.update(skipped)
    return norm, skipped


@torch.no_grad()
def _pull_back(strength: float, pulled: Sequence[tuple[nn.Parameter, torch.Tensor]]) -> None:
    """L2-SP: add the gradient of half the squared distance from the pretrained weights."""
    moving = [
        (parameter, start, parameter.grad)
        for parameter, start in pulled
        if parameter.grad is not None
    ]
    if moving:
        parameters, starts, gradients = map(list, zip(*moving, strict=True))
        torch._foreach_add_(gradients, torch._foreach_sub(parameters, starts), alpha=strength)


def _accumulated(
    forward: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    device: Device,
    seed: int,
    rule: StepRule,
    size: int,
    scale: LossScale | None,
    together: Together | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the batch, ``size`` images at a time; its loss and logits. Of a rank's share: what they add to those of the whole."""
    if not len(inputs):
        return torch.zeros((), device=device.torch_device), torch.empty(
            0, 1, device=device.torch_device
        )
    weights = rule.class_weights
    losses, logits = [], []
    chance = stream(seed, device.kind)
    if rule.mix:
        common = together.drawn if together else seed
        # How images are mixed is drawn on the processor.
        with drawing_from(chance if device.kind == "cpu" and common == seed else stream(common)):
            inputs, labels = rule.mix(inputs, labels)
    if together:
        inputs, labels = (mixed[: len(mixed) - together.partners] for mixed in (inputs, labels))
    whole = _weight(together.labels if together else labels, weights)
    for some, targets in zip(parts(inputs, size), parts(labels, size), strict=True):
        with drawing_from(chance), device.autocast(), _batchnorm_in_words():
            output = forward(some).float()
        loss = (
            cross_entropy(
                output,
                targets,
                weight=weights,
                label_smoothing=rule.label_smoothing,
                reduction="sum",
            )
            / whole
        )
        (loss * scale.factor if scale else loss).backward()
        losses.append(loss.detach())
        logits.append(output.detach())
    return torch.stack(losses).sum(), torch.cat(logits)


def _weight(labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor | int:
    """What a batch counts in all; ``labels`` are class numbers ``[n]``, or shares ``[n, classes]``."""
    if weights is None:
        return len(labels)
    return weights[labels].sum() if labels.ndim == 1 else (labels * weights).sum()


@contextmanager
def _statistics_kept_if_it_fails(forward: nn.Module) -> Iterator[None]:
    """Within: what a pass in training mode changes beside gradients (BatchNorm's statistics) is put back if the pass fails."""
    changing = [
        buffer
        for module in forward.modules()
        if module.training
        for buffer in module.buffers(recurse=False)
    ]
    before = [torch.empty_like(buffer) for buffer in changing]
    if changing:
        torch._foreach_copy_(before, changing)
    try:
        yield
    except BaseException:
        for buffer, value in zip(changing, before, strict=True):
            buffer.copy_(value)
        raise


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

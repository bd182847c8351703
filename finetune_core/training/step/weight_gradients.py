"""Weight gradients of convolutions on a processor, where oneDNN's own kernel is slow or wrong.

- Wide convolutions in bf16: one product of matrices. oneDNN takes longer, most of all where other
  programs use the same cores (``benchmarks/peak.py --without products``).
- Strided 1 × 1 convolutions of few channels: the images are sliced first. oneDNN writes out of
  bounds (github.com/uxlfoundation/oneDNN/issues/6035).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.nn.functional import conv2d, pad

from finetune_core.models.stages import Stage
from finetune_core.training.devices.device import Forward
from finetune_core.training.strategies.stage_plan import Strategy

# Smallest number of output channels. With fewer, copying the patches takes longer than the product
# saves.
_CHANNELS = 512
# Largest number of elements in the patches of a batch.
_LARGEST = 1 << 26
# Number of float32 in an AVX-512 register. With AVX2 the faulty kernel needs fewer than 8.
_FEW_CHANNELS = 16


def use_products(strategy: Strategy, stages: Sequence[Stage], model: nn.Module) -> None:
    """Compute the weights' gradient of wide convolutions as a product, wherever autocast is on.

    This applies to the stages that train.
    """
    for module in _trained_modules(strategy, stages, model):
        if _is_plain(module) and _gains_from_product(module):
            # Of this module, not of its class.
            vars(module)["forward"] = _make_product_forward(module)


def slice_trained(strategy: Strategy, stages: Sequence[Stage], model: nn.Module) -> None:
    """Apply ``slice_before_convolution`` to the stages that train."""
    slice_before_convolution(_trained_modules(strategy, stages, model))


def slice_before_convolution(modules: Iterable[nn.Module]) -> None:
    """Replace strided 1 × 1 convolutions of few channels by slicing and a convolution of stride 1.

    The output is the same, and the faulty kernel for the weights' gradient is not used. Only passes
    that compute this gradient change.
    """
    for module in modules:
        if _is_plain(module) and _is_faulty(module):
            vars(module)["forward"] = _make_sliced_forward(module)


def _trained_modules(
    strategy: Strategy, stages: Sequence[Stage], model: nn.Module
) -> Iterator[nn.Module]:
    for stage, plan in zip(stages, strategy, strict=True):
        for path in () if plan.frozen else stage.modules:
            yield from model.get_submodule(path).modules()


def _is_plain(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Return whether a module convolves with its own weight: subclasses may standardise it."""
    return isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward


def _gains_from_product(module: nn.Conv2d) -> bool:
    return (
        module.out_channels >= _CHANNELS
        and module.kernel_size[0] * module.kernel_size[1] > 1
        and (module.groups, module.dilation, module.bias) == (1, (1, 1), None)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def _is_faulty(module: nn.Conv2d) -> bool:
    return (
        module.in_channels < _FEW_CHANNELS
        and (module.kernel_size, module.groups) == ((1, 1), 1)
        and max(module.stride) > 1
        and module.padding in ((0, 0), "valid")
    )


def _make_sliced_forward(module: nn.Conv2d) -> Forward:
    plain: Forward = module.forward

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        if not (torch.is_grad_enabled() and module.weight.requires_grad):
            return plain(inputs)
        down, right = module.stride
        return conv2d(inputs[..., ::down, ::right], module.weight, module.bias)

    return forward


def _make_product_forward(module: nn.Conv2d) -> Forward:
    plain: Forward = module.forward

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        if not (
            torch.is_autocast_enabled("cpu")
            and torch.is_grad_enabled()
            and module.weight.requires_grad
        ):
            return plain(inputs)
        dtype = torch.get_autocast_dtype("cpu")
        arguments = inputs.to(dtype), module.weight.to(dtype), module.stride, module.padding
        output: torch.Tensor = _Convolution.apply(*arguments)  # type: ignore[no-untyped-call]
        return output

    return forward


class _Convolution(torch.autograd.Function):
    """A convolution without groups, dilation and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.stride, ctx.padding = stride, padding
        return conv2d(inputs, weight, None, stride, padding)

    @staticmethod
    def backward(
        ctx: Any, *gradients: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        (gradient,), (inputs, weight) = gradients, ctx.saved_tensors
        fits = gradient[:, 0].numel() * weight[0].numel() <= _LARGEST
        output_mask = [ctx.needs_input_grad[0], not fits, False]
        input_gradient, weight_gradient = None, None
        if any(output_mask):
            input_gradient, weight_gradient, _ = torch.ops.aten.convolution_backward(
                gradient,
                inputs,
                weight,
                None,
                ctx.stride,
                ctx.padding,
                (1, 1),
                False,
                (0, 0),
                1,
                output_mask,
            )
        if fits:
            weight_gradient = _compute_product(gradient, inputs, weight, ctx.stride, ctx.padding)
        return input_gradient, weight_gradient, None, None


def _compute_product(
    gradient: torch.Tensor,
    inputs: torch.Tensor,
    weight: torch.Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> torch.Tensor:
    """Compute the gradient of a convolution's weight as a product of matrices.

    It is the gradient of the output ``[n, out, h, w]`` times the patches of the inputs ``[n, in,
    …]`` that made each of its positions.

    Returns:
        ``[out, in, k, k]``, in channels_last order as the weights are held.
    """
    (count, outputs, height, width), (_, channels, rows, columns) = gradient.shape, weight.shape
    (down, right), (above, left) = stride, padding
    padded = pad(inputs.permute(0, 2, 3, 1), (0, 0, left, left, above, above))
    image, row, column, channel = padded.stride()
    shape = (count, height, width, rows, columns, channels)
    patches = padded.as_strided(shape, (image, down * row, right * column, row, column, channel))
    product = gradient.transpose(0, 1).reshape(outputs, -1) @ patches.reshape(
        count * height * width, -1
    )
    return product.view(outputs, rows, columns, channels).permute(0, 3, 1, 2)

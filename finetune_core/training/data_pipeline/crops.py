"""Crops of a whole batch, each with its own box, resized in one call.

On a GPU, starting a kernel per image takes longer than computing it.

The result equals, bit for bit, what torch makes of one uint8 image after the other on a processor
with vector instructions. Its resizing (antialiased, bilinear, first along rows, then along columns)
multiplies by integers and rounds after each direction. Integers below 2²⁴ are exact in float32,
too, in any order of summation. Sums stay below while crops are reduced at most four times. Beyond
that they are computed in float64.
"""

import math

import torch

_LARGEST_WEIGHT = 2**15 - 0.5
# Weights add up to 2¹⁶ at most, so sums over uint8 pixels stay below 2²⁴.
_FLOAT32_REDUCTION = 4


def crop_and_resize(images: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
    """Crop and resize uint8 ``[n, 3, side, side]`` to uint8 ``[n, 3, size, size]``.

    Args:
        images: uint8 ``[n, 3, side, side]``.
        boxes: int64 ``[n, 4]``: top, left, height, width. On the images' device.
        size: Side of the result, pixels.
    """
    count, channels, side, _ = images.shape
    top, left, height, width = boxes.unbind(1)
    # Apple's GPU has no float64, so a pixel may be off by one there.
    reduced = side > _FLOAT32_REDUCTION * size and images.device.type != "mps"
    dtype = torch.float64 if reduced else torch.float32
    pixels = images.to(dtype, memory_format=torch.contiguous_format)
    across, unit = (one.to(dtype) for one in _resize_weights(left, width, size, side))
    pixels = _divide_and_round(pixels.flatten(1, 2) @ across.mT, unit).view(
        count, channels, side, size
    )
    down, unit = (one.to(dtype) for one in _resize_weights(top, height, size, side))
    return _divide_and_round(down[:, None] @ pixels, unit[:, None]).to(torch.uint8)


def _resize_weights(
    start: torch.Tensor, length: torch.Tensor, size: int, side: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weight of each of ``side`` pixels in each of ``size`` resized ones.

    Returns:
        Integers, float32 ``[n, size, side]``; and their sum but for rounding, ``[n, 1, 1]``.
    """
    # Without float64 on Apple's GPU, weights may be off by one.
    dtype = torch.float32 if start.device.type == "mps" else torch.float64
    start, length = start[:, None], length[:, None]
    scale = length.to(dtype) / size
    reach = scale.clamp(min=1)
    centre = scale * (torch.arange(size, dtype=dtype, device=start.device) + 0.5)
    taps = min(side, 2 * math.ceil(max(1, side / size)) + 1)
    first = (start + (centre - reach + 0.5).long().clamp(min=0)).clamp(max=side - taps)
    pixel = first[..., None] + torch.arange(taps, device=start.device)
    inside = pixel - start[..., None]
    weight = (1 - ((inside - centre[..., None] + 0.5) * (1 / reach)[..., None]).abs()).clamp(min=0)
    weight = weight * ((inside >= 0) & (inside < length[..., None]))
    weight = weight / weight.sum(-1, keepdim=True)
    scale_unit = (_LARGEST_WEIGHT / weight.amax((1, 2), keepdim=True)).log2().floor().exp2().round()
    weights = torch.zeros((len(start), size, side), device=start.device)
    weights.scatter_(2, pixel, (weight * scale_unit + 0.5).floor().float())
    return weights, scale_unit.float()


def _divide_and_round(sums: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    return sums.add_(unit / 2).div_(unit).floor_()

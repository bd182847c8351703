"""Tests that crops of a whole batch are those of single images."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from finetune_core.training.data_pipeline.batches import augment
from finetune_core.training.data_pipeline.crops import crop_and_resize

VECTORISED = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def one_by_one(images, boxes, size):
    return torch.stack(
        [
            F.resized_crop(image, *box, [size, size])
            for image, box in zip(images, boxes.tolist(), strict=True)
        ]
    )


def every_kind_of_box(side):
    """Return the whole image, corners, the extremes of augmentation, one pixel, and others."""
    half = int(side / 2**0.5)
    long, short = int(side * (2 / 3) ** 0.5), int(side * (3 / 8) ** 0.5)
    boxes = [
        (0, 0, side, side),
        (0, 0, half, half),
        (side - half, side - half, half, half),
        (side - long, 1, long, short),
    ]
    boxes += [(side - short, side - long, short, long), (side - 1, 0, 1, 1), (0, side - 1, side, 1)]
    random = np.random.default_rng(side)
    lengths = random.integers(1, side + 1, (12, 2))
    starts = (random.random((12, 2)) * (side - lengths + 1)).astype(int)
    return torch.from_numpy(np.concatenate([boxes, np.concatenate([starts, lengths], axis=1)]))


@pytest.mark.parametrize(
    ("side", "size"),
    [(256, 224), (37, 32), (64, 64), (32, 96), (9, 8), (300, 16)],
)
@pytest.mark.parametrize("texture", ["noise", "edges", "ramp"])
def test_a_batch_at_once_is_the_same_to_the_bit_as_one_image_after_the_other(side, size, texture):
    boxes = every_kind_of_box(side)
    generator = torch.Generator().manual_seed(side)
    images = torch.randint(
        0, 256, (len(boxes), side, side, 3), dtype=torch.uint8, generator=generator
    )
    if texture == "edges":
        images = (images > 127).byte() * 255
    elif texture == "ramp":
        images = (
            (torch.arange(side)[:, None, None] * 255 // side + images % 3)
            .clamp(max=255)
            .byte()
            .expand_as(images)
        )
    images = images.permute(0, 3, 1, 2)
    wanted, found = one_by_one(images, boxes, size), crop_and_resize(images, boxes, size)
    assert found.dtype == torch.uint8
    differing = (wanted.int() - found.int()).abs()
    # without vector instructions torch's resizing computes in float
    assert differing.max() <= (0 if VECTORISED else 1)


def test_elsewhere_than_on_a_processor_a_batch_is_cropped_at_once():
    images = torch.empty(5, 3, 37, 37, dtype=torch.uint8, device="meta")
    seen = augment(images, "random_resized_crop", np.arange(5, dtype=np.uint64), 0, 0, 32)
    assert (seen.device.type, seen.dtype, seen.shape) == ("meta", torch.uint8, (5, 3, 32, 32))

"""The images of each step, and how the network sees them.

Order and augmentation are functions of (seed, epoch, sample id), not of a generator's state. So a
run that is repeated or resumed sees the same data.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torchvision.transforms.v2 import functional as F

from finetune_core.config import Augmentation
from finetune_core.errors import is_out_of_memory
from finetune_core.training.data_pipeline.crops import crop_and_resize
from finetune_core.training.devices.out_of_memory import explain_out_of_memory
from finetune_core.transfers import copy_to_device

Batch = TypeVar("Batch")

TOO_LARGE_A_BATCH = "for a batch of images. Choose a smaller batch size or image size."

_SMALLEST_CROP = 0.5  # share of the image's area
_WIDEST_ASPECT = 4 / 3


def sample_keys(ids: Iterable[str]) -> np.ndarray:
    """Return one uint64 for each sample id, the same on every machine."""
    digests = (
        hashlib.blake2b(sample.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        for sample in ids
    )
    return np.frombuffer(b"".join(digests), dtype="<u8")


def draw_uniform(keys: np.ndarray, seed: int, epoch: int, draw: int) -> np.ndarray:
    """Return float64 ``[n]`` in 0…1, one for each key.

    These are SplitMix64's finaliser (Steele et al. 2014) over (key, seed, epoch, draw).
    """
    with np.errstate(over="ignore"):
        mixed = keys.astype(np.uint64)
        for part in (seed, epoch, draw):
            mixed = (
                mixed
                + np.uint64(part) * np.uint64(0x9E3779B97F4A7C15)
                + np.uint64(0x9E3779B97F4A7C15)
            )
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed = mixed ^ (mixed >> np.uint64(31))
    return (mixed >> np.uint64(11)) * 2.0**-53


def make_epoch_batches(
    indices: np.ndarray, keys: np.ndarray, batch_size: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """Return the shuffled batches of an epoch.

    A last batch of one image joins the batch before it: BatchNorm cannot train on a single image.
    """
    return _cut_batches(
        indices[np.argsort(draw_uniform(keys[indices], seed, epoch, 0), kind="stable")], batch_size
    )


def take_subset(
    indices: np.ndarray, labels: np.ndarray, keys: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """Return a share of each class, at least one image of it.

    A larger share holds a smaller one. ``indices`` keep their order.
    """
    if fraction >= 1:
        return indices
    uniform = draw_uniform(keys[indices], seed, 0, 6)
    is_kept = np.zeros(len(indices), dtype=bool)
    for label in np.unique(labels[indices]):
        members = np.flatnonzero(labels[indices] == label)
        is_kept[
            members[
                np.argsort(uniform[members], kind="stable")[
                    : max(1, round(fraction * len(members)))
                ]
            ]
        ] = True
    return indices[is_kept]


def make_balanced_batches(
    indices: np.ndarray,
    labels: np.ndarray,
    keys: np.ndarray,
    batch_size: int,
    seed: int,
    epoch: int,
) -> list[np.ndarray]:
    """Return the batches of an epoch with equally many images of each class (±1).

    They hold as many images as there are. Images of small classes come several times, and only some
    of large classes. Over the epochs each image of a class comes as often as any other.
    """
    classes = np.unique(labels[indices])
    chosen, order_keys = [], []
    for position, label in enumerate(classes):
        members = indices[labels[indices] == label]
        quota = len(indices) // len(classes) + (position < len(indices) % len(classes))
        for turn in range(-(-quota // len(members))):
            with np.errstate(over="ignore"):
                turn_keys = keys[members] + np.uint64(turn) * np.uint64(0xD1B54A32D192ED03)
            order = np.argsort(draw_uniform(turn_keys, seed, epoch, 7), kind="stable")[
                : quota - turn * len(members)
            ]
            chosen.append(members[order])
            order_keys.append(draw_uniform(turn_keys[order], seed, epoch, 0))
    return _cut_batches(
        np.concatenate(chosen)[np.argsort(np.concatenate(order_keys), kind="stable")], batch_size
    )


def split_batches(indices: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut ``indices`` into batches."""
    return [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]


def prefetch(
    make: Callable[[np.ndarray], Batch], batches: Sequence[np.ndarray], ahead: int = 1
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield (indices, make(indices)) for each batch, and make the next ones ahead of time.

    Where memory has no room for them, each batch is made when it is needed.

    Args:
        make: Function of a batch's indices that returns the batch. It runs in a thread of its own.
        batches: Indices of each batch.
        ahead: How many batches to make ahead.

    Raises:
        TrainingError: If memory does not even hold a batch by itself.
    """
    with ThreadPoolExecutor(
        1, thread_name_prefix="batch", initializer=disable_helper_threads
    ) as pool:
        futures = deque(pool.submit(make, indices) for indices in batches[:ahead])
        for position, indices in enumerate(batches):
            if ahead:
                try:
                    batch = futures.popleft().result()
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    ahead = 0
                    # Batches that are made already take memory, too.
                    futures.clear()
            if not ahead:
                with explain_out_of_memory(TOO_LARGE_A_BATCH):
                    batch = pool.submit(make, indices).result()
            elif position + ahead < len(batches):
                futures.append(pool.submit(make, batches[position + ahead]))
            yield indices, batch
            # Free this batch before the next one is made.
            del batch


def disable_helper_threads() -> None:
    """Let this thread compute without helper threads.

    Two teams of threads on the same cores wait for each other more than they compute.
    ``torch.set_num_threads`` would also give one thread to any thread of the process that uses
    torch for the first time meanwhile.
    """
    # A thread's first use of torch would overwrite a limit that was set before.
    torch.get_num_threads()
    ThreadpoolController().limit(limits=1, user_api="openmp")


def augment(
    images: torch.Tensor, kind: Augmentation, keys: np.ndarray, seed: int, epoch: int, size: int
) -> torch.Tensor:
    """Augment training images as this epoch sees them.

    Args:
        images: uint8 ``[n, 3, side, side]``.
        kind: The augmentation. With ``none``, the centre is cropped, without a flip.
        keys: uint64 ``[n]``, from the sample ids.
        seed: Seed of the run.
        epoch: Number of the epoch or of the augmented version.
        size: Side of the result, pixels.

    Returns:
        uint8 ``[n, 3, size, size]``.
    """
    if kind == "none":
        return center_crop(images, size)
    flip = copy_to_device(torch.from_numpy(draw_uniform(keys, seed, epoch, 1) < 0.5), images.device)
    if kind == "flips":
        images = center_crop(images, size)
    else:
        boxes = _draw_boxes(images.shape[-1], keys, seed, epoch)
        images = _crop(images, boxes, size)
    return torch.where(flip[:, None, None, None], F.horizontal_flip(images), images)


def center_crop(images: torch.Tensor, size: int) -> torch.Tensor:
    """Return the centre crop ``[n, 3, size, size]``.

    Validation sees it, and so does training without augmentation.
    """
    cropped: torch.Tensor = F.center_crop(images, [size, size])
    return cropped


def normalize(
    images: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    layout: torch.memory_format = torch.channels_last,
) -> torch.Tensor:
    """Convert uint8 ``[n, 3, s, s]`` to float32, normalised by ``mean`` and ``std``."""
    # Normalize would convert a list to tensors that a GPU waits for.
    values = copy_to_device(torch.tensor([list(mean), list(std)]), images.device)
    pixels: torch.Tensor = F.normalize(F.to_dtype(images, torch.float32, scale=True), *values)
    return pixels.contiguous(memory_format=layout)


def _crop(images: torch.Tensor, boxes: np.ndarray, size: int) -> torch.Tensor:
    """Resize each image's box, to the same pixels on every device.

    Images go one by one on a processor, where that is ten times faster, and all at once elsewhere.
    """
    if images.device.type != "cpu" or not len(images):
        return crop_and_resize(images, copy_to_device(torch.from_numpy(boxes), images.device), size)
    return torch.stack(
        [
            F.resized_crop(image, *box, [size, size])
            for image, box in zip(images, boxes.tolist(), strict=True)
        ]
    )


def _draw_boxes(side: int, keys: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return int64 ``[n, 4]``: top, left, height, width.

    Area and aspect as in Szegedy et al. 2015, but milder: half the area at least.
    """
    area = (
        side * side * (_SMALLEST_CROP + (1 - _SMALLEST_CROP) * draw_uniform(keys, seed, epoch, 2))
    )
    aspect = np.exp(np.log(_WIDEST_ASPECT) * (2 * draw_uniform(keys, seed, epoch, 3) - 1))
    height = np.clip(np.rint(np.sqrt(area / aspect)), 1, side).astype(int)
    width = np.clip(np.rint(np.sqrt(area * aspect)), 1, side).astype(int)
    top = np.floor((side - height + 1) * draw_uniform(keys, seed, epoch, 4)).astype(int)
    left = np.floor((side - width + 1) * draw_uniform(keys, seed, epoch, 5)).astype(int)
    return np.stack([top, left, height, width], axis=1)


def _cut_batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    batches = split_batches(order, batch_size)
    if len(batches) > 1 and len(batches[-1]) == 1 and batch_size > 1:
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches

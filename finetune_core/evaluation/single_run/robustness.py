"""Robustness of a run: its accuracy on corrupted images of a split."""

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import torch

from finetune_core.data.decode import Resize, read_square
from finetune_core.data.threads import map_in_threads
from finetune_core.errors import ImageError, RunError
from finetune_core.evaluation.prediction.predictor import Predictor, load_predictor
from finetune_core.evaluation.run_images import resolve_run_image
from finetune_core.evaluation.single_run.corruptions import corrupt, list_corruptions
from finetune_core.evaluation.single_run.evaluate import evaluation
from finetune_core.evaluation.single_run.robustness_files import Robustness, save_robustness
from finetune_core.runs.store import Run
from finetune_core.training.compile.compiler import Compiler
from finetune_core.training.data_pipeline.batches import center_crop, normalize
from finetune_core.training.devices.device import Device, Forward
from finetune_core.training.devices.turn import run_on_idle_device
from finetune_core.training.predictions import FINAL_PRECISION, predictions_mtime
from finetune_core.work import Step, Work

MOST_IMAGES = 200
_BATCH = 32


def measure_robustness(
    run: Run, split: str, seed: int = 0, roots: Sequence[Path] = ()
) -> Work[Robustness]:
    """Predict corrupted images of a split, and store the predictions in the run directory.

    An idle GPU is used if there is one.

    Args:
        run: the run.
        split: the split.
        seed: seed of the sample of images and of the corruptions.
        roots: if given, images outside of these folders are refused.

    Yields:
        Steps that count predictions.

    Raises:
        FinetuneError: if there is no network, there are no predictions, or no image can be read any
            more.
    """
    return (
        yield from run_on_idle_device(partial(_measure, run, split, seed, roots), FINAL_PRECISION)
    )


def _measure(
    run: Run, split: str, seed: int, roots: Sequence[Path], device: Device
) -> Work[Robustness]:
    changed = predictions_mtime(run.run_dir)
    predictor = load_predictor(run, device)
    ids, squares, labels = _load_sample(run, predictor, split, seed, roots)
    ways = list_corruptions(split)
    logits: list[np.ndarray] = []
    total = len(ways) * len(squares)
    with Compiler(predictor.device, total, _BATCH) as compiler:
        forward = compiler.forward(predictor.part)
        for position, which in enumerate(ways):
            batches = []
            for start in range(0, len(squares), _BATCH):
                batch = squares[start : start + _BATCH]
                batches.append(
                    _compute_logits(predictor, forward, corrupt(batch, which, seed + start))
                )
                yield Step(position * len(squares) + start + len(batch), total)
            logits.append(np.concatenate(batches))
    return save_robustness(run, split, ids, labels, logits, changed)


def _load_sample(
    run: Run, predictor: Predictor, split: str, seed: int, roots: Sequence[Path]
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Load a sample of the images of a split; missing or damaged images are skipped.

    Returns:
        Ids, uint8 ``[n, side, side, 3]``, and labels.
    """
    rows = evaluation(run, split).predictions.sort_values("id")
    chosen = rows.sample(min(MOST_IMAGES, len(rows)), random_state=seed)
    resize = predictor.network.info.get_resize(predictor.image_size)
    ids, squares, labels = [], [], []
    with closing(
        map_in_threads(
            lambda row: _read_square(resolve_run_image(run, row[0], roots), resize),
            list(zip(chosen["id"], chosen["label"], strict=True)),
        )
    ) as read:
        for (sample, label), square in read:
            if square is not None:
                ids.append(sample)
                squares.append(square)
                labels.append(label)
    if not squares:
        raise RunError(f"None of the images in {run.config.data} can be read any more.")
    return ids, np.stack(squares), np.array(labels)


def _read_square(path: Path, resize: Resize) -> np.ndarray | None:
    try:
        return read_square(path, resize)
    except ImageError:
        return None


def _compute_logits(predictor: Predictor, forward: Forward, squares: np.ndarray) -> np.ndarray:
    """Return float32 ``[n, classes]``; preprocessing is as in validation."""
    info = predictor.network.info
    images = center_crop(torch.from_numpy(squares).permute(0, 3, 1, 2), predictor.image_size)
    with torch.no_grad(), predictor.device.autocast():
        logits = forward(predictor.device.move_inputs(normalize(images, info.mean, info.std)))
    array: np.ndarray = logits.float().cpu().numpy()
    return array

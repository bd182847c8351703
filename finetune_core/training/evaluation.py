"""Predictions of a network for a split, and the final evaluation.

The final evaluation is of a run's best checkpoint in fp32, as Predict and the exports compute.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from finetune_core.data.splits import TEST, VAL
from finetune_core.errors import TrainingError
from finetune_core.training.device import Device
from finetune_core.training.events import Event, Progress
from finetune_core.training.exact_layers import use_exact_head
from finetune_core.training.feeding import Forward, copy_to_processor, pad_batch
from finetune_core.training.job import Job
from finetune_core.training.lost import LostImages
from finetune_core.training.networks import best_network
from finetune_core.training.out_of_memory import run_in_parts
from finetune_core.training.predictions import (
    FINAL_PRECISION,
    load_predictions,
    prediction_table,
    predictions_precision,
    save_predictions,
)
from finetune_core.training.prepare import EVENT_SECONDS, make_exact_job
from finetune_core.training.strategies import epochs_of


@dataclass(frozen=True)
class FinalEvaluation:
    """Results of the best epoch in fp32.

    Accuracies are 0…1, the loss is the mean cross-entropy in nats. ``test_accuracy`` is None
    without a test split.
    """

    val_accuracy: float
    val_loss: float
    test_accuracy: float | None
    seconds: float


@torch.no_grad()
def logits_of(model: Forward, inputs: torch.Tensor, device: Device) -> np.ndarray:
    """Return the logits of a network in eval mode, or of its tail: float32 ``[n, classes]``.

    They are computed in the device's precision.
    """
    return compute_logits_in_parts(model, inputs, device, len(inputs))[0].cpu().numpy()


@torch.no_grad()
def compute_logits_in_parts(
    model: Forward, inputs: torch.Tensor, device: Device, size: int
) -> tuple[torch.Tensor, int]:
    """Compute logits on the device, at most ``size`` images at a time.

    Fewer go through where memory runs out.

    Returns:
        The logits, still on the device, and how many images fitted.
    """
    with device.autocast():
        return run_in_parts(lambda images: model(device.take(images)).float(), inputs, size)


def predict_splits(
    job: Job, splits: Sequence[str], phase: str, lost: LostImages, *, pad: bool = False
) -> Generator[Event, None, tuple[np.ndarray, np.ndarray]]:
    """Predict the readable images of some splits.

    They are computed in the run's precision, but the head in fp32. Each rank predicts a share, and
    all ranks get all.

    Args:
        pad: Compute batches of one size only, as the cached trunk's output is computed.

    Returns:
        Rows int ``[n]``, in the table's order within each split, and logits float32 ``[n,
        classes]``.

    Raises:
        TrainingError: If none of a split's images can be read, or too many are lost.
    """
    job.network.model.eval()
    mine: list[tuple[np.ndarray, np.ndarray]] = []
    reported, total = time.monotonic(), sum(len(job.rows[split]) for split in splits)
    for rows, logits in copy_to_processor(_compute_batches(job, splits, pad), job.device):
        # Several ranks report together, below.
        if not job.ranks.several:
            yield from lost.report(job.lost)
        if len(rows):
            mine.append((rows, logits.numpy()))
        if time.monotonic() - reported >= EVENT_SECONDS:
            reported = time.monotonic()
            yield Progress(
                phase, min(total, job.ranks.world * sum(len(rows) for rows, _ in mine)), total
            )
    words = job.ranks.meet((mine, job.lost))
    yield from lost.report({row: reason for _, gone in words for row, reason in gone.items()})
    answers = _sort_batches(job, splits, [answer for found, _ in words for answer in found])
    answered = np.concatenate([rows for rows, _ in answers]) if answers else np.empty(0, int)
    for split in splits:
        if not np.isin(job.rows[split], answered).any():
            raise TrainingError(
                f"None of the {split} images can be read any more. Put them back and resume the "
                "run."
            )
    return answered, np.concatenate([logits for _, logits in answers])


def _sort_batches(
    job: Job, splits: Sequence[str], answers: Sequence[tuple[np.ndarray, np.ndarray]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sort the batches of all ranks as a single rank would have computed them."""
    order = {
        int(row): place
        for place, row in enumerate(np.concatenate([job.rows[split] for split in splits]))
    }
    return sorted(answers, key=lambda answer: order[int(answer[0][0])])


def _compute_batches(
    job: Job, splits: Sequence[str], pad: bool
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Yield rows and their logits on the device, batch by batch.

    A batch whose images are all lost has no rows.
    """
    size = job.evaluation_batch
    for split in splits:
        for rows, inputs in job.evaluation_inputs(split):
            logits = torch.empty(0)
            if len(rows):
                given = pad_batch(inputs, size) if pad else inputs
                with use_exact_head(job.network):
                    logits, size = compute_logits_in_parts(job.forward, given, job.device, size)
            yield rows, logits[: len(rows)]


def make_prediction_table(job: Job, rows: np.ndarray, logits: np.ndarray) -> pd.DataFrame:
    """Return rows of a run's table of predictions (``prediction_table``)."""
    table = job.dataset.table
    return prediction_table(
        table["id"].iloc[rows], table["split"].to_numpy()[rows], job.labels[rows], logits
    )


def evaluate_best(
    job: Job, run_dir: Path, lost: LostImages
) -> Generator[Event, None, FinalEvaluation]:
    """Evaluate the best checkpoint in fp32 on the validation and test images.

    ``predictions.parquet`` then holds just these predictions. The best epoch was chosen by the
    numbers of the run while it trained, which may be in bf16. Where those are in fp32, the
    validation images' predictions are exact already and are kept. Nothing of ``job`` changes, so a
    run that is stopped or killed in here resumes here.

    Raises:
        FinetuneError: If the checkpoint or too many of the images cannot be read.
    """
    began, kept, epochs = time.monotonic(), pd.DataFrame(), epochs_of(job.config)
    # Now what rank 0 has written can be read.
    job.ranks.meet(None)
    # A run without epochs has left no predictions.
    if epochs:
        kept = load_predictions(run_dir, len(job.dataset.classes))
        kept = kept[kept["split"] == VAL]
    splits = [VAL] if not epochs or predictions_precision(run_dir) != FINAL_PRECISION else []
    splits += [TEST] if len(job.rows[TEST]) else []
    if splits:
        yield Progress("evaluate", 0, sum(len(job.rows[split]) for split in splits))
        network, _ = best_network(job.config, run_dir)
        exact = yield from make_exact_job(job, network, splits)
        gone = np.setdiff1d(
            np.concatenate([job.rows[split] for split in splits]),
            np.concatenate([exact.rows[s] for s in splits]),
        )
        yield from lost.report(
            {int(row): f"{job.dataset.table['id'].iloc[row]} cannot be read" for row in gone}
        )
        table = make_prediction_table(
            exact, *(yield from predict_splits(exact, splits, "evaluate", lost))
        )
        kept = table if VAL in splits else pd.concat([kept, table], ignore_index=True)
        if job.ranks.leads:
            save_predictions(run_dir, kept, FINAL_PRECISION)
    return evaluate_table(kept, time.monotonic() - began)


def evaluate_table(table: pd.DataFrame, seconds: float) -> FinalEvaluation:
    """Evaluate a table of predictions in fp32.

    Args:
        seconds: Time that the predictions took.
    """
    logits, labels = np.stack(table["logits"].tolist()), table["label"].to_numpy()
    right, val = logits.argmax(1) == labels, (table["split"] == VAL).to_numpy()
    loss = cross_entropy(
        torch.from_numpy(logits[val]).double(), torch.from_numpy(labels[val])
    ).item()
    return FinalEvaluation(
        float(right[val].mean()), loss, float(right[~val].mean()) if (~val).any() else None, seconds
    )

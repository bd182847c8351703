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
from finetune_core.training.checkpoints.networks import load_best_network
from finetune_core.training.data_pipeline.feeding import copy_to_processor, pad_batch
from finetune_core.training.devices.device import Device, Forward
from finetune_core.training.devices.out_of_memory import run_in_parts
from finetune_core.training.events import Event, Progress
from finetune_core.training.job import Job
from finetune_core.training.lost import LostImages
from finetune_core.training.predictions import (
    FINAL_PRECISION,
    load_predictions,
    prediction_table,
    predictions_precision,
    save_predictions,
)
from finetune_core.training.prepare import EVENT_SECONDS, make_exact_job
from finetune_core.training.step.exact_layers import use_exact_head
from finetune_core.training.strategies.catalogue import count_epochs


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
def compute_logits(model: Forward, inputs: torch.Tensor, device: Device) -> np.ndarray:
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
        return run_in_parts(lambda images: model(device.move_inputs(images)).float(), inputs, size)


def predict_splits(
    job: Job, splits: Sequence[str], phase: str, lost: LostImages, *, pad: bool = False
) -> Generator[Event, None, tuple[np.ndarray, np.ndarray]]:
    """Predict the readable images of some splits.

    They are computed in the run's precision, but the head in fp32. Each rank predicts a share, and
    all ranks get all.

    Args:
        job: The job, whose network predicts.
        splits: Splits to predict.
        phase: Phase of the Progress events.
        lost: Lost images that the run has reported so far.
        pad: Compute batches of one size only, as the cached trunk's output is computed.

    Returns:
        Rows int ``[n]``, in the table's order within each split, and logits float32 ``[n,
        classes]``.

    Raises:
        TrainingError: If none of a split's images can be read, or too many are lost.
    """
    job.network.model.eval()
    own: list[tuple[np.ndarray, np.ndarray]] = []
    last_report, total = time.monotonic(), sum(len(job.rows[split]) for split in splits)
    for rows, logits in copy_to_processor(_compute_batches(job, splits, pad), job.device):
        # Several ranks report together, below.
        if not job.ranks.is_distributed:
            yield from lost.report(job.lost)
        if len(rows):
            own.append((rows, logits.numpy()))
        if time.monotonic() - last_report >= EVENT_SECONDS:
            last_report = time.monotonic()
            yield Progress(
                phase, min(total, job.ranks.world_size * sum(len(rows) for rows, _ in own)), total
            )
    gathered = job.ranks.all_gather((own, job.lost))
    yield from lost.report(
        {row: reason for _, reasons in gathered for row, reason in reasons.items()}
    )
    batches = _sort_batches(
        job, splits, [batch for own_batches, _ in gathered for batch in own_batches]
    )
    predicted_rows = np.concatenate([rows for rows, _ in batches]) if batches else np.empty(0, int)
    for split in splits:
        if not np.isin(job.rows[split], predicted_rows).any():
            raise TrainingError(
                f"None of the {split} images can be read any more. Put them back and resume the "
                "run."
            )
    return predicted_rows, np.concatenate([logits for _, logits in batches])


def _sort_batches(
    job: Job, splits: Sequence[str], batches: Sequence[tuple[np.ndarray, np.ndarray]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sort the batches of all ranks into the order in which a single rank computes them."""
    order = {
        int(row): position
        for position, row in enumerate(np.concatenate([job.rows[split] for split in splits]))
    }
    return sorted(batches, key=lambda batch: order[int(batch[0][0])])


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
                padded = pad_batch(inputs, size) if pad else inputs
                with use_exact_head(job.network):
                    logits, size = compute_logits_in_parts(job.forward, padded, job.device, size)
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
    start_time, table, epochs = time.monotonic(), pd.DataFrame(), count_epochs(job.config)
    # Now what rank 0 has written can be read.
    job.ranks.all_gather(None)
    # A run without epochs has left no predictions.
    if epochs:
        table = load_predictions(run_dir, len(job.dataset.classes))
        table = table[table["split"] == VAL]
    splits = [VAL] if not epochs or predictions_precision(run_dir) != FINAL_PRECISION else []
    splits += [TEST] if len(job.rows[TEST]) else []
    if splits:
        yield Progress("evaluate", 0, sum(len(job.rows[split]) for split in splits))
        network, _ = load_best_network(job.config, run_dir)
        exact = yield from make_exact_job(job, network, splits)
        unreadable = np.setdiff1d(
            np.concatenate([job.rows[split] for split in splits]),
            np.concatenate([exact.rows[s] for s in splits]),
        )
        yield from lost.report(
            {int(row): f"{job.dataset.table['id'].iloc[row]} cannot be read" for row in unreadable}
        )
        evaluated = make_prediction_table(
            exact, *(yield from predict_splits(exact, splits, "evaluate", lost))
        )
        table = evaluated if VAL in splits else pd.concat([table, evaluated], ignore_index=True)
        if job.ranks.is_main_process:
            save_predictions(run_dir, table, FINAL_PRECISION)
    return evaluate_table(table, time.monotonic() - start_time)


def evaluate_table(table: pd.DataFrame, seconds: float) -> FinalEvaluation:
    """Evaluate a table of predictions in fp32.

    Args:
        table: Predictions of the validation images and, if there are any, the test images.
        seconds: Time that the predictions took.
    """
    logits, labels = np.stack(table["logits"].tolist()), table["label"].to_numpy()
    is_correct, is_val = logits.argmax(1) == labels, (table["split"] == VAL).to_numpy()
    loss = cross_entropy(
        torch.from_numpy(logits[is_val]).double(), torch.from_numpy(labels[is_val])
    ).item()
    return FinalEvaluation(
        float(is_correct[is_val].mean()),
        loss,
        float(is_correct[~is_val].mean()) if (~is_val).any() else None,
        seconds,
    )

"""Images of other data sets that an earlier run has predicted.

A run that is made of it predicts a sample of them, only to show how accuracy there follows what the
run varies. It chooses nothing by them.
"""

import os
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from pydantic import Field, TypeAdapter
from torch.nn.functional import cross_entropy
from typing_extensions import TypedDict

from finetune_core.data.dataset import index_data
from finetune_core.data.image_paths import ImagePaths
from finetune_core.data.pixels import decode_pixels
from finetune_core.data.same_classes import describe_class_difference
from finetune_core.data.sources import check_roots
from finetune_core.data.splits import SHIFTED
from finetune_core.errors import DataError, FinetuneError
from finetune_core.models.partition import Segments
from finetune_core.training.data_pipeline.answers import compute_outputs
from finetune_core.training.data_pipeline.trunk import CachedTrunk, split_network
from finetune_core.training.evaluation import compute_logits_in_parts
from finetune_core.training.events import Classes, Event
from finetune_core.training.job import Job
from finetune_core.training.predictions import read_fact, read_table
from finetune_core.training.prepare import report_progress
from finetune_core.training.strategies.stage_plan import cut_index

SHIFTED_FILE = re.compile(r"shifted-([0-9a-f]{16})\.parquet")  # beside predictions.parquet
SHIFT_FACTS = b"thaw.shift"  # in the file's metadata

MOST_SETS, MOST_IMAGES = 3, 500
_LONGEST_FACTS = 2**24  # bytes


class _Facts(TypedDict):
    """The part of such a file's metadata that is needed of its data set."""

    data: Annotated[str, Field(max_length=10_000)]
    classes: Classes


_FACTS = TypeAdapter(_Facts)


@dataclass(frozen=True)
class ShiftedImages:
    """A sample of the images of another data set.

    Attributes:
        data: Folder or manifest of the data set.
        inputs: Inputs of the job's ``forward``: float32 ``[n, …]``, on the processor. Empty where
            there is a problem.
        labels: int64 ``[n]``.
        problem: Why they can no longer be predicted, as text. Empty where they can.
    """

    data: str
    inputs: torch.Tensor
    labels: torch.Tensor
    problem: str = ""

    def evaluate(self, job: Job) -> tuple[float, float]:
        """Return the accuracy (0…1) of the job's network, and its mean cross-entropy in nats."""
        parts, size = [], job.evaluation_batch
        with torch.no_grad():
            for batch in self.inputs.split(job.evaluation_batch):
                logits, size = compute_logits_in_parts(job.forward, batch, job.device, size)
                parts.append(logits.cpu())
        logits = torch.cat(parts)
        accuracy = float((logits.argmax(1) == self.labels).double().mean())
        return accuracy, cross_entropy(logits.double(), self.labels).item()


def read_shifted_images(
    job: Job, earlier: Path, roots: Sequence[Path] = ()
) -> Generator[Event, None, list[ShiftedImages]]:
    """Read the latest data sets that an earlier run with the job's classes has predicted.

    Nothing fails where one of them is gone.

    Args:
        job: The job whose network is to predict the images.
        earlier: Folder of the earlier run.
        roots: When given, images outside these folders are not read.
    """
    samples = []
    for path in _find_latest(earlier):
        try:
            facts = _read_facts(path)
            data, table = facts["data"], read_table(path, (SHIFTED,), len(facts["classes"]))
        except (OSError, ValueError, FinetuneError):
            # Damaged. The earlier run's own page reports that.
            continue
        if difference := describe_class_difference(facts["classes"], job.dataset.classes):
            reason = f"The run that predicted {data} {difference}."
            samples.append(ShiftedImages(data, torch.empty(0), torch.empty(0), reason))
            continue
        try:
            samples.append((yield from _decode_sample(job, data, table, roots)))
        except FinetuneError as error:
            samples.append(ShiftedImages(data, torch.empty(0), torch.empty(0), str(error)))
    return samples


def _find_latest(folder: Path) -> list[Path]:
    try:
        files = [
            Path(entry.path) for entry in os.scandir(folder) if SHIFTED_FILE.fullmatch(entry.name)
        ]
        return sorted(files, key=lambda file: (-file.lstat().st_mtime_ns, file.name))[:MOST_SETS]
    except OSError:
        return []


def _read_facts(path: Path) -> _Facts:
    """Read which data set a file of predictions is of, and by which classes its labels count.

    Raises:
        OSError: If the file is missing, cannot be read, or is damaged.
        ValueError: If the file is damaged.
    """
    content = read_fact(path, SHIFT_FACTS)
    if len(content) > _LONGEST_FACTS:
        raise ValueError("what it says of its data set is too long")
    return _FACTS.validate_json(content)


def _decode_sample(
    job: Job, data: str, table: pd.DataFrame, roots: Sequence[Path]
) -> Generator[Event, None, ShiftedImages]:
    """Decode a sample of the images in a table of predictions.

    Raises:
        FinetuneError: If none of its images can be read any more, or none may be.
    """
    if roots:
        check_roots(data, roots)
    listed = yield from report_progress("index", index_data(data, roots))
    readable_rows = listed.rows.loc[listed.rows["problem"] == "", ["id", "content"]]
    rows = table.merge(readable_rows, on="id")
    if rows.empty:
        raise _make_missing_error(data)
    rows = rows.sample(min(MOST_IMAGES, len(rows)), random_state=0)
    info, size = job.network.info, job.config.image_size
    paths, keys = ImagePaths(listed.listing.root, rows["id"]), rows["content"].to_numpy(np.uint64)
    decoding = decode_pixels(paths, keys, np.arange(len(rows)), info.get_resize(size))
    pixels = yield from report_progress("decode", decoding)
    readable = np.setdiff1d(np.arange(len(rows)), list(pixels.failed))
    if not len(readable):
        raise _make_missing_error(data)
    trunk = _get_trunk(job)

    def answer(images: torch.Tensor) -> np.ndarray:
        return (
            trunk(job.device.move_inputs(images)).float().cpu().numpy() if trunk else images.numpy()
        )

    with torch.no_grad():
        inputs = yield from report_progress(
            "average", compute_outputs(pixels, readable, info, size, answer, "average")
        )
    labels = torch.from_numpy(rows["label"].to_numpy(np.int64)[readable])
    return ShiftedImages(data, torch.from_numpy(inputs), labels)


def _make_missing_error(data: str) -> DataError:
    return DataError(f"None of the images in {data} that were predicted can be read any more.")


def _get_trunk(job: Job) -> torch.nn.Module | None:
    """Return the trunk, which images go through before ``forward`` takes them.

    All networks of the job share it. It is None where ``forward`` is the whole network.
    """
    if not isinstance(job.source, CachedTrunk):
        return None
    segments: Segments = split_network(job.network)
    return segments.part(None, cut_index(job.strategy)).eval()

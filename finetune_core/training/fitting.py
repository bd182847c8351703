"""A head that is fitted to the frozen features of the training images in one go, in the place of epochs."""

import time
from collections.abc import Generator

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from finetune_core.data.dataset import sides
from finetune_core.data.splits import TRAIN
from finetune_core.errors import TrainingError
from finetune_core.training.evaluation import predict_splits
from finetune_core.training.events import Event, HeadFitted
from finetune_core.training.exact_layers import without_head
from finetune_core.training.footprint import held
from finetune_core.training.job import Job
from finetune_core.training.logistic import linear_probe
from finetune_core.training.lost import LostImages
from finetune_core.training.prepare import reported


def fit_head(job: Job, lost: LostImages) -> Generator[Event, None, None]:
    """Fit the head of the job's network; a run that is stopped in here has changed nothing, and starts again.

    Raises:
        TrainingError: when the head is no linear layer on one vector per image, or too many images are lost.
    """
    began = time.monotonic()
    if len(job.network.heads) > 1:
        raise _no_place(job)
    with without_head(job.network):
        rows, features = yield from predict_splits(job, [TRAIN], "features", lost)
    (head,) = job.network.head_layers
    if not isinstance(head, nn.Linear) or features.shape[1:] != (head.in_features,):
        raise _no_place(job)
    there = torch.from_numpy(features).to(job.device.torch_device)
    labels = job.targets(rows)
    sets = sides(job.dataset.table.iloc[rows])
    work = linear_probe(there, labels, sets, head.out_features, job.config.seed)
    found, choice = yield from reported("fit", work)
    with torch.no_grad():
        head.weight.copy_(found.weight)
        head.bias.copy_(found.bias)
    logits = found.logits(there)
    memory = held(job, [there, there])  # as they are, and standardised
    yield HeadFitted(
        images=len(rows),
        features=features.shape[1],
        parameter="C",
        chosen=choice.value,
        candidates=list(choice.candidates),
        chosen_on=choice.images,
        folds=choice.folds,
        train_loss=float(cross_entropy(logits, labels)),
        train_accuracy=float((logits.argmax(1) == labels).float().mean()),
        seconds=time.monotonic() - began,
        memory_bytes=memory.host,
        device_bytes=memory.device,
    )


def _no_place(job: Job) -> TrainingError:
    return TrainingError(
        f"The head of {job.config.backbone} is not one linear layer on one vector per image, so no linear classifier can take its "
        "place. Choose feature extraction instead."
    )

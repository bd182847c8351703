"""Heads that are fitted to the frozen features of the training images, without epochs."""

import time
from collections.abc import Generator

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from finetune_core.data.dataset import assign_units
from finetune_core.data.splits import TRAIN
from finetune_core.errors import TrainingError
from finetune_core.models.nearest import NEIGHBOURS, NearestNeighbours, replace_head
from finetune_core.models.network import Network
from finetune_core.training.devices.out_of_memory import explain_out_of_memory
from finetune_core.training.evaluation import predict_splits
from finetune_core.training.events import Event, HeadFitted, HeadInitialized
from finetune_core.training.footprint import measure_fit_footprint
from finetune_core.training.heads.logistic import Choice, Linear
from finetune_core.training.heads.probe_memo import fit_once
from finetune_core.training.heads.prototypes import fit_prototypes
from finetune_core.training.job import Job
from finetune_core.training.lost import LostImages
from finetune_core.training.prepare import report_progress
from finetune_core.training.step.exact_layers import bypass_head
from finetune_core.training.strategies.catalogue import STRATEGIES, count_epochs

_PARAMETERS = {"linear_probe": "C", "prototypes": "scale", "nearest_neighbours": "k"}
_TOO_MANY_FEATURES = (
    "to fit a head to the features of all training images. Train on a part of them, or take "
    "features of fewer channels."
)


def fit_head(job: Job, lost: LostImages) -> Generator[Event, None, Network]:
    """Fit the head of the job's network and return the network with its new head.

    A run that is stopped in here starts again.

    Raises:
        TrainingError: If the head is no linear layer on one vector per image, too many images are
            lost, or memory runs out.
    """
    start_time = time.monotonic()
    head = _get_linear_head(job)
    rows, features, labels = yield from _compute_features(job, head, lost)
    with explain_out_of_memory(_TOO_MANY_FEATURES):
        network, choice, logits = yield from _fit_by_strategy(
            job, head, features, labels, assign_units(job.dataset.table.iloc[rows])
        )
    memory = measure_fit_footprint(job, features)
    yield HeadFitted(
        images=len(rows),
        features=features.shape[1],
        parameter=_PARAMETERS[job.config.strategy],
        chosen=choice.value,
        candidates=list(choice.candidates),
        chosen_on=choice.images,
        folds=choice.folds,
        train_loss=float(cross_entropy(logits, labels)),
        train_accuracy=float((logits.argmax(1) == labels).float().mean()),
        seconds=time.monotonic() - start_time,
        memory_bytes=memory.host,
        device_bytes=memory.device,
    )
    return network


def fit_probe(job: Job, lost: LostImages, seed: int) -> Generator[Event, None, HeadInitialized]:
    """Replace the head of the job's network by a linear probe on the network's features.

    Args:
        job: The job whose network's head is replaced.
        lost: Lost images that the run has reported so far.
        seed: Seed of the folds that the penalty is chosen on.

    Raises:
        TrainingError: As ``fit_head``.
    """
    start_time = time.monotonic()
    head = _get_linear_head(job)
    rows, features, labels = yield from _compute_features(job, head, lost)
    sets = assign_units(job.dataset.table.iloc[rows])
    with explain_out_of_memory(_TOO_MANY_FEATURES):
        work = fit_once(features, labels, sets, head.out_features, seed)
        head_fit, choice = yield from report_progress("fit", work)
        logits = head_fit.logits(features)
    _set_head(job.network, head, _broadcast_fit(job, head_fit))
    return HeadInitialized(
        images=len(rows),
        features=features.shape[1],
        c=choice.value,
        train_loss=float(cross_entropy(logits, labels)),
        train_accuracy=float((logits.argmax(1) == labels).float().mean()),
        seconds=time.monotonic() - start_time,
    )


def _broadcast_fit(job: Job, head_fit: Linear) -> Linear:
    """Return rank 0's fit: processors round differently, and ranks must be equal."""
    if not job.ranks.is_distributed:
        return head_fit
    weight, bias = job.ranks.broadcast((head_fit.weight.cpu(), head_fit.bias.cpu()))
    return Linear(weight, bias)


def _compute_features(
    job: Job, head: nn.Linear, lost: LostImages
) -> Generator[Event, None, tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """Compute the inputs of the head for all readable training images.

    Returns:
        Rows of the images, features float32 ``[n, d]``, and labels. The latter two are on the
        device.
    """
    with bypass_head(job.network):
        rows, features = yield from predict_splits(job, [TRAIN], "features", lost, pad=True)
    if features.shape[1:] != (head.in_features,):
        raise _make_head_error(job)
    return rows, torch.from_numpy(features).to(job.device.torch_device), job.get_targets(rows)


def _fit_by_strategy(
    job: Job, head: nn.Linear, features: torch.Tensor, labels: torch.Tensor, sets: np.ndarray
) -> Generator[Event, None, tuple[Network, Choice, torch.Tensor]]:
    """Fit the head.

    Returns:
        The network with its new head, what was chosen, and the logits of the training images.
    """
    fits = STRATEGIES[job.config.strategy].fits
    if fits == "nearest_neighbours":
        neighbours = NearestNeighbours(features, labels, head.out_features)
        return (
            replace_head(job.network, neighbours),
            Choice(NEIGHBOURS, (), 0, 0),
            neighbours.leave_one_out_logits(),
        )
    fit = fit_once if fits == "linear_probe" else fit_prototypes
    work = fit(features, labels, sets, head.out_features, job.config.seed)
    head_fit, choice = yield from report_progress("fit", work)
    return _set_head(job.network, head, head_fit), choice, head_fit.logits(features)


def _get_linear_head(job: Job) -> nn.Linear:
    heads = job.network.head_layers
    if len(heads) > 1 or not isinstance(heads[0], nn.Linear):
        raise _make_head_error(job)
    return heads[0]


def _make_head_error(job: Job) -> TrainingError:
    alternative = "a random initial head" if count_epochs(job.config) else "feature extraction"
    return TrainingError(
        f"The head of {job.config.backbone} is not one linear layer on one vector per image, so no "
        f"classifier can be fitted in its place. Choose {alternative} instead."
    )


@torch.no_grad()
def _set_head(network: Network, head: nn.Linear, head_fit: Linear) -> Network:
    head.weight.copy_(head_fit.weight)
    head.bias.copy_(head_fit.bias)
    return network

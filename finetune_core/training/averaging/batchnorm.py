"""Recomputation of BatchNorm statistics for weights that no training step has led to."""

from collections.abc import Generator

import torch
from torch import nn

from finetune_core.data.splits import TRAIN
from finetune_core.training.data_pipeline.batches import TOO_LARGE_A_BATCH
from finetune_core.training.devices.out_of_memory import explain_out_of_memory
from finetune_core.training.events import Event, Progress
from finetune_core.training.job import Job
from finetune_core.training.lost import LostImages
from finetune_core.training.strategies.stage_plan import list_frozen_tensors

_Norm = nn.modules.batchnorm._BatchNorm


def find_moving_norms(job: Job) -> list[_Norm]:
    """Return the BatchNorm layers whose statistics the job's strategy does not freeze."""
    pairs = zip(job.network.stages, job.strategy, strict=True)
    frozen = {name for stage, plan in pairs for name in list_frozen_tensors(plan, stage)}
    return [
        module
        for path, module in job.network.model.named_modules()
        if isinstance(module, _Norm)
        and module.running_mean is not None
        and f"{path}.running_mean" not in frozen
    ]


@torch.no_grad()
def recompute_statistics(job: Job, lost: LostImages) -> Generator[Event, None, int]:
    """Set BatchNorm statistics to their mean over the batches of the training images.

    The batches are shuffled and not augmented. This is ``torch.optim.swa_utils.update_bn``, but
    frozen statistics stay, and all else stays in eval mode: dropout would add noise.

    Yields:
        Progress in images.

    Returns:
        The number of layers that were recomputed.

    Raises:
        TrainingError: If too many images are lost.
    """
    norms = find_moving_norms(job)
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    job.network.model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative mean
        norm.train()
    try:
        num_done = 0
        for rows, inputs in job.plain_training_inputs():
            yield from lost.report(job.lost)
            if len(rows):
                with job.device.autocast(), explain_out_of_memory(TOO_LARGE_A_BATCH):
                    job.forward(inputs)
            num_done += len(rows)
            yield Progress("average", num_done, len(job.rows[TRAIN]))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        job.network.model.eval()
    return len(norms)

"""Where a run stands between two steps: everything that its next step depends on, written to disk and read back.

Order, augmentation and dropout depend on the position alone, so there is no generator's state to keep.
"""

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from finetune_core.config import EarlyStopping
from finetune_core.errors import RunError
from finetune_core.training.average import Average
from finetune_core.training.checkpoints import LAST, CheckpointInfo, changing_tensors, load_tensors, save_checkpoint
from finetune_core.training.events import CheckpointSaved
from finetune_core.training.job import Job
from finetune_core.training.movement import Stages
from finetune_core.training.tally import Tally

_OPTIMIZER, _AVERAGE = "optimizer/", "average/"


@dataclass
class Standing:
    """A position in a run, and what was counted on the way.

    Attributes:
        epoch: the one that goes on, counted from 1; one more than the run has when all are done.
        step: its steps that are done.
        tally: over those steps.
        train_seconds: spent on them.
        seconds: of training and validation before ``since``, on the clock of ``time.monotonic``.
        best_epoch, best_accuracy, best_loss: on the validation images; epoch 0 before the first.
        watched, watched_epoch: the best value so far of what early stopping looks at, and when that was.
        stages: what was measured last of each stage (``movement.py``).
    """

    tally: Tally

    epoch: int = 1
    step: int = 0
    train_seconds: float = 0.0
    seconds: float = 0.0
    best_epoch: int = 0
    best_accuracy: float = -1.0
    best_loss: float = math.inf
    watched: float = -math.inf
    watched_epoch: int = 0
    stages: Stages | None = None
    since: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.since

    def is_better(self, accuracy: float, loss: float) -> bool:
        """Whether an epoch beats the best one: more accurate, at a tie with the lower loss."""
        return (accuracy, -loss) > (self.best_accuracy, -self.best_loss)

    def take(self, epoch: int, accuracy: float, loss: float, watched: float) -> bool:
        """Note how an epoch did, and how in the eyes of early stopping (more is better); whether it is the best one."""
        if watched > self.watched:
            self.watched_epoch, self.watched = epoch, watched
        if not self.is_better(accuracy, loss):
            return False
        self.best_epoch, self.best_accuracy, self.best_loss = epoch, accuracy, loss
        return True

    def is_stalled(self, metric: EarlyStopping, patience: int) -> bool:
        """Whether what early stopping looks at has not got better for ``patience`` epochs."""
        return metric != "off" and self.epoch - 1 - self.watched_epoch >= patience

    def next_epoch(self) -> None:
        self.epoch, self.step = self.epoch + 1, 0
        self.tally, self.train_seconds = Tally.of(len(self.tally.images)), 0.0


def save_standing(
    job: Job, optimizer: torch.optim.Optimizer, average: Average | None, at: Standing, run_dir: Path
) -> CheckpointSaved:
    """Write ``last``: what has changed of the network, its average, the optimizer's state, and the position; all or nothing."""
    tensors = changing_tensors(job.network.model, job.network.stages, job.strategy)
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{_OPTIMIZER}{index}/{key}": value for key, value in state.items()}
    if average:
        tensors |= {f"{_AVERAGE}{name}": tensor for name, tensor in average.tensors.items()}
    told = asdict(at) | {"seconds": at.elapsed, "since": 0.0, "averaged": average.steps if average else 0}
    network, dataset = job.network, job.dataset
    info = CheckpointInfo(at.epoch - 1, job.config.backbone, network.weights_hash, dataset.classes, dataset.fingerprint, told)
    save_checkpoint(run_dir, LAST, tensors, info)
    return CheckpointSaved(LAST, at.epoch - 1)


def restore_standing(job: Job, optimizer: torch.optim.Optimizer, average: Average | None, run_dir: Path) -> Standing:
    """Put network, average and optimizer back to where ``last`` was written.

    Raises:
        RunError: when it is missing, damaged, or belongs to other data or weights.
    """
    tensors, info = load_tensors(run_dir, LAST)
    if info.standing is None:
        raise RunError(f"The run in {run_dir} was written by an earlier version, which could not resume. Start it again.")
    if (info.weights_hash, info.classes) != (job.network.weights_hash, job.dataset.classes):
        raise RunError(f"The pretrained weights or the classes have changed since the run in {run_dir} began. Start a new one.")
    if info.fingerprint != job.dataset.fingerprint:
        raise RunError(
            f"The images, their labels or their split have changed since the run in {run_dir} began: put them back to resume it, or "
            "start a new one."
        )
    kept = {name: tensor for name, tensor in tensors.items() if "/" not in name}
    job.network.model.load_state_dict(kept, strict=False)
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(_OPTIMIZER):
            index, key = name.removeprefix(_OPTIMIZER).split("/")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    _like_their_parameters(optimizer)
    told = info.standing | {"since": time.monotonic(), "tally": Tally(**info.standing["tally"])}
    averaged = told.pop("averaged")
    if average:
        average.steps = averaged
        for name, tensor in average.tensors.items():
            tensor.copy_(tensors[f"{_AVERAGE}{name}"])
    return Standing(**told)


def _like_their_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Lay state out in memory as its parameter is: fused optimizers walk through both side by side."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

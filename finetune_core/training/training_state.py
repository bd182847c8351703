"""Position of a run between two steps: everything that its next step depends on.

It is written to disk and read back. Order, augmentation and dropout depend on the position alone,
so no generator's state is kept.
"""

import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AliasChoices, Field, TypeAdapter

from finetune_core.errors import RunError
from finetune_core.files import describe_problem
from finetune_core.training.checkpoints.files import (
    LAST,
    CheckpointInfo,
    check_frozen,
    checkpoint_path,
    load_tensors,
    read_info,
    restore_tensors,
    save_checkpoint,
)
from finetune_core.training.events import CheckpointSaved, Count, Epoch, Seconds, StageMeasures
from finetune_core.training.job import Job
from finetune_core.training.step.loss_scale import LossScale
from finetune_core.training.step.running_metrics import RunningMetrics
from finetune_core.training.step.weight_ema import WeightEMA

_OPTIMIZER, _AVERAGE, _SCALE = "optimizer/", "average/", "loss_scale/"
_SCALE_TENSORS = {
    f"{_SCALE}factor": torch.empty(()),
    f"{_SCALE}steps": torch.empty((), dtype=torch.int32),
}
_ADAM = ("step", "exp_avg", "exp_avg_sq")
_STATE = {torch.optim.Adam: _ADAM, torch.optim.AdamW: _ADAM, torch.optim.SGD: ("momentum_buffer",)}


@dataclass
class TrainingState:
    """Position in a run, and what was counted on the way.

    Attributes:
        epoch: The current epoch, counted from 1. One more than the run has when all are done.
        step: Number of its steps that are done.
        metrics: Metrics over those steps.
        skipped: How many of those steps were skipped.
        train_seconds: Time spent on those steps.
        seconds: Time of training and validation before ``since``.
        best_epoch: Best epoch on the validation images. 0 before the first.
        best_accuracy: Its accuracy.
        best_loss: Its loss.
        watched: Best value so far of the metric that early stopping watches.
        watched_epoch: Epoch of that value.
        stages: The last measurements of each stage (``movement.py``).
        since: When this process began to count, on the clock of ``time.monotonic``.
    """

    metrics: Annotated[RunningMetrics, Field(validation_alias=AliasChoices("metrics", "tally"))]

    epoch: Epoch = 1
    step: Count = 0
    skipped: Count = 0
    train_seconds: Seconds = 0.0
    seconds: Seconds = 0.0
    best_epoch: Count = 0
    best_accuracy: Annotated[float, Field(ge=-1, le=1)] = -1.0
    best_loss: Annotated[float, Field(ge=0)] = math.inf
    watched: Annotated[float, Field(ge=-math.inf)] = -math.inf
    watched_epoch: Count = 0
    stages: StageMeasures | None = None
    since: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds of training and validation so far."""
        return self.seconds + time.monotonic() - self.since

    def is_better(self, accuracy: float, loss: float) -> bool:
        """Return whether an epoch beats the best one: more accurate, at a tie with less loss."""
        return (accuracy, -loss) > (self.best_accuracy, -self.best_loss)

    def record_epoch(self, epoch: int, accuracy: float, loss: float, watched: float) -> bool:
        """Record the results of an epoch and return whether it is the best one.

        Args:
            epoch: Number of the epoch, from 1.
            accuracy: Validation accuracy, 0 to 1.
            loss: Validation loss.
            watched: Value that early stopping watches. More is better.
        """
        if watched > self.watched:
            self.watched_epoch, self.watched = epoch, watched
        if not self.is_better(accuracy, loss):
            return False
        self.best_epoch, self.best_accuracy, self.best_loss = epoch, accuracy, loss
        return True

    def next_epoch(self) -> None:
        """Advance to the start of the next epoch."""
        self.epoch, self.step, self.skipped = self.epoch + 1, 0, 0
        self.metrics, self.train_seconds = RunningMetrics.zeros(len(self.metrics.images)), 0.0


_TRAINING_STATE = TypeAdapter(TrainingState)
_AVERAGED = TypeAdapter(Count)


def save_training_state(
    job: Job,
    optimizer: torch.optim.Optimizer,
    average: WeightEMA | None,
    scale: LossScale | None,
    training_state: TrainingState,
    run_dir: Path,
) -> CheckpointSaved:
    """Write the checkpoint ``last``, completely or not at all.

    It holds the changed tensors of the network, their average, the optimizer's state, the loss
    scale and the position.
    """
    tensors = job.changing_tensors()
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{_OPTIMIZER}{index}/{key}": value for key, value in state.items()}
    if average:
        tensors |= {f"{_AVERAGE}{name}": tensor for name, tensor in average.tensors.items()}
    if scale:
        tensors |= {f"{_SCALE}{name}": tensor for name, tensor in scale.tensors.items()}
    state = asdict(training_state) | {
        "seconds": training_state.elapsed,
        "since": 0.0,
        "averaged": average.steps if average else 0,
    }
    network, dataset = job.network, job.dataset
    info = CheckpointInfo(
        training_state.epoch - 1,
        job.config.backbone,
        network.weights_hash,
        dataset.classes,
        dataset.fingerprint,
        state,
    )
    save_checkpoint(run_dir, LAST, tensors, info)
    return CheckpointSaved(LAST, training_state.epoch - 1)


def restore_training_state(
    job: Job,
    optimizer: torch.optim.Optimizer,
    average: WeightEMA | None,
    scale: LossScale | None,
    run_dir: Path,
) -> TrainingState:
    """Restore network, average, optimizer and loss scale from the checkpoint ``last``.

    Raises:
        RunError: If it is missing or damaged, or belongs to other data or weights.
    """
    info = read_info(run_dir, LAST)
    if info.training_state is None:
        raise RunError(
            f"The run in {run_dir} was written by an earlier version, which could not resume. "
            "Start it again."
        )
    if (info.weights_hash, info.classes) != (job.network.weights_hash, job.dataset.classes):
        raise RunError(
            f"The pretrained weights or the classes have changed since the run in {run_dir} began. "
            "Start a new one."
        )
    if info.fingerprint != job.dataset.fingerprint:
        raise RunError(
            f"The images, their labels or their split have changed since the run in {run_dir} "
            "began: put them back to resume it, or start a new one."
        )
    path = checkpoint_path(run_dir, LAST)
    training_state, average_steps = _read_position(job, info.training_state, path)
    changing = job.changing_tensors()
    expected = dict(changing)
    if average:
        expected |= {f"{_AVERAGE}{name}": tensor for name, tensor in average.tensors.items()}
    tensors, _ = load_tensors(run_dir, LAST, expected, _state_tensors(optimizer) | _SCALE_TENSORS)
    check_frozen(job.network, job.strategy, tensors, path)
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(_OPTIMIZER):
            index, key = name.removeprefix(_OPTIMIZER).split("/")
            state.setdefault(int(index), {})[key] = tensor
    if tensors.get(f"{_SCALE}factor", 1) <= 0:
        raise RunError(f"{path} is damaged: its loss scale is not positive.")
    if any(len(kept) < len(_STATE[type(optimizer)]) for kept in state.values()):
        raise RunError(f"{path} is damaged: a part of the optimizer's state is missing.")
    restore_tensors(changing, tensors)
    job.low_rank.merge()
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    _match_parameter_layout(optimizer)
    if average:
        average.steps = average_steps
        for name, tensor in average.tensors.items():
            tensor.copy_(tensors[f"{_AVERAGE}{name}"])
    # Absent if the run began in another precision.
    if scale and tensors.keys() >= _SCALE_TENSORS.keys():
        for name, tensor in scale.tensors.items():
            tensor.copy_(tensors[f"{_SCALE}{name}"])
    return training_state


def _read_position(job: Job, saved: dict[str, Any], path: Path) -> tuple[TrainingState, int]:
    """Return the position in a checkpoint, and how many steps its average has seen.

    Raises:
        RunError: If the run cannot have been there.
    """
    try:
        average_steps = _AVERAGED.validate_python(saved.get("averaged"), strict=True)
        fields = {name: value for name, value in saved.items() if name != "averaged"} | {
            "since": time.monotonic()
        }
        state = _TRAINING_STATE.validate_json(json.dumps(fields), strict=True)
        steps, classes, metrics = (
            len(job.training_batches(state.epoch)),
            len(job.dataset.classes),
            state.metrics,
        )
        if (
            state.epoch > job.config.epochs + 1
            or state.step > steps
            or max(state.best_epoch, state.watched_epoch) >= state.epoch
        ):
            raise ValueError("the run cannot have come that far")
        if {len(metrics.images), len(metrics.predicted), len(metrics.hits)} != {classes} or (
            state.epoch > 1 and not state.best_epoch
        ):
            raise ValueError("what was counted is not of this run")
    except (ValueError, TypeError) as error:
        raise RunError(f"{path.parent}: {describe_problem(path, error)}.") from None
    return state, average_steps


def _state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimizer's state tensors by their names in the checkpoint.

    Only shapes and types count. Every parameter of the optimizer has its own.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"{_OPTIMIZER}{index}/{key}": torch.empty(()) if key == "step" else parameter
        for index, parameter in enumerate(parameters)
        for key in _STATE[type(optimizer)]
    }


def _match_parameter_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give each state tensor the memory layout of its parameter.

    Fused optimizers walk through both side by side.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

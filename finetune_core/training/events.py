"""What a run says while it goes on: small frozen records of plain scalars, each one line of ``events.jsonl``."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """Base of all events."""

    def to_json(self) -> dict[str, Any]:
        """The event as a JSON object whose ``event`` names its kind."""
        return {"event": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class Progress(Event):
    """Work before, between and after the epochs: ``done`` of ``total`` (0 when not known) units of ``phase``."""

    phase: str
    done: int
    total: int


@dataclass(frozen=True)
class RunStarted(Event):
    """Everything that is known before the first step.

    Attributes:
        counts: images by split.
        stages: one object a stage: ``name, parameters, trains, rate, thaw_epoch``, input to head.
        findings: one object a finding of the data set: ``kind, severity, count, message``.
        fingerprint: of the images, their labels and splits.
        weights_hash: of the backbone before training.
        cache: what the activation cache did: a ``CacheReport``.
        decode_seconds, decoded: spent on reading images that no run had read before, and how many.
        forecast: the ``seconds, epoch_seconds, memory_bytes, cache_bytes`` that were expected; None where nothing was known.
    """

    backbone: str
    weights: str
    weights_hash: str
    strategy: str
    stages: list[dict[str, Any]]
    trainable_parameters: int
    total_parameters: int
    classes: list[str]
    counts: dict[str, int]
    fingerprint: str
    findings: list[dict[str, Any]]
    epochs: int
    steps_per_epoch: int
    device: str
    device_label: str
    precision: str
    cache: dict[str, Any]
    decode_seconds: float
    decoded: int
    forecast: dict[str, float] | None


@dataclass(frozen=True)
class RunReopened(Event):
    """A run that had ended, or was cut off, waits to go on."""


@dataclass(frozen=True)
class RunResumed(Event):
    """A run goes on after ``step`` steps of ``epoch``; whatever was told of later ones is told again."""

    epoch: int
    step: int


@dataclass(frozen=True)
class ImagesSkipped(Event):
    """Images that could not be read and are left out of this run."""

    count: int
    examples: list[str]


@dataclass(frozen=True)
class ImagesLost(Event):
    """Images that could be read when the run began, but no longer: left out from here on. ``count`` of them so far."""

    count: int
    examples: list[str]


@dataclass(frozen=True)
class MemoryShort(Event):
    """A step's images did not fit into memory at once: ``micro_batch`` of them went through at a time, to the same effect."""

    epoch: int
    step: int
    micro_batch: int


@dataclass(frozen=True)
class StepEnded(Event):
    """One optimizer step.

    Attributes:
        epoch, step: counted from 1; ``step`` within the epoch.
        loss: of this batch.
        epoch_loss, epoch_accuracy: over the epoch so far.
        images: seen so far in the whole run.
        seconds: since the first step began.
        gradient_norm: length of the gradient of all that trains, before clipping.
        micro_batch: images that went through the network at a time.
        stages: ``learning_rate, gradient_norm, update`` by stage, in the few steps where they are measured (``movement.py``).
    """

    epoch: int
    step: int
    loss: float
    epoch_loss: float
    epoch_accuracy: float
    learning_rate: float
    images: int
    seconds: float
    gradient_norm: float = 0.0
    micro_batch: int = 0
    stages: dict[str, dict[str, float]] | None = None


@dataclass(frozen=True)
class EpochEnded(Event):
    """One epoch with its validation.

    Attributes:
        seconds: since the first step began.
        memory_bytes: what the run has added to the program's memory so far (on a GPU: its own peak).
        train_scores, val_scores: ``balanced_accuracy`` and ``macro_f1``.
        stages: as in StepEnded, the last that was measured.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    train_seconds: float
    val_seconds: float
    seconds: float
    memory_bytes: int
    train_scores: dict[str, float] = field(default_factory=dict)
    val_scores: dict[str, float] = field(default_factory=dict)
    stages: dict[str, dict[str, float]] | None = None


@dataclass(frozen=True)
class CheckpointSaved(Event):
    """``last`` or ``best`` is on disk."""

    name: str
    epoch: int


@dataclass(frozen=True)
class RunFinished(Event):
    """The end that was wanted.

    Attributes:
        val_accuracy, val_loss: of the best epoch, whose weights are kept.
        test_accuracy: of the same weights; None without a test split.
        seconds: all of it, decoding included.
        frozen_tensors: how many were compared, bit for bit, with the pretrained ones.
    """

    epochs: int
    best_epoch: int
    val_accuracy: float
    val_loss: float
    test_accuracy: float | None
    seconds: float
    frozen_tensors: int


@dataclass(frozen=True)
class RunStopped(Event):
    """A person stopped it, or paused it. ``best_epoch`` is 0 when no epoch had ended: then there is nothing to evaluate."""

    epoch: int
    best_epoch: int
    seconds: float
    paused: bool = False


@dataclass(frozen=True)
class RunFailed(Event):
    """It could not go on.

    Attributes:
        message: why, in words.
        traceback: of a bug; empty where the reason is one that a person can mend.
    """

    message: str
    traceback: str


END_EVENTS = (RunFinished, RunStopped, RunFailed)

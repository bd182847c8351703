"""What a run says while it goes on: small frozen records of plain scalars, each one line of ``events.jsonl``.

The types are also what a line is validated against when it is read back (``read_event``): every number, text and list is bounded.
A field that was added later has a default, so that older runs can be read.
"""

from dataclasses import asdict, dataclass, field, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, Literal, NotRequired, Union

from pydantic import AfterValidator, Field, TypeAdapter
from typing_extensions import TypedDict

from finetune_core.config.averaged import How
from finetune_core.formatting import PHASE_WORDS

LONGEST_LINE = 2**24  # bytes

Row = dict[str, Any]


def _known_phase(phase: str) -> str:
    if phase not in PHASE_WORDS:
        raise ValueError("is no phase of a run")
    return phase


def _unique(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("holds the same name twice")
    return names


Count = Annotated[int, Field(ge=0, le=2**53)]
Epoch = Annotated[int, Field(ge=1, le=10_000)]
Epochs = Annotated[int, Field(ge=0, le=10_000)]
Positive = Annotated[int, Field(ge=1, le=2**53)]
Number = Annotated[float, Field(ge=-1e40, le=1e40)]  # float32 goes to 3.4e38
Length = Annotated[float, Field(ge=0, le=1e40)]
Loss = Annotated[float, Field(ge=0, le=1e40)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=1e10)]
Moment = Annotated[float, Field(ge=0, le=1e11)]  # seconds since 1970
Name = Annotated[str, Field(max_length=10_000)]
Text = Annotated[str, Field(max_length=100_000)]
Texts = Annotated[list[Text], Field(max_length=1000)]
Phase = Annotated[str, Field(max_length=100), AfterValidator(_known_phase)]
ClassCounts = Annotated[
    dict[Name, Annotated[list[Count], Field(max_length=100_000)]],
    Field(max_length=3),
]
Classes = Annotated[list[Name], Field(min_length=1, max_length=100_000), AfterValidator(_unique)]


class Counts(TypedDict):
    """Images by split."""

    train: Positive
    val: Positive
    test: NotRequired[Count]


class StageRow(TypedDict):
    """One stage: whether and how it trains."""

    name: Name
    parameters: Count
    trains: bool
    trained: NotRequired[Count]
    rate: Length
    thaw_epoch: Epoch
    part: NotRequired[Name]


class FindingRow(TypedDict):
    """One finding of the data set."""

    kind: NotRequired[Name]
    severity: Name
    count: NotRequired[Count]
    message: Text


class Expected(TypedDict):
    """A forecast; ``device_bytes`` where a GPU trains."""

    seconds: Seconds
    epoch_seconds: Seconds
    memory_bytes: Length
    device_bytes: NotRequired[Length | None]
    cache_bytes: Length


class Numerics(TypedDict):
    """What decides beside the precision how an NVIDIA GPU computes: whether fp32 may be TF32, and whether cuDNN times its algorithms."""

    tf32: bool
    cudnn_benchmark: bool


class StageMeasure(TypedDict):
    """What was measured of a stage in a step (``movement.py``)."""

    learning_rate: Length
    gradient_norm: Length
    update: Length


class EpochScores(TypedDict):
    """Of an epoch, beside loss and accuracy."""

    balanced_accuracy: NotRequired[Share]
    macro_f1: NotRequired[Share]


class Candidate(TypedDict):
    """A value that was tried on held-out training images: mean cross-entropy in nats, and accuracy."""

    value: Length
    loss: Loss
    accuracy: Share


class Ancestor(TypedDict):
    """A run that another one starts from, or that it averages, as it was then.

    ``backbone``: not recorded by earlier versions. ``data``: the last part of its path. ``epoch``: the best one, 0 where it has none. ``accuracy``: of that on the validation images, 0…1,
    where its predictions could be read. ``weights``: what it started from itself.
    """

    run: Name
    backbone: NotRequired[Name]
    data: Text
    strategy: Name
    epoch: Count
    accuracy: Share | None
    weights: Literal["pretrained", "none", "file", "run"]


class Ingredient(TypedDict):
    """A network that was tried in a greedy soup: ``accuracy``, 0…1, on the validation images of the soup with it, and whether it stayed."""

    run: Name
    accuracy: Share
    kept: bool


class Mixture(TypedDict):
    """A point between two networks, 0 the first and 1 the second: accuracy 0…1 and mean cross-entropy in nats."""

    coefficient: Share
    accuracy: Share
    loss: Loss


class ShiftedCurve(TypedDict):
    """The same points on ``images`` of another data set, named by its folder or manifest; ``problem`` says why there are none."""

    data: Text
    images: Count
    curve: Annotated[list[Mixture], Field(max_length=1000)]
    problem: Text


Lineage = Annotated[list[Ancestor], Field(max_length=1000)]
StageMeasures = Annotated[dict[Name, StageMeasure], Field(max_length=1000)]


@dataclass(frozen=True)
class CacheReport:
    """What a run's cache did.

    Attributes:
        where: ``memory``, ``disk``, or ``off``; then ``reason`` says why.
        views: augmented versions of a training image; 0 without augmentation or with a fresh one each epoch.
        rows, bytes: activations that the run uses.
        found: how many of them were there before.
        trunk_seconds: spent on the others.
        seconds_per_row: what one takes; None where it was never measured.
        compilation: whether the frozen stages were compiled, or why not, in words; empty where nothing was computed.
    """

    where: Literal["memory", "disk", "off"]
    reason: Text = ""
    views: Count = 0
    rows: Count = 0
    bytes: Count = 0
    found: Count = 0
    trunk_seconds: Seconds = 0.0
    seconds_per_row: Seconds | None = None
    compilation: Text = ""


@dataclass(frozen=True)
class Event:
    """Base of all events."""

    def to_json(self) -> dict[str, Any]:
        """The event as a JSON object whose ``event`` names its kind."""
        return {"event": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class Progress(Event):
    """Work before, between and after the epochs: ``done`` of ``total`` (0 when not known) units of ``phase``.

    Attributes:
        stage: the first of the frozen stages that images go through now; empty where they go through none.
    """

    phase: Phase
    done: Count
    total: Count
    stage: Name = ""


@dataclass(frozen=True)
class RunStarted(Event):
    """Everything that is known before the first step.

    Attributes:
        counts: images by split.
        class_counts: images of each class, by split; empty in runs of earlier versions.
        stages: one object per stage: ``name, parameters, trains, rate, thaw_epoch``, input to head.
        epochs, steps_per_epoch: 0 where the head is fitted in one go, or other runs are averaged, instead.
        findings: one object per finding of the data set: ``kind, severity, count, message``.
        fingerprint: of the images, their labels and splits.
        weights_hash: of the backbone before training.
        cache: what the activation cache did.
        decode_seconds, decoded: spent on reading images that no run had read before, and how many.
        forecast: the ``seconds, epoch_seconds, memory_bytes, device_bytes, cache_bytes`` that were expected; None where nothing was known.
        numerics: ``tf32, cudnn_benchmark``; None in runs of earlier versions.
        lineage: the run that it starts from, the one which that started from, and so on; none where it starts from other weights.
        head_kept: whether it starts with the head of that run, too.
        averaged: how it averages other runs; None in others, and in those of earlier versions. Of an ensemble, ``stages`` are those of
            its first network, and the parameters are counted over all of them.
        ranks: how many processes train it together, each on a device of its own.
        batchnorm: ``per_rank`` where several do, and BatchNorm trains: on the statistics of each rank's share of a batch; else empty.
    """

    backbone: Name
    weights: Text
    weights_hash: Name
    strategy: Name
    stages: Annotated[list[StageRow], Field(min_length=1, max_length=1000)]
    trainable_parameters: Count
    total_parameters: Positive
    classes: Classes
    counts: Counts
    fingerprint: Name
    findings: Annotated[list[FindingRow], Field(max_length=1000)]
    epochs: Epochs
    steps_per_epoch: Count
    device: Name
    device_label: Name
    precision: Name
    cache: CacheReport = CacheReport("off", "not recorded")
    decode_seconds: Seconds = 0.0
    decoded: Count = 0
    forecast: Expected | None = None
    numerics: Numerics | None = None
    lineage: Lineage = field(default_factory=list)
    head_kept: bool = False
    averaged: How | None = None
    ranks: Positive = 1
    batchnorm: Literal["", "per_rank"] = ""
    class_counts: ClassCounts = field(default_factory=dict)


@dataclass(frozen=True)
class RunReopened(Event):
    """A run that had ended, or was cut off, waits to go on."""


@dataclass(frozen=True)
class RunPlaced(Event):
    """A task on some machine begins to train the run, or to go on with it.

    Attributes:
        host: the machine.
        task: the same where it is tried again.
        moved_from: then, the machine whose process that had the run is gone; empty at the first try.
        gpus, cores: that the run has to itself there; 0 and 0 where that is not known.
    """

    host: Name
    task: Name
    moved_from: Name = ""
    gpus: Count = 0
    cores: Count = 0


@dataclass(frozen=True)
class RunResumed(Event):
    """A run goes on after ``step`` steps of ``epoch``; events of later ones are reported again."""

    epoch: Epoch
    step: Count


@dataclass(frozen=True)
class ImagesSkipped(Event):
    """Images that could not be read and are left out of this run."""

    count: Count
    examples: Texts


@dataclass(frozen=True)
class ImagesLost(Event):
    """Images that could be read when the run began, but no longer: left out from here on. ``count`` of them so far."""

    count: Count
    examples: Texts


@dataclass(frozen=True)
class MemoryShort(Event):
    """A step's images did not fit into memory at once: ``micro_batch`` of them went through at a time, to the same effect."""

    epoch: Epoch
    step: Count
    micro_batch: Count


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
        skipped: whether the gradient overflowed in fp16, so that nothing has changed; its norm is given as 0 then.
        loss_scale: after the step; 0 where the loss is not scaled.
    """

    epoch: Epoch
    step: Positive
    loss: Number
    epoch_loss: Number
    epoch_accuracy: Share
    learning_rate: Length
    images: Count
    seconds: Seconds
    gradient_norm: Length = 0.0
    micro_batch: Count = 0
    stages: StageMeasures | None = None
    skipped: bool = False
    loss_scale: Length = 0.0


@dataclass(frozen=True)
class EpochEnded(Event):
    """One epoch with its validation, both in the run's own precision.

    Attributes:
        seconds: since the first step began.
        memory_bytes: the most that the run's own tensors have taken of the program's memory (``footprint.py``).
        device_bytes: the most that it has taken of a GPU's, which ``memory_bytes`` leaves out; None where the processor trains, and in
            runs of earlier versions.
        train_scores, val_scores: ``balanced_accuracy`` and ``macro_f1``.
        stages: as in StepEnded, the last that was measured.
        skipped_steps: those whose gradient overflowed in fp16.
    """

    epoch: Epoch
    train_loss: Number
    train_accuracy: Share
    val_loss: Loss
    val_accuracy: Share
    train_seconds: Seconds
    val_seconds: Seconds
    seconds: Seconds
    memory_bytes: Count = 0
    device_bytes: Count | None = None
    train_scores: EpochScores = field(default_factory=EpochScores)
    val_scores: EpochScores = field(default_factory=EpochScores)
    stages: StageMeasures | None = None
    skipped_steps: Count = 0


@dataclass(frozen=True)
class HeadFitted(Event):
    """The head of a run without epochs is fitted to the frozen features of the training images.

    Attributes:
        images, features: how many training images, and features of each.
        parameter: what was chosen by cross-validation within them: ``C``, the inverse of the L2 penalty, of a linear probe; ``scale`` of the
            logits of prototypes; ``k`` of nearest neighbours, which is not chosen.
        chosen: its value.
        candidates: the values that were tried, with their scores on held-out images.
        chosen_on, folds: images that it was chosen on, none where nothing is; and parts they were divided into, none where there were
            too few images.
        train_loss, train_accuracy: on the training images themselves; of nearest neighbours without each image's own vote.
        seconds: for the fit, the choice included.
        memory_bytes, device_bytes: as in EpochEnded.
    """

    images: Positive
    features: Positive
    parameter: Name
    chosen: Length
    candidates: Annotated[list[Candidate], Field(max_length=1000)]
    chosen_on: Count
    folds: Count
    train_loss: Loss
    train_accuracy: Share
    seconds: Seconds
    memory_bytes: Count = 0
    device_bytes: Count | None = None


@dataclass(frozen=True)
class HeadInitialized(Event):
    """A linear probe has become the head that a run with epochs begins with.

    Attributes:
        images: how many training images it was fitted to.
        features: how many features of each.
        c: the inverse of its L2 penalty.
        train_loss: mean cross-entropy of the training images themselves, in nats.
        train_accuracy: of the same images.
        seconds: for features, cross-validation and fit.
    """

    images: Positive
    features: Positive
    c: Length
    train_loss: Loss
    train_accuracy: Share
    seconds: Seconds


@dataclass(frozen=True)
class WeightsAveraged(Event):
    """The weights of a run without epochs, or, of an ensemble, its predictions, are averaged from those of other runs.

    Attributes:
        how: as in the config.
        parents: the runs that they are from.
        ingredients: of a greedy soup: in the order in which they were tried, the best network first.
        curve: of WiSE-FT: from what the run started from, with its linear probe, to the run's own best network.
        coefficient: of WiSE-FT: the one that was chosen on the validation images: the first of the most accurate.
        shifted: of WiSE-FT: on a sample of each of the other data sets that the run had predicted; nothing is chosen by it.
        batchnorm_layers: whose statistics were recomputed on the training images; 0 where the network kept is nobody's average.
        seconds: for all of it.
        memory_bytes, device_bytes: as in EpochEnded.
    """

    how: How
    parents: Annotated[list[Ancestor], Field(min_length=1, max_length=1000)]
    seconds: Seconds
    batchnorm_layers: Count = 0
    ingredients: Annotated[list[Ingredient], Field(max_length=1000)] = field(default_factory=list)
    curve: Annotated[list[Mixture], Field(max_length=1000)] = field(default_factory=list)
    coefficient: Share | None = None
    shifted: Annotated[list[ShiftedCurve], Field(max_length=1000)] = field(default_factory=list)
    memory_bytes: Count = 0
    device_bytes: Count | None = None


@dataclass(frozen=True)
class CheckpointSaved(Event):
    """``last`` or ``best`` is on disk; ``epoch`` is 0 in a run without epochs."""

    name: Name
    epoch: Count


@dataclass(frozen=True)
class RunFinished(Event):
    """The end that was wanted.

    Attributes:
        epochs, best_epoch: 0 in a run without epochs.
        best_epoch: by the accuracies in ``EpochEnded``, which are in the run's own precision.
        val_accuracy, val_loss: of the best epoch, whose weights are kept, evaluated in ``evaluation_precision``.
        test_accuracy: of the same weights in the same precision; None without a test split.
        seconds: all of it, decoding and evaluation included.
        frozen_tensors: how many were compared, bit for bit, with the pretrained ones.
        evaluation_seconds: of that evaluation.
        evaluation_precision: ``fp32``; None in runs of earlier versions, which were evaluated in their own.
    """

    epochs: Epochs
    best_epoch: Epochs
    val_accuracy: Share
    val_loss: Loss
    test_accuracy: Share | None
    seconds: Seconds
    frozen_tensors: Count = 0
    evaluation_seconds: Seconds = 0.0
    evaluation_precision: Literal["fp32", "bf16", "fp16"] | None = None


@dataclass(frozen=True)
class RunStopped(Event):
    """A person stopped it, or paused it. ``best_epoch`` is 0 when no epoch had ended: then there is nothing to evaluate."""

    epoch: Count
    best_epoch: Count
    seconds: Seconds
    paused: bool = False


@dataclass(frozen=True)
class RunFailed(Event):
    """It could not go on.

    Attributes:
        message: why, in words.
        traceback: of a bug; empty where the reason is one that the user can fix.
    """

    message: Text
    traceback: Text


END_EVENTS = (RunFinished, RunStopped, RunFailed)


def _row_type(event: type[Event]) -> type:
    """The event as it is written: with its kind, and when it happened."""
    added: list[tuple[str, Any] | tuple[str, Any, Any]] = [
        ("event", Literal[event.__name__]),
        ("at", Moment, 0.0),
    ]
    return make_dataclass(event.__name__, added, bases=(event,), frozen=True, kw_only=True)


EVENTS = tuple(Event.__subclasses__())
_ROWS: Any = Union[tuple(map(_row_type, EVENTS))]  # noqa: UP007  built
_RECORDS = {
    event.__name__: [one.name for one in fields(event) if is_dataclass(one.type)]
    for event in EVENTS
}
_LINE: TypeAdapter[Event] = TypeAdapter(Annotated[_ROWS, Field(discriminator="event")])


def read_event(line: bytes) -> Row:
    """One line of ``events.jsonl`` as a plain object: ``event`` names its kind, ``at`` is when; what an older run lacks is filled in.

    Raises:
        ValueError: when it is no event.
    """
    row = dict(vars(_LINE.validate_json(line, strict=True)))
    for name in _RECORDS[row["event"]]:
        row[name] = asdict(row[name])
    return row


def event_of(row: Row) -> Event:
    """The event that ``read_event`` has read."""
    return _LINE.validate_python(row)

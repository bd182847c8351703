"""Events of a run: small frozen records of plain scalars, each one line of ``events.jsonl``.

A line that is read back is validated against the same types (``read_event``), so every number, text
and list is bounded. A field that was added later has a default, so that older runs can be read.
"""

from dataclasses import asdict, dataclass, field, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, Literal, NotRequired, Union

from pydantic import AfterValidator, Field, TypeAdapter
from typing_extensions import TypedDict

from finetune_core.config.averaged import AveragingMethod
from finetune_core.formatting import PHASE_TITLES

LONGEST_LINE = 2**24  # bytes

Row = dict[str, Any]


def _check_phase(phase: str) -> str:
    if phase not in PHASE_TITLES:
        raise ValueError("is no phase of a run")
    return phase


def _check_unique(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("holds the same name twice")
    return names


Count = Annotated[int, Field(ge=0, le=2**53)]
Epoch = Annotated[int, Field(ge=1, le=10_000)]
Epochs = Annotated[int, Field(ge=0, le=10_000)]
Positive = Annotated[int, Field(ge=1, le=2**53)]
Number = Annotated[float, Field(ge=-1e40, le=1e40)]  # float32 reaches 3.4e38
Length = Annotated[float, Field(ge=0, le=1e40)]
Loss = Annotated[float, Field(ge=0, le=1e40)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=1e10)]
Moment = Annotated[float, Field(ge=0, le=1e11)]  # seconds since 1970
Name = Annotated[str, Field(max_length=10_000)]
Text = Annotated[str, Field(max_length=100_000)]
Texts = Annotated[list[Text], Field(max_length=1000)]
Phase = Annotated[str, Field(max_length=100), AfterValidator(_check_phase)]
ClassCounts = Annotated[
    dict[Name, Annotated[list[Count], Field(max_length=100_000)]],
    Field(max_length=3),
]
Classes = Annotated[
    list[Name], Field(min_length=1, max_length=100_000), AfterValidator(_check_unique)
]


class Counts(TypedDict):
    """Number of images by split."""

    train: Positive
    val: Positive
    test: NotRequired[Count]


class StageRow(TypedDict):
    """One stage: whether it trains and how."""

    name: Name
    parameters: Count
    trains: bool
    trained: NotRequired[Count]
    rate: Length
    thaw_epoch: Epoch
    part: NotRequired[Name]


class FindingRow(TypedDict):
    """One finding about the data set."""

    kind: NotRequired[Name]
    severity: Name
    count: NotRequired[Count]
    message: Text


class Expected(TypedDict):
    """A forecast. ``device_bytes`` is given where a GPU trains."""

    seconds: Seconds
    epoch_seconds: Seconds
    memory_bytes: Length
    device_bytes: NotRequired[Length | None]
    cache_bytes: Length


class Numerics(TypedDict):
    """Settings beside the precision that decide how an NVIDIA GPU computes.

    ``tf32``: whether fp32 may be TF32. ``cudnn_benchmark``: whether cuDNN times its algorithms.
    """

    tf32: bool
    cudnn_benchmark: bool


class StageMeasure(TypedDict):
    """Measurements of one stage in one step (``movement.py``)."""

    learning_rate: Length
    gradient_norm: Length
    update: Length


class EpochScores(TypedDict):
    """Metrics of an epoch beside loss and accuracy."""

    balanced_accuracy: NotRequired[Share]
    macro_f1: NotRequired[Share]


class Candidate(TypedDict):
    """A value tried on held-out training images.

    ``loss`` is the mean cross-entropy in nats.
    """

    value: Length
    loss: Loss
    accuracy: Share


class Ancestor(TypedDict):
    """A run that another one starts from or averages, as it was at that time.

    Attributes:
        backbone: Not recorded by earlier versions.
        data: The last part of the data set's path.
        epoch: The best epoch. 0 in a run without epochs.
        accuracy: Accuracy of that epoch on the validation images, 0…1, if its predictions could be
            read.
        weights: What the run started from itself.
    """

    run: Name
    backbone: NotRequired[Name]
    data: Text
    strategy: Name
    epoch: Count
    accuracy: Share | None
    weights: Literal["pretrained", "none", "file", "run"]


class Ingredient(TypedDict):
    """A network tried in a greedy soup.

    Attributes:
        accuracy: Accuracy of the soup with this network on the validation images, 0…1.
        kept: Whether the network stayed in the soup.
    """

    run: Name
    accuracy: Share
    kept: bool


class Mixture(TypedDict):
    """A point on the line between two networks, from 0 (the first) to 1 (the second).

    ``accuracy`` is 0…1, ``loss`` the mean cross-entropy in nats.
    """

    coefficient: Share
    accuracy: Share
    loss: Loss


class ShiftedCurve(TypedDict):
    """Points between two networks, evaluated on ``images`` images of another data set.

    Attributes:
        data: Folder or manifest of the data set.
        problem: Why there are no points. Empty where there are.
    """

    data: Text
    images: Count
    curve: Annotated[list[Mixture], Field(max_length=1000)]
    problem: Text


Lineage = Annotated[list[Ancestor], Field(max_length=1000)]
StageMeasures = Annotated[dict[Name, StageMeasure], Field(max_length=1000)]


@dataclass(frozen=True)
class CacheReport:
    """Use of the activation cache by a run.

    Attributes:
        where: ``memory``, ``disk``, or ``off`` for the reason in ``reason``.
        views: Augmented versions of a training image. 0 without augmentation, or with a fresh one
            each epoch.
        rows: Number of activations that the run uses.
        bytes: Size of these activations.
        found: How many of them were cached before.
        trunk_seconds: Time spent on computing the others.
        seconds_per_row: Time to compute one. None where it was never measured.
        compilation: Whether the frozen stages were compiled, or why not, as text. Empty where
            nothing was computed.
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
    """Base class of all events."""

    def to_json(self) -> dict[str, Any]:
        """Return the event as a JSON object whose ``event`` names its kind."""
        return {"event": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class Progress(Event):
    """Progress of work before, between and after the epochs.

    Attributes:
        done: Units of ``phase`` that are done.
        total: Units in all. 0 if not known.
        stage: First of the frozen stages that images go through now. Empty where they go through
            none.
    """

    phase: Phase
    done: Count
    total: Count
    stage: Name = ""


@dataclass(frozen=True)
class RunStarted(Event):
    """Everything that is known before the first step.

    For an ensemble, ``stages`` are those of its first network, and the parameters are counted over
    all its networks.

    Attributes:
        counts: Number of images by split.
        class_counts: Number of images of each class, by split. Empty in runs of earlier versions.
        stages: One object per stage, input to head: ``name, parameters, trains, rate, thaw_epoch``.
        epochs: 0 where the head is fitted in one go, or other runs are averaged.
        steps_per_epoch: 0 where ``epochs`` is.
        findings: One object per finding about the data set: ``kind, severity, count, message``.
        fingerprint: Hash of the images, their labels and splits.
        weights_hash: Hash of the backbone before training.
        cache: Use of the activation cache.
        decode_seconds: Time spent on reading images that no run had read before.
        decoded: How many images these were.
        forecast: The expected ``seconds, epoch_seconds, memory_bytes, device_bytes, cache_bytes``.
            None where nothing was known.
        numerics: ``tf32, cudnn_benchmark``. None in runs of earlier versions.
        lineage: The run this one starts from, the run that one started from, and so on. Empty where
            it starts from other weights.
        head_kept: Whether it starts with the head of that run, too.
        averaged: How it averages other runs. None in other runs, and in runs of earlier versions.
        ranks: How many processes train it together, each on a device of its own.
        batchnorm: ``per_rank`` where several ranks train BatchNorm, each on the statistics of its
            share of a batch. Otherwise empty.
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
    averaged: AveragingMethod | None = None
    ranks: Positive = 1
    batchnorm: Literal["", "per_rank"] = ""
    class_counts: ClassCounts = field(default_factory=dict)


@dataclass(frozen=True)
class RunReopened(Event):
    """A run that had ended, or was cut off, is waiting to go on."""


@dataclass(frozen=True)
class RunPlaced(Event):
    """A task on some machine begins to train the run, or to go on with it.

    Attributes:
        host: The machine.
        task: Name of the task. It stays the same when the task is tried again.
        moved_from: After a retry, the machine whose process had the run and is gone. Empty at the
            first try.
        gpus: GPUs that the run has to itself there. 0 if not known.
        cores: Cores that the run has to itself there. 0 if not known.
    """

    host: Name
    task: Name
    moved_from: Name = ""
    gpus: Count = 0
    cores: Count = 0


@dataclass(frozen=True)
class RunResumed(Event):
    """A run goes on after ``step`` steps of ``epoch``. Later events are reported again."""

    epoch: Epoch
    step: Count


@dataclass(frozen=True)
class ImagesSkipped(Event):
    """Images that could not be read and are left out of this run."""

    count: Count
    examples: Texts


@dataclass(frozen=True)
class ImagesLost(Event):
    """Images that were readable when the run began and no longer are.

    They are left out from here on. ``count`` is how many there are so far.
    """

    count: Count
    examples: Texts


@dataclass(frozen=True)
class MemoryShort(Event):
    """A step whose images did not fit into memory at once.

    ``micro_batch`` images went through at a time, to the same effect.
    """

    epoch: Epoch
    step: Count
    micro_batch: Count


@dataclass(frozen=True)
class StepEnded(Event):
    """One optimizer step.

    Attributes:
        epoch: Counted from 1.
        step: Counted from 1 within the epoch.
        loss: Loss of this batch.
        epoch_loss: Mean loss over the epoch so far.
        epoch_accuracy: Accuracy over the epoch so far.
        images: Images seen so far in the whole run.
        seconds: Time since the first step began.
        gradient_norm: Norm of the gradient of all trained parameters, before clipping.
        micro_batch: Images that went through the network at a time.
        stages: ``learning_rate, gradient_norm, update`` by stage, in the few steps where they are
            measured (``movement.py``).
        skipped: Whether the gradient overflowed in fp16, so that nothing has changed. Its norm is
            given as 0 then.
        loss_scale: Loss scale after the step. 0 where the loss is not scaled.
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
    """One epoch and its validation, both in the run's own precision.

    Attributes:
        seconds: Time since the first step began.
        memory_bytes: Largest amount of the program's memory that the run's own tensors have taken
            (``footprint.py``).
        device_bytes: Largest amount of a GPU's memory that the run has taken. ``memory_bytes``
            leaves it out. None where the processor trains, and in runs of earlier versions.
        train_scores: ``balanced_accuracy`` and ``macro_f1`` on the training images.
        val_scores: The two metrics on the validation images.
        stages: The last measurements of the stages, as in StepEnded.
        skipped_steps: Steps whose gradient overflowed in fp16.
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
    """Fit of the head of a run without epochs to the frozen features of the training images.

    Attributes:
        images: Number of training images.
        features: Number of features of each image.
        parameter: Name of the value chosen by cross-validation within the training images: ``C``,
            the inverse of the L2 penalty, of a linear probe; ``scale`` of the logits of prototypes;
            ``k`` of nearest neighbours, which is fixed.
        chosen: The chosen value.
        candidates: Values that were tried, with their scores on held-out images.
        chosen_on: Number of images it was chosen on. 0 where nothing is chosen.
        folds: Number of folds they were divided into. 0 where there were too few images.
        train_loss: Loss on the training images themselves. Nearest neighbours leave each image's
            own vote out.
        train_accuracy: Accuracy on the training images, likewise.
        seconds: Time of the fit, the choice included.
        memory_bytes: As in EpochEnded.
        device_bytes: As in EpochEnded.
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
        images: Number of training images it was fitted to.
        features: Number of features of each image.
        c: Inverse of its L2 penalty.
        train_loss: Mean cross-entropy on the training images themselves, in nats.
        train_accuracy: Accuracy on the same images.
        seconds: Time for features, cross-validation and fit.
    """

    images: Positive
    features: Positive
    c: Length
    train_loss: Loss
    train_accuracy: Share
    seconds: Seconds


@dataclass(frozen=True)
class WeightsAveraged(Event):
    """Average of other runs' weights, or of an ensemble's predictions, in a run without epochs.

    Attributes:
        how: As in the config.
        parents: The averaged runs.
        ingredients: Greedy soup: networks in the order in which they were tried, the best first.
        curve: WiSE-FT: points from the run's start with its linear probe to the run's own best
            network.
        coefficient: WiSE-FT: the coefficient chosen on the validation images, the first of the most
            accurate.
        shifted: WiSE-FT: curves on a sample of each of the other data sets that the run had
            predicted. Nothing is chosen by them.
        batchnorm_layers: Number of layers whose statistics were recomputed on the training images.
            0 where the network that is kept is not an average.
        seconds: Total time.
        memory_bytes: As in EpochEnded.
        device_bytes: As in EpochEnded.
    """

    how: AveragingMethod
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
    """The checkpoint ``last`` or ``best`` is on disk. ``epoch`` is 0 in a run without epochs."""

    name: Name
    epoch: Count


@dataclass(frozen=True)
class RunFinished(Event):
    """The run has reached its end.

    Attributes:
        epochs: 0 in a run without epochs.
        best_epoch: Best epoch by the accuracies in ``EpochEnded``, which are in the run's own
            precision. 0 in a run without epochs.
        val_accuracy: Accuracy of the best epoch, whose weights are kept, in
            ``evaluation_precision``.
        val_loss: Loss of the same weights in the same precision.
        test_accuracy: Test accuracy of the same weights in the same precision. None without a test
            split.
        seconds: Total time, decoding and evaluation included.
        frozen_tensors: How many tensors were compared, bit for bit, with the pretrained ones.
        evaluation_seconds: Time of that evaluation.
        evaluation_precision: ``fp32``. None in runs of earlier versions, which were evaluated in
            their own precision.
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
    """A person stopped or paused the run.

    ``best_epoch`` is 0 when no epoch had ended. Then there is nothing to evaluate.
    """

    epoch: Count
    best_epoch: Count
    seconds: Seconds
    paused: bool = False


@dataclass(frozen=True)
class RunFailed(Event):
    """The run could not go on.

    Attributes:
        message: The reason, as text.
        traceback: Traceback of a bug. Empty where the user can fix the reason.
    """

    message: Text
    traceback: Text


END_EVENTS = (RunFinished, RunStopped, RunFailed)


def _make_row_type(event: type[Event]) -> type:
    """Return the type of an event as it is written, with its kind and its time."""
    added: list[tuple[str, Any] | tuple[str, Any, Any]] = [
        ("event", Literal[event.__name__]),
        ("at", Moment, 0.0),
    ]
    return make_dataclass(event.__name__, added, bases=(event,), frozen=True, kw_only=True)


EVENTS = tuple(Event.__subclasses__())
_ROWS: Any = Union[tuple(map(_make_row_type, EVENTS))]  # noqa: UP007  built
_RECORDS = {
    event.__name__: [one.name for one in fields(event) if is_dataclass(one.type)]
    for event in EVENTS
}
_LINE: TypeAdapter[Event] = TypeAdapter(Annotated[_ROWS, Field(discriminator="event")])


def read_event(line: bytes) -> Row:
    """Parse one line of ``events.jsonl`` into a plain object.

    ``event`` names its kind, ``at`` is its time. Fields that an older run lacks are filled in.

    Raises:
        ValueError: If the line is no event.
    """
    row = dict(vars(_LINE.validate_json(line, strict=True)))
    for name in _RECORDS[row["event"]]:
        row[name] = asdict(row[name])
    return row


def make_event(row: Row) -> Event:
    """Return the event of an object that ``read_event`` has returned."""
    return _LINE.validate_python(row)

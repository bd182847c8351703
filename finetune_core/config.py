"""RunConfig: everything one run depends on. The form, the command line and ``config.json`` all use this one model."""

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from finetune_core.errors import ConfigError
from finetune_core.files import problem_with, read_regular

_LARGEST = 2**25  # bytes of a config.json: it may name many images
_LONGEST_PATH = 4096  # letters
_SHORT = reprlib.Repr()  # what somebody wrote into a file may be long, or deep
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200

Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "cosine", "one_cycle", "step"]
Augmentation = Literal["none", "flips", "random_resized_crop"]
Cache = Literal["auto", "off"]
Precision = Literal["auto", "fp32", "bf16"]
DeviceChoice = Literal["auto", "cpu", "cuda", "mps"]
StrategyName = Literal[
    "feature_extraction",
    "last_block",
    "last_two_blocks",
    "full",
    "linear_probe_then_full",
    "gradual_unfreezing",
    "discriminative",
    "first_block",
    "batchnorm_only",
    "bias_only",
    "from_scratch",
    "custom",
]
BatchNorm = Literal["auto", "frozen", "statistics"]
ClassWeights = Literal["none", "balanced"]
Sampling = Literal["shuffled", "balanced"]
EarlyStopping = Literal["off", "val_accuracy", "val_loss", "val_balanced_accuracy", "val_macro_f1"]
NearDuplicates = Literal["together", "apart"]


class Edit(BaseModel):
    """One change to a data set.

    Attributes:
        paths: ids of the images.
        to: the class or split that they get.
        kind: of the finding that it answers, if any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: Literal["exclude", "move", "relabel", "ignore"]
    paths: tuple[Annotated[str, Field(max_length=_LONGEST_PATH)], ...]
    to: str = Field("", max_length=1000)
    kind: str = Field("", max_length=100)


class RunConfig(BaseModel):
    """One run's settings. Defaults are the classic tutorial's fine-tuning recipe on the packaged backbone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field(
        min_length=1,
        max_length=_LONGEST_PATH,
        description="The folder with the images, one subfolder for each class, or a manifest that names them.",
    )
    backbone: str = Field(
        "efficientnet_lite0", min_length=1, max_length=200, description="The pretrained network to start from."
    )
    weights: str = Field(
        "pretrained",
        min_length=1,
        max_length=_LONGEST_PATH,
        description="'pretrained', a file with weights for this backbone, or 'none' for random weights.",
    )
    strategy: StrategyName = Field("last_block", description="Which stages train, and which stay frozen.")
    cut: str | None = Field(
        None, max_length=200, description="For the custom strategy: the first stage that trains; every later one trains too."
    )
    stage_rates: dict[str, float] | None = Field(
        None,
        max_length=1000,
        description="For the custom strategy: how many times the learning rate each stage gets; 0, or not named, is frozen.",
    )
    thaw_every: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="With gradual unfreezing: epochs between two stages that thaw; with head first: epochs of the head alone. Empty lets "
        "Thaw choose.",
    )
    layer_decay: float = Field(
        0.4,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="With slower towards the input: each stage gets this many times the learning rate of the next one.",
    )
    batchnorm: BatchNorm = Field(
        "auto",
        description="BatchNorm in the stages that train: trains ('auto'), stays as it was ('frozen': for very small batches), or only its "
        "running statistics follow the data ('statistics').",
    )
    l2_sp: float = Field(
        0.0,
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="How strongly trained stages are pulled back to their pretrained weights, a soft freeze (L2-SP, Li et al. 2018); "
        "0.01 is a usual strength.",
    )
    epochs: int = Field(10, ge=1, le=1000, description="How many times every training image is seen.")
    batch_size: int = Field(32, ge=1, le=4096, description="How many images one step learns from.")
    optimizer: Optimizer = Field(
        "adam",
        description="The rule that turns gradients into weight changes: Adam adapts its step to each weight, AdamW "
        "does so with weight decay kept apart, SGD takes plain steps with momentum 0.9.",
    )
    learning_rate: float = Field(
        1e-4, gt=0, le=10, allow_inf_nan=False, description="The size of a step. 0.0001 suits fine-tuning, 0.001 a head alone."
    )
    weight_decay: float = Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="How strongly weights are pulled towards zero; 0.01 is usual with AdamW.",
    )
    schedule: Schedule = Field(
        "constant",
        description="How the learning rate changes: not at all; along a cosine down to 0; one cycle, up for a third of the run and down "
        "to next to nothing; or by steps, to a tenth after half and after three quarters.",
    )
    warmup_epochs: float = Field(
        0.5,
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="With the cosine and step schedules: epochs over which the rate rises from near 0.",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        allow_inf_nan=False,
        description="How much of each label is spread over all classes, against overconfidence; 0.1 is usual.",
    )
    class_weights: ClassWeights = Field(
        "none",
        description="Whether images of rare classes count for more in the loss ('balanced'), so that all classes weigh the same.",
    )
    sampling: Sampling = Field(
        "shuffled",
        description="Which images an epoch holds: each one once ('shuffled'), or as many of each class ('balanced'), those of rare "
        "classes several times.",
    )
    train_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="The share of the training images that is used, class by class; a larger share holds a smaller one. Shows what more "
        "data would be worth.",
    )
    mixup: float = Field(
        0.0,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="Train on blends of two images and their labels (Zhang et al. 2018); 0.2 is a usual strength, 0 is off. Frozen stages "
        "then see new images in every step, so nothing of them can be kept.",
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="Train on images with a patch of another one, and labels by area (Yun et al. 2019); 1 is usual, 0 is off. With mixup, "
        "too, each batch gets one of the two. Nothing of the frozen stages can be kept.",
    )
    clip_norm: float = Field(
        0.0,
        ge=0,
        le=1000,
        allow_inf_nan=False,
        description="Gradients longer than this are shortened to it, against sudden jumps; 0 is off, 1 is usual.",
    )
    micro_batch: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="How many images of a batch go through the network at a time; their gradients add up to the whole batch's (but for "
        "BatchNorm that trains, which normalises each part by itself). Empty: all at once, and fewer where memory runs out.",
    )
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        allow_inf_nan=False,
        description="Judge and keep a moving average of the weights, which is steadier: 0.99 averages over about a hundred steps. 0 is off.",
    )
    early_stopping: EarlyStopping = Field("off", description="End the run when this has not got better for a while.")
    patience: int = Field(5, ge=1, le=1000, description="With early stopping: how many epochs that may be.")
    augmentation: Augmentation = Field(
        "none", description="Random changes to training images, so that fewer are learned by heart."
    )
    views: int | None = Field(
        None,
        ge=0,
        le=1000,
        description="With augmentation and frozen stages: how many augmented versions of each image are prepared once and used in "
        "turn. 0 makes a new one every epoch, which is slower; empty lets Thaw choose one for every four epochs.",
    )
    cache: Cache = Field(
        "auto",
        description="Whether what frozen stages make of each image is computed once and kept ('auto'), or again every epoch ('off').",
    )
    image_size: int = Field(224, ge=32, le=1024, description="Side of the square fed to the network, in pixels.")
    val_fraction: float = Field(
        0.15, gt=0, lt=0.9, description="Where the folder has no val/: the share of images set aside for validation."
    )
    test_fraction: float = Field(
        0.15, ge=0, lt=0.9, description="Where the folder has neither val/ nor test/: the share kept for the final test."
    )
    split_seed: int = Field(
        0, ge=0, le=2**31 - 1, description="Decides which images are set aside; the same number, the same split."
    )
    groups: str = Field(
        "",
        max_length=200,
        description="A pattern for file names such as {group}_*: images of the same group (a patient, a scene) stay in one split. "
        "* stands for any letters.",
    )
    near_duplicates: NearDuplicates = Field(
        "together", description="Whether copies and near-duplicates are kept in one split where Thaw makes the split."
    )
    edits: tuple[Edit, ...] = Field(
        (), description="Changes made to the data set: images excluded, moved to another split, or relabelled."
    )
    skip_limit: float = Field(
        0.02,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Images that cannot be read any more while training goes on are left out; when they are more than this share of "
        "all, the run stops.",
    )
    precision: Precision = Field(
        "auto", description="Number format of the arithmetic; 'auto' takes bf16 only where the hardware has it."
    )
    device: DeviceChoice = Field("auto", description="Where to train; 'auto' takes CUDA, then Apple's GPU, then the processor.")
    seed: int = Field(
        0, ge=0, le=2**31 - 1, description="Decides the new head's first weights, the shuffling and the augmentation."
    )

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        problems = {}
        if self.strategy == "custom":
            if (self.cut is None) == (self.stage_rates is None):
                problems["strategy"] = "the custom strategy needs either a first stage that trains or a rate for each stage"
            if self.stage_rates is not None:
                bad = [name for name, rate in self.stage_rates.items() if not 0 <= rate <= 1000]
                if bad:
                    problems["stage_rates"] = f"rates go from 0 to 1000; look at {', '.join(bad)}"
        elif self.cut is not None or self.stage_rates is not None:
            problems["strategy"] = f"a first stage and rates for stages belong to the custom strategy, not to {self.strategy}"
        if self.val_fraction + self.test_fraction >= 0.95:
            problems["val_fraction"] = "validation and test together leave too few images to train on"
        if self.schedule in ("cosine", "step") and self.warmup_epochs >= self.epochs:
            problems["warmup_epochs"] = f"the warm-up must end before training does ({self.epochs} epochs)"
        if self.micro_batch is not None and self.micro_batch > self.batch_size:
            problems["micro_batch"] = f"must not be more than the batch size ({self.batch_size})"
        if self.mixup + self.cutmix and self.views:
            problems["views"] = "mixup and cutmix make new images in every step, so that no augmented versions are kept"
        if self.groups and self.groups.count("{group}") != 1:
            problems["groups"] = "must hold {group} exactly once, as in {group}_*"
        if problems:
            raise ConfigError(problems)
        return self

    @property
    def starts_from(self) -> str:
        """The weights that training starts from: those asked for, but for the control that starts from scratch."""
        return "none" if self.strategy == "from_scratch" else self.weights

    @property
    def split_settings(self) -> dict[str, Any]:
        """What decides how a data set without splits of its own is split: arguments of ``index_dataset``."""
        return self.model_dump(include=set(SPLIT_FIELDS))


SPLIT_FIELDS = ("val_fraction", "test_fraction", "split_seed", "groups", "near_duplicates")

TUTORIAL_RECIPE: dict[str, Any] = {
    "backbone": "resnet18",
    "weights": "pretrained",
    "strategy": "last_block",
    "epochs": 10,
    "batch_size": 32,
    "optimizer": "adam",
    "learning_rate": 1e-4,
    "weight_decay": 0.0,
    "schedule": "constant",
    "augmentation": "none",
    "image_size": 224,
}
FEATURE_EXTRACTION_RECIPE: dict[str, Any] = TUTORIAL_RECIPE | {"strategy": "feature_extraction", "learning_rate": 1e-3}
# Small images and few epochs: a trained, judged model in well under a minute on two processor cores.
DEMO_RECIPE: dict[str, Any] = {
    "backbone": "efficientnet_lite0",
    "strategy": "last_block",
    "epochs": 5,
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "image_size": 96,
}


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """Validate settings, naming every problem at once.

    Raises:
        ConfigError: with one entry a field that cannot be used.
    """
    try:
        return RunConfig(**values)
    except ValidationError as error:
        problems = {_field(problem): _in_words(problem) for problem in error.errors()}
    # Fields that do not agree with each other are found only once each is sound: ask again without the unsound ones.
    sound = {"data": "any"} | {name: value for name, value in values.items() if name not in problems}
    try:
        RunConfig(**sound)
    except ConfigError as error:
        problems = error.problems | problems
    raise ConfigError(problems)


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a ``config.json``, not yet validated.

    Raises:
        ConfigError: when it is no regular file, cannot be read, or is not a JSON object.
    """
    try:
        values = json.loads(read_regular(path, _LARGEST))
    except OSError as error:
        raise ConfigError({"config": f"{path} cannot be read: {problem_with(path, error)}"}) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError({"config": f"{path} cannot be read as JSON: {error}"}) from None
    if not isinstance(values, dict):
        raise ConfigError({"config": f"{path} holds no settings (a JSON object was expected)"})
    return values


def bounds(field: str) -> dict[str, Any]:
    """``min`` and ``max`` (inclusive or not) of a numeric field, ``help`` of any: what a form needs to draw it."""
    info = RunConfig.model_fields[field]
    found: dict[str, Any] = {"help": info.description}
    for constraint in info.metadata:
        for name, kind in (("ge", "min"), ("gt", "min"), ("le", "max"), ("lt", "max")):
            if (value := getattr(constraint, name, None)) is not None:
                found[kind] = value
    return found


def _field(problem: Mapping[str, Any]) -> str:
    return str(problem["loc"][0]) if problem["loc"] else "settings"


def _in_words(problem: Mapping[str, Any]) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    shown = _SHORT.repr(problem.get("input"))
    match kind:
        case "greater_than":
            return f"must be more than {context['gt']:g}, not {shown}"
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}, not {shown}"
        case "less_than":
            return f"must be less than {context['lt']:g}, not {shown}"
        case "less_than_equal":
            return f"must be at most {context['le']:g}, not {shown}"
        case "literal_error":
            return f"must be {context['expected']}, not {shown}"
        case "int_parsing" | "int_type" | "int_from_float":
            return f"must be a whole number, not {shown}"
        case "float_parsing" | "float_type" | "finite_number":
            return f"must be a number, not {shown}"
        case "extra_forbidden":
            return "is not a setting that Thaw knows"
        case "missing":
            return "is needed"
        case "string_too_short":
            return "must not be empty"
    return str(problem["msg"])

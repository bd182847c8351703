"""RunConfig: all settings of a run.

The form, the command line and ``config.json`` use this one model.
"""

from contextlib import suppress
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from finetune_core.config.averaged import Averaging
from finetune_core.config.edit import LONGEST_PATH, Edit
from finetune_core.config.metadata import (
    DATA,
    HARDWARE,
    NETWORK,
    OPTIMIZATION,
    SPLIT,
    STOPPING,
    TRAINING,
    Setting,
    collect_settings,
    parse_number,
    parse_numbers,
    setting,
)
from finetune_core.errors import ConfigError

_LARGEST_SEED = 2**31 - 1
_FROM_THE_NETWORK = "from the network"
_RANGES = {"mean": "from 0 to 1", "std": "from 0.001 to 1"}  # for pixels between 0 and 1

Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "cosine", "one_cycle", "step"]
Augmentation = Literal["none", "flips", "random_resized_crop"]
Cache = Literal["auto", "off"]
Compile = Literal["auto", "off"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
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
    "linear_probe",
    "prototypes",
    "nearest_neighbours",
    "lora",
    "custom",
]
# Strategies without epochs.
FITTED: tuple[StrategyName, ...] = ("linear_probe", "prototypes", "nearest_neighbours")
BatchNorm = Literal["auto", "frozen", "statistics"]
InitialHead = Literal["random", "probe"]
LoraNorms = Literal["frozen", "train"]
ClassWeights = Literal["none", "balanced"]
Sampling = Literal["shuffled", "balanced"]
EarlyStoppingMetric = Literal[
    "off", "val_accuracy", "val_loss", "val_balanced_accuracy", "val_macro_f1"
]
Interpolation = Literal["auto", "bilinear", "bicubic"]
Fit = Literal["crop", "pad"]
NearDuplicates = Literal["together", "apart"]


class RunConfig(BaseModel):
    """The settings of one run.

    The defaults are the classic tutorial's fine-tuning recipe on the packaged backbone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = setting(
        label="Data",
        help="The folder with the images, one subfolder per class, or a manifest that lists them.",
        in_script="repeated",
        min_length=1,
        max_length=LONGEST_PATH,
    )
    backbone: str = setting(
        "efficientnet_lite0",
        label="Backbone",
        section=NETWORK,
        help="The pretrained network to start from: one of torchvision, timm/NAME, "
        "hf-hub:USER/MODEL, or local-dir:FOLDER.",
        metavar="NAME",
        several="backbones",
        in_script="repeated",
        min_length=1,
        max_length=LONGEST_PATH,
    )
    weights: str = setting(
        "pretrained",
        label="Starting weights",
        section=NETWORK,
        help="'pretrained', a file with weights for this backbone, or 'none' for random weights.",
        metavar="FILE",
        in_script="repeated",
        own_widgets=True,
        min_length=1,
        max_length=LONGEST_PATH,
    )
    from_run: str | None = setting(
        None,
        label="Earlier run",
        section=NETWORK,
        help="Start from the best epoch of an earlier run: with its backbone, its weights, and its "
        "head where the classes are the same. Frozen stages then stay as that run left them.",
        option="from",
        metavar="RUN_DIR",
        in_script="repeated",
        own_widgets=True,
        min_length=1,
        max_length=LONGEST_PATH,
    )
    strategy: StrategyName = setting(
        "last_block",
        label="Strategy",
        section=NETWORK,
        help="Which stages train, and which stay frozen.",
        several="strategies",
        in_script="repeated",
    )
    cut: str | None = setting(
        None,
        label="First stage that trains",
        section=NETWORK,
        help="For the custom strategy: the first stage that trains; every later one trains too.",
        metavar="STAGE",
        in_script="repeated",
        own_widgets=True,
        max_length=200,
    )
    stage_rates: dict[str, float] | None = setting(
        None,
        label="Learning-rate multipliers",
        section=NETWORK,
        help="For the custom strategy: how many times the learning rate each stage gets; 0, or not "
        "listed, is frozen.",
        metavar="STAGE=X,…",
        in_script="repeated",
        own_widgets=True,
        max_length=1000,
    )
    features_from: str | None = setting(
        None,
        label="Feature layer",
        section=NETWORK,
        help="For the strategies without epochs: the last stage used; the head is fitted on its "
        "output. Empty: all stages.",
        metavar="STAGE",
        placeholder="all stages",
        in_script="irrelevant",  # no script repeats a run without epochs
        own_widgets=True,
        max_length=200,
    )
    thaw_every: int | None = setting(
        None,
        label="Unfreeze every (epochs)",
        section=NETWORK,
        help="With gradual unfreezing: epochs before the next stage is unfrozen; with linear "
        "probe, then full: epochs of the linear probe. Empty lets Thaw choose.",
        placeholder="chosen by Thaw",
        in_script="repeated",
        stepwise=True,
        ge=1,
        le=1000,
    )
    layer_decay: float = setting(
        0.4,
        label="Layer-wise LR decay",
        section=NETWORK,
        help="With discriminative learning rates: each stage gets this many times the learning "
        "rate of the next one.",
        in_script="repeated",
        stepwise=True,
        gt=0,
        le=1,
        allow_inf_nan=False,
    )
    lora_rank: int = setting(
        8,
        label="LoRA rank",
        section=NETWORK,
        help="With LoRA: the rank of what is added to each weight matrix.",
        in_script="repeated",
        stepwise=True,
        ge=1,
        le=1024,
    )
    lora_alpha: float = setting(
        16.0,
        label="LoRA alpha",
        section=NETWORK,
        help="With LoRA: alpha / rank is how many times the factors' product is added to each "
        "weight matrix.",
        in_script="repeated",
        stepwise=True,
        gt=0,
        le=10_000,
        allow_inf_nan=False,
    )
    lora_from: str | None = setting(
        None,
        label="First stage with LoRA",
        section=NETWORK,
        help="With LoRA: earlier stages stay as they are, so that their output can be cached. "
        "Empty: all stages have it.",
        metavar="STAGE",
        placeholder="all stages",
        in_script="repeated",
        own_widgets=True,
        max_length=200,
    )
    lora_norms: LoraNorms = setting(
        "frozen",
        label="Normalization layers with LoRA",
        section=NETWORK,
        help="With LoRA: whether the normalization layers of its stages stay as they are "
        "('frozen') or train, too ('train').",
        choices={"frozen": "Frozen", "train": "Train"},
        in_script="repeated",
        stepwise=True,
    )
    batchnorm: BatchNorm = setting(
        "auto",
        label="BatchNorm in trained stages",
        section=OPTIMIZATION,
        help="BatchNorm layers of the stages that train: they train ('auto'), stay as they are "
        "('frozen': for very small batches), or only their running statistics follow the "
        "data ('statistics').",
        choices={"auto": "Trains", "frozen": "Frozen", "statistics": "Running statistics only"},
        in_script="repeated",
        stepwise=True,
    )
    initial_head: InitialHead = setting(
        "random",
        label="Initial head",
        section=OPTIMIZATION,
        help="The new head before the first step: random weights, or a linear probe fitted to the "
        "features of the training images ('probe', the first step of LP-FT, Kumar et al. 2022). A "
        "head that is kept from an earlier run stays as it is.",
        choices={"random": "Random", "probe": "Linear probe"},
        follows=True,
        in_script="repeated",
        stepwise=True,
    )
    l2_sp: float = setting(
        0.0,
        label="L2-SP",
        section=OPTIMIZATION,
        help="How strongly trained stages are pulled back to their pretrained weights, a soft "
        "freeze (L2-SP, Li et al. 2018). 0 is off; 0.01 is a usual strength.",
        in_script="repeated",
        stepwise=True,
        ge=0,
        le=100,
        allow_inf_nan=False,
    )
    epochs: int = setting(
        10,
        label="Epochs",
        section=TRAINING,
        help="Number of passes over the training images.",
        follows=True,
        in_script="repeated",
        stepwise=True,
        ge=1,
        le=1000,
    )
    batch_size: int = setting(
        32,
        label="Batch size",
        section=TRAINING,
        help="Number of images per optimizer step.",
        in_script="repeated",
        stepwise=True,
        ge=1,
        le=4096,
    )
    optimizer: Optimizer = setting(
        "adam",
        label="Optimizer",
        section=TRAINING,
        help="The rule that turns gradients into weight changes: Adam adapts its step to each "
        "weight, AdamW does so with weight decay kept apart, SGD takes plain steps with "
        "momentum 0.9.",
        choices={"adam": "Adam", "adamw": "AdamW", "sgd": "SGD with momentum"},
        follows=True,
        in_script="repeated",
        stepwise=True,
    )
    learning_rate: float = setting(
        1e-4,
        label="Learning rate",
        section=TRAINING,
        help="The size of a step. 0.0001 suits fine-tuning, 0.001 a head alone.",
        option="lr",
        follows=True,
        in_script="repeated",
        stepwise=True,
        gt=0,
        le=10,
        allow_inf_nan=False,
    )
    weight_decay: float = setting(
        0.0,
        label="Weight decay",
        section=OPTIMIZATION,
        help="How strongly weights are pulled towards zero; 0.01 is usual with AdamW.",
        follows=True,
        in_script="repeated",
        stepwise=True,
        ge=0,
        le=1,
        allow_inf_nan=False,
    )
    schedule: Schedule = setting(
        "constant",
        label="LR schedule",
        section=TRAINING,
        help="How the learning rate changes: not at all; along a cosine down to 0; one cycle, up "
        "for a third of the run and down to next to nothing; or by steps, to a tenth after "
        "half and after three quarters.",
        choices={
            "constant": "Constant",
            "cosine": "Cosine with warm-up",
            "one_cycle": "One cycle",
            "step": "Steps with warm-up",
        },
        follows=True,
        in_script="repeated",
        stepwise=True,
    )
    warmup_epochs: float = setting(
        0.5,
        label="Warm-up (epochs)",
        section=OPTIMIZATION,
        help="With the cosine and step schedules: epochs over which the learning rate rises from "
        "near 0.",
        follows=True,
        in_script="repeated",
        stepwise=True,
        ge=0,
        le=100,
        allow_inf_nan=False,
    )
    label_smoothing: float = setting(
        0.0,
        label="Label smoothing",
        section=OPTIMIZATION,
        help="How much of each label is spread over all classes, against overconfidence. 0 is off; "
        "0.1 is usual.",
        share=True,
        in_script="repeated",
        stepwise=True,
        ge=0,
        lt=1,
        allow_inf_nan=False,
    )
    class_weights: ClassWeights = setting(
        "none",
        label="Class weights",
        section=DATA,
        help="Whether images of rare classes count for more in the loss ('balanced'), so that all "
        "classes weigh the same.",
        choices={"none": "None", "balanced": "Balanced"},
        in_script="repeated",
        stepwise=True,
    )
    sampling: Sampling = setting(
        "shuffled",
        label="Sampler",
        section=DATA,
        help="Which images an epoch holds: each one once ('shuffled'), or as many of each class "
        "('balanced'), those of rare classes several times.",
        choices={"shuffled": "Shuffled", "balanced": "Balanced over classes"},
        in_script="repeated",
        stepwise=True,
    )
    train_fraction: float = setting(
        1.0,
        label="Training fraction",
        section=DATA,
        help="The share of the training images that is used, class by class, drawn by the seed; of "
        "one seed, a larger share contains a smaller one. Shows what more data would be "
        "worth.",
        share=True,
        several="fractions",
        in_script="repeated",
        gt=0,
        le=1,
        allow_inf_nan=False,
    )
    mixup: float = setting(
        0.0,
        label="Mixup (alpha)",
        section=DATA,
        help="Train on blends of two images and their labels (Zhang et al. 2018). 0 is off; 0.2 is "
        "a usual strength. Frozen stages then see new images in every step, so nothing of "
        "them can be cached.",
        in_script="repeated",
        stepwise=True,
        ge=0,
        le=10,
        allow_inf_nan=False,
    )
    cutmix: float = setting(
        0.0,
        label="CutMix (alpha)",
        section=DATA,
        help="Train on images with a patch of another one, and labels by area (Yun et al. 2019). 0 "
        "is off; 1 is usual. With mixup, too, each batch gets one of the two. Nothing of the "
        "frozen stages can be cached.",
        in_script="repeated",
        stepwise=True,
        ge=0,
        le=10,
        allow_inf_nan=False,
    )
    clip_norm: float = setting(
        0.0,
        label="Gradient clipping (max norm)",
        section=OPTIMIZATION,
        help="Gradients whose norm exceeds this are scaled down to it, against sudden jumps. 0 is "
        "off; 1 is usual.",
        in_script="repeated",
        stepwise=True,
        ge=0,
        le=1000,
        allow_inf_nan=False,
    )
    micro_batch: int | None = setting(
        None,
        label="Micro-batch size",
        section=HARDWARE,
        help="How many images of a batch go through the network at a time; their gradients add up "
        "to the whole batch's (except BatchNorm that trains: it normalizes each part by "
        "itself). Empty: all at once, and fewer where memory runs out.",
        placeholder="chosen by Thaw",
        in_script="repeated",
        stepwise=True,
        ge=1,
        le=4096,
    )
    ema: float = setting(
        0.0,
        label="Weight EMA (decay)",
        section=OPTIMIZATION,
        help="Evaluate and keep an exponential moving average of the weights, which is steadier: "
        "0.99 averages over about a hundred steps. 0 is off.",
        in_script="repeated",
        stepwise=True,
        ge=0,
        lt=1,
        allow_inf_nan=False,
    )
    early_stopping: EarlyStoppingMetric = setting(
        "off",
        label="Early stopping",
        section=STOPPING,
        help="End the run when this metric has not improved for a while.",
        choices={
            "off": "Off",
            "val_accuracy": "Validation accuracy",
            "val_loss": "Validation loss",
            "val_balanced_accuracy": "Validation balanced accuracy",
            "val_macro_f1": "Validation macro F1",
        },
        follows=True,
        in_script="repeated",
        stepwise=True,
    )
    patience: int = setting(
        5,
        label="Patience (epochs)",
        section=STOPPING,
        help="With early stopping: after how many epochs without improvement the run ends.",
        follows=True,
        in_script="repeated",
        stepwise=True,
        ge=1,
        le=1000,
    )
    augmentation: Augmentation = setting(
        "none",
        label="Augmentation",
        section=TRAINING,
        help="Random changes to training images, against overfitting.",
        choices={
            "none": "None",
            "flips": "Flips",
            "random_resized_crop": "Random resized crops and flips",
        },
        option="augment",
        in_script="repeated",
        stepwise=True,
    )
    views: int | None = setting(
        None,
        label="Cached augmented views",
        section=DATA,
        help="With augmentation and frozen stages: how many augmented versions of each image are "
        "computed once and used in turn. 0 makes a new one every epoch, which is slower; "
        "empty lets Thaw choose one for every four epochs.",
        placeholder="chosen by Thaw",
        in_script="repeated",
        stepwise=True,
        ge=0,
        le=1000,
    )
    cache: Cache = setting(
        "auto",
        label="Activation cache",
        section=HARDWARE,
        help="Whether the frozen stages' output for each image is computed once and kept ('auto'), "
        "or again every epoch ('off').",
        choices={"auto": "Automatic", "off": "Off"},
        in_script="irrelevant",  # changes only the speed of a run
    )
    compile: Compile = setting(
        "auto",
        label="Compile frozen stages",
        section=HARDWARE,
        help="Whether the frozen stages are compiled for this processor where that saves more time "
        "than it takes ('auto'), or never ('off'). In fp32 they never are.",
        choices={"auto": "Automatic", "off": "Off"},
        in_script="irrelevant",  # changes only the speed of a run
    )
    image_size: int = setting(
        224,
        label="Image size (pixels)",
        section=TRAINING,
        help="Side of the square fed to the network, in pixels.",
        in_script="repeated",
        ge=32,
        le=1024,
    )
    mean: tuple[float, float, float] | None = setting(
        None,
        label="Input mean",
        section=DATA,
        help="What is subtracted from red, green and blue, of pixels from 0 to 1: three numbers. "
        "Empty: as the network was pretrained.",
        placeholder=_FROM_THE_NETWORK,
        in_script="repeated",
    )
    std: tuple[float, float, float] | None = setting(
        None,
        label="Input standard deviation",
        section=DATA,
        help="What red, green and blue are then divided by: three numbers. Empty: as the network "
        "was pretrained.",
        placeholder=_FROM_THE_NETWORK,
        in_script="repeated",
    )
    crop_pct: float | None = setting(
        None,
        label="Crop fraction",
        section=DATA,
        help="The share of the resized image's edge that the centre crop keeps: 0.875 keeps 224 "
        "pixels of 256. Empty: as the network was pretrained.",
        placeholder=_FROM_THE_NETWORK,
        share=True,
        in_script="repeated",
        ge=0.25,
        le=1,
        allow_inf_nan=False,
    )
    interpolation: Interpolation = setting(
        "auto",
        label="Interpolation",
        section=DATA,
        help="How images are resized; 'auto': as the network was pretrained.",
        choices={"auto": "From the network", "bilinear": "Bilinear", "bicubic": "Bicubic"},
        in_script="repeated",
    )
    fit: Fit = setting(
        "crop",
        label="Image fit",
        section=DATA,
        help="How an image becomes a square. 'crop' keeps the centre; 'pad' keeps the whole image "
        "and fills its shorter side with gray, for long images.",
        choices={"crop": "Centre crop", "pad": "Pad to square"},
        in_script="repeated",
    )
    val_fraction: float = setting(
        0.15,
        label="Validation fraction",
        section=SPLIT,
        help="Where the folder has no val/: the share of images set aside for validation.",
        share=True,
        in_script="repeated",
        gt=0,
        lt=0.9,
    )
    test_fraction: float = setting(
        0.15,
        label="Test fraction",
        section=SPLIT,
        help="Where the folder has neither val/ nor test/: the share kept for the final test.",
        share=True,
        in_script="repeated",
        ge=0,
        lt=0.9,
    )
    split_seed: int = setting(
        0,
        label="Split seed",
        section=SPLIT,
        help="Decides which images are set aside; the same number, the same split.",
        in_script="repeated",
        ge=0,
        le=_LARGEST_SEED,
    )
    groups: str = setting(
        "",
        label="Groups",
        section=SPLIT,
        help="A pattern for file names such as {group}_*: images of the same group (a patient, a "
        "scene) stay in one split. * stands for any characters.",
        metavar="PATTERN",
        placeholder="{group}_*",
        in_script="repeated",
        max_length=200,
    )
    near_duplicates: NearDuplicates = setting(
        "together",
        label="Near-duplicates",
        section=SPLIT,
        help="Whether copies and near-duplicates are kept in one split where Thaw makes the split.",
        choices={"together": "Kept in one split", "apart": "Ignored"},
        in_script="repeated",
    )
    edits: tuple[Edit, ...] = setting(
        (),
        label="Changes to the data set",
        help="Changes made to the data set: images excluded, moved to another split, or "
        "relabelled.",
        in_script="repeated",
        own_widgets=True,
    )
    skip_limit: float = setting(
        0.02,
        label="Unreadable images allowed (fraction)",
        section=STOPPING,
        help="Images that become unreadable during training are left out; if they exceed this "
        "share of all images, the run stops.",
        share=True,
        in_script="irrelevant",  # unreadable images are left out of the script's split
        ge=0,
        le=1,
        allow_inf_nan=False,
    )
    precision: Precision = setting(
        "auto",
        label="Precision",
        section=HARDWARE,
        help="Number format of the arithmetic; 'auto' uses bf16 where the hardware computes in it, "
        "else fp16 on NVIDIA GPUs with tensor cores, else fp32. bf16 is refused where it "
        "would be emulated, fp16 elsewhere than on NVIDIA GPUs.",
        choices={
            "auto": "Automatic",
            "fp32": "fp32 (exact)",
            "bf16": "bf16 (half the memory)",
            "fp16": "fp16 (NVIDIA GPUs without bf16)",
        },
        in_script="repeated",
    )
    device: DeviceChoice = setting(
        "auto",
        label="Device",
        section=HARDWARE,
        help="Where to train; 'auto' uses CUDA, else Apple's GPU (MPS), else the CPU.",
        choices={"auto": "Automatic", "cpu": "CPU", "cuda": "NVIDIA GPU", "mps": "Apple GPU"},
        in_script="irrelevant",  # the script chooses a device itself
    )
    seed: int = setting(
        0,
        label="Seed",
        section=TRAINING,
        help="Decides the new head's first weights, the shuffling and the augmentation, and which "
        "share of the images is drawn.",
        several="seeds",
        in_script="repeated",
        ge=0,
        le=_LARGEST_SEED,
    )
    head_seed: int | None = setting(
        None,
        label="Seed of the head",
        section=OPTIMIZATION,
        help="Seed of the new head's first weights alone. Keep it equal where runs of several "
        "seeds are to be averaged: these then differ in the order of the images, "
        "augmentation and dropout only. They also have to train on all images: a share of "
        "them is drawn by the seed. Empty: the seed.",
        placeholder="the seed",
        in_script="repeated",
        stepwise=True,
        ge=0,
        le=_LARGEST_SEED,
    )
    auto: tuple[str, ...] = setting(
        (),
        label="Chosen by Thaw",
        help="Settings whose values follow from the number of training images and the strategy.",
        in_script="irrelevant",  # the values are in the config
        own_widgets=True,
    )
    averaged: Averaging | None = setting(
        None,
        label="Averaged from",
        help="The runs whose weights or probabilities are averaged in the place of training, and "
        "how.",
        own_widgets=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _parse_numbers(cls, value: Any, field: ValidationInfo) -> Any:
        declaration = collect_settings(cls)[str(field.field_name)]
        if not isinstance(value, str) or declaration.kind not in ("number", "numbers"):
            return value
        if declaration.optional and not value.strip():
            return None
        return (
            parse_number(value, declaration.share)
            if declaration.kind == "number"
            else parse_numbers(value)
        )

    @field_validator("auto")
    @classmethod
    def _check_auto(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        allowed = [name for name, one in collect_settings(cls).items() if one.follows]
        if unknown := sorted(set(names) - set(allowed)):
            raise PydanticCustomError(
                "unknown_auto",
                f"must be names among {', '.join(allowed)}, not {', '.join(unknown)}",
            )
        return tuple(name for name in allowed if name in names)

    @field_validator("mean", "std", mode="wrap")
    @classmethod
    def _check_three_numbers(
        cls, value: Any, handler: ValidatorFunctionWrapHandler, field: ValidationInfo
    ) -> Any:
        """Replace pydantic's error for each number by one message for all three."""
        name = str(field.field_name)
        with suppress(ValidationError):
            numbers = handler(value)
            if numbers is None or all(
                (0 if name == "mean" else 0.001) <= number <= 1 for number in numbers
            ):
                return numbers
        raise PydanticCustomError(
            "three_numbers", f"must be three numbers {_RANGES[name]}, as in 0.485, 0.456, 0.406"
        )

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        problems = {}
        if self.strategy == "custom":
            if (self.cut is None) == (self.stage_rates is None):
                problems["strategy"] = (
                    "the custom strategy needs either a first stage that trains or a rate for each "
                    "stage"
                )
            if self.stage_rates is not None:
                bad = [name for name, rate in self.stage_rates.items() if not 0 <= rate <= 1000]
                if bad:
                    problems["stage_rates"] = f"rates go from 0 to 1000; look at {', '.join(bad)}"
        elif self.cut is not None or self.stage_rates is not None:
            problems["strategy"] = (
                "a first stage and rates for stages belong to the custom strategy, not to "
                f"{self.strategy}"
            )
        if self.averaged is not None and not self.is_ensemble and self.strategy in FITTED:
            problems["averaged"] = (
                f"weights that trained are averaged, and {self.strategy} trains none"
            )
        if self.from_run is not None and self.weights != "pretrained":
            problems["weights"] = (
                "an earlier run to start from brings its own weights: choose one of the two"
            )
        if self.features_from is not None and self.strategy not in FITTED:
            problems["features_from"] = f"belongs to {', '.join(FITTED)}, not to {self.strategy}"
        if self.lora_from is not None and self.strategy != "lora":
            problems["lora_from"] = f"belongs to lora, not to {self.strategy}"
        if self.l2_sp and self.strategy == "lora":
            problems["l2_sp"] = (
                "pulls whole weights back, and with LoRA only factors train: weight decay pulls "
                "these to zero"
            )
        if self.val_fraction + self.test_fraction >= 0.95:
            problems["val_fraction"] = (
                "validation and test together leave too few images to train on"
            )
        if self.schedule in ("cosine", "step") and self.warmup_epochs >= self.epochs:
            problems["warmup_epochs"] = (
                f"the warm-up must end before training does ({self.epochs} epochs)"
            )
        if self.micro_batch is not None and self.micro_batch > self.batch_size:
            problems["micro_batch"] = f"must not be more than the batch size ({self.batch_size})"
        if self.mixup + self.cutmix and self.views:
            problems["views"] = (
                "mixup and cutmix make new images in every step, so that no augmented versions are "
                "kept"
            )
        if self.groups and self.groups.count("{group}") != 1:
            problems["groups"] = "must hold {group} exactly once, as in {group}_*"
        if problems:
            raise ConfigError(problems)
        return self

    @property
    def initial_weights(self) -> str:
        """The initial weights: the requested ones or a run directory.

        ``from_scratch``, the control, always starts from random weights.
        """
        return "none" if self.strategy == "from_scratch" else self.from_run or self.weights

    @property
    def earlier_run(self) -> str | None:
        """The run directory that training starts from. None where it starts from other weights."""
        return None if self.strategy == "from_scratch" else self.from_run

    @property
    def is_ensemble(self) -> bool:
        """True if the run is several networks and predicts the mean of their probabilities."""
        return self.averaged is not None and self.averaged.how == "ensemble"

    @property
    def init_seed(self) -> int:
        """The seed of random initial weights: those of the new head, and of a random backbone."""
        return self.seed if self.head_seed is None else self.head_seed

    def strategy_changes(self, name: str) -> dict[str, Any]:
        """Return the changes that switch to another strategy.

        Settings that belong to the current strategy alone are reset.
        """
        return {
            "strategy": name,
            "cut": None,
            "stage_rates": None,
            "features_from": self.features_from if name in FITTED else None,
            "lora_from": self.lora_from if name == "lora" else None,
            "averaged": None,
        }

    @property
    def input_settings(self) -> dict[str, Any]:
        """The settings that determine how an image becomes the network's input."""
        return self.model_dump(
            include={"image_size", "mean", "std", "crop_pct", "interpolation", "fit"}
        )

    @property
    def split_settings(self) -> dict[str, Any]:
        """The settings that split a data set without splits of its own.

        They are arguments of ``index_dataset``.
        """
        return self.model_dump(include=set(setting_names(SPLIT)))


def get_setting(name: str) -> Setting:
    """Return the declaration of a setting."""
    return all_settings()[name]


def all_settings() -> dict[str, Setting]:
    """Return all settings by name, in declaration order."""
    return collect_settings(RunConfig)


def auto_setting_names() -> tuple[str, ...]:
    """Return the names of settings that follow from data set and strategy by default."""
    return tuple(name for name, one in all_settings().items() if one.follows)


def setting_names(*sections: str) -> list[str]:
    """Return the names of the settings in these sections, in declaration order."""
    return [
        name
        for section in sections
        for name, one in all_settings().items()
        if one.section == section
    ]

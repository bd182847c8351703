"""The strategies to choose from.

A strategy says of every stage whether it trains, how fast, and from which epoch on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from finetune_core.config import RunConfig
from finetune_core.config.run_config import StrategyName
from finetune_core.errors import ConfigError

Part = Literal["all", "norms", "biases", "lora", "lora_norms", "none"]
Fit = Literal["linear_probe", "prototypes", "nearest_neighbours"]


@dataclass(frozen=True)
class Rule:
    """Rule of a strategy for one stage. A rate of 0 freezes the stage."""

    rate: float
    thaw_epoch: int = 1
    part: Part = "all"


@dataclass(frozen=True)
class NamedStrategy:
    """A strategy that a person can choose.

    Attributes:
        title: The field's term for it.
        summary: What trains, in a few words.
        help: When it pays, in a sentence or two.
        source: The paper that it is known by.
        rules: Function of (config, stage names) that returns one rule per stage, input to head.
        settings: Names of the settings that only this strategy and few others have.
        classic: Whether it is one of the usual cuts, which differ in how many stages train.
        fits: How the head is fitted to frozen features in one go. None where it trains in epochs.
    """

    title: str
    summary: str
    help: str
    source: str
    rules: Callable[[RunConfig, Sequence[str]], Sequence[Rule]]
    settings: tuple[str, ...] = ()
    classic: bool = False
    fits: Fit | None = None


Rules = Callable[[RunConfig, Sequence[str]], Sequence[Rule]]


def _train_last(count: int) -> Rules:
    def rules(_config: RunConfig, names: Sequence[str]) -> Sequence[Rule]:
        first = max(0, len(names) - count)
        return [Rule(float(index >= first)) for index in range(len(names))]

    return rules


def _store_features(_config: RunConfig, names: Sequence[str]) -> Sequence[Rule]:
    """Replace the head by stored features, which are no parameters."""
    return [*[Rule(0.0)] * (len(names) - 1), Rule(1.0, part="none")]


def _train_first_block(_config: RunConfig, names: Sequence[str]) -> Sequence[Rule]:
    """Train the stem, the first stage after it, and the new head."""
    return [Rule(float(index < 2 or index == len(names) - 1)) for index in range(len(names))]


def _train_all(_config: RunConfig, names: Sequence[str]) -> Sequence[Rule]:
    return [Rule(1.0)] * len(names)


def _train_only(part: Part) -> Rules:
    def rules(_config: RunConfig, names: Sequence[str]) -> Sequence[Rule]:
        return [*[Rule(1.0, part=part)] * (len(names) - 1), Rule(1.0)]

    return rules


def _lora(config: RunConfig, names: Sequence[str]) -> Sequence[Rule]:
    if config.lora_from is not None and config.lora_from not in names[:-1]:
        known = f"the stages of {config.backbone} are {', '.join(names[:-1])}"
        raise ConfigError({"lora_from": f"there is no stage {config.lora_from!r}; {known}"})
    first = names.index(config.lora_from) if config.lora_from else 0
    part: Part = "lora_norms" if config.lora_norms == "train" else "lora"
    return [*[Rule(0.0)] * first, *[Rule(1.0, part=part)] * (len(names) - 1 - first), Rule(1.0)]


def _discriminative(config: RunConfig, names: Sequence[str]) -> Sequence[Rule]:
    return [Rule(config.layer_decay ** (len(names) - 1 - index)) for index in range(len(names))]


def _probe_then_full(config: RunConfig, names: Sequence[str]) -> Sequence[Rule]:
    thaw = 1 + (config.thaw_every or max(1, config.epochs // 2))
    return [*[Rule(1.0, thaw)] * (len(names) - 1), Rule(1.0)]


def _gradual(config: RunConfig, names: Sequence[str]) -> Sequence[Rule]:
    every = config.thaw_every or max(1, config.epochs // len(names))
    return [Rule(1.0, 1 + every * (len(names) - 1 - index)) for index in range(len(names))]


def _custom(config: RunConfig, names: Sequence[str]) -> Sequence[Rule]:
    known = f"the stages of {config.backbone} are {', '.join(names)}"
    if config.cut is not None:
        if config.cut not in names:
            raise ConfigError({"cut": f"there is no stage {config.cut!r}; {known}"})
        return [Rule(float(index >= names.index(config.cut))) for index in range(len(names))]
    given = config.stage_rates or {}
    if unknown := [name for name in given if name not in names]:
        raise ConfigError(
            {"stage_rates": f"there is no stage {', '.join(map(repr, unknown))}; {known}"}
        )
    if not given.get("head"):
        raise ConfigError(
            {"stage_rates": "the head is new and has to train: give it a rate above 0"}
        )
    return [Rule(given.get(name, 0.0)) for name in names]


# In the order in which a form offers them. Strategies with settings of their own come last, because
# the form shows these beneath them.
STRATEGIES: dict[str, NamedStrategy] = {
    "feature_extraction": NamedStrategy(
        "Feature extraction",
        "Only the new head trains.",
        "The fastest, and hard to overfit: right for few images, or images like ImageNet's.",
        "Donahue et al. 2014, DeCAF",
        _train_last(1),
        classic=True,
    ),
    "linear_probe": NamedStrategy(
        "Linear probe",
        "A linear classifier is fitted to frozen features.",
        "The baseline to beat, in seconds and without epochs: logistic regression, its penalty "
        "chosen by cross-validation within the training images.",
        "Alain & Bengio 2016, Understanding intermediate layers using linear classifier probes; "
        "Oquab et al. 2023, DINOv2",
        _train_last(1),
        settings=("features_from",),
        fits="linear_probe",
    ),
    "prototypes": NamedStrategy(
        "Prototypes (nearest class mean)",
        "Each class is represented by the mean of its features.",
        "For a few images per class, where there is too little to fit: the nearest centroid (class "
        "mean) by cosine similarity. Features are not centred, which did better on most of what "
        "was measured.",
        "Wang et al. 2019, SimpleShot",
        _train_last(1),
        settings=("features_from",),
        fits="prototypes",
    ),
    "nearest_neighbours": NamedStrategy(
        "Nearest neighbours (k-NN)",
        "The most similar training images vote.",
        "Nothing is fitted: shows how well the features alone separate the classes. The k = 20 "
        "training images of the largest cosine similarity vote, weighted by it at a temperature of "
        "0.07. It needs the training images' features to predict, so it cannot be exported as a "
        "plain network.",
        "Caron et al. 2021, DINO",
        _store_features,
        settings=("features_from",),
        fits="nearest_neighbours",
    ),
    "last_block": NamedStrategy(
        "Last block",
        "The last stage and the head train.",
        "The usual first choice when a linear probe is not good enough.",
        "Yosinski et al. 2014, How transferable are features in deep neural networks?",
        _train_last(2),
        classic=True,
    ),
    "last_two_blocks": NamedStrategy(
        "Last two blocks",
        "The last two stages and the head train.",
        "For images that look unlike ImageNet's, with some hundreds for each class.",
        "Yosinski et al. 2014, How transferable are features in deep neural networks?",
        _train_last(3),
        classic=True,
    ),
    "full": NamedStrategy(
        "Full fine-tuning",
        "All stages train.",
        "The slowest; pays with many images, or images very unlike ImageNet's.",
        "Kornblith et al. 2019, Do better ImageNet models transfer better?",
        _train_all,
        classic=True,
    ),
    "first_block": NamedStrategy(
        "First block",
        "The stem, the first stage and the head train.",
        "Pays when the images differ in their pixels (noise, blur, another camera), not in what "
        "they show.",
        "Lee et al. 2023, Surgical fine-tuning",
        _train_first_block,
    ),
    "batchnorm_only": NamedStrategy(
        "Normalization layers only",
        "The normalization layers and the head train.",
        "Few weights, but much effect on how features are scaled.",
        "Frankle et al. 2021, Training BatchNorm and only BatchNorm",
        _train_only("norms"),
    ),
    "bias_only": NamedStrategy(
        "Bias only (BitFit)",
        "The biases and the head train.",
        "A very small change to the network, for small data sets.",
        "Ben Zaken et al. 2022, BitFit; Cai et al. 2020, TinyTL",
        _train_only("biases"),
    ),
    "from_scratch": NamedStrategy(
        "From scratch",
        "Random weights; all stages train.",
        "The control that shows what pretraining was worth.",
        "He et al. 2019, Rethinking ImageNet pre-training",
        _train_all,
    ),
    "linear_probe_then_full": NamedStrategy(
        "Linear probe, then full (LP-FT)",
        "The head trains alone first, then all stages.",
        "Distorts pretrained features less: helps when new images differ from the training images.",
        "Kumar et al. 2022, Fine-tuning can distort pretrained features and underperform "
        "out-of-distribution",
        _probe_then_full,
        settings=("thaw_every",),
    ),
    "gradual_unfreezing": NamedStrategy(
        "Gradual unfreezing",
        "The head first, then one stage more every few epochs.",
        "For small data sets that full fine-tuning overfits.",
        "Howard & Ruder 2018, ULMFiT",
        _gradual,
        settings=("thaw_every",),
    ),
    "discriminative": NamedStrategy(
        "Discriminative learning rates (layer-wise decay)",
        "All stages train, each slower than the next.",
        "A safe way to train all of the network.",
        "Howard & Ruder 2018, ULMFiT; Bao et al. 2022, BEiT",
        _discriminative,
        settings=("layer_decay",),
    ),
    "lora": NamedStrategy(
        "LoRA (low-rank updates)",
        "Low-rank changes to frozen weights, and the head, train.",
        "Far fewer numbers to train and to keep than full fine-tuning: each weight matrix moves "
        "within a low rank. It usually needs a higher learning rate.",
        "Hu et al. 2021, LoRA: Low-rank adaptation of large language models",
        _lora,
        settings=("lora_rank", "lora_alpha", "lora_norms", "lora_from"),
    ),
    "custom": NamedStrategy(
        "Custom",
        "You choose the stages.",
        "Click stages in the diagram, name the first one that trains, or give each a rate. So any "
        "block trains alone.",
        "Lee et al. 2023, Surgical fine-tuning",
        _custom,
        settings=("cut", "stage_rates"),
    ),
}

BASELINE: StrategyName = "linear_probe"  # has to be beaten by training in epochs


def count_epochs(config: RunConfig) -> int:
    """Return the largest number of epochs a run trains.

    It is 0 where the head is fitted instead, or other runs are averaged.
    """
    return 0 if STRATEGIES[config.strategy].fits or config.averaged else config.epochs


def has_fitted_initial_head(config: RunConfig, *, head_kept: bool = False) -> bool:
    """Return whether a run that trains in epochs begins with a fitted head.

    Args:
        config: Settings of the run.
        head_kept: Whether the run begins with the head of an earlier run.
    """
    return config.initial_head == "probe" and config.strategy != "from_scratch" and not head_kept


def describe_run_kind(config: RunConfig) -> str:
    """Return the title of a run's strategy, prefixed by how it averages other runs, if it does.

    An ensemble has that prefix alone, because its networks' strategies may differ.
    """
    title = STRATEGIES[config.strategy].title
    if config.averaged and config.is_ensemble:
        return config.averaged.title
    return f"{config.averaged.title}: {title}" if config.averaged else title

"""Settings that are known to work.

There are whole recipes, and a rule for a data set and a strategy.
"""

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from finetune_core.config import RunConfig
from finetune_core.config.run_config import FITTED, InitialHead, StrategyName
from finetune_core.errors import FinetuneError
from finetune_core.models.network import has_linear_head
from finetune_core.models.weights import RANDOM

AUTO, TUTORIAL = "auto", "tutorial"
RECIPES = (AUTO, TUTORIAL)

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
    "early_stopping": "off",
    "initial_head": "random",
    "augmentation": "none",
    "image_size": 224,
}
FEATURE_EXTRACTION_RECIPE: dict[str, Any] = TUTORIAL_RECIPE | {
    "strategy": "feature_extraction",
    "learning_rate": 1e-3,
}
# Small images and few epochs: a trained and evaluated model in well under a minute on two processor
# cores.
DEMO_RECIPE: dict[str, Any] = {
    "backbone": "efficientnet_lite0",
    "strategy": "last_block",
    "epochs": 5,
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "image_size": 96,
}


@dataclass(frozen=True)
class Pace:
    """Learning rate and duration of a strategy.

    Attributes:
        learning_rate: Learning rate of AdamW, for batches of 32.
        steps: Number of steps of 32 images.
    """

    learning_rate: float
    steps: int


# Chosen by ``python -m benchmarks.defaults`` (docs/defaults.md).
_PACES: dict[StrategyName, Pace] = {
    "feature_extraction": Pace(3e-3, 1000),
    "last_block": Pace(1e-3, 600),
    "last_two_blocks": Pace(1e-3, 600),
    "bias_only": Pace(3e-3, 600),
    "batchnorm_only": Pace(1e-2, 600),
    "lora": Pace(1e-3, 600),
    "discriminative": Pace(1e-3, 600),
    "linear_probe_then_full": Pace(1e-3, 600),
}
_USUAL_PACE = Pace(3e-4, 600)  # for strategies that train most of the network
# Strategies for which a probe was better than a random initial head. With the last block it was
# worse: it fits the training images from the start, and little gradient is left.
_PACES_FROM_PROBE: dict[StrategyName, Pace] = {"feature_extraction": Pace(1e-3, 300)}
_STEP = 32  # images
_FEWEST_EPOCHS, _MOST_EPOCHS = 5, 100
_WARMUP = 0.1  # of the epochs
# Images. The loss on a fifth of fewer images fluctuates, and stopping early lost up to 7
# points.
_FEWEST_TO_STOP = 200


def fill_auto(config: RunConfig, num_images: int) -> RunConfig:
    """Choose the settings that ``config.auto`` lists. All others stay.

    The rule counts optimizer steps, not epochs, as BiT's HyperRule does (Kolesnikov et al. 2020,
    Big Transfer, section 3.3). It is chosen by a sweep over six image sets
    (``benchmarks/defaults.py``).

    Args:
        config: Settings of the run, returned as they are where ``auto`` is empty.
        num_images: Training images of the data set, before ``train_fraction`` draws its share.
    """
    if not config.auto:
        return config
    if config.strategy in FITTED:
        fields = RunConfig.model_fields
        return config.model_copy(update={name: fields[name].default for name in config.auto})
    head = _choose_head(config) if "initial_head" in config.auto else config.initial_head
    pace = _PACES.get(config.strategy, _USUAL_PACE)
    if head == "probe":
        pace = _PACES_FROM_PROBE.get(config.strategy, pace)
    num_used = max(1, round(num_images * config.train_fraction))
    epochs = min(_MOST_EPOCHS, max(_FEWEST_EPOCHS, math.ceil(pace.steps * _STEP / num_used)))
    if "epochs" not in config.auto:
        epochs = config.epochs
    chosen = {
        "epochs": epochs,
        "optimizer": "adamw",
        "learning_rate": _scale_rate(pace.learning_rate, config.batch_size),
        "weight_decay": 0.01,
        "schedule": "cosine",
        "warmup_epochs": round(_WARMUP * epochs, 1),
        "early_stopping": "val_loss" if num_used >= _FEWEST_TO_STOP else "off",
        # A patience of a quarter of the epochs ended runs before the learning rate had fallen.
        "patience": max(5, epochs * 2 // 3),
        "initial_head": head,
    }
    return config.model_copy(update={name: chosen[name] for name in config.auto})


def _choose_head(config: RunConfig) -> InitialHead:
    if config.strategy not in _PACES_FROM_PROBE or config.initial_weights == RANDOM:
        return "random"
    # Other checks report a network that cannot be read.
    with suppress(FinetuneError):
        if has_linear_head(config.backbone, config.image_size):
            return "probe"
    return "random"


def _scale_rate(learning_rate: float, batch_size: int) -> float:
    """Scale by the square root of the batch size, as suits Adam (Malladi et al. 2022)."""
    return float(f"{learning_rate * math.sqrt(batch_size / _STEP):.2g}")

"""Settings that are known to work, each set as a whole."""

from typing import Any

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
FEATURE_EXTRACTION_RECIPE: dict[str, Any] = TUTORIAL_RECIPE | {
    "strategy": "feature_extraction",
    "learning_rate": 1e-3,
}
# Small images and few epochs: a trained, evaluated model in well under a minute on two processor cores.
DEMO_RECIPE: dict[str, Any] = {
    "backbone": "efficientnet_lite0",
    "strategy": "last_block",
    "epochs": 5,
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "image_size": 96,
}

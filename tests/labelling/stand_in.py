"""Features for tests that do not ask what a network sees."""

import numpy as np

from finetune_core.inspection.features import Features
from finetune_core.work import Step


def draw_features(dataset, backbone, image_size, fit):
    """Stand in for ``compute_features``: random features, equal every time."""
    yield Step(0, 1, "features")
    values = np.random.default_rng(0).random((len(dataset.table), 8), dtype=np.float32)
    return Features(np.arange(len(values)), ("stem",), (values,))

"""Fixtures that the training tests share: a small data set of colours, and digests of a run."""

import hashlib

import pytest

from finetune_core.config import make_config
from finetune_core.training.checkpoints.files import load_tensors


@pytest.fixture
def colour_config(image_folder, tmp_path):
    """Make configs on 42 images of three colours."""
    folder = image_folder(tmp_path / "images", {"red": 14, "blue": 14, "green": 14})

    def make(**settings):
        usual = {"data": str(folder), "image_size": 32, "learning_rate": 1e-3, "precision": "fp32"}
        return make_config(usual | settings)

    return make


@pytest.fixture
def marks():
    """Return a digest of every tensor in both checkpoints of a run, the optimizer's included."""

    def digest_of(folder):
        digest = hashlib.sha256()
        for name in ("last", "best"):
            tensors, _ = load_tensors(folder, name)
            for key in sorted(tensors):
                digest.update(key.encode() + tensors[key].numpy().tobytes())
        return digest.hexdigest()

    return digest_of

"""Checks that two runs are equal to rounding."""

import numpy as np
import torch

from finetune_core.training.checkpoints.files import load_tensors
from finetune_core.training.predictions import load_predictions


def check_equal(folder, other):
    """Check that weights and optimizer agree to 1e-5, and that the images have the same order."""
    for checkpoint in ("best", "last"):
        (mine, _), (theirs, _) = load_tensors(folder, checkpoint), load_tensors(other, checkpoint)
        assert mine.keys() == theirs.keys()
        assert (
            max(float((mine[name].double() - theirs[name].double()).abs().max()) for name in mine)
            < 1e-5
        )
    mine, theirs = load_predictions(folder), load_predictions(other)
    assert mine.drop(columns="logits").equals(theirs.drop(columns="logits"))
    assert np.abs(np.stack(mine["logits"]) - np.stack(theirs["logits"])).max() < 1e-4


def check_identical(folder, other):
    """Check that every tensor in both checkpoints is the same to the bit."""
    for checkpoint in ("best", "last"):
        (mine, _), (theirs, _) = load_tensors(folder, checkpoint), load_tensors(other, checkpoint)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)

"""Tests that checkpoints are read as written, or reported as missing or damaged."""

import pytest
import torch

from finetune_core.errors import RunError
from finetune_core.training.checkpoints.files import (
    CheckpointInfo,
    checkpoint_path,
    load_checkpoint,
    save_checkpoint,
)

INFO = CheckpointInfo(3, "resnet18", "abc", ("a b", '<script>"', "🐸"))
TENSORS = {"w": torch.arange(6.0).reshape(2, 3).t(), "n": torch.tensor(5)}


def test_round_trip_keeps_tensors_and_names(tmp_path):
    save_checkpoint(tmp_path, "best", TENSORS, INFO)
    tensors, info = load_checkpoint(tmp_path, "best")
    assert info == INFO
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_a_failed_write_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, "best", TENSORS, INFO)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path, "best", {"w": torch.zeros(1)}, INFO)
    assert torch.equal(load_checkpoint(tmp_path, "best")[0]["w"], TENSORS["w"])
    assert [path.name for path in tmp_path.iterdir()] == ["best.safetensors"]


def test_missing_and_damaged_ones_are_named(tmp_path):
    with pytest.raises(RunError, match="no 'best' checkpoint"):
        load_checkpoint(tmp_path, "best")
    checkpoint_path(tmp_path, "best").write_bytes(b"nonsense")
    with pytest.raises(RunError, match="damaged"):
        load_checkpoint(tmp_path, "best")

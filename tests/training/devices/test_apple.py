"""Tests of Apple's GPU on a processor that lacks float64, and channels_last in BatchNorm."""

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from finetune_core import randomness
from finetune_core.data.dataset import load_dataset
from finetune_core.evaluation.comparison.layer_diagnostics import measure_layers
from finetune_core.evaluation.prediction.batch import predict_images
from finetune_core.evaluation.prediction.neighbours import compute_neighbourhood, make_encoder
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.single_run.robustness import measure_robustness
from finetune_core.inspection.features import compute_features
from finetune_core.models.catalogue import PACKAGED
from finetune_core.training.devices.device import Device
from finetune_core.training.devices.speed_book import SpeedBook
from finetune_core.training.forecast.timing import calibrate
from finetune_core.training.step import compute
from finetune_core.work import finish
from tests.factories import shared_images, tiny_config, train


class Looked(TorchDispatchMode):
    """Mode that checks every operation as one of Apple's GPU, unless it involves the processor."""

    def __init__(self):
        super().__init__()
        self.batchnorms, self.processor_too = 0, False

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        result = operation(*arguments, **(keywords or {}))
        tensors = [
            one
            for one in tree_leaves((arguments, keywords, result))
            if isinstance(one, torch.Tensor)
        ]
        if not self.processor_too:
            assert not any(one.dtype == torch.float64 for one in tensors), f"{operation} in float64"
        if "batch_norm" in operation.name():
            self.batchnorms += 1
            assert all(one.is_contiguous() for one in tensors), f"{operation} in channels_last"
        return result


@pytest.fixture
def apple(monkeypatch):
    """Pretend a machine with Apple's GPU, whose forward and backward passes are checked."""
    looked = Looked()
    autocast, accumulated = Device.autocast, compute._accumulate_gradients

    @contextmanager
    def looked_at(device):
        with looked, autocast(device):
            yield

    def backward_too(*arguments):
        with looked:
            return accumulated(*arguments)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for name in ("empty_cache", "synchronize", "current_allocated_memory"):
        monkeypatch.setattr(torch.mps, name, lambda: 0)
    monkeypatch.setattr(Device, "torch_device", torch.device("cpu"))
    monkeypatch.setattr(Device, "autocast", looked_at)
    monkeypatch.setattr(compute, "_accumulate_gradients", backward_too)
    monkeypatch.setattr(
        compute, "make_generator", lambda seed, kind="cpu": randomness.make_generator(seed)
    )
    return looked


def train_small(runs_dir, **settings):
    run = train(tiny_config(batch_size=10, epochs=1, **settings), runs_dir)
    assert run.history.started["device"] == "mps"
    return run


@pytest.mark.train
@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": "last_two_blocks"},
        {"strategy": "last_two_blocks", "augmentation": "random_resized_crop", "cache": "off"},
        {
            "strategy": "full",
            "mixup": 0.2,
            "cutmix": 1.0,
            "class_weights": "balanced",
            "l2_sp": 0.01,
            "clip_norm": 1.0,
            "ema": 0.9,
        },
    ],
    ids=["cached", "uncached", "full"],
)
def test_a_run(apple, tmp_path, settings):
    assert train_small(tmp_path, **settings).status == "finished"
    assert apple.batchnorms > 20


@pytest.mark.train
def test_timing(apple):
    config = tiny_config(strategy="last_two_blocks")
    finish(calibrate([config], load_dataset(config.data), SpeedBook()))
    assert apple.batchnorms > 20


@pytest.mark.train
def test_what_is_asked_of_a_run_afterwards(apple, tmp_path):
    run = train_small(tmp_path, strategy="last_two_blocks")
    for work in (measure_layers([run]), measure_robustness(run, "val")):
        apple.batchnorms, apple.processor_too = 0, True
        with apple:
            finish(work)
        assert apple.batchnorms > 20
    apple.batchnorms, apple.processor_too = 0, False
    looks = make_encoder(load_predictor(run))
    images = [(file.name, file) for file in sorted(Path(run.config.data, "red").iterdir())]
    known = looks, finish(compute_neighbourhood(run, looks))
    assert len(finish(predict_images(looks.predictor, images, known))) == 14
    assert apple.batchnorms > 20


@pytest.mark.train
def test_the_features_of_a_data_set(apple):
    finish(compute_features(load_dataset(shared_images()), PACKAGED, 32))
    assert apple.batchnorms > 49

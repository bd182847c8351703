"""Tests of validation in bf16: the head is in fp32, so logits do not tie as 8-bit numbers do."""

import pytest
import torch

from finetune_core.training.devices.device import Device
from finetune_core.training.evaluation import predict_splits
from finetune_core.training.lost import LostImages
from finetune_core.training.prepare import prepare
from finetune_core.training.step.exact_layers import use_exact_head
from finetune_core.training.strategies.freezing import apply_strategy
from finetune_core.work import finish
from tests.factories import tiny_config

BF16 = Device("cpu", "a processor", "bf16")


def prepare_job(**settings):
    """Prepare a run whose logits lie between 8 and 16."""
    job = finish(prepare(tiny_config(precision="bf16", **settings)))
    head = job.network.head_layers[0]
    with torch.no_grad():
        head.bias.fill_(12)
    return job, head


SQUEEZENET = {"backbone": "squeezenet1_1", "weights": "none", "image_size": 64}


@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": "feature_extraction"},
        {"strategy": "last_block"},
        {"strategy": "full"},
        SQUEEZENET,
    ],
    ids=["only the head", "a tail", "a network", "a convolution, dropout"],
)
def test_logits_between_8_and_16_are_no_multiples_of_a_sixteenth(native_bf16, settings):
    job, head = prepare_job(**settings)
    rows, logits = finish(predict_splits(job, ["val"], "validate", LostImages(job)))
    assert len(rows) == 6
    assert ((logits > 8) & (logits < 16)).all()
    assert ((logits * 16) % 1 != 0).mean() > 0.9
    assert "forward" not in vars(head)


def test_a_head_trains_in_bf16_as_before(native_bf16):
    job, _ = prepare_job(strategy="feature_extraction")
    inputs = next(iter(job.training_inputs(job.training_batches(1), 1)))[1]
    apply_strategy(job.strategy, job.network.stages, job.network.model, 1)
    with BF16.autocast():
        before = job.forward(inputs)
        with use_exact_head(job.network):
            exact = job.forward(inputs)
        after = job.forward(inputs)
    dtypes = [one.dtype for one in (before, exact, after)]
    assert dtypes == [torch.bfloat16, torch.float32, torch.bfloat16]

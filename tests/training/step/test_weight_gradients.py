"""Tests that weight gradients as products and of slices are those of the convolutions."""

import os
import subprocess
import sys

import pytest
import torch
from timm.layers import StdConv2d
from torch import nn

from finetune_core.config import make_config
from finetune_core.models.network import build_network
from finetune_core.models.stages import Stage
from finetune_core.training.devices.device import Device
from finetune_core.training.step import weight_gradients
from finetune_core.training.step.compute import place_network
from finetune_core.training.strategies.stage_plan import StagePlan, plan_strategy

FULL_STEP = """
import sys
import torch
from finetune_core.config import make_config
from finetune_core.models.network import build_network
from finetune_core.training.step.compute import place_network, train_step
from finetune_core.training.devices.device import Device
from finetune_core.training.strategies.stage_plan import plan_strategy

backbone, device = sys.argv[1], Device("cpu", "", "fp32")
network = build_network(backbone, "none", 3, 0, 64)
config = make_config({"data": "none", "backbone": backbone, "strategy": "full"})
place_network(network, plan_strategy(config, network.stages), device)
optimizer = torch.optim.SGD(network.model.parameters(), lr=1e-3, fused=True)
images = torch.randn(4, 3, 64, 64).contiguous(memory_format=torch.channels_last)
for step in range(2):
    train_step(network.model.train(), images, torch.arange(4) % 3, optimizer, device, step)
"""

CHANGED = {"layer4.0.conv1", "layer4.0.conv2", "layer4.1.conv1", "layer4.1.conv2"}


def gradients(convolution, images, autocast):
    """Return gradients of weights and of images, for a loss that weighs each output differently."""
    images = images.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = convolution(images)
    scale = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    convolution.weight.grad = None
    (output.float() * scale).sum().backward()
    return convolution.weight.grad, images.grad


def changed(convolution):
    vars(convolution)["forward"] = weight_gradients._make_product_forward(convolution)
    return convolution


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [(3, 1, 1, 7), (3, 2, 1, 14), (3, 2, 0, 8), ((3, 5), (1, 2), (1, 2), 9)],
)
def test_the_product_is_the_gradient(kernel, stride, padding, size, layout):
    generator = torch.Generator().manual_seed(0)
    convolution = nn.Conv2d(24, 40, kernel, stride, padding, bias=False).to(memory_format=layout)
    images = torch.randn(3, 24, size, size, generator=generator).contiguous(memory_format=layout)
    exact = gradients(convolution, images, autocast=False)
    native = gradients(convolution, images, autocast=True)
    ours = gradients(changed(convolution), images, autocast=True)
    for found, usual, wanted in zip(ours, native, exact, strict=True):
        assert found.dtype == wanted.dtype
        assert (found - wanted).norm() <= 1.1 * (usual - wanted).norm() + 1e-6 * wanted.norm()


def test_where_the_patches_of_a_batch_are_too_many_the_gradient_is_the_usual_one(monkeypatch):
    convolution, images = nn.Conv2d(8, 16, 3, bias=False), torch.randn(2, 8, 6, 6)
    native, _ = gradients(convolution, images, autocast=True)
    monkeypatch.setattr(weight_gradients, "_LARGEST", 0)
    monkeypatch.setattr(weight_gradients, "_compute_product", None)
    assert torch.equal(gradients(changed(convolution), images, autocast=True)[0], native)


def test_without_autocast_nothing_changes():
    convolution, images = nn.Conv2d(8, 16, 3, bias=False), torch.randn(2, 8, 6, 6)
    before = gradients(convolution, images, autocast=False)
    after = gradients(changed(convolution), images, autocast=False)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("precision", "strategy", "wanted"),
    [
        ("bf16", "last_block", CHANGED),
        ("bf16", "full", CHANGED),
        ("bf16", "feature_extraction", set()),
        ("fp32", "last_block", set()),
    ],
)
def test_wide_convolutions_that_train_in_bf16_use_it(precision, strategy, wanted):
    network = build_network("resnet18", "none", 3, 0)
    config = make_config({"data": "none", "backbone": "resnet18", "strategy": strategy})
    place_network(network, plan_strategy(config, network.stages), Device("cpu", "", precision))
    assert {
        path
        for path, module in network.model.named_modules()
        if isinstance(module, nn.Conv2d) and "forward" in vars(module)
    } == wanted


@pytest.mark.processes
@pytest.mark.parametrize(
    "backbone",
    [
        "repvgg_a0",
        *(
            pytest.param(one, marks=pytest.mark.exhaustive)
            for one in ("fastvit_t8", "mobileone_s0")
        ),
    ],
)
def test_networks_with_strided_pointwise_stems_survive_full_steps(backbone):
    """oneDNN's kernel writes out of bounds here, with AVX2 and AVX-512."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_STEP, f"timm/{backbone}"],
        env=os.environ | {"MALLOC_PERTURB_": "165"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("precision", "strategy", "sliced"),
    [("fp32", "full", True), ("bf16", "full", True), ("fp32", "last_block", False)],
)
def test_strided_pointwise_convolutions_of_few_channels_that_train_are_sliced(
    precision, strategy, sliced
):
    network = build_network("timm/repvgg_a0", "none", 3, 0, 64)
    config = make_config({"data": "none", "backbone": "timm/repvgg_a0", "strategy": strategy})
    place_network(network, plan_strategy(config, network.stages), Device("cpu", "", precision))
    pointwise = {
        path: module
        for path, module in network.model.named_modules()
        if isinstance(module, nn.Conv2d) and (module.kernel_size, module.stride) == ((1, 1), (2, 2))
    }
    changed = {path for path, module in pointwise.items() if "forward" in vars(module)}
    assert changed == ({"stem.conv_1x1.conv"} if sliced else set())
    assert len(pointwise) > 1  # of more channels, which oneDNN computes correctly


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("stride", "size"), [((2, 2), 8), ((2, 3), 9), ((1, 2), 7)])
def test_slices_give_the_output_and_the_gradients_of_the_strided_convolution(stride, size, bias):
    convolution = nn.Conv2d(3, 5, 1, stride, bias=bias).double()  # not by the faulty kernel
    images = torch.randn(2, 3, size, size).double().contiguous(memory_format=torch.channels_last)
    output, wanted = convolution(images), gradients(convolution, images, autocast=False)
    weight_gradients.slice_before_convolution([convolution])
    assert "forward" in vars(convolution)
    torch.testing.assert_close(convolution(images), output)
    torch.testing.assert_close(gradients(convolution, images, autocast=False), wanted)


def test_convolutions_that_standardise_their_weight_keep_their_output():
    """The products and slices use the weight as it is held, which is another function."""
    model = nn.Sequential(
        StdConv2d(3, 8, 1, stride=2, bias=False), StdConv2d(8, 512, 3, padding=1, bias=False)
    )
    stages = [Stage("all", ("0", "1"), ("0.weight", "1.weight"), (), 0)]
    strategy = (StagePlan("all", frozen=False, rate=1, thaw_epoch=1, batchnorm="train"),)
    images = torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        before = model(images)
        weight_gradients.use_products(strategy, stages, model)
        weight_gradients.slice_trained(strategy, stages, model)
        assert torch.equal(model(images), before)

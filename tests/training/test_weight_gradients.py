import pytest
import torch
from torch import nn

from finetune_core.config import make_config
from finetune_core.models.network import build_network
from finetune_core.training import weight_gradients
from finetune_core.training.compute import place
from finetune_core.training.device import Device
from finetune_core.training.stage_plan import plan

CHANGED = {"layer4.0.conv1", "layer4.0.conv2", "layer4.1.conv1", "layer4.1.conv2"}


def gradients(convolution, images, autocast):
    """Of a loss that weighs each output differently: towards the weights, and towards the images."""
    images = images.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = convolution(images)
    scale = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    convolution.weight.grad = None
    (output.float() * scale).sum().backward()
    return convolution.weight.grad, images.grad


def changed(convolution):
    vars(convolution)["forward"] = weight_gradients._with_product(convolution)
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
    monkeypatch.setattr(weight_gradients, "_product", None)
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
    place(network, plan(config, network.stages), Device("cpu", "", precision))
    assert {
        path
        for path, module in network.model.named_modules()
        if isinstance(module, nn.Conv2d) and "forward" in vars(module)
    } == wanted

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer

from finetune_core.errors import ImageError, RunError
from finetune_core.evaluation.prediction.explain import explain
from finetune_core.evaluation.prediction.predictor import Predictor
from finetune_core.models.catalogue import backbone_info
from finetune_core.models.network import Network, build_network
from finetune_core.models.stages import derive_stages, find_head
from finetune_core.training.devices.device import choose_device
from tests.factories import TINY_BACKBONE

SIZE = 64


def make_predictor(model, size=SIZE):
    """Return a predictor of a network outside of the catalogue, with ResNet-18's preprocessing."""
    head = find_head(model, size)
    stages, info = derive_stages(model, (head,), size), backbone_info("resnet18")
    network = Network(model.eval(), model, stages, (head,), "", info)
    return Predictor(network, ("a", "b"), choose_device("cpu", "fp32"), size)


def build_predictor(name):
    network = build_network(name, "none", 3, seed=0)
    return Predictor(network, ("a", "b", "c"), choose_device("cpu", "fp32"), SIZE)


def encode_png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def draw_noise(side=80):
    return encode_png(np.random.default_rng(3).integers(0, 255, (side, side, 3), dtype=np.uint8))


class Brightness(nn.Module):
    """Network whose class b is more likely the brighter some part of the image is.

    Class a is the reverse.
    """

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 8, stride=8)
        self.act = nn.ReLU()
        self.fc = nn.Linear(2, 2)
        with torch.no_grad():
            self.conv.weight.fill_(1 / 192)
            self.conv.bias.zero_()
            self.fc.weight.copy_(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
            self.fc.bias.zero_()

    def forward(self, images):
        return self.fc(self.act(self.conv(images)).mean((2, 3)))


def test_the_heat_lies_on_the_bright_patch_that_decides_the_class():
    pixels = np.full((SIZE, SIZE, 3), 20, np.uint8)
    pixels[40:56, 8:24] = 255  # resized to 73 pixels and cropped again: nearly where it was
    explanation = explain(make_predictor(Brightness()), encode_png(pixels), [0, 1])
    row, column = np.unravel_index(explanation.heat[1].argmax(), explanation.heat[1].shape)
    assert 40 <= row <= 60
    assert 4 <= column <= 24
    assert explanation.heat[1][41:59, 5:23].sum() > 0.7 * explanation.heat[1].sum(), (
        "on a thirteenth of the picture"
    )
    assert explanation.heat[1][:24].max() == explanation.heat[1][:, 40:].max() == 0
    assert explanation.heat[0].max() == 0, "nothing in it speaks for the other class"
    assert explanation.probabilities.argmax() == 1
    assert explanation.cells == 8


@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_lite0",
        pytest.param("resnet18", marks=pytest.mark.exhaustive),
        pytest.param("mobilenet_v3_small", marks=pytest.mark.exhaustive),
    ],
)
def test_real_backbones_are_explained_and_left_exactly_as_they_were(name):
    predictor = build_predictor(name)
    model = predictor.network.model
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    needing = [parameter.requires_grad for parameter in model.parameters()]
    image = draw_noise()
    explanation = explain(predictor, image, [2, 0])
    assert list(explanation.heat) == list(explanation.overlays) == [2, 0]
    for heat in explanation.heat.values():
        assert heat.shape == (SIZE, SIZE)
        assert heat.min() >= 0
        assert heat.max() in (0, pytest.approx(1))
    for drawn in (explanation.overlays[2], explanation.picture):
        assert Image.open(io.BytesIO(drawn)).size == (320, 320)
    expected = predictor.predict_proba([image])[0]
    np.testing.assert_allclose(explanation.probabilities, expected, rtol=1e-5)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == needing
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.train
def test_threads_get_what_they_would_get_alone():
    predictor = build_predictor(TINY_BACKBONE)
    images = [draw_noise(side) for side in range(70, 76)]
    alone = [explain(predictor, image, [0, 1]) for image in images]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda image: explain(predictor, image, [0, 1]), images))
    for one, other in zip(alone, together, strict=True):
        for number in range(2):
            np.testing.assert_array_equal(one.heat[number], other.heat[number])


def test_a_class_token_is_looked_past_to_the_last_map_that_the_head_uses():
    torch.manual_seed(0)
    model = VisionTransformer(
        SIZE, 8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=2
    )
    # torchvision initialises it at 0, and then no patch speaks for anything
    nn.init.normal_(model.heads.head.weight)
    explanation = explain(make_predictor(model), draw_noise(), [0, 1])
    assert explanation.cells == 8
    assert max(heat.max() for heat in explanation.heat.values()) == pytest.approx(1)


def test_channels_last_are_understood():
    torch.manual_seed(0)
    model = SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=2)
    explanation = explain(make_predictor(model), draw_noise(), [0, 1])
    assert explanation.cells == 8
    assert max(heat.max() for heat in explanation.heat.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("size", "layer", "cells"), [(64, "layer3", 4), (96, "layer4", 3), (32, "layer2", 4)]
)
def test_where_the_last_map_has_four_cells_an_earlier_one_is_explained(size, layer, cells):
    predictor = replace(build_predictor("resnet18"), image_size=size)
    explanation = explain(predictor, draw_noise(), [0])
    assert (explanation.layer, explanation.cells) == (layer, cells)
    assert explanation.is_coarse == (layer != "layer4")
    assert list(explanation.layers)[:4] == ["stem", "layer1", "layer2", "layer3"]
    assert explanation.layers[layer] == cells


def test_any_layer_can_be_asked_for_and_the_heat_is_computed_on_its_map():
    predictor = build_predictor("resnet18")
    last, early = (
        explain(predictor, draw_noise(), [0, 1], layer) for layer in ("layer4", "layer1")
    )
    assert (last.layer, last.cells) == ("layer4", 2)
    assert (early.layer, early.cells) == ("layer1", 16)
    cells = {"stem": 16, "layer1": 16, "layer2": 8, "layer3": 4, "layer4": 2}
    assert early.layers == last.layers == cells
    assert not np.allclose(early.heat[0], last.heat[0])
    with pytest.raises(RunError, match="head does not pass"):
        explain(predictor, draw_noise(), [0], "head")


def test_a_network_without_a_picture_inside_is_refused_in_words():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(RunError, match="no Grad-CAM"):
        explain(make_predictor(model), draw_noise(), [0])


def test_what_is_no_image_is_refused():
    with pytest.raises(ImageError):
        explain(build_predictor("resnet18"), b"hello", [0])

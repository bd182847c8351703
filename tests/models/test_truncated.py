"""Networks that end after one of their stages."""

import pytest
import torch
from torch import nn

from finetune_core.errors import ConfigError
from finetune_core.models.network import build_network, network_stages
from finetune_core.training.trunk import split_network

SIDE = 64


def ended(name, stage):
    return build_network(name, "none", 3, 0, SIDE, stage)


def up_to(network, stage):
    """What the whole network's stages up to that one yield for two images, and the images."""
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    last = [one.name for one in network.stages].index(stage) + 1
    with torch.no_grad():
        return split_network(network).part(None, last).eval()(images), images


def features_of(network, images):
    network.model.set_submodule(network.heads[0], nn.Identity())
    with torch.no_grad():
        return network.model(images)


@pytest.mark.parametrize(
    ("name", "stage", "over"),
    [
        ("efficientnet_lite0", "stem", (2, 3)),
        ("efficientnet_lite0", "block5", (2, 3)),
        ("resnet18", "layer2", (2, 3)),
        ("squeezenet1_1", "block3", (2, 3)),  # whose own head is a convolution
        ("timm/mixer_s32_224", "block2", (1,)),
    ],
)
def test_its_head_sees_the_mean_of_that_stage(name, stage, over):
    wanted, images = up_to(build_network(name, "none", 3, 0, SIDE), stage)
    torch.testing.assert_close(
        features_of(ended(name, stage), images), wanted.mean(over), atol=1e-5, rtol=1e-4
    )


def test_it_looks_at_the_class_token_where_the_whole_network_does():
    name = "timm/vit_tiny_patch16_224"
    wanted, images = up_to(build_network(name, "none", 3, 0, SIDE), "block3")
    torch.testing.assert_close(
        features_of(ended(name, "block3"), images), wanted[:, 0], atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_lite0",
        "resnet18",
        "squeezenet1_1",
        "timm/convnext_atto",
        "timm/vit_tiny_patch16_224",
    ],
)
def test_every_tensor_is_the_whole_networks_and_belongs_to_one_of_its_stages(name):
    whole = build_network(name, "none", 3, 0, SIDE)
    for last in (0, len(whole.stages) // 2, len(whole.stages) - 2):
        network = ended(name, whole.stages[last].name)
        state, before = network.model.state_dict(), network.pretrained.state_dict()
        assert [stage.name for stage in network.stages] == [
            *(stage.name for stage in whole.stages[: last + 1]),
            "head",
        ]
        assert sorted(state) == sorted(
            key for stage in network.stages for key in (*stage.parameters, *stage.buffers)
        )
        frozen = [
            key for stage in network.stages[:-1] for key in (*stage.parameters, *stage.buffers)
        ]
        assert frozen
        assert all(torch.equal(state[key], before[key]) for key in frozen)
        assert isinstance(network.head_layers[0], nn.Linear)
        assert network.head_layers[0].out_features == 3
        # without building its weights
        assert network_stages(name, 3, SIDE, whole.stages[last].name) == network.stages
        assert network.weights_hash == whole.weights_hash


def test_a_stage_that_is_not_there_and_one_that_it_cannot_end_after_are_refused():
    with pytest.raises(
        ConfigError,
        match="features_from: there is no stage 'block3'; the stages of resnet18 are stem, layer1",
    ):
        network_stages("resnet18", features_from="block3")
    with pytest.raises(ConfigError, match="features_from: there is no stage 'head'"):
        network_stages("resnet18", features_from="head")
    for stage, why in (("stem", "more than one value crosses"), ("block1", "is not one tensor")):
        with pytest.raises(
            ConfigError,
            match=f"features_from: timm/crossvit_tiny_240 cannot end after {stage}: .*{why}",
        ):
            network_stages("timm/crossvit_tiny_240", features_from=stage)

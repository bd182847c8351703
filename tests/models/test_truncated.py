"""Networks that end after one of their stages."""

import pytest
import torch
from torch import nn

from finetune_core.errors import ConfigError
from finetune_core.models.network import build_network, network_stages
from finetune_core.models.truncated import pool, pooling_dims
from finetune_core.training.data_pipeline.trunk import split_network

SIDE = 64
IMAGES = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def end_after(name, stage):
    return build_network(name, "none", 3, 0, SIDE, stage)


def run_to(name, stage):
    """Return the output of the whole network's stages up to ``stage``."""
    network = build_network(name, "none", 3, 0, SIDE)
    last = [one.name for one in network.stages].index(stage) + 1
    with torch.no_grad():
        return split_network(network).part(None, last).eval()(IMAGES)


def features_of(network):
    network.model.set_submodule(network.heads[0], nn.Identity())
    with torch.no_grad():
        return network.model(IMAGES)


@pytest.mark.parametrize(
    ("name", "stage", "select"),
    [
        ("efficientnet_lite0", "stem", lambda maps: maps.mean((2, 3))),
        ("efficientnet_lite0", "block5", lambda maps: maps.mean((2, 3))),
        # its own head is a convolution
        ("squeezenet1_1", "block3", lambda maps: maps.mean((2, 3))),
        ("timm/test_vit", "block2", lambda tokens: tokens[:, 0]),  # as in the whole network
        pytest.param(
            "timm/mixer_s32_224", "block2", lambda tokens: tokens.mean(1), marks=pytest.mark.train
        ),
    ],
)
def test_head_sees_the_mean_of_its_stage_or_the_class_token(name, stage, select):
    wanted = select(run_to(name, stage))
    torch.testing.assert_close(features_of(end_after(name, stage)), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((2, 5), ()),
        ((2, 7, 5), (1,)),
        ((2, 5, 4, 4), (2, 3)),
        ((2, 4, 4, 5), (1, 2)),
        ((2, 5, 1, 1), (2, 3)),
        ((2, 1, 1, 5), (1, 2)),
    ],
)
def test_averages_are_over_tokens_and_both_kinds_of_maps(shape, axes):
    output = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    assert pooling_dims(output.shape) == axes
    found = pool(output, False, 0, axes)
    assert found.shape == (2, 5)
    torch.testing.assert_close(found, output.mean(axes) if axes else output)


@pytest.mark.parametrize(
    "name",
    [
        "squeezenet1_1",
        "timm/test_vit",
        pytest.param("efficientnet_lite0", marks=pytest.mark.train),
        pytest.param("timm/convnext_atto", marks=pytest.mark.train),
        pytest.param("resnet18", marks=pytest.mark.exhaustive),
    ],
)
def test_tensors_are_the_whole_networks_and_belong_to_one_of_its_stages(name):
    whole = build_network(name, "none", 3, 0, SIDE)
    for last in (0, len(whole.stages) // 2, len(whole.stages) - 2):
        network = end_after(name, whole.stages[last].name)
        state, before = network.model.state_dict(), network.pretrained.state_dict()
        kept = [stage.name for stage in whole.stages[: last + 1]]
        assert [stage.name for stage in network.stages] == [*kept, "head"]
        tensors = [(*stage.parameters, *stage.buffers) for stage in network.stages]
        assert sorted(state) == sorted(key for stage in tensors for key in stage)
        frozen = [key for stage in tensors[:-1] for key in stage]
        assert frozen
        assert all(torch.equal(state[key], before[key]) for key in frozen)
        assert isinstance(network.head_layers[0], nn.Linear)
        assert network.head_layers[0].out_features == 3
        # without building its weights
        assert network_stages(name, 3, SIDE, whole.stages[last].name) == network.stages
        assert network.weights_hash == whole.weights_hash


CROSSVIT = "timm/crossvit_9_240"
KNOWN = "the stages of resnet18 are stem, layer1"


@pytest.mark.parametrize(
    ("name", "stage", "reason"),
    [
        ("resnet18", "block3", f"there is no stage 'block3'; {KNOWN}"),
        ("resnet18", "head", "there is no stage 'head'"),
        *(
            pytest.param(
                CROSSVIT,
                stage,
                f"{CROSSVIT} cannot end after {stage}: .*{why}",
                marks=pytest.mark.train,
            )
            for stage, why in (("stem", "more than one value"), ("block1", "is not one tensor"))
        ),
    ],
)
def test_stage_that_a_network_cannot_end_after_is_refused(name, stage, reason):
    with pytest.raises(ConfigError, match=f"features_from: {reason}"):
        network_stages(name, features_from=stage)

import os

import pytest
import timm
import torch

from finetune_core.errors import ConfigError, WeightsError
from finetune_core.models import network as networks
from finetune_core.models.catalogue import PACKAGED, backbone_info, create
from finetune_core.models.network import (
    build_network,
    check_image_size,
    has_linear_head,
    head_paths,
    network_stages,
    parameter_count,
)

SMALL = "squeezenet1_1"


def is_same_state(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def head_of(network):
    return network.head_layers[0].state_dict()


def backbone_of(network):
    return {
        n: t
        for n, t in network.model.state_dict().items()
        if not n.startswith(f"{network.heads[0]}.")
    }


@pytest.mark.parametrize("weights", ["pretrained", "none"])
def test_seed_decides_the_head_whatever_was_drawn_before(weights):
    first = build_network(PACKAGED, weights, 5, 0)
    torch.rand(17)
    again, other = (build_network(PACKAGED, weights, 5, seed) for seed in (0, 1))
    assert is_same_state(head_of(first), head_of(again))
    assert not torch.equal(head_of(first)["weight"], head_of(other)["weight"])
    assert not torch.equal(head_of(first)["bias"], head_of(other)["bias"])


def test_a_new_head_starts_as_torch_starts_a_linear_layer():
    network = build_network(PACKAGED, "none", 500, 0)
    weight = head_of(network)["weight"]
    bound = 1 / weight.shape[1] ** 0.5
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    assert abs(weight.mean().item()) < bound / 50


@pytest.mark.parametrize("name", [PACKAGED, SMALL])
def test_the_network_scores_the_classes_asked_for(name):
    network = build_network(name, "none", 7, 0)
    with torch.no_grad():
        assert network.model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    assert not network.model.training
    assert all(tensor.dtype == torch.float32 for tensor in network.model.parameters())
    assert network.stages == network_stages(name, 7)
    assert network.heads == head_paths(name)
    assert network.info.name == name


def test_each_network_is_a_copy_of_its_own_and_the_pretrained_one_is_held_once():
    first = build_network(PACKAGED, "pretrained", 2, 0)
    held = {name: tensor.clone() for name, tensor in first.pretrained.state_dict().items()}
    with torch.no_grad():
        for tensor in first.model.state_dict().values():
            tensor.zero_()
    second = build_network(PACKAGED, "pretrained", 3, 1)
    assert second.pretrained is first.pretrained
    assert second.model is not first.model
    assert is_same_state(held, second.pretrained.state_dict())
    assert is_same_state(backbone_of(second), held)
    assert first.weights_hash == second.weights_hash


def test_the_pretrained_network_keeps_its_own_head():
    network = build_network(PACKAGED, "pretrained", 2, 0)
    assert network.pretrained.get_submodule(*network.heads).weight.shape[0] == 1000


def test_random_weights_come_from_the_seed():
    first, again, other = (build_network(SMALL, "none", 2, seed) for seed in (11, 11, 12))
    assert is_same_state(backbone_of(first), backbone_of(again))
    assert not is_same_state(backbone_of(first), backbone_of(other))
    assert first.weights_hash == again.weights_hash != other.weights_hash


def test_building_random_weights_leaves_torchs_own_generator_alone():
    build_network(SMALL, "none", 2, 100)  # so that the structure is known
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        build_network(SMALL, "none", 2, 101)
    assert torch.equal(torch.rand(3), expected)


def test_a_replaced_file_of_weights_is_read_again(tmp_path):
    file = tmp_path / "mine.pth"
    hashes = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        torch.save(create(SMALL).state_dict(), file)
        os.utime(file, ns=(seed * 10**9, seed * 10**9))
        hashes.append(build_network(SMALL, str(file), 2, 0).weights_hash)
    assert hashes[0] != hashes[1]
    assert build_network(SMALL, str(file), 2, 5).weights_hash == hashes[1]


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ConfigError):
        build_network("resnet19", "none", 2, 0)
    with pytest.raises(WeightsError, match=r"nowhere\.pth"):
        build_network(SMALL, "nowhere.pth", 2, 0)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("alexnet", 32),
        pytest.param("vit_b_16", 96, marks=pytest.mark.train),
        pytest.param("inception_v3", 32, marks=pytest.mark.train),
    ],
)
def test_image_size_that_a_network_cannot_take_is_refused_in_words(name, size):
    with pytest.raises(ConfigError) as caught:
        check_image_size(name, size)
    assert f"{name} cannot take images of {size} × {size}" in caught.value.problems["image_size"]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        (PACKAGED, 64),
        ("timm/test_vit", 96),
        ("resnet18", 96),
        pytest.param("vit_b_16", 224, marks=pytest.mark.train),
        pytest.param("timm/deit_tiny_patch16_224", 96, marks=pytest.mark.train),
    ],
)
def test_image_sizes_that_a_network_can_take_pass(name, size):
    check_image_size(name, size)


def test_all_that_a_page_asks_of_a_network_that_is_selected_builds_it_once(monkeypatch):
    name, built = "timm/test_vit3.r160_in1k", []
    real = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *args, **kwargs: built.append(args) or real(*args, **kwargs)
    )
    networks._load_structure.cache_clear()
    info = backbone_info(name)
    check_image_size(name, info.image_size)
    assert has_linear_head(name)
    assert len(head_paths(name)) == 1
    many, few = network_stages(name), network_stages(name, 5, info.image_size)
    assert many[-1].parameter_count == 200 * few[-1].parameter_count
    assert sum(stage.parameter_count for stage in many) == parameter_count(name)
    assert len(built) == 1


@pytest.mark.parametrize(("name", "size"), [("timm/halonet_h1", 96), ("alexnet", 40)])
def test_what_was_refused_is_refused_again_without_being_built(name, size, monkeypatch):
    built, real = [], networks.create_on_meta
    monkeypatch.setattr(
        networks,
        "create_on_meta",
        lambda *args, **kwargs: built.append(args) or real(*args, **kwargs),
    )
    said = []
    for _ in range(3):
        with pytest.raises(ConfigError) as caught:
            check_image_size(name, size)
        said.append(caught.value)
    assert len(built) == 1
    # Otherwise every raise would extend the traceback of the cached error.
    assert said[0] is not said[1]
    assert said[0].problems == said[1].problems


@pytest.mark.parametrize("name", [PACKAGED, SMALL, "timm/test_resnet"])
def test_a_network_that_is_the_same_for_all_sizes_is_held_once(name):
    weights = "pretrained" if name == PACKAGED else "none"
    assert (
        build_network(name, weights, 2, 0, 64).pretrained
        is build_network(name, weights, 2, 0, 96).pretrained
    )


def test_a_network_that_is_built_for_a_size_is_held_for_each():
    few, many = (build_network("timm/test_vit", "none", 2, 0, size).pretrained for size in (64, 96))
    assert few.pos_embed.shape[1] < many.pos_embed.shape[1]


@pytest.mark.parametrize(
    ("name", "size"), [("timm/halonet_h1", 64), ("timm/crossvit_tiny_240", 64)]
)
def test_size_that_timm_builds_no_network_for_is_refused_without_weights(name, size):
    with pytest.raises(ConfigError) as caught:
        check_image_size(name, size)
    assert name in caught.value.problems["image_size"]
    assert str(size) in caught.value.problems["image_size"]

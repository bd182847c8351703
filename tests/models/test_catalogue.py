import pytest
import torch
import torchvision

from finetune_core.errors import ConfigError
from finetune_core.models import catalogue
from finetune_core.models.catalogue import (
    PACKAGED,
    backbone_info,
    backbone_names,
    create,
    create_on_meta,
    default_backbone,
)
from finetune_core.models.licences import licence_name
from finetune_core.models.network import parameter_count
from finetune_core.models.timm_networks import is_timm_name


@pytest.fixture(autouse=True)
def no_downloads_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_every_classifier_of_torchvision_is_offered_and_the_packaged_one_first():
    assert backbone_names()[0] == PACKAGED
    assert set(torchvision.models.list_models(module=torchvision.models)) < set(backbone_names())
    assert {"resnet18", "vit_b_16", "googlenet", "regnet_y_400mf"} <= set(backbone_names())


def test_every_network_of_torchvision_has_an_entry():
    names = torchvision.models.list_models(module=torchvision.models)
    assert len(names) > 70
    for name in names:
        info = backbone_info(name)
        assert info.name == name
        assert info.source == "torchvision"
        assert info.known_parameter_count > 500_000
        assert len(info.mean) == len(info.std) == 3
        assert info.url.startswith("https://")
        assert info.file.name == info.url.rsplit("/", 1)[1]
        assert 50 < info.top1 < 100
        assert info.is_research_only == ("SWAG" in (info.licence or ""))


def test_every_network_that_timm_publishes_has_an_entry():
    names = [name for name in backbone_names() if is_timm_name(name)]
    assert len(names) > 1500
    for info in map(backbone_info, names):
        assert info.source == "timm"
        assert info.repository
        assert info.url.endswith("/model.safetensors")
        assert len(info.mean) == len(info.std) == 3
        assert 24 <= info.image_size <= 1024
        assert not info.is_ready


def test_an_accuracy_is_given_only_where_the_source_states_it():
    assert backbone_info("resnet18").top1 == 69.758
    assert {backbone_info(name).top1 for name in catalogue.packages()} == {None}
    assert {backbone_info(name).top1 for name in backbone_names() if is_timm_name(name)} == {None}


def test_licences_are_those_that_the_source_states():
    assert backbone_info("timm/convnextv2_tiny.fcmae_ft_in1k").is_research_only
    assert backbone_info("timm/convnextv2_tiny.fcmae_ft_in1k").licence == "cc-by-nc-4.0"
    assert backbone_info("timm/vit_small_patch16_dinov3.lvd1689m").licence == "dinov3-license"
    assert not backbone_info("timm/resnet18.a1_in1k").is_research_only
    assert backbone_info("resnet18").licence is None
    assert backbone_info("vit_h_14").is_research_only
    assert [licence_name(backbone_info(name).licence) for name in ("vit_h_14", "resnet18")] == [
        "cc-by-nc-4.0",
        "not stated",
    ]


def test_weights_that_are_published_as_pickles_only_are_not_offered():
    assert "timm/gcvit_tiny.in1k" not in backbone_names()
    assert backbone_info("timm/gcvit_tiny.in1k").url is None


def test_images_are_cut_and_resized_as_the_network_was_pretrained():
    dino, usual = backbone_info("timm/vit_small_patch16_dinov3"), backbone_info("resnet18")
    assert (dino.crop, dino.interpolation, dino.compute_resize_size(256)) == (1.0, "bicubic", 256)
    assert (usual.crop, usual.interpolation, usual.compute_resize_size(224)) == (
        0.875,
        "bilinear",
        256,
    )
    assert all(0.8 < info.crop <= 1 for info in map(backbone_info, backbone_names()))


def test_a_name_without_a_tag_has_the_usual_weights():
    plain, tagged = backbone_info("timm/resnet18"), backbone_info("timm/resnet18.a1_in1k")
    assert plain.repository == tagged.repository
    assert backbone_info("timm/resnet18.tv_in1k").repository != plain.repository


@pytest.mark.parametrize(
    "name",
    [PACKAGED, "resnet18", "squeezenet1_1", "googlenet", "timm/test_vit3", "timm/test_convnext"],
)
def test_parameters_said_are_those_of_the_network(name):
    assert sum(p.numel() for p in create_on_meta(name).parameters()) == parameter_count(name)


def test_packaged_backbone_is_always_ready_and_has_its_own_normalisation(monkeypatch):
    info = backbone_info(PACKAGED)
    assert info.is_ready
    assert info.url is None
    assert info.mean == info.std == (0.5, 0.5, 0.5)
    assert backbone_info("resnet18").mean == (0.485, 0.456, 0.406)
    assert backbone_info("resnet18").std == (0.229, 0.224, 0.225)
    monkeypatch.setattr(catalogue, "_packaged_file", lambda package: None)
    assert not backbone_info(PACKAGED).is_ready


def test_the_default_is_resnet18_only_where_its_weights_are():
    assert default_backbone() == PACKAGED
    file = backbone_info("resnet18").file
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    assert backbone_info("resnet18").is_ready
    assert default_backbone() == "resnet18"


@pytest.mark.parametrize("name", ["resnet19", "", "quantized_resnet18", "fasterrcnn_resnet50_fpn"])
def test_an_unknown_backbone_is_refused_by_name(name):
    for ask in (backbone_info, create):
        with pytest.raises(ConfigError) as caught:
            ask(name)
        assert repr(name) in caught.value.problems["backbone"]


def test_network_on_meta_has_the_shapes_of_the_real_one_and_no_numbers():
    real, meta = (make("squeezenet1_1").state_dict() for make in (create, create_on_meta))
    assert all(tensor.is_meta for tensor in meta.values())
    assert torch.zeros(1).device.type == "cpu"  # nothing is left switched
    assert {name: tensor.shape for name, tensor in real.items()} == {
        name: tensor.shape for name, tensor in meta.items()
    }


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_classifiers_are_not_built(name):
    assert not [
        path for path, _ in create_on_meta(name).named_parameters() if "aux" in path.lower()
    ]

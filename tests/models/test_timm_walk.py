"""timm's architectures, without their weights: stages cover each network in forward order, and its head is last and can be replaced."""

import math

import pytest
import timm

from benchmarks.walk_timm import UNUSUAL, problems, smallest, train_apart, walk
from finetune_core.errors import ConfigError
from finetune_core.models import timm_networks
from finetune_core.models.catalogue import backbone_names, create_on_meta
from finetune_core.models.meta import allocating_on_meta
from finetune_core.models.network import head_paths, network_stages
from finetune_core.models.timm_networks import classifies, known_parameters

FAMILIES = [
    "beit_base_patch16_224",
    "cait_xxs24_224",
    "coat_lite_mini",
    "convnextv2_atto",
    "crossvit_9_240",
    "deit_tiny_distilled_patch16_224",
    "efficientformer_l1",
    "eva02_tiny_patch14_336",
    "ghostnet_050",
    "levit_128s",
    "maxvit_rmlp_pico_rw_256",
    "mixer_s32_224",
    "mobilenetv4_conv_small_035",
    "nfnet_f0",
    "pvt_v2_b0",
    "regnetx_002",
    "repvit_m0_9",
    "swin_tiny_patch4_window7_224",
    "vit_base_patch16_siglip_224",
    "vit_relpos_small_patch16_224",
    "vit_small_patch16_dinov3",
    "xcit_nano_12_p8_224",
]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_network_of_each_family_has_stages_in_forward_order_and_a_head_that_can_be_replaced(
    architecture,
):
    walked = walk(f"timm/{architecture}")
    assert not walked.problems
    assert len(walked.stages) >= 4


def wrong_among(architectures):
    found = {architecture: problems(f"timm/{architecture}") for architecture in architectures}
    # What encodes images for a language model classifies nothing.
    return {
        name: said
        for name, said in found.items()
        if said and not said[0].endswith("timm puts none on it")
    }


def few_of(module):
    """Three architectures of a family, or all it has: of each third of its names the smallest."""
    names = [name for name in timm.list_models(module=module) if classifies(name)]
    thirds = (names[len(names) * third // 3 : len(names) * (third + 1) // 3] for third in range(3))
    return [
        min(third, key=lambda name: known_parameters(f"timm/{name}") or math.inf)
        for third in thirds
        if third
    ]


@pytest.mark.train
@pytest.mark.parametrize("module", timm.list_modules())
def test_three_architectures_of_every_family_have_them(module):
    few = few_of(module)
    assert len(few) == min(3, sum(map(classifies, timm.list_models(module=module))))
    assert not wrong_among(few)


@pytest.mark.exhaustive
@pytest.mark.parametrize("module", timm.list_modules())
def test_every_architecture_of_timm_has_them(module):
    assert not wrong_among(timm.list_models(module=module))


@pytest.mark.train
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ["fastvit_t8", "test_vit"])
def test_a_network_takes_full_fine_tuning_steps(architecture, precision):
    assert not train_apart(f"timm/{architecture}", precision)


@pytest.mark.exhaustive
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("module", timm.list_modules())
def test_the_smallest_network_of_every_family_takes_full_fine_tuning_steps(module, precision):
    name = smallest(module)
    assert name is None or not train_apart(f"timm/{name}", precision)


@pytest.mark.parametrize(
    ("architecture", "heads"),
    [
        ("deit_tiny_distilled_patch16_224", ("head", "head_dist")),  # which are averaged
        ("crossvit_9_240", ("head.0", "head.1")),
        ("volo_d1_224", ("head", "aux_head")),
        ("vit_small_patch16_dinov3", ("head",)),  # published without one
        ("levit_128s", ("head.linear", "head_dist.linear")),
        ("test_vit3", ("head",)),  # behind attention that pools
        ("resnet18", ("fc",)),
    ],
)
def test_heads_are_the_layers_that_depend_on_the_number_of_classes(architecture, heads):
    assert set(head_paths(f"timm/{architecture}")) == set(heads)


@pytest.mark.parametrize(
    "architecture",
    [
        "vit_small_patch16_dinov3",
        "eva02_tiny_patch14_336",
        "vit_relpos_small_patch16_224",
        "levit_128s",
    ],
)
def test_position_embeddings_that_all_blocks_add_do_not_stand_against_a_cut(architecture):
    assert all(walk(f"timm/{architecture}").cuts)


@pytest.mark.parametrize(
    "architecture", ["coat_lite_mini", pytest.param("coat_tiny", marks=pytest.mark.train)]
)
def test_blocks_that_share_a_module_are_one_stage(architecture):
    walked = walk(f"timm/{architecture}")
    assert not walked.problems  # else the shared one would run again after later stages have
    assert all(walked.cuts)


def test_the_blocks_of_a_network_with_others_after_its_pooling_are_stages_of_their_own():
    assert (
        sum(stage.name.startswith("block") for stage in network_stages("timm/cait_xxs24_224"))
        == 24 + 2
    )


@pytest.mark.parametrize(
    "architecture",
    ["xcit_nano_12_p8_224", "vit_relpos_small_patch16_224", "mixer_s32_224", "test_vit"],
)
def test_blocks_that_are_no_children_of_what_runs_are_stages_of_their_own(architecture):
    assert (
        sum(stage.name.startswith("block") for stage in network_stages(f"timm/{architecture}")) >= 6
    )


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("gemma4_vit_167m", "cannot be traced"),  # it looks at what it is given
        ("crossvit_9_240", "more than one value crosses"),  # two branches
    ],
)
def test_a_network_that_is_not_cut_says_why(architecture, reason):
    walked = walk(f"timm/{architecture}")
    assert not walked.problems
    assert not any(walked.cuts)
    assert reason in walked.reason


@pytest.mark.parametrize(
    "architecture",
    ["mvitv2_tiny", "nest_tiny", pytest.param("samvit_base_patch16", marks=pytest.mark.train)],
)
def test_functions_that_timm_keeps_out_of_traces_do_not_stand_against_a_cut(architecture):
    assert all(walk(f"timm/{architecture}").cuts)


@pytest.mark.parametrize("counted", [True, False])
# the second takes no head at all
@pytest.mark.parametrize("architecture", ["deepseek_vit_412m_enc", "qwen3_vit_88m_enc"])
def test_a_network_that_cannot_classify_is_refused_in_words(architecture, counted, monkeypatch):
    if not counted:  # of a timm newer than the table
        monkeypatch.setattr(timm_networks, "_counted", dict)
        monkeypatch.setattr(timm_networks, "_registered", timm_networks._registered.__wrapped__)
    with pytest.raises(ConfigError) as caught:
        network_stages(f"timm/{architecture}")
    assert (
        caught.value.problems["backbone"]
        == f"timm/{architecture} has no head that classifies, and timm puts none on it"
    )


def test_networks_that_cannot_classify_are_not_offered():
    names = [name.removeprefix("timm/").partition(".")[0] for name in backbone_names()]
    assert "sequencer2d_s" in names
    assert not {"deepseek_vit_412m_enc", "gemma4_vit_167m_enc", "qwen3_vit_88m_enc"} & set(names)


def test_a_product_of_tensors_can_be_what_crosses_a_cut():
    assert all(walk("timm/ese_vovnet19b_dw").cuts)  # its stages end in gates


@pytest.mark.train
def test_only_architectures_that_timm_puts_no_head_on_are_said_to_have_none():
    headless = [name for name in timm.list_models() if not classifies(name)]
    assert headless
    for name in headless:
        with allocating_on_meta():
            model = timm.create_model(name, num_classes=UNUSUAL)
        assert not [
            path for path, parameter in model.named_parameters() if UNUSUAL in parameter.shape
        ]


@pytest.mark.train
def test_the_parameters_that_are_listed_are_those_of_the_networks():
    names = [name for name in timm.list_models() if classifies(name)]
    counted = [name for name in names if known_parameters(f"timm/{name}")]
    assert len(counted) > 50
    for name in counted[::10]:
        found = sum(tensor.numel() for tensor in create_on_meta(f"timm/{name}").parameters())
        assert found == known_parameters(f"timm/{name}")

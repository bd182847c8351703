"""timm's architectures, without their weights.

The stages cover each network in forward order. The head is last and can be replaced.
"""

import pytest
import timm

from benchmarks.walk_timm import UNUSUAL, find_problems, find_smallest, train_in_subprocess, walk
from finetune_core.errors import ConfigError
from finetune_core.models import timm_networks
from finetune_core.models.catalogue import backbone_names, create_on_meta
from finetune_core.models.meta import allocate_on_meta
from finetune_core.models.network import head_paths, network_stages
from finetune_core.models.timm_networks import can_classify, known_parameter_count

# Architecture -> number of stages that are named blocks, or None. All families: see below.
BLOCKS = {
    "test_vit": 6,
    "test_convnext": None,
    "cait_xxs24_224": 24 + 2,  # two blocks after the pooling
    "mixer_s32_224": 8,
    "levit_128s": None,  # two heads
    "nest_tiny": None,  # functions that timm keeps out of traces
    "coat_lite_mini": None,  # blocks that share a module
    "ese_vovnet19b_dw": None,  # stages that end in gates: a product of tensors crosses the cut
    "vit_small_patch16_dinov3": 12,  # published without a head
}
DEAR = [pytest.param(name, marks=pytest.mark.train) for name in [*BLOCKS][2:]]


@pytest.mark.parametrize("name", [*[*BLOCKS][:2], *DEAR])
def test_stages_of_timm_are_in_forward_order_and_can_be_cut(name):
    walked = walk(f"timm/{name}")
    assert not walked.problems
    assert len(walked.stages) >= 4
    assert all(walked.cuts) or name == "cait_xxs24_224"  # two values cross after the pooling
    if BLOCKS[name]:
        blocks = [stage for stage in walked.stages if stage.startswith("block")]
        assert len(blocks) == BLOCKS[name]


@pytest.mark.train
def test_network_that_looks_at_its_images_cannot_be_cut_and_says_so():
    walked = walk("timm/gemma4_vit_167m")
    assert not walked.problems
    assert not any(walked.cuts)
    assert "cannot be traced" in walked.reason


@pytest.mark.exhaustive
@pytest.mark.parametrize("module", timm.list_modules())
def test_every_architecture_of_timm_has_stages_and_a_head(module):
    names = timm.list_models(module=module)
    found = {name: find_problems(f"timm/{name}") for name in names}
    # Image encoders of language models classify nothing.
    headless = "timm puts none on it"
    assert not {n: said for n, said in found.items() if said and not said[0].endswith(headless)}


@pytest.mark.train
def test_network_takes_full_fine_tuning_steps():
    assert not train_in_subprocess("timm/test_vit", "bf16")


@pytest.mark.exhaustive
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("module", timm.list_modules())
def test_smallest_network_of_every_family_takes_full_fine_tuning_steps(module, precision):
    name = find_smallest(module)
    assert name is None or not train_in_subprocess(f"timm/{name}", precision)


@pytest.mark.parametrize(
    ("architecture", "heads"),
    [
        ("deit_tiny_distilled_patch16_224", ("head", "head_dist")),  # averaged
        ("crossvit_9_240", ("head.0", "head.1")),
        ("volo_d1_224", ("head", "aux_head")),
        ("vit_small_patch16_dinov3", ("head",)),  # published without one
        ("levit_128s", ("head.linear", "head_dist.linear")),
        ("test_vit3", ("head",)),  # behind attention pooling
        ("resnet18", ("fc",)),
    ],
)
def test_heads_are_the_layers_that_depend_on_the_number_of_classes(architecture, heads):
    assert set(head_paths(f"timm/{architecture}")) == set(heads)


@pytest.mark.parametrize("counted", [True, False])
# the second takes no head
@pytest.mark.parametrize("architecture", ["deepseek_vit_412m_enc", "qwen3_vit_88m_enc"])
def test_network_that_cannot_classify_is_refused_in_words(architecture, counted, monkeypatch):
    if not counted:  # from a newer timm than the table
        monkeypatch.setattr(timm_networks, "_parameter_table", dict)
        monkeypatch.setattr(timm_networks, "_look_up", timm_networks._look_up.__wrapped__)
    with pytest.raises(ConfigError) as caught:
        network_stages(f"timm/{architecture}")
    reason = f"timm/{architecture} has no head that classifies, and timm puts none on it"
    assert caught.value.problems["backbone"] == reason


def test_networks_that_cannot_classify_are_not_offered():
    names = [name.removeprefix("timm/").partition(".")[0] for name in backbone_names()]
    assert "sequencer2d_s" in names
    assert not {"deepseek_vit_412m_enc", "gemma4_vit_167m_enc", "qwen3_vit_88m_enc"} & set(names)


@pytest.mark.train
def test_only_architectures_that_timm_puts_no_head_on_are_said_to_have_none():
    headless = [name for name in timm.list_models() if not can_classify(name)]
    assert headless
    for name in headless:
        with allocate_on_meta():
            model = timm.create_model(name, num_classes=UNUSUAL)
        assert not [path for path, p in model.named_parameters() if UNUSUAL in p.shape]


@pytest.mark.train
def test_parameters_that_are_listed_are_those_of_the_networks():
    names = [name for name in timm.list_models() if can_classify(name)]
    counted = [name for name in names if known_parameter_count(f"timm/{name}")]
    assert len(counted) > 50
    for name in counted[::120]:
        found = sum(tensor.numel() for tensor in create_on_meta(f"timm/{name}").parameters())
        assert found == known_parameter_count(f"timm/{name}")

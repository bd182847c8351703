import pytest
import torch
from torch import nn

from finetune_core.models import catalogue
from finetune_core.models.network import build_network, network_stages
from finetune_core.models.partition import SplitError, trace
from finetune_core.models.stages import Stage, derive_stages
from tests.timm_kinds import SIDE

DEAR = ["densenet121", "swin_t", "googlenet"]
EXHAUSTIVE = ["convnext_tiny", "regnet_y_400mf", "vit_b_16"]


@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_lite0",
        "timm/test_resnet",
        *(pytest.param(name, marks=pytest.mark.train) for name in DEAR),
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in EXHAUSTIVE),
    ],
)
def test_the_parts_make_up_the_whole(name):
    size = 224 if name == "vit_b_16" else 64
    network = build_network(name, "none", 5, 0)
    segments = trace(network.model, network.stages)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        whole = network.model(images)
        for cut in {1, len(network.stages) // 2, len(network.stages) - 1}:
            assert torch.equal(segments.part(cut, None)(segments.part(None, cut)(images)), whole)
        first, last = 1, len(network.stages) - 1
        between = segments.part(first, last)(segments.part(None, first)(images))
        assert torch.equal(between, segments.part(None, last)(images))


def test_the_head_is_fed_pooled_features():
    network = build_network("resnet18", "none", 5, 0)
    features = trace(network.model, network.stages).part(None, len(network.stages) - 1)(
        torch.randn(2, 3, 64, 64)
    )
    assert features.shape == (2, 512)


def test_a_part_shares_its_modules_with_the_network():
    network = build_network("resnet18", "none", 5, 0)
    tail = trace(network.model, network.stages).part(4, None)
    assert tail.get_submodule("layer4") is not None
    assert {id(p) for p in tail.parameters()} == {
        id(p) for name, p in network.model.named_parameters() if name.startswith(("layer4", "fc"))
    }


class _Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.b(self.a(x)) if x.sum() > 0 else self.a(x)


class _Skipping(_Branching):
    def forward(self, x):
        return self.b(self.a(x)) + x


LINEAR_STAGES = tuple(Stage(n, (n,), (f"{n}.weight", f"{n}.bias"), (), 12) for n in "ab")


def test_what_cannot_be_traced_says_so():
    with pytest.raises(SplitError, match="cannot be traced"):
        trace(_Branching(), LINEAR_STAGES)


def test_what_skips_over_the_cut_says_so():
    segments = trace(_Skipping(), LINEAR_STAGES)
    with pytest.raises(SplitError, match="more than one value crosses"):
        segments.part(None, 1)


def test_stages_of_a_traced_copy_are_those_of_the_network():
    model = catalogue.create_on_meta("resnet18")
    assert [s.name for s in derive_stages(model, ("fc",))] == [
        s.name for s in network_stages("resnet18")
    ]


@pytest.mark.train
@pytest.mark.parametrize(
    "name",
    [
        "timm/test_vit_relpos",  # all blocks add one position bias
        # blocks get height and width
        pytest.param("timm/xcit_nano_12_p8_224", marks=pytest.mark.train),
        # blocks share position embeddings with those of their resolution
        pytest.param("timm/coat_lite_mini", marks=pytest.mark.train),
        # untraced functions give blocks heights and widths
        pytest.param("timm/mvitv2_tiny", marks=pytest.mark.exhaustive),
        # all blocks rotate by the same angles
        pytest.param("timm/eva02_tiny_patch14_336", marks=pytest.mark.exhaustive),
        pytest.param("timm/visformer_tiny", marks=pytest.mark.exhaustive),  # blocks share a dropout
        # blocks get the batch size
        pytest.param("timm/twins_pcpvt_small", marks=pytest.mark.exhaustive),
    ],
)
def test_what_does_not_depend_on_the_images_does_not_stand_against_a_cut(name):
    side = 56 if "patch14" in name else SIDE
    network = build_network(name, "none", 3, 0, side)
    segments = trace(network.model, network.stages, side)
    assert None not in segments.boundaries
    # another batch size than in tracing
    images = torch.randn(5, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network.model(images)
        for cut in range(1, len(network.stages)):
            activation = segments.part(None, cut)(images)
            torch.testing.assert_close(
                segments.part(cut, None)(activation), expected, atol=1e-5, rtol=1e-5
            )

import re
from collections import Counter

import pytest
import torch
from torch import nn

from finetune_core.models.catalogue import backbone_names, create_on_meta
from finetune_core.models.network import network_stages
from finetune_core.models.partition import trace
from finetune_core.models.stages import derive_stages, find_head, replace_head
from finetune_core.models.timm_networks import is_timm_name

FEW = {
    "efficientnet_lite0",
    "resnet18",
    "googlenet",
    "regnet_y_400mf",
    "vit_b_16",
    "swin_t",
    "maxvit_t",
    "vgg11",
}
# those are test_timm_walk.py's
NAMES = [name for name in backbone_names() if not is_timm_name(name)]


def family(name):
    """resnet18, resnet50 -> resnet"""
    return re.match("[a-z]+", name)[0]


def marks(name):
    """Some of different kinds in every run of the tests, of each family the first and the last among the slow ones."""
    if name in FEW:
        return ()
    relatives = sorted(one for one in NAMES if family(one) == family(name))
    return pytest.mark.train if name in (relatives[0], relatives[-1]) else pytest.mark.exhaustive


EVERY_BACKBONE = [pytest.param(name, marks=marks(name)) for name in NAMES]


class Walk:
    """One backbone with a head for 7 classes, its stages, and what a forward pass shows of it."""

    def __init__(self, name):
        self.model = create_on_meta(name).eval()
        self.head = find_head(self.model)
        self.old_head = self.model.get_submodule(self.head)
        replace_head(self.model, self.head, 7)
        self.stages = derive_stages(self.model, (self.head,))
        self.executions = []  # paths of modules that hold tensors themselves, each time they run
        hooks = [
            module.register_forward_pre_hook(
                lambda _module, _inputs, path=path: self.executions.append(path)
            )
            for path, module in self.model.named_modules()
            if any(True for _ in module.parameters(recurse=False))
        ]
        with torch.no_grad():
            self.output = self.model(torch.empty(2, 3, 224, 224, device="meta"))
        for hook in hooks:
            hook.remove()


@pytest.fixture(scope="module", params=EVERY_BACKBONE)
def walk(request):
    return Walk(request.param)


def test_every_backbone_can_be_cut_between_any_two_stages(walk):
    segments = trace(walk.model, walk.stages)
    assert None not in segments.boundaries
    cut = len(walk.stages) // 2
    activation = segments.part(None, cut)(torch.empty(2, 3, 224, 224, device="meta"))
    assert segments.part(cut, None)(activation).shape == walk.output.shape


def test_every_parameter_and_buffer_is_in_exactly_one_stage(walk):
    parameters = Counter(name for stage in walk.stages for name in stage.parameters)
    buffers = Counter(name for stage in walk.stages for name in stage.buffers)
    assert parameters == Counter(name for name, _ in walk.model.named_parameters())
    assert buffers == Counter(name for name, _ in walk.model.named_buffers())


def test_stages_run_in_their_order(walk):
    stage_of = {
        name.rpartition(".")[0]: index
        for index, stage in reversed(list(enumerate(walk.stages)))
        for name in stage.parameters
    }
    order = [stage_of[path] for path in walk.executions]
    assert order == sorted(order)
    assert set(order) == set(range(len(walk.stages)))


def test_modules_belong_to_one_stage_and_are_all_there(walk):
    owned = [path for stage in walk.stages for path in stage.modules]
    assert len(owned) == len(set(owned))
    assert not [(a, b) for a in owned for b in owned if a.startswith(f"{b}.")]
    assert all(isinstance(walk.model.get_submodule(path), nn.Module) for path in owned)


def test_the_head_is_last_and_is_the_new_layer_alone(walk):
    assert walk.stages[-1].name == "head"
    assert set(walk.stages[-1].parameters) == {f"{walk.head}.weight", f"{walk.head}.bias"}
    assert walk.stages[-1].buffers == ()
    assert walk.executions[-1] == walk.head


def test_the_replaced_head_gives_a_score_a_class(walk):
    assert isinstance(walk.output, torch.Tensor)
    assert walk.output.shape == (2, 7)
    new = walk.model.get_submodule(walk.head)
    assert type(new) is type(walk.old_head)
    assert walk.old_head.weight.shape[0] == 1000
    assert new.weight.shape == (7, *walk.old_head.weight.shape[1:])


def test_names_are_unique_and_counts_are_right(walk):
    assert len({stage.name for stage in walk.stages}) == len(walk.stages) >= 4
    sizes = {name: parameter.numel() for name, parameter in walk.model.named_parameters()}
    for stage in walk.stages:
        assert stage.sizes == {name: sizes[name] for name in stage.parameters}
        assert stage.parameter_count == sum(stage.sizes.values()) > 0


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_stages_of_a_resnet(name):
    stages = network_stages(name, 2)
    assert [stage.name for stage in stages] == [
        "stem",
        "layer1",
        "layer2",
        "layer3",
        "layer4",
        "head",
    ]
    for stage in stages[1:-1]:
        assert stage.modules[0] == stage.name
        assert all(
            parameter.startswith(f"{stage.name}.")
            for parameter in (*stage.parameters, *stage.buffers)
        )
    assert set(stages[0].parameters) == {"conv1.weight", "bn1.weight", "bn1.bias"}
    assert set(stages[0].buffers) == {
        "bn1.running_mean",
        "bn1.running_var",
        "bn1.num_batches_tracked",
    }
    assert set(stages[-1].parameters) == {"fc.weight", "fc.bias"}


def test_every_block_of_a_vision_transformer_is_a_stage_and_loose_tensors_are_the_stems():
    stages = network_stages("vit_b_16", 2)
    assert [stage.name for stage in stages] == [
        "stem",
        *(f"encoder_layer_{number}" for number in range(12)),
        "head",
    ]
    assert {"class_token", "encoder.pos_embedding", "conv_proj.weight"} <= set(stages[0].parameters)


class SharedNothing(nn.Module):
    """Modules are defined in another order than they run in."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(8, 1000)
        self.late = nn.Sequential(
            nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, 1, 1)
        )
        self.early = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1))
        self.entry = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, images):
        return self.classifier(self.late(self.early(self.entry(images))).mean((2, 3)))


def test_the_order_is_that_of_the_forward_pass_not_of_the_definition():
    model = SharedNothing()
    assert find_head(model, 32) == "classifier"
    replace_head(model, "classifier", 3)
    stages = derive_stages(model, ("classifier",), 32)
    assert [stage.modules for stage in stages] == [
        ("entry",),
        ("early",),
        ("late",),
        ("classifier",),
    ]
    assert "late.1.running_mean" in stages[2].buffers


def test_deriving_stages_changes_neither_mode_nor_buffers_nor_hooks():
    model = SharedNothing().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    derive_stages(model, (find_head(model, 32),), 32)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

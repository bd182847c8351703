"""Stages: the tensors and modules of each stage, and the order in which they run."""

from collections import Counter

import pytest
import torch
from torch import nn

from finetune_core.models.catalogue import backbone_names, create_on_meta
from finetune_core.models.network import network_stages
from finetune_core.models.partition import trace
from finetune_core.models.stages import derive_stages, find_head, replace_head
from finetune_core.models.timm_networks import is_timm_name

# Networks of different kinds: residual, transformer, auxiliary heads, plain, windowed. Those of
# timm are in test_timm_networks.py.
PLAIN = {"efficientnet_lite0", "resnet18"}
FEW = {"googlenet", "regnet_y_400mf", "vit_b_16", "swin_t", "maxvit_t", "vgg11"}
EVERY_BACKBONE = [
    pytest.param(
        name,
        marks=() if name in PLAIN else pytest.mark.train if name in FEW else pytest.mark.exhaustive,
    )
    for name in backbone_names()
    if not is_timm_name(name)
]


def record_executions(model):
    """Return a forward pass's output and the paths of modules with tensors in execution order."""
    executions, hooks = [], []
    for path, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            hook = lambda _module, _inputs, path=path: executions.append(path)  # noqa: E731
            hooks.append(module.register_forward_pre_hook(hook))
    with torch.no_grad():
        output = model(torch.empty(2, 3, 224, 224, device="meta"))
    for hook in hooks:
        hook.remove()
    return output, executions


@pytest.mark.train
@pytest.mark.parametrize("name", EVERY_BACKBONE)
def test_stages_hold_every_tensor_once_in_forward_order_and_end_in_the_head(name):
    model = create_on_meta(name).eval()
    head = find_head(model)
    old_head = model.get_submodule(head)
    replace_head(model, head, 7)
    stages = derive_stages(model, (head,))
    output, executions = record_executions(model)

    assert len({stage.name for stage in stages}) == len(stages) >= 4
    parameters = Counter(name for stage in stages for name in stage.parameters)
    buffers = Counter(name for stage in stages for name in stage.buffers)
    assert parameters == Counter(name for name, _ in model.named_parameters())
    assert buffers == Counter(name for name, _ in model.named_buffers())
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for stage in stages:
        assert stage.sizes == {name: sizes[name] for name in stage.parameters}
        assert stage.parameter_count == sum(stage.sizes.values()) > 0

    owned = [path for stage in stages for path in stage.modules]
    assert len(owned) == len(set(owned))
    assert not [(a, b) for a in owned for b in owned if a.startswith(f"{b}.")]
    assert all(isinstance(model.get_submodule(path), nn.Module) for path in owned)

    stage_of = {
        name.rpartition(".")[0]: index
        for index, stage in reversed(list(enumerate(stages)))
        for name in stage.parameters
    }
    order = [stage_of[path] for path in executions]
    assert order == sorted(order)
    assert set(order) == set(range(len(stages)))

    assert stages[-1].name == "head"
    assert set(stages[-1].parameters) == {f"{head}.weight", f"{head}.bias"}
    assert stages[-1].buffers == ()
    assert executions[-1] == head
    new_head = model.get_submodule(head)
    assert type(new_head) is type(old_head)
    assert old_head.weight.shape[0] == 1000
    assert new_head.weight.shape == (7, *old_head.weight.shape[1:])
    assert output.shape == (2, 7)

    segments = trace(model, stages)
    assert None not in segments.boundaries
    cut = len(stages) // 2
    activation = segments.part(None, cut)(torch.empty(2, 3, 224, 224, device="meta"))
    assert segments.part(cut, None)(activation).shape == output.shape


def test_stages_of_a_resnet_are_its_layers_between_stem_and_head():
    stages = network_stages("resnet18", 2)
    layers = ["layer1", "layer2", "layer3", "layer4"]
    assert [stage.name for stage in stages] == ["stem", *layers, "head"]
    for stage in stages[1:-1]:
        assert stage.modules[0] == stage.name
        tensors = (*stage.parameters, *stage.buffers)
        assert all(tensor.startswith(f"{stage.name}.") for tensor in tensors)
    assert set(stages[0].parameters) == {"conv1.weight", "bn1.weight", "bn1.bias"}
    statistics = {"bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked"}
    assert set(stages[0].buffers) == statistics
    assert set(stages[-1].parameters) == {"fc.weight", "fc.bias"}


def test_blocks_of_a_vision_transformer_are_stages_and_loose_tensors_the_stems():
    stages = network_stages("vit_b_16", 2)
    blocks = [f"encoder_layer_{number}" for number in range(12)]
    assert [stage.name for stage in stages] == ["stem", *blocks, "head"]
    assert {"class_token", "encoder.pos_embedding", "conv_proj.weight"} <= set(stages[0].parameters)


class Shuffled(nn.Module):
    """A network whose modules are defined in another order than they run in."""

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


def test_order_of_stages_is_that_of_the_forward_pass_not_of_the_definition():
    model = Shuffled()
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
    model = Shuffled().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    derive_stages(model, (find_head(model, 32),), 32)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

"""A network -> its ordered stages, from its own structure: no list of stages by model.

The network is opened from the root down wherever one child holds nearly all of the backbone or goes through several
resolutions, which leaves a row of *units* in the order in which they run. Units are then grouped: a stack of blocks is a stage of its own; single blocks
and loose layers join the stage before them while the resolution stays the same; loose layers before the first block
are the stem. Where no block changes the resolution (transformers), every block is a stage.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import nn
from torch.nn.utils import skip_init

_OPEN_SHARE = 0.95  # of the backbone's parameters in one child: that child is a container, not a stage
_OPEN_RESOLUTIONS = 3  # so many resolutions among its children: a container, too
_SAME_RESOLUTION = 0.6  # unpadded convolutions lose a few rows within what is still one resolution
_BATCHNORM = nn.modules.batchnorm._BatchNorm
_NORM_LAYERS = (_BATCHNORM, nn.LayerNorm, nn.GroupNorm)
_WEIGHT_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_DROPOUTS = (nn.Dropout, nn.Dropout2d)


@dataclass(frozen=True)
class Stage:
    """A named, ordered slice of a network.

    Attributes:
        modules: paths of the modules it owns, in forward order.
        parameters, buffers: names of the tensors it owns, as in ``named_parameters()`` and ``named_buffers()``.
        parameter_count: numbers in its parameters.
        sizes: numbers in each of its parameters, by name.
        norms, batchnorms: names of the parameters of its normalisation layers, and of those of them that keep statistics.
    """

    name: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    parameter_count: int
    sizes: Mapping[str, int] = field(default_factory=dict, hash=False)
    norms: tuple[str, ...] = ()
    batchnorms: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Unit:
    path: str
    module: nn.Module
    positions: int  # spatial positions, or tokens, of its output; 1 after the final pooling

    @property
    def weight_layers(self) -> int:
        return sum(isinstance(module, _WEIGHT_LAYERS) for module in self.module.modules())

    @property
    def is_block(self) -> bool:
        return self.weight_layers >= 2

    @property
    def is_stack(self) -> bool:
        """Holds two or more children that are blocks themselves, or is a named stack of one (a Sequential)."""
        blocks = sum(_Unit("", child, 0).is_block for child in self.module.children())
        return (
            blocks >= 2
            or (blocks == 1 and isinstance(self.module, nn.Sequential))
            or any(isinstance(child, nn.ModuleList) and len(child) > 1 for child in self.module.children())
        )


def find_head(model: nn.Module, image_size: int = 224) -> str:
    """Path of the final layer: the last Linear or convolution that runs. ``model`` may be on the meta device."""
    weights = [path for path, module, _ in _trace(model, image_size) if isinstance(module, _WEIGHT_LAYERS)]
    return weights[-1]


def replace_head(model: nn.Module, head: str, classes: int) -> nn.Linear | nn.Conv2d:
    """Put a final layer for ``classes`` classes in the old one's place, and return it: same kind, same input, weights not yet set."""
    new: nn.Linear | nn.Conv2d
    old = model.get_submodule(head)
    device, dtype = old.weight.device, old.weight.dtype
    if isinstance(old, nn.Linear):
        new = skip_init(nn.Linear, old.in_features, classes, device=device, dtype=dtype)
    else:
        shape = (old.in_channels, classes, old.kernel_size, old.stride, old.padding)
        new = skip_init(nn.Conv2d, *shape, device=device, dtype=dtype)
    model.set_submodule(head, new)
    if "num_classes" in vars(model):
        vars(model)["num_classes"] = classes
    return new


def derive_stages(model: nn.Module, head: str, image_size: int = 224) -> tuple[Stage, ...]:
    """The network's stages, input to head; every parameter and buffer belongs to exactly one, the head is the last.

    Args:
        model: a network for ``[n, 3, image_size, image_size]`` images, best on the meta device.
        head: path of its final layer.
        image_size: side of the square input, pixels.
    """
    units = _units(model, head, image_size)
    at = next(index for index, unit in enumerate(units) if unit.path == head)
    groups = _group(units[:at])
    tail = units[at:]
    while groups and groups[-1] and isinstance(groups[-1][-1].module, _DROPOUTS):
        tail.insert(0, groups[-1].pop())
    stages = [_stage(_name(group, index), group, model) for index, group in enumerate(groups)]
    stages.append(_stage("head", tail, model))
    return _with_loose_tensors(stages, model)


def _trace(model: nn.Module, image_size: int) -> list[tuple[str, nn.Module, torch.Size]]:
    """Every module that runs, in the order in which each starts, with its output's shape."""
    started: dict[str, nn.Module] = {}
    shapes: dict[str, torch.Size] = {}
    handles = []

    def on_start(module: nn.Module, _inputs: object, path: str) -> None:
        started.setdefault(path, module)

    def on_end(_module: nn.Module, _inputs: object, output: object, path: str) -> None:
        shapes.setdefault(path, _shape(output))

    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(partial(on_start, path=path)))
        handles.append(module.register_forward_hook(partial(on_end, path=path)))
    was_training = model.training
    device = next(model.parameters()).device
    try:
        model.eval()
        with torch.no_grad():
            model(torch.zeros(2, 3, image_size, image_size, device=device))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return [(path, module, shapes[path]) for path, module in started.items()]


def _shape(output: object) -> torch.Size:
    while isinstance(output, tuple | list):
        output = output[0]
    return output.shape if isinstance(output, torch.Tensor) else torch.Size()


def _positions(shape: torch.Size) -> int:
    """Spatial positions of a feature map ``[n, c, h, w]`` or ``[n, h, w, c]``, or tokens of ``[n, t, c]``."""
    if len(shape) == 4:
        return shape[2] * shape[3] if shape[2] == shape[3] else shape[1] * shape[2]
    return shape[1] if len(shape) == 3 else 1


def _units(model: nn.Module, head: str, image_size: int) -> list[_Unit]:
    trace = _trace(model, image_size)
    containers = _containers(model, head, trace)
    return [
        _Unit(path, module, _positions(shape))
        for path, module, shape in trace
        if path not in containers and path.rpartition(".")[0] in containers
    ]


def _containers(model: nn.Module, head: str, trace: list[tuple[str, nn.Module, torch.Size]]) -> set[str]:
    """Paths of the modules to look into, root first: a module is opened only inside an opened one."""
    backbone = sum(p.numel() for n, p in model.named_parameters() if not n.startswith(f"{head}."))
    resolutions: dict[str, set[int]] = {}
    for path, _, shape in trace:
        resolutions.setdefault(path.rpartition(".")[0], set()).add(_positions(shape))
    containers = {""}
    for path, module in model.named_modules():  # parents come before their children
        if path.rpartition(".")[0] not in containers or path == head or not any(module.children()):
            continue
        share = sum(p.numel() for p in module.parameters()) / backbone
        if share >= _OPEN_SHARE or len(resolutions.get(path, ())) >= _OPEN_RESOLUTIONS or head.startswith(f"{path}."):
            containers.add(path)
    return containers


def _group(units: list[_Unit]) -> list[list[_Unit]]:
    blocks = [unit for unit in units if unit.is_block or unit.is_stack]
    isotropic = len(blocks) > 1 and len({unit.positions for unit in blocks}) == 1 and not any(u.is_stack for u in blocks)
    groups: list[list[_Unit]] = [[]]
    seen_block = not blocks
    for unit in units:
        if _starts_stage(unit, groups[-1], seen_block, isotropic):
            groups.append([])
        groups[-1].append(unit)
        seen_block = seen_block or unit.is_block or unit.is_stack
    return groups


def _starts_stage(unit: _Unit, group: list[_Unit], seen_block: bool, isotropic: bool) -> bool:
    """Whether ``unit`` opens a new stage after ``group``, the stage being filled."""
    weighted = [other for other in group if other.weight_layers]
    if not unit.weight_layers or not weighted:  # norms, activations, pools and dropout stay with what they follow
        return False
    in_stack = any(other.is_block or other.is_stack for other in weighted)
    if unit.is_stack or (unit.is_block and (isotropic or not seen_block)):
        return in_stack or not seen_block
    if not seen_block:  # still the stem
        return False
    return unit.positions < _SAME_RESOLUTION * weighted[-1].positions


def _name(group: list[_Unit], index: int) -> str:
    """The module's own name where it says something; ``features.4`` becomes ``block4``."""
    weighted = [unit for unit in group if unit.weight_layers]
    if index == 0 and not any(unit.is_block or unit.is_stack for unit in weighted):
        return "stem"
    main = next((unit for unit in weighted if unit.is_block or unit.is_stack), weighted[0])
    if main.path.startswith("classifier."):
        return "classifier"
    last = main.path.rsplit(".", 1)[-1]
    return f"block{index}" if last.isdigit() else last


def _stage(name: str, units: list[_Unit], model: nn.Module) -> Stage:
    paths = tuple(unit.path for unit in units)
    parameters = {n: p for n, p in model.named_parameters() if _owner(n, paths)}
    buffers = tuple(n for n, _ in model.named_buffers() if _owner(n, paths))
    sizes = {key: parameter.numel() for key, parameter in parameters.items()}
    owners = {key: model.get_submodule(key.rpartition(".")[0]) for key in sizes}
    norms = tuple(key for key, owner in owners.items() if isinstance(owner, _NORM_LAYERS))
    batchnorms = tuple(key for key, owner in owners.items() if isinstance(owner, _BATCHNORM))
    return Stage(name, paths, tuple(parameters), buffers, sum(sizes.values()), sizes, norms, batchnorms)


def _owner(tensor: str, paths: tuple[str, ...]) -> bool:
    return any(tensor.startswith(f"{path}.") for path in paths)


def _with_loose_tensors(stages: list[Stage], model: nn.Module) -> tuple[Stage, ...]:
    """Tensors that a container holds itself (class token, position embedding) act on the input side: the first stage's."""
    owned = {name for stage in stages for name in (*stage.parameters, *stage.buffers)}
    sizes = {n: p.numel() for n, p in model.named_parameters() if n not in owned}
    buffers = [n for n, _ in model.named_buffers() if n not in owned]
    first = stages[0]
    stages[0] = replace(
        first,
        parameters=(*sizes, *first.parameters),
        buffers=(*buffers, *first.buffers),
        parameter_count=first.parameter_count + sum(sizes.values()),
        sizes={**sizes, **first.sizes},
    )
    return tuple(stages)

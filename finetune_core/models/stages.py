"""Ordered stages of a network, derived from its structure. There is no list of stages by model.

The network is opened from the root down. A module is opened if it holds nearly all of the backbone,
goes through several resolutions, is the only stack of blocks, or only lists modules that run. This
leaves a row of *units* in the order in which they run.

The units are grouped into stages. A stack of blocks is a stage of its own. Single blocks and loose
layers join the stage before them while the resolution stays the same. Loose layers before the first
block are the stem. Where no block changes the resolution (transformers), every block is a stage.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import skip_init
from torch.overrides import TorchFunctionMode

from finetune_core.models.meta import skip_norms_on_meta

# A child with this share of the backbone's parameters is a container, not a stage.
_OPEN_SHARE = 0.95
_OPEN_RESOLUTIONS = 3  # a child with this many resolutions among its children is a container
_SAME_RESOLUTION = 0.6  # unpadded convolutions lose a few rows within one resolution
_BATCHNORM = nn.modules.batchnorm._BatchNorm
_NORM_LAYERS = (_BATCHNORM, nn.LayerNorm, nn.GroupNorm)
_WEIGHT_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_DROPOUTS = (nn.Dropout, nn.Dropout2d)


@dataclass(frozen=True)
class Stage:
    """A named, ordered slice of a network.

    Attributes:
        modules: paths of the modules of the stage, in forward order.
        parameters, buffers: names of the tensors of the stage, as in ``named_parameters()`` and
            ``named_buffers()``.
        parameter_count: number of elements in the parameters.
        sizes: number of elements in each parameter, by name.
        norms, batchnorms: names of the parameters of normalisation layers, and of those with
            running statistics.
        matrices: name -> (rows, columns) of each weight that multiplies its layer's input: of
            linear layers, attention projections, and convolutions that are not grouped (one row per
            output channel). Empty for the head.
    """

    name: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    parameter_count: int
    sizes: Mapping[str, int] = field(default_factory=dict, hash=False)
    norms: tuple[str, ...] = ()
    batchnorms: tuple[str, ...] = ()
    matrices: Mapping[str, tuple[int, int]] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class _Trace:
    """A record of one forward pass.

    Attributes:
        modules: modules that run, by path, in the order in which they start.
        runs: path of each module with parameters of its own, once for each time it starts.
        shapes: output shapes, by path.
        first_uses: for each used tensor, by name, the number of modules that had started before.
    """

    modules: Mapping[str, nn.Module]
    runs: Sequence[str]
    shapes: Mapping[str, torch.Size]
    first_uses: Mapping[str, int]


@dataclass(frozen=True)
class _Unit:
    path: str
    module: nn.Module
    positions: int  # spatial positions or tokens of the output; 1 after the final pooling

    @property
    def weight_layers(self) -> int:
        return sum(isinstance(module, _WEIGHT_LAYERS) for module in self.module.modules())

    @property
    def is_block(self) -> bool:
        return self.weight_layers >= 2

    @property
    def is_stack(self) -> bool:
        """True if the unit is a stack of blocks.

        A stack has two or more children that are blocks, is a Sequential with one, or has a
        ModuleList of several modules.
        """
        blocks = sum(_Unit("", child, 0).is_block for child in self.module.children())
        return (
            blocks >= 2
            or (blocks == 1 and isinstance(self.module, nn.Sequential))
            or any(
                isinstance(child, nn.ModuleList) and len(child) > 1
                for child in self.module.children()
            )
        )


def find_head(model: nn.Module, image_size: int = 224) -> str:
    """Return the path of the final layer: the last Linear or convolution that runs.

    ``model`` may be on the meta device.
    """
    weights = [
        path
        for path, module in _trace(model, image_size).modules.items()
        if isinstance(module, _WEIGHT_LAYERS)
    ]
    return weights[-1]


def replace_head(model: nn.Module, head: str, classes: int) -> nn.Linear | nn.Conv2d:
    """Replace a final layer by one for ``classes`` classes, and return it.

    The new layer has the same kind and input. Its weights are uninitialised.
    """
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


def derive_stages(
    model: nn.Module, heads: Sequence[str], image_size: int = 224
) -> tuple[Stage, ...]:
    """Return the network's stages from input to head.

    Every parameter and buffer belongs to exactly one stage. The head is the last stage.

    Args:
        model: a network for ``[n, 3, image_size, image_size]`` images, best on the meta device.
        heads: paths of its final layers. There are several where the network adds up their outputs.
        image_size: side of the square input, pixels.
    """
    trace = _trace(model, image_size)
    units = _list_units(model, heads, trace)
    head_index = next(index for index, unit in enumerate(units) if _is_in_head(unit.path, heads))
    groups = _merge_groups(_group_units(units[:head_index]), trace)
    tail = units[head_index:]
    while groups and groups[-1] and isinstance(groups[-1][-1].module, _DROPOUTS):
        tail.insert(0, groups[-1].pop())
    stages = [
        _build_stage(_name_stage(group, index), group, model) for index, group in enumerate(groups)
    ]
    stages.append(replace(_build_stage("head", tail, model), matrices={}))
    return _assign_loose_tensors(_number_duplicates(stages), model, trace)


def _is_in_head(path: str, heads: Sequence[str]) -> bool:
    """Return whether a unit belongs to the head.

    Several heads share the layers before them, so everything around them counts as the head.
    """
    if len(heads) == 1:
        return path == heads[0]
    return path in heads or any(path.startswith(f"{head.partition('.')[0]}.") for head in heads)


def _number_duplicates(stages: list[Stage]) -> list[Stage]:
    """Append numbers to names that several stages share. The head keeps its name."""
    names = [stage.name for stage in stages]
    return [
        replace(stage, name=f"{stage.name}_{index}")
        if index < len(stages) - 1 and names.count(stage.name) > 1
        else stage
        for index, stage in enumerate(stages)
    ]


class _FirstUses(TorchFunctionMode):
    """Records for each tensor how many modules have started when it is first used."""

    def __init__(self, names: Mapping[int, str], started: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.names, self.started = names, started
        self.first_uses: dict[str, int] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        for tensor in _iterate_tensors((*args, *(kwargs or {}).values())):
            if name := self.names.get(id(tensor)):
                self.first_uses.setdefault(name, len(self.started))
        return func(*args, **(kwargs or {}))


def _iterate_tensors(values: Sequence[object]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _iterate_tensors(value)


def _trace(model: nn.Module, image_size: int) -> _Trace:
    started: dict[str, nn.Module] = {}
    runs: list[str] = []
    shapes: dict[str, torch.Size] = {}
    handles = []

    def on_start(module: nn.Module, _inputs: object, path: str) -> None:
        started.setdefault(path, module)
        if any(True for _ in module.parameters(recurse=False)):
            runs.append(path)

    def on_end(_module: nn.Module, _inputs: object, output: object, path: str) -> None:
        shapes.setdefault(path, _output_shape(output))

    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(partial(on_start, path=path)))
        handles.append(module.register_forward_hook(partial(on_end, path=path)))
    was_training = model.training
    device = next(model.parameters()).device
    uses = _FirstUses(
        {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())},
        started,
    )
    try:
        model.eval()
        # The mode that is entered last is called first.
        with torch.no_grad(), skip_norms_on_meta(), uses:
            model(torch.zeros(2, 3, image_size, image_size, device=device))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return _Trace(started, runs, shapes, uses.first_uses)


def _output_shape(output: object) -> torch.Size:
    while isinstance(output, tuple | list):
        output = output[0]
    return output.shape if isinstance(output, torch.Tensor) else torch.Size()


def _count_positions(shape: torch.Size) -> int:
    """Return the number of positions of an output.

    These are the spatial positions of a feature map ``[n, c, h, w]`` or ``[n, h, w, c]``, or the
    tokens of ``[n, t, c]``.
    """
    if len(shape) == 4:
        return shape[2] * shape[3] if shape[2] == shape[3] else shape[1] * shape[2]
    return shape[1] if len(shape) == 3 else 1


def _list_units(model: nn.Module, heads: Sequence[str], trace: _Trace) -> list[_Unit]:
    containers = _find_containers(model, heads, trace)
    while True:
        units = [
            _Unit(path, module, _count_positions(trace.shapes[path]))
            for path, module in trace.modules.items()
            if path not in containers and path.rpartition(".")[0] in containers
        ]
        # Layers after the pooling are no blocks.
        stacks = [unit for unit in units if unit.is_stack and unit.positions > 1]
        if len(stacks) != 1 or not _is_whole(stacks[0], model):
            return units
        containers.add(stacks[0].path)


def _is_whole(stack: _Unit, model: nn.Module) -> bool:
    """Return whether the only stack of blocks holds most of the network.

    The stack is then opened, because its blocks are the only units to tell apart.
    """
    own, whole = (sum(p.numel() for p in module.parameters()) for module in (stack.module, model))
    return isinstance(stack.module, nn.Sequential) and own >= whole / 2


def _find_containers(model: nn.Module, heads: Sequence[str], trace: _Trace) -> set[str]:
    """Return the paths of the modules to open, root first.

    A module is opened only inside an opened one.
    """
    backbone = sum(
        p.numel()
        for n, p in model.named_parameters()
        if not n.startswith(tuple(f"{head}." for head in heads))
    )
    resolutions: dict[str, set[int]] = {}
    for path in trace.modules:
        resolutions.setdefault(path.rpartition(".")[0], set()).add(
            _count_positions(trace.shapes[path])
        )
    containers = {""}
    for path, module in model.named_modules():  # parents come before their children
        if path.rpartition(".")[0] not in containers or path in heads or not any(module.children()):
            continue
        share = sum(p.numel() for p in module.parameters()) / backbone
        # Attention pooling has queries of its own, so it is no plain container.
        plain = not any(True for _ in module.parameters(recurse=False))
        several = plain and len(resolutions.get(path, ())) >= _OPEN_RESOLUTIONS
        # The network calls the modules of a ModuleList one by one, so the list itself does not run.
        if (
            share >= _OPEN_SHARE
            or several
            or path not in trace.modules
            or any(h.startswith(f"{path}.") for h in heads)
        ):
            containers.add(path)
    return containers


def _group_units(units: list[_Unit]) -> list[list[_Unit]]:
    # Layers after the last pooling are no blocks. Earlier units are told apart by their resolution.
    blocks = [unit for unit in units if (unit.is_block or unit.is_stack) and unit.positions > 1]
    isotropic = (
        len(blocks) > 1
        and len({unit.positions for unit in blocks}) == 1
        and not any(u.is_stack for u in blocks)
    )
    groups: list[list[_Unit]] = [[]]
    seen_block = not blocks
    for unit in units:
        if _starts_stage(unit, groups[-1], seen_block, isotropic):
            groups.append([])
        groups[-1].append(unit)
        seen_block = seen_block or unit.is_block or unit.is_stack
    return groups


def _merge_groups(groups: list[list[_Unit]], trace: _Trace) -> list[list[_Unit]]:
    """Merge groups that share a module, which would otherwise run again after later stages."""
    group_of = {unit.path: index for index, group in enumerate(groups) for unit in group}
    latest, merged = 0, set[int]()
    for path in trace.runs:
        while path and path not in group_of:
            path = path.rpartition(".")[0]
        if path:
            merged.update(range(group_of[path] + 1, latest + 1))
            latest = max(latest, group_of[path])
    result: list[list[_Unit]] = []
    for index, group in enumerate(groups):
        if index in merged:
            result[-1].extend(group)
        else:
            result.append(group)
    return result


def _starts_stage(unit: _Unit, group: list[_Unit], seen_block: bool, isotropic: bool) -> bool:
    """Return whether ``unit`` opens a new stage after ``group``, the stage being filled."""
    weighted = [other for other in group if other.weight_layers]
    # Norms, activations, pooling and dropout stay with the layers before them.
    if not unit.weight_layers or not weighted:
        return False
    in_stack = any(other.is_block or other.is_stack for other in weighted)
    if unit.is_stack or (unit.is_block and (isotropic or not seen_block)):
        return in_stack or not seen_block
    if not seen_block:  # still the stem
        return False
    return unit.positions < _SAME_RESOLUTION * weighted[-1].positions


def _name_stage(group: list[_Unit], index: int) -> str:
    """Return a stage's name: the module's own if it is telling, else a number.

    ``features.4`` becomes ``block4``.
    """
    weighted = [unit for unit in group if unit.weight_layers]
    if index == 0 and not any(unit.is_block or unit.is_stack for unit in weighted):
        return "stem"
    main = next((unit for unit in weighted if unit.is_block or unit.is_stack), weighted[0])
    if main.path.startswith("classifier."):
        return "classifier"
    last = main.path.rsplit(".", 1)[-1]
    return f"block{index}" if last.isdigit() else last


def _build_stage(name: str, units: list[_Unit], model: nn.Module) -> Stage:
    paths = tuple(unit.path for unit in units)
    parameters = {n: p for n, p in model.named_parameters() if _is_owned(n, paths)}
    buffers = tuple(n for n, _ in model.named_buffers() if _is_owned(n, paths))
    sizes = {key: parameter.numel() for key, parameter in parameters.items()}
    owners = {key: model.get_submodule(key.rpartition(".")[0]) for key in sizes}
    norms = tuple(key for key, owner in owners.items() if isinstance(owner, _NORM_LAYERS))
    batchnorms = tuple(key for key, owner in owners.items() if isinstance(owner, _BATCHNORM))
    matrices = {
        key: (len(weight), weight[0].numel())
        for key, weight in parameters.items()
        if _is_matrix(key.rpartition(".")[2], owners[key])
    }
    return Stage(
        name,
        paths,
        tuple(parameters),
        buffers,
        sum(sizes.values()),
        sizes,
        norms,
        batchnorms,
        matrices,
    )


def _is_matrix(name: str, owner: nn.Module) -> bool:
    """Return whether the parameter ``name`` of a layer multiplies the layer's whole input."""
    if isinstance(owner, nn.MultiheadAttention):
        return name == "in_proj_weight"
    return name == "weight" and (
        isinstance(owner, nn.Linear) or (isinstance(owner, nn.Conv2d) and owner.groups == 1)
    )


def _is_owned(tensor: str, paths: tuple[str, ...]) -> bool:
    return any(tensor.startswith(f"{path}.") for path in paths)


def _assign_loose_tensors(
    stages: list[Stage], model: nn.Module, trace: _Trace
) -> tuple[Stage, ...]:
    """Assign tensors that a container holds itself (class token, position embedding) to stages.

    A loose tensor belongs to the stage that started last before its first use, or to the first
    stage if none had started.
    """
    owned = {name for stage in stages for name in (*stage.parameters, *stage.buffers)}
    owners = [_stage_index(path, stages) for path in trace.modules]
    sizes = {n: p.numel() for n, p in model.named_parameters() if n not in owned}
    buffers = [n for n, _ in model.named_buffers() if n not in owned]

    def find_stage(name: str) -> int:
        return next(
            (
                owner
                for owner in reversed(owners[: trace.first_uses.get(name, 0)])
                if owner is not None
            ),
            0,
        )

    for name, size in reversed(sizes.items()):
        old = stages[find_stage(name)]
        stages[find_stage(name)] = replace(
            old,
            parameters=(name, *old.parameters),
            parameter_count=old.parameter_count + size,
            sizes={name: size, **old.sizes},
        )
    for name in reversed(buffers):
        stages[find_stage(name)] = replace(
            stages[find_stage(name)], buffers=(name, *stages[find_stage(name)].buffers)
        )
    return tuple(stages)


def _stage_index(path: str, stages: Sequence[Stage]) -> int | None:
    owners = (
        index
        for index, stage in enumerate(stages)
        if any(path == module or path.startswith(f"{module}.") for module in stage.modules)
    )
    return next(owners, None)

"""A network -> its ordered stages, from its own structure: no list of stages by model.

The network is opened from the root down wherever one child holds nearly all of the backbone, goes through several
resolutions, is the only stack of blocks, or only lists modules that run, which leaves a row of *units* in the order in which they run. Units are then grouped: a stack of blocks is a stage of its own; single blocks
and loose layers join the stage before them while the resolution stays the same; loose layers before the first block
are the stem. Where no block changes the resolution (transformers), every block is a stage.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import skip_init
from torch.overrides import TorchFunctionMode

from finetune_core.models.meta import norms_keep_shapes

_OPEN_SHARE = (
    0.95  # of the backbone's parameters in one child: that child is a container, not a stage
)
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
        matrices: name -> (rows, columns) of the weights that its input is multiplied by: of linear layers, of attention's projections,
            and of convolutions but grouped ones, as one row per output channel. None of the head's.
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
    """One forward pass.

    Attributes:
        modules: that run, by path, in the order in which each starts.
        runs: path of each module that holds parameters itself, each time it starts.
        shapes: of their outputs.
        first_uses: of each tensor that is used, by name: how many modules had started before.
    """

    modules: Mapping[str, nn.Module]
    runs: Sequence[str]
    shapes: Mapping[str, torch.Size]
    first_uses: Mapping[str, int]


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
            or any(
                isinstance(child, nn.ModuleList) and len(child) > 1
                for child in self.module.children()
            )
        )


def find_head(model: nn.Module, image_size: int = 224) -> str:
    """Path of the final layer: the last Linear or convolution that runs. ``model`` may be on the meta device."""
    weights = [
        path
        for path, module in _trace(model, image_size).modules.items()
        if isinstance(module, _WEIGHT_LAYERS)
    ]
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


def derive_stages(
    model: nn.Module, heads: Sequence[str], image_size: int = 224
) -> tuple[Stage, ...]:
    """The network's stages, input to head; every parameter and buffer belongs to exactly one, the head is the last.

    Args:
        model: a network for ``[n, 3, image_size, image_size]`` images, best on the meta device.
        heads: paths of its final layers; several where it adds up what they answer.
        image_size: side of the square input, pixels.
    """
    trace = _trace(model, image_size)
    units = _units(model, heads, trace)
    at = next(index for index, unit in enumerate(units) if _in_head(unit.path, heads))
    groups = _in_order(_group(units[:at]), trace)
    tail = units[at:]
    while groups and groups[-1] and isinstance(groups[-1][-1].module, _DROPOUTS):
        tail.insert(0, groups[-1].pop())
    stages = [_stage(_name(group, index), group, model) for index, group in enumerate(groups)]
    stages.append(replace(_stage("head", tail, model), matrices={}))
    return _with_loose_tensors(_distinct(stages), model, trace)


def _in_head(path: str, heads: Sequence[str]) -> bool:
    """Several heads share what comes before them, so that all of what they stand in is the head."""
    if len(heads) == 1:
        return path == heads[0]
    return path in heads or any(path.startswith(f"{head.partition('.')[0]}.") for head in heads)


def _distinct(stages: list[Stage]) -> list[Stage]:
    """Names that two stages share get numbers; the head's stays."""
    names = [stage.name for stage in stages]
    return [
        replace(stage, name=f"{stage.name}_{index}")
        if index < len(stages) - 1 and names.count(stage.name) > 1
        else stage
        for index, stage in enumerate(stages)
    ]


class _FirstUses(TorchFunctionMode):
    """Notes when each of a network's tensors is first used: how many modules have started by then."""

    def __init__(self, names: Mapping[int, str], started: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.names, self.started = names, started
        self.found: dict[str, int] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        for tensor in _tensors((*args, *(kwargs or {}).values())):
            if name := self.names.get(id(tensor)):
                self.found.setdefault(name, len(self.started))
        return func(*args, **(kwargs or {}))


def _tensors(values: Sequence[object]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


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
        shapes.setdefault(path, _shape(output))

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
        with torch.no_grad(), norms_keep_shapes(), uses:  # the later one is asked first
            model(torch.zeros(2, 3, image_size, image_size, device=device))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return _Trace(started, runs, shapes, uses.found)


def _shape(output: object) -> torch.Size:
    while isinstance(output, tuple | list):
        output = output[0]
    return output.shape if isinstance(output, torch.Tensor) else torch.Size()


def _positions(shape: torch.Size) -> int:
    """Spatial positions of a feature map ``[n, c, h, w]`` or ``[n, h, w, c]``, or tokens of ``[n, t, c]``."""
    if len(shape) == 4:
        return shape[2] * shape[3] if shape[2] == shape[3] else shape[1] * shape[2]
    return shape[1] if len(shape) == 3 else 1


def _units(model: nn.Module, heads: Sequence[str], trace: _Trace) -> list[_Unit]:
    containers = _containers(model, heads, trace)
    while True:
        units = [
            _Unit(path, module, _positions(trace.shapes[path]))
            for path, module in trace.modules.items()
            if path not in containers and path.rpartition(".")[0] in containers
        ]
        # what follows the pooling is no block
        stacks = [unit for unit in units if unit.is_stack and unit.positions > 1]
        if len(stacks) != 1 or not _is_whole(stacks[0], model):
            return units
        containers.add(stacks[0].path)


def _is_whole(stack: _Unit, model: nn.Module) -> bool:
    """The only stack of blocks, and most of the network: its blocks are what there is to tell apart."""
    own, whole = (sum(p.numel() for p in module.parameters()) for module in (stack.module, model))
    return isinstance(stack.module, nn.Sequential) and own >= whole / 2


def _containers(model: nn.Module, heads: Sequence[str], trace: _Trace) -> set[str]:
    """Paths of the modules to look into, root first: a module is opened only inside an opened one."""
    backbone = sum(
        p.numel()
        for n, p in model.named_parameters()
        if not n.startswith(tuple(f"{head}." for head in heads))
    )
    resolutions: dict[str, set[int]] = {}
    for path in trace.modules:
        resolutions.setdefault(path.rpartition(".")[0], set()).add(_positions(trace.shapes[path]))
    containers = {""}
    for path, module in model.named_modules():  # parents come before their children
        if path.rpartition(".")[0] not in containers or path in heads or not any(module.children()):
            continue
        share = sum(p.numel() for p in module.parameters()) / backbone
        # attention that pools has queries of its own
        plain = not any(True for _ in module.parameters(recurse=False))
        several = plain and len(resolutions.get(path, ())) >= _OPEN_RESOLUTIONS
        # A list of modules that the network calls one by one does not run itself.
        if (
            share >= _OPEN_SHARE
            or several
            or path not in trace.modules
            or any(h.startswith(f"{path}.") for h in heads)
        ):
            containers.add(path)
    return containers


def _group(units: list[_Unit]) -> list[list[_Unit]]:
    # Layers after the last pooling are no blocks: what comes before them is told apart by its resolution.
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


def _in_order(groups: list[list[_Unit]], trace: _Trace) -> list[list[_Unit]]:
    """Groups that share a module become one: it would run again after later stages have."""
    at = {unit.path: index for index, group in enumerate(groups) for unit in group}
    latest, joined = 0, set[int]()
    for path in trace.runs:
        while path and path not in at:
            path = path.rpartition(".")[0]
        if path:
            joined.update(range(at[path] + 1, latest + 1))
            latest = max(latest, at[path])
    found: list[list[_Unit]] = []
    for index, group in enumerate(groups):
        if index in joined:
            found[-1].extend(group)
        else:
            found.append(group)
    return found


def _starts_stage(unit: _Unit, group: list[_Unit], seen_block: bool, isotropic: bool) -> bool:
    """Whether ``unit`` opens a new stage after ``group``, the stage being filled."""
    weighted = [other for other in group if other.weight_layers]
    # norms, activations, pools and dropout stay with what they follow
    if not unit.weight_layers or not weighted:
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
    """Whether a layer's parameter of that name is what all of its input is multiplied by."""
    if isinstance(owner, nn.MultiheadAttention):
        return name == "in_proj_weight"
    return name == "weight" and (
        isinstance(owner, nn.Linear) or (isinstance(owner, nn.Conv2d) and owner.groups == 1)
    )


def _owner(tensor: str, paths: tuple[str, ...]) -> bool:
    return any(tensor.startswith(f"{path}.") for path in paths)


def _with_loose_tensors(stages: list[Stage], model: nn.Module, trace: _Trace) -> tuple[Stage, ...]:
    """Tensors that a container holds itself (class token, position embedding) belong where they are first used: to the stage that
    started last before, and to the first one where that is none."""
    owned = {name for stage in stages for name in (*stage.parameters, *stage.buffers)}
    owners = [_stage_index(path, stages) for path in trace.modules]
    sizes = {n: p.numel() for n, p in model.named_parameters() if n not in owned}
    buffers = [n for n, _ in model.named_buffers() if n not in owned]

    def home(name: str) -> int:
        return next(
            (
                owner
                for owner in reversed(owners[: trace.first_uses.get(name, 0)])
                if owner is not None
            ),
            0,
        )

    for name, size in reversed(sizes.items()):
        old = stages[home(name)]
        stages[home(name)] = replace(
            old,
            parameters=(name, *old.parameters),
            parameter_count=old.parameter_count + size,
            sizes={name: size, **old.sizes},
        )
    for name in reversed(buffers):
        stages[home(name)] = replace(
            stages[home(name)], buffers=(name, *stages[home(name)].buffers)
        )
    return tuple(stages)


def _stage_index(path: str, stages: Sequence[Stage]) -> int | None:
    owners = (
        index
        for index, stage in enumerate(stages)
        if any(path == module or path.startswith(f"{module}.") for module in stage.modules)
    )
    return next(owners, None)

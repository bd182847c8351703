"""Networks cut between two stages: the trunk before, the tail after the cut.

The parts share their modules with the network, which is traced with torch.fx. A cut is a position
at which all modules of the earlier stages have run, no module of the later stages has run, and
exactly one tensor is alive. That tensor is the trunk's output and the tail's input.
"""

import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from finetune_core.models.stages import Stage
from finetune_core.models.tracing import trace_graph

Numbers = int | tuple[int, ...]
_COUNTS = (2, 3)  # batch sizes of two passes that are compared


class SplitError(Exception):
    """Raised if a network's structure does not allow a cut. The message says why.

    Such a network trains without a cache.
    """


@dataclass(frozen=True)
class Segments:
    """A traced network that can be cut between its stages.

    Attributes:
        root: module that holds everything the graph names: the network's own modules.
        graph: graph of the whole network.
        boundaries: for each stage but the first, the node whose value crosses from the stages
            before. None where more than one value crosses.
        numbers: nodes whose value is a number that is the same for all images of the run's size,
            such as the height and width of feature maps.
        counts: nodes whose value is the batch size.
    """

    root: nn.Module
    graph: fx.Graph
    boundaries: tuple[fx.Node | None, ...]
    numbers: Mapping[fx.Node, Numbers] = field(default_factory=dict)
    counts: frozenset[fx.Node] = frozenset()

    def part(self, start: int | None, end: int | None) -> fx.GraphModule:
        """Return the network from stage ``start`` up to, but not including, stage ``end``.

        The modules are the network's own, so training the part trains the network.

        Args:
            start: first stage of the part. None: the part takes images.
            end: stage after the part. None: the part yields logits.

        Raises:
            SplitError: if more than one value crosses one of the two ends.
        """
        first = None if start is None else self._find_boundary(start)
        last = None if end is None else self._find_boundary(end)
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node | Numbers] = {}
        nodes: list[fx.Node] = list(self.graph.nodes)
        begin = 0 if first is None else nodes.index(first) + 1
        stop = len(nodes) if last is None else nodes.index(last) + 1
        if first is not None:
            copies[first] = graph.placeholder("activation")
            copies |= self.numbers
        constants = _collect_constants(
            nodes, _find_dependent_nodes(nodes, self.numbers.keys() | self.counts), begin, stop
        )
        if first is not None and not self.counts.isdisjoint(constants):
            copies |= dict.fromkeys(self.counts, graph.call_method("size", (copies[first], 0)))
        for node in [*constants, *nodes[begin:stop]]:
            if node.op == "output":
                graph.output(fx.map_arg(node.args[0], copies.__getitem__))
            elif node not in copies and copies.keys() >= set(node.all_input_nodes):
                # Other nodes ask for sizes before the part: these are numbers.
                copies[node] = graph.node_copy(node, copies.__getitem__)
        if last is not None:
            graph.output(copies[last])
        graph.lint()
        return fx.GraphModule(self.root, graph)

    def _find_boundary(self, stage: int) -> fx.Node:
        node = self.boundaries[stage - 1]
        if node is None:
            raise SplitError(
                "more than one value crosses from the frozen stages to those that train"
            )
        return node


def trace(
    model: nn.Module,
    stages: Sequence[Stage],
    image_size: int | None = None,
    whole: Collection[str] = (),
) -> Segments:
    """Trace a network and find its cuts.

    Args:
        model: the network.
        stages: stages of the network.
        image_size: side of all images that go through the network. If given, parts may be valid for
            this size only.
        whole: paths of modules to keep as single nodes.

    Raises:
        SplitError: if torch.fx cannot follow the network.
    """
    try:
        root, graph = trace_graph(model, whole)
    except Exception as error:  # control flow on values: torch.fx raises nearly anything
        raise SplitError(f"its structure cannot be traced ({type(error).__name__})") from None
    boundaries = _find_boundaries(root, graph, stages, ())
    if image_size is None or None not in boundaries or not any(map(_is_size_query, graph.nodes)):
        return Segments(root, graph, boundaries)
    numbers, counts, batches = _infer_sizes(root, graph, image_size)
    nodes, known = list(graph.nodes), numbers.keys() | counts
    candidates, depends = (
        _find_boundaries(root, graph, stages, known),
        _find_dependent_nodes(nodes, known),
    )

    def needs_batch_size(node: fx.Node) -> bool:
        return not counts.isdisjoint(
            _collect_constants(nodes, depends, nodes.index(node) + 1, len(nodes))
        )

    # Where the crossing value has one entry per image, its size is the batch size.
    usable = [node and (node in batches or not needs_batch_size(node)) for node in candidates]
    boundaries = tuple(
        node if is_usable else None for node, is_usable in zip(candidates, usable, strict=True)
    )
    return Segments(root, graph, boundaries, numbers, counts)


def _find_boundaries(
    root: nn.Module, graph: fx.Graph, stages: Sequence[Stage], known: Collection[fx.Node]
) -> tuple[fx.Node | None, ...]:
    nodes = list(graph.nodes)
    depends = _find_dependent_nodes(nodes, known)
    owners = _assign_stages(nodes, depends, stages)
    return tuple(
        _find_boundary(nodes, owners, depends, root, stage) for stage in range(1, len(stages))
    )


def _infer_sizes(
    root: nn.Module, graph: fx.Graph, image_size: int
) -> tuple[dict[fx.Node, Numbers], frozenset[fx.Node], frozenset[fx.Node]]:
    """Find the nodes whose values are sizes, by two passes with fake tensors.

    Returns:
        A tuple of three collections, all empty where the passes are not possible: nodes -> number
        or tuple of numbers that is the same for all images and batch sizes; nodes whose value is
        the batch size; nodes whose value is a tensor with one entry per image.
    """
    try:
        few, more = (
            _record_sizes(root, graph, (count, 3, image_size, image_size)) for count in _COUNTS
        )
    except Exception:  # operations that need values: torch raises nearly anything
        return {}, frozenset(), frozenset()
    pairs = {node: (value, more.get(node)) for node, value in few.items()}
    constants = {
        node: value
        for node, (value, other) in pairs.items()
        if value == other and not isinstance(value, torch.Size)
    }
    counts = frozenset(node for node, pair in pairs.items() if pair == _COUNTS)
    batches = frozenset(
        node
        for node, pair in pairs.items()
        if all(isinstance(one, torch.Size) for one in pair) and _batch_sizes(pair) == _COUNTS
    )
    return constants, counts, batches


def _is_size_query(node: fx.Node) -> bool:
    return (
        node.target in ("size", "dim", "numel")
        if node.op == "call_method"
        else node.target is getattr
    )


def _batch_sizes(shapes: Sequence[Any]) -> tuple[int, ...]:
    return tuple(shape[0] if len(shape) else 0 for shape in shapes)


def _record_sizes(
    root: nn.Module, graph: fx.Graph, shape: tuple[int, ...]
) -> dict[fx.Node, Numbers]:
    """Return the size that each node yields in one pass.

    This is its value where it is a number or a tuple of numbers, or its shape where it is a tensor.
    """
    values: dict[fx.Node, Numbers] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, torch.Tensor):
                values[n] = value.shape
            elif isinstance(value, int):
                values[n] = value
            elif isinstance(value, tuple | list) and all(isinstance(one, int) for one in value):
                values[n] = tuple(value)  # a shape that the network asks for is a tuple of numbers
            return value

    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        images = mode.from_tensor(torch.empty(shape, device=next(root.parameters()).device))
        Recorder(fx.GraphModule(root, graph), graph=graph).run(images)
    return values


def _find_boundary(
    nodes: list[fx.Node],
    owners: dict[fx.Node, int],
    depends: set[fx.Node],
    root: nn.Module,
    stage: int,
) -> fx.Node | None:
    """Return the node that crosses the cut before ``stage``, or None.

    The cut is the last position between the last module of the earlier stages and the first of the
    later ones at which one tensor is alive. It is as late as possible, so that layers without
    weights (pooling before a head) run once, too.

    Values that do not depend on the images (position embeddings that all blocks add) are computed
    on both sides.
    """
    position = {node: index for index, node in enumerate(nodes)}
    owned = [node for node in nodes if node in depends and node in owners]
    earlier = max(
        (position[node] for node in owned if _has_tensors(node, root) and owners[node] < stage),
        default=None,
    )
    later = next((position[node] for node in owned if owners[node] >= stage), None)
    if earlier is None or later is None or later <= earlier:
        return None
    for cut in range(later - 1, earlier - 1, -1):
        crossing = (
            node for node in nodes[: cut + 1] if any(position[user] > cut for user in node.users)
        )
        alive = [node for node in crossing if node in depends]
        if len(alive) == 1 and _is_tensor(alive[0]):
            return alive[0]
    return None


def _collect_constants(
    nodes: Sequence[fx.Node], depends: set[fx.Node], begin: int, stop: int
) -> list[fx.Node]:
    """Return the nodes before a part that the part needs and that do not depend on the images."""
    before = set(nodes[:begin])
    needed: set[fx.Node] = set()
    for node in reversed(nodes[:stop]):
        if node in needed or node not in before:
            needed.update(
                source
                for source in node.all_input_nodes
                if source in before and source not in depends
            )
    return [node for node in nodes[:begin] if node in needed]


def _find_dependent_nodes(nodes: Sequence[fx.Node], known: Collection[fx.Node]) -> set[fx.Node]:
    """Return the nodes whose value depends on the images."""
    dependent: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder" or (
            node not in known and any(source in dependent for source in node.all_input_nodes)
        ):
            dependent.add(node)
    return dependent


def _assign_stages(
    nodes: Sequence[fx.Node], depends: set[fx.Node], stages: Sequence[Stage]
) -> dict[fx.Node, int]:
    """Return node -> index of its stage.

    Modules, tensors, and values computed from the network's own tensors have a stage. If several
    stages share one, the last one owns it.
    """
    owners: dict[fx.Node, int] = {}
    for node in nodes:
        own_stage = (
            _stage_index(str(node.target), stages)
            if node.op in ("call_module", "get_attr")
            else None
        )
        source_stages = [
            owners[source]
            for source in node.all_input_nodes
            if source in owners and source not in depends
        ]
        if stage_indices := [*source_stages, *([] if own_stage is None else [own_stage])]:
            owners[node] = max(stage_indices)
    return owners


def _has_tensors(node: fx.Node, root: nn.Module) -> bool:
    """Return whether a node runs a module that holds tensors.

    Other modules, such as dropout, may be shared by several stages.
    """
    return node.op == "call_module" and any(
        True for _ in root.get_submodule(str(node.target)).state_dict()
    )


def _stage_index(target: str, stages: Sequence[Stage]) -> int | None:
    for index, stage in enumerate(stages):
        inside = any(target == path or target.startswith(f"{path}.") for path in stage.modules)
        if inside or target in stage.parameters or target in stage.buffers:
            return index
    return None


def _is_tensor(node: fx.Node) -> bool:
    """Return whether a node's value is a tensor, not a size.

    Sizes come only from getattr, getitem and arithmetic on sizes.
    """
    if node.op == "call_function" and node.target in (operator.floordiv, operator.mul):
        return any(map(_is_tensor, node.all_input_nodes))
    if node.op == "call_function" and node.target in (getattr, operator.getitem):
        return False
    return not (node.op == "call_method" and node.target in ("size", "dim"))

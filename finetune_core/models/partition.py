"""A network cut between two of its stages: trunk before, tail after. The parts share their modules with the network.

The network is traced with torch.fx. A cut lies where every module of the earlier stages has run, none of the later ones
has, and exactly one tensor is alive: that tensor is what the trunk yields and the tail takes.
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
_COUNTS = (2, 3)  # images, of two passes that are compared


class CannotSplit(Exception):
    """The network's structure does not allow this cut; the message says why. Such a network trains uncached."""


@dataclass(frozen=True)
class Segments:
    """A traced network that can be cut anywhere between its stages.

    Attributes:
        root: holds what the graph names: the network's own modules.
        graph: of the whole network.
        boundaries: for each stage but the first, the node whose value crosses from the stages before it; None where more
            than one value crosses.
        numbers: nodes whose value is a number that is the same for all images of the run's size (heights and widths of feature maps).
        counts: nodes whose value is how many images there are.
    """

    root: nn.Module
    graph: fx.Graph
    boundaries: tuple[fx.Node | None, ...]
    numbers: Mapping[fx.Node, Numbers] = field(default_factory=dict)
    counts: frozenset[fx.Node] = frozenset()

    def part(self, start: int | None, end: int | None) -> fx.GraphModule:
        """The network from stage ``start`` up to, not including, stage ``end``; None is the image, or the logits.

        Its modules are the network's own: training the part trains the network.

        Raises:
            CannotSplit: where more than one value crosses one of the two ends.
        """
        first = None if start is None else self._boundary(start)
        last = None if end is None else self._boundary(end)
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node | Numbers] = {}
        nodes: list[fx.Node] = list(self.graph.nodes)
        begin = 0 if first is None else nodes.index(first) + 1
        stop = len(nodes) if last is None else nodes.index(last) + 1
        if first is not None:
            copies[first] = graph.placeholder("activation")
            copies |= self.numbers
        constants = _constants_before(
            nodes, _dependent(nodes, self.numbers.keys() | self.counts), begin, stop
        )
        if first is not None and not self.counts.isdisjoint(constants):
            copies |= dict.fromkeys(self.counts, graph.call_method("size", (copies[first], 0)))
        for node in [*constants, *nodes[begin:stop]]:
            if node.op == "output":
                graph.output(fx.map_arg(node.args[0], copies.__getitem__))
            elif node not in copies and copies.keys() >= set(node.all_input_nodes):
                # else it asks for sizes before the part: numbers
                copies[node] = graph.node_copy(node, copies.__getitem__)
        if last is not None:
            graph.output(copies[last])
        graph.lint()
        return fx.GraphModule(self.root, graph)

    def _boundary(self, stage: int) -> fx.Node:
        node = self.boundaries[stage - 1]
        if node is None:
            raise CannotSplit(
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
        image_size: of all images that go through it; where it is given, parts may be for this size only.
        whole: paths of modules that are not looked into.

    Raises:
        CannotSplit: when torch.fx cannot follow it.
    """
    try:
        root, graph = trace_graph(model, whole)
    except Exception as error:  # control flow on values: torch.fx raises nearly anything
        raise CannotSplit(f"its structure cannot be traced ({type(error).__name__})") from None
    boundaries = _boundaries(root, graph, stages, ())
    if image_size is None or None not in boundaries or not any(map(_asks_a_size, graph.nodes)):
        return Segments(root, graph, boundaries)
    numbers, counts, batches = _sizes(root, graph, image_size)
    nodes, known = list(graph.nodes), numbers.keys() | counts
    found, depends = _boundaries(root, graph, stages, known), _dependent(nodes, known)

    def counted(node: fx.Node) -> bool:
        return not counts.isdisjoint(
            _constants_before(nodes, depends, nodes.index(node) + 1, len(nodes))
        )

    # The number of images is that of the values that cross, where these are one per image.
    usable = [node and (node in batches or not counted(node)) for node in found]
    boundaries = tuple(node if good else None for node, good in zip(found, usable, strict=True))
    return Segments(root, graph, boundaries, numbers, counts)


def _boundaries(
    root: nn.Module, graph: fx.Graph, stages: Sequence[Stage], known: Collection[fx.Node]
) -> tuple[fx.Node | None, ...]:
    nodes = list(graph.nodes)
    depends = _dependent(nodes, known)
    owners = _owners(nodes, depends, stages)
    return tuple(_boundary(nodes, owners, depends, root, stage) for stage in range(1, len(stages)))


def _sizes(
    root: nn.Module, graph: fx.Graph, image_size: int
) -> tuple[dict[fx.Node, Numbers], frozenset[fx.Node], frozenset[fx.Node]]:
    """The nodes whose value is a number, or some, whatever the images and however many; those whose value is how many there are; and
    those whose value is a tensor with one entry per image. From two passes without numbers in tensors; none where these are not
    possible."""
    try:
        few, more = (
            _sizes_in_pass(root, graph, (count, 3, image_size, image_size)) for count in _COUNTS
        )
    except Exception:  # operations that need values: torch raises nearly anything
        return {}, frozenset(), frozenset()
    pairs = {node: (value, more.get(node)) for node, value in few.items()}
    same = {
        node: value
        for node, (value, other) in pairs.items()
        if value == other and not isinstance(value, torch.Size)
    }
    counts = frozenset(node for node, pair in pairs.items() if pair == _COUNTS)
    batches = frozenset(
        node
        for node, pair in pairs.items()
        if all(isinstance(one, torch.Size) for one in pair) and _firsts(pair) == _COUNTS
    )
    return same, counts, batches


def _asks_a_size(node: fx.Node) -> bool:
    return (
        node.target in ("size", "dim", "numel")
        if node.op == "call_method"
        else node.target is getattr
    )


def _firsts(shapes: Sequence[Any]) -> tuple[int, ...]:
    return tuple(shape[0] if len(shape) else 0 for shape in shapes)


def _sizes_in_pass(
    root: nn.Module, graph: fx.Graph, shape: tuple[int, ...]
) -> dict[fx.Node, Numbers]:
    """Node -> its value where that is a number, or some; its shape where it is a tensor."""
    found: dict[fx.Node, Numbers] = {}

    class Noting(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, torch.Tensor):
                found[n] = value.shape
            elif isinstance(value, int):
                found[n] = value
            elif isinstance(value, tuple | list) and all(isinstance(one, int) for one in value):
                found[n] = tuple(value)  # a shape that is asked for is some numbers
            return value

    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        images = mode.from_tensor(torch.empty(shape, device=next(root.parameters()).device))
        Noting(fx.GraphModule(root, graph), graph=graph).run(images)
    return found


def _boundary(
    nodes: list[fx.Node],
    owners: dict[fx.Node, int],
    depends: set[fx.Node],
    root: nn.Module,
    stage: int,
) -> fx.Node | None:
    """The last position between the earlier stages' last module and the later ones' first, at which one tensor is alive:
    as late as possible, so that what has no weights (pooling before a head) is done once, too.

    What does not depend on the images (position embeddings that all blocks add) is computed on both sides.
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


def _constants_before(
    nodes: Sequence[fx.Node], depends: set[fx.Node], begin: int, stop: int
) -> list[fx.Node]:
    """The nodes before a part that do not depend on the images, and that the part needs."""
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


def _dependent(nodes: Sequence[fx.Node], known: Collection[fx.Node]) -> set[fx.Node]:
    """The nodes whose value depends on the images."""
    found: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder" or (
            node not in known and any(source in found for source in node.all_input_nodes)
        ):
            found.add(node)
    return found


def _owners(
    nodes: Sequence[fx.Node], depends: set[fx.Node], stages: Sequence[Stage]
) -> dict[fx.Node, int]:
    """The stage of each module, of each tensor, and of what is computed with tensors of the network itself; the last of several."""
    owners: dict[fx.Node, int] = {}
    for node in nodes:
        own = (
            _stage_of(str(node.target), stages) if node.op in ("call_module", "get_attr") else None
        )
        used = [
            owners[source]
            for source in node.all_input_nodes
            if source in owners and source not in depends
        ]
        if found := [*used, *([] if own is None else [own])]:
            owners[node] = max(found)
    return owners


def _has_tensors(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node runs a module that holds tensors: others, dropout say, may be shared by several stages."""
    return node.op == "call_module" and any(
        True for _ in root.get_submodule(str(node.target)).state_dict()
    )


def _stage_of(target: str, stages: Sequence[Stage]) -> int | None:
    for index, stage in enumerate(stages):
        inside = any(target == path or target.startswith(f"{path}.") for path in stage.modules)
        if inside or target in stage.parameters or target in stage.buffers:
            return index
    return None


def _is_tensor(node: fx.Node) -> bool:
    """Not a size: those come from getattr, getitem and arithmetic on them alone."""
    if node.op == "call_function" and node.target in (operator.floordiv, operator.mul):
        return any(map(_is_tensor, node.all_input_nodes))
    if node.op == "call_function" and node.target in (getattr, operator.getitem):
        return False
    return not (node.op == "call_method" and node.target in ("size", "dim"))

"""A network cut between two of its stages: trunk before, tail after. The parts share their modules with the network.

The network is traced with torch.fx. A cut lies where every module of the earlier stages has run, none of the later ones
has, and exactly one tensor is alive: that tensor is what the trunk yields and the tail takes.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx, nn

from finetune_core.models.stages import Stage
from finetune_core.models.tracing import trace_graph


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
    """

    root: nn.Module
    graph: fx.Graph
    boundaries: tuple[fx.Node | None, ...]

    def part(self, start: int | None, end: int | None) -> fx.GraphModule:
        """The network from stage ``start`` up to, not including, stage ``end``; None is the image, or the logits.

        Its modules are the network's own: training the part trains the network.

        Raises:
            CannotSplit: where more than one value crosses one of the two ends.
        """
        first = None if start is None else self._boundary(start)
        last = None if end is None else self._boundary(end)
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        nodes: list[fx.Node] = list(self.graph.nodes)
        begin = 0 if first is None else nodes.index(first) + 1
        stop = len(nodes) if last is None else nodes.index(last) + 1
        if first is not None:
            copies[first] = graph.placeholder("activation")
        for node in [*_constants_before(nodes, begin, stop), *nodes[begin:stop]]:
            if node.op == "output":
                graph.output(fx.map_arg(node.args[0], copies.__getitem__))
            else:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        if last is not None:
            graph.output(copies[last])
        graph.lint()
        return fx.GraphModule(self.root, graph)

    def _boundary(self, stage: int) -> fx.Node:
        node = self.boundaries[stage - 1]
        if node is None:
            raise CannotSplit("more than one value crosses from the frozen stages to those that train")
        return node


def trace(model: nn.Module, stages: Sequence[Stage]) -> Segments:
    """Trace a network and find its cuts.

    Raises:
        CannotSplit: when torch.fx cannot follow it.
    """
    try:
        root, graph = trace_graph(model)
    except Exception as error:  # control flow on values: torch.fx raises nearly anything
        raise CannotSplit(f"its structure cannot be traced ({type(error).__name__})") from None
    nodes = list(graph.nodes)
    owners, depends = _owners(nodes, stages), _dependent(nodes)
    return Segments(root, graph, tuple(_boundary(nodes, owners, depends, stage) for stage in range(1, len(stages))))


def _boundary(nodes: list[fx.Node], owners: dict[fx.Node, int], depends: set[fx.Node], stage: int) -> fx.Node | None:
    """The last position between the earlier stages' last module and the later ones' first, at which one tensor is alive:
    as late as possible, so that what has no weights (pooling before a head) is done once, too.

    What does not depend on the images (position embeddings that all blocks add) is computed on both sides.
    """
    position = {node: index for index, node in enumerate(nodes)}
    owned = [node for node in nodes if node in depends and node in owners]
    earlier = max((position[node] for node in owned if node.op == "call_module" and owners[node] < stage), default=None)
    later = next((position[node] for node in owned if owners[node] >= stage), None)
    if earlier is None or later is None or later <= earlier:
        return None
    for cut in range(later - 1, earlier - 1, -1):
        crossing = (node for node in nodes[: cut + 1] if any(position[user] > cut for user in node.users))
        alive = [node for node in crossing if node in depends]
        if len(alive) == 1 and _is_tensor(alive[0]):
            return alive[0]
    return None


def _constants_before(nodes: Sequence[fx.Node], begin: int, stop: int) -> list[fx.Node]:
    """The nodes before a part that do not depend on the images, and that the part needs."""
    depends, before = _dependent(nodes), set(nodes[:begin])
    needed: set[fx.Node] = set()
    for node in reversed(nodes[:stop]):
        if node in needed or node not in before:
            needed.update(source for source in node.all_input_nodes if source in before and source not in depends)
    return [node for node in nodes[:begin] if node in needed]


def _dependent(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes whose value depends on the images."""
    found: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder" or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _owners(nodes: Sequence[fx.Node], stages: Sequence[Stage]) -> dict[fx.Node, int]:
    """The stage of each module, of each tensor, and of what is computed with tensors of the network itself; the last of several."""
    depends, owners = _dependent(nodes), dict[fx.Node, int]()
    for node in nodes:
        own = _stage_of(str(node.target), stages) if node.op in ("call_module", "get_attr") else None
        used = [owners[source] for source in node.all_input_nodes if source in owners and source not in depends]
        if found := [*used, *([] if own is None else [own])]:
            owners[node] = max(found)
    return owners


def _stage_of(target: str, stages: Sequence[Stage]) -> int | None:
    for index, stage in enumerate(stages):
        inside = any(target == path or target.startswith(f"{path}.") for path in stage.modules)
        if inside or target in stage.parameters or target in stage.buffers:
            return index
    return None


def _is_tensor(node: fx.Node) -> bool:
    """Not a size: those come from getattr, getitem and arithmetic on them."""
    if node.op == "call_function" and node.target in (getattr, operator.getitem, operator.floordiv, operator.mul):
        return False
    return not (node.op == "call_method" and node.target in ("size", "dim"))

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
        if first is not None:
            copies[first] = graph.placeholder("activation")
        inside = first is None
        for node in nodes:
            if node.op == "output" and last is None:
                graph.output(fx.map_arg(node.args[0], copies.__getitem__))
            elif inside and node.op != "output":
                copies[node] = graph.node_copy(node, copies.__getitem__)
            inside = inside or node is first
            if node is last:
                graph.output(copies[node])
                break
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
    owners = [_stage_of(node, stages) for node in nodes]
    return Segments(root, graph, tuple(_boundary(nodes, owners, stage) for stage in range(1, len(stages))))


def _boundary(nodes: list[fx.Node], owners: list[int | None], stage: int) -> fx.Node | None:
    """The last position between the earlier stages' last module and the later ones' first, at which one tensor is alive:
    as late as possible, so that what has no weights (pooling before a head) is done once, too."""
    earlier = max(index for index, owner in enumerate(owners) if owner is not None and owner < stage)
    later = next((index for index, owner in enumerate(owners) if owner is not None and owner >= stage), None)
    if later is None or later <= earlier:
        return None
    position = {node: index for index, node in enumerate(nodes)}
    for cut in range(later - 1, earlier - 1, -1):
        alive = [node for node in nodes[: cut + 1] if any(position[user] > cut for user in node.users)]
        if len(alive) == 1 and _is_tensor(alive[0]):
            return alive[0]
    return None


def _stage_of(node: fx.Node, stages: Sequence[Stage]) -> int | None:
    if node.op not in ("call_module", "get_attr"):
        return None
    target = str(node.target)
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

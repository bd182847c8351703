"""A network that ends after one of its stages: what comes later is left out, and a linear head sees that stage's features."""

import operator
from collections.abc import Sequence

import torch
from torch import fx, nn
from torch.nn.utils import skip_init

from finetune_core.models.partition import CannotSplit, trace
from finetune_core.models.stages import Stage

Places = tuple[int, ...]


def truncated(
    model: nn.Module, stages: Sequence[Stage], head: str, last: int, classes: int, image_size: int
) -> tuple[nn.Module, tuple[Stage, ...]]:
    """A network up to stage ``last``, what it computes there as one vector per image, and a linear layer on that.

    Args:
        model: its modules are shared, and keep their paths.
        head: path of the new linear layer, whose weights are not yet set.
        image_size: side of the square input, pixels.

    Returns:
        The network in eval mode, and its stages.

    Raises:
        CannotSplit: when more than one value goes on from that stage, or torch.fx cannot follow the network.
    """
    whole = [path for stage in stages for path in stage.modules]
    part = trace(model.eval(), stages, image_size, whole).part(None, last + 1)
    images = torch.zeros(2, 3, image_size, image_size, device=next(model.parameters()).device)
    with torch.no_grad():
        output = part.eval()(images)
        if not isinstance(output, torch.Tensor):
            raise CannotSplit("what goes on from that stage is not one tensor")
        pooled = _pooled(part.graph, model, output.shape)
        part.recompile()
        features = part(images)
    part.add_submodule(head, skip_init(nn.Linear, features.shape[1], classes, device=features.device, dtype=features.dtype))
    with part.graph.inserting_after(pooled):
        logits = part.graph.call_module(head, (pooled,))
    _output(part.graph).args = (logits,)
    cut = fx.GraphModule(part, part.graph).eval()
    return cut, (*(_remaining(stage, cut) for stage in stages[: last + 1]), _head_stage(cut, head))


def averaged_over(shape: torch.Size) -> Places:
    """Over which dimensions features ``[n, d]``, tokens ``[n, t, d]``, a map ``[n, d, h, w]``, or one with channels last (Swin) are averaged.

    At the usual size no network's channels last are as many as its rows: at others they may be.
    """
    if len(shape) == 3:
        return (1,)
    if len(shape) == 4:
        _, first, second, third = shape
        return (1, 2) if first == second != third else (2, 3)
    return ()


def _pooled(graph: fx.Graph, model: nn.Module, shape: torch.Size) -> fx.Node:
    """Adds what makes one vector per image of a stage's output: its class token where the network itself looks at that, else the mean."""
    (features,) = _output(graph).all_input_nodes
    first = getattr(model, "num_prefix_tokens", int(hasattr(model, "class_token"))) if len(shape) == 3 else 0
    with graph.inserting_after(features):
        if first and getattr(model, "global_pool", "token") == "token":
            features = graph.call_function(operator.getitem, (features, (slice(None), 0)))
        elif first:
            patches = graph.call_function(operator.getitem, (features, (slice(None), slice(first, None))))
            with graph.inserting_after(patches):
                features = graph.call_method("mean", (patches,), {"dim": (1,)})
        elif places := averaged_over(shape):
            features = graph.call_method("mean", (features,), {"dim": places})
    _output(graph).args = (features,)
    return features


def _output(graph: fx.Graph) -> fx.Node:
    return graph.output_node()


def _remaining(stage: Stage, model: nn.Module) -> Stage:
    """The stage without what is not in the network any more: tensors that only later stages use."""
    there, buffers, modules = (
        dict(named) for named in (model.named_parameters(), model.named_buffers(), model.named_modules())
    )
    sizes = {name: size for name, size in stage.sizes.items() if name in there}
    return Stage(
        stage.name,
        tuple(path for path in stage.modules if path in modules),
        tuple(sizes),
        tuple(name for name in stage.buffers if name in buffers),
        sum(sizes.values()),
        sizes,
        tuple(name for name in stage.norms if name in there),
        tuple(name for name in stage.batchnorms if name in there),
    )


def _head_stage(model: nn.Module, head: str) -> Stage:
    sizes = {f"{head}.{name}": tensor.numel() for name, tensor in model.get_submodule(head).named_parameters()}
    return Stage("head", (head,), tuple(sizes), (), sum(sizes.values()), sizes)

"""A network that ends after one of its stages: what comes later is left out, and a linear head sees that stage's features."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import fx, nn
from torch.nn.utils import skip_init

from finetune_core.models.partition import CannotSplit, trace
from finetune_core.models.stages import Stage

Places = tuple[int, ...]

# as timm and torchvision name tokens that are no part of the image
_PREFIXES = {"cls_token", "class_token", "dist_token", "reg_token"}


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
        pooled = _pooled(part.graph, pooling_of(model, stages, last, output.shape))
        part.recompile()
        features = part(images)
    part.add_submodule(
        head,
        skip_init(
            nn.Linear, features.shape[1], classes, device=features.device, dtype=features.dtype
        ),
    )
    with part.graph.inserting_after(pooled):
        logits = part.graph.call_module(head, (pooled,))
    _output(part.graph).args = (logits,)
    cut = fx.GraphModule(part, part.graph).eval()
    return cut, (*(_remaining(stage, cut) for stage in stages[: last + 1]), _head_stage(cut, head))


class Pooling(NamedTuple):
    """How a stage's output becomes one vector per image: its class token, or the mean over ``places``.

    Attributes:
        skipped: tokens that come first and are no part of the image: the mean is without them.
    """

    class_token: bool
    skipped: int
    places: Places


def pooling_of(model: nn.Module, stages: Sequence[Stage], stage: int, shape: torch.Size) -> Pooling:
    """The class token where the network's own head looks at that, else the mean over the image.

    The stage that brings the class token in yields it as it is for every image; some networks (CaiT) bring it in late. Up to there,
    the mean is over all tokens.

    Args:
        stage: number of the one that yields the output. shape: of the output.
    """
    brought = [
        number
        for number, one in enumerate(stages)
        if any(path.rpartition(".")[2] in _PREFIXES for path in one.parameters)
    ]
    if len(shape) != 3 or not brought or stage <= brought[0]:
        return Pooling(False, 0, averaged_over(shape))
    skipped = getattr(model, "num_prefix_tokens", int(hasattr(model, "class_token")))
    return Pooling(
        bool(skipped) and getattr(model, "global_pool", "token") == "token",
        skipped,
        averaged_over(shape),
    )


def pool(output: torch.Tensor, class_token: bool, skipped: int, places: Places) -> torch.Tensor:
    """As ``Pooling`` says: ``[n, …]`` -> ``[n, d]``."""
    if class_token:
        return output[:, 0]
    if skipped:
        output = output[:, skipped:]
    return output.mean(dim=places) if places else output


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


def _pooled(graph: fx.Graph, pooling: Pooling) -> fx.Node:
    """Adds what makes one vector per image of the output."""
    (features,) = _output(graph).all_input_nodes
    with graph.inserting_after(features):
        features = graph.call_function(pool, (features, *pooling))
    _output(graph).args = (features,)
    return features


def _output(graph: fx.Graph) -> fx.Node:
    return graph.output_node()


def _remaining(stage: Stage, model: nn.Module) -> Stage:
    """The stage without what is not in the network any more: tensors that only later stages use."""
    there, buffers, modules = (
        dict(named)
        for named in (model.named_parameters(), model.named_buffers(), model.named_modules())
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
        {name: shape for name, shape in stage.matrices.items() if name in there},
    )


def _head_stage(model: nn.Module, head: str) -> Stage:
    sizes = {
        f"{head}.{name}": tensor.numel()
        for name, tensor in model.get_submodule(head).named_parameters()
    }
    return Stage("head", (head,), tuple(sizes), (), sum(sizes.values()), sizes)

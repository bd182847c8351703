"""Networks that end after one of their stages, with a linear head on that stage's features."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import fx, nn
from torch.nn.utils import skip_init

from finetune_core.models.partition import SplitError, trace
from finetune_core.models.stages import Stage

Places = tuple[int, ...]

# Names in timm and torchvision of tokens that are not part of the image.
_PREFIXES = {"cls_token", "class_token", "dist_token", "reg_token"}


def truncate_network(
    model: nn.Module, stages: Sequence[Stage], head: str, last: int, classes: int, image_size: int
) -> tuple[nn.Module, tuple[Stage, ...]]:
    """Cut a network after stage ``last`` and add pooling and a linear layer.

    Args:
        model: the network. Its modules are shared and keep their paths.
        stages: stages of the network.
        head: path of the new linear layer, whose weights are uninitialised.
        last: index of the last stage to keep.
        classes: outputs of the new head.
        image_size: side of the square input, pixels.

    Returns:
        The network in eval mode, and its stages.

    Raises:
        SplitError: if more than one value leaves that stage, or torch.fx cannot follow the
            network.
    """
    module_paths = [path for stage in stages for path in stage.modules]
    part = trace(model.eval(), stages, image_size, module_paths).part(None, last + 1)
    images = torch.zeros(2, 3, image_size, image_size, device=next(model.parameters()).device)
    with torch.no_grad():
        output = part.eval()(images)
        if not isinstance(output, torch.Tensor):
            raise SplitError("what goes on from that stage is not one tensor")
        pooled = _add_pooling(part.graph, choose_pooling(model, stages, last, output.shape))
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
    _output_node(part.graph).args = (logits,)
    cut = fx.GraphModule(part, part.graph).eval()
    return cut, (
        *(_restrict_stage(stage, cut) for stage in stages[: last + 1]),
        _build_head_stage(cut, head),
    )


class Pooling(NamedTuple):
    """The way to turn a stage's output into one vector per image.

    Attributes:
        class_token: whether the class token is taken. Otherwise the mean over ``places`` is.
        skipped: number of leading tokens that are not part of the image and left out of the mean.
        places: dimensions of the mean.
    """

    class_token: bool
    skipped: int
    places: Places


def choose_pooling(
    model: nn.Module, stages: Sequence[Stage], stage: int, shape: torch.Size
) -> Pooling:
    """Return how to pool the output of a stage.

    The class token is taken if the network's own head uses it. Otherwise the pooling is the mean
    over the image. The stage that introduces the class token outputs it unchanged for every image,
    and some networks (CaiT) introduce it late. Up to that stage, the mean is over all tokens.

    Args:
        model: the network.
        stages: stages of the network.
        stage: index of the stage with this output.
        shape: shape of the output.
    """
    token_stages = [
        number
        for number, one in enumerate(stages)
        if any(path.rpartition(".")[2] in _PREFIXES for path in one.parameters)
    ]
    if len(shape) != 3 or not token_stages or stage <= token_stages[0]:
        return Pooling(False, 0, pooling_dims(shape))
    skipped = getattr(model, "num_prefix_tokens", int(hasattr(model, "class_token")))
    return Pooling(
        bool(skipped) and getattr(model, "global_pool", "token") == "token",
        skipped,
        pooling_dims(shape),
    )


def pool(output: torch.Tensor, class_token: bool, skipped: int, places: Places) -> torch.Tensor:
    """Pool ``[n, …]`` to ``[n, d]`` as ``Pooling`` describes."""
    if class_token:
        return output[:, 0]
    if skipped:
        output = output[:, skipped:]
    return output.mean(dim=places) if places else output


def pooling_dims(shape: torch.Size) -> Places:
    """Return the dimensions to average over.

    Features are ``[n, d]``, tokens ``[n, t, d]``, and maps ``[n, d, h, w]`` or, with channels last
    (Swin), ``[n, h, w, d]``. At the default size no channels-last network has as many channels as
    rows. At other sizes it may.
    """
    if len(shape) == 3:
        return (1,)
    if len(shape) == 4:
        _, first, second, third = shape
        return (1, 2) if first == second != third else (2, 3)
    return ()


def _add_pooling(graph: fx.Graph, pooling: Pooling) -> fx.Node:
    """Add the nodes that pool the output to one vector per image."""
    (features,) = _output_node(graph).all_input_nodes
    with graph.inserting_after(features):
        features = graph.call_function(pool, (features, *pooling))
    _output_node(graph).args = (features,)
    return features


def _output_node(graph: fx.Graph) -> fx.Node:
    return graph.output_node()


def _restrict_stage(stage: Stage, model: nn.Module) -> Stage:
    """Return a stage without the tensors and modules that the cut network no longer has."""
    parameters, buffers, modules = (
        dict(named)
        for named in (model.named_parameters(), model.named_buffers(), model.named_modules())
    )
    sizes = {name: size for name, size in stage.sizes.items() if name in parameters}
    return Stage(
        stage.name,
        tuple(path for path in stage.modules if path in modules),
        tuple(sizes),
        tuple(name for name in stage.buffers if name in buffers),
        sum(sizes.values()),
        sizes,
        tuple(name for name in stage.norms if name in parameters),
        tuple(name for name in stage.batchnorms if name in parameters),
        {name: shape for name, shape in stage.matrices.items() if name in parameters},
    )


def _build_head_stage(model: nn.Module, head: str) -> Stage:
    sizes = {
        f"{head}.{name}": tensor.numel()
        for name, tensor in model.get_submodule(head).named_parameters()
    }
    return Stage("head", (head,), tuple(sizes), (), sum(sizes.values()), sizes)

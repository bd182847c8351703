"""A backbone's name -> a network with the user's head, ready to train. Pretrained networks are held once a process."""

import copy
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock

import torch
from torch import nn

from finetune_core.errors import ConfigError
from finetune_core.models.catalogue import (
    BackboneInfo,
    backbone_info,
    check_backbone_name,
    create,
    create_on_meta,
)
from finetune_core.models.partition import CannotSplit
from finetune_core.models.remembered import Remembered
from finetune_core.models.stages import Stage, derive_stages, find_head, replace_head
from finetune_core.models.timm_networks import (
    CLASSES,
    MISFITS,
    find,
    headless,
    is_built_for_a_size,
    is_timm_name,
)
from finetune_core.models.truncated import truncated
from finetune_core.models.weights import (
    PRETRAINED,
    RANDOM,
    load_weights,
    of_head,
    pretrained_timm,
    put_tensors,
    state_hash,
)
from finetune_core.randomness import seeded

_CLASSES = (
    1009  # of the head that structures are looked at with: no other dimension of a network is that
)
_building = Lock()


@dataclass(frozen=True)
class Network:
    """A network for ``classes`` classes, in float32 on the CPU, in eval mode.

    Attributes:
        model: a copy of its own, free to be changed.
        pretrained: the network that it starts from: as published (shared by everyone: read only), or as an earlier run left it.
        stages: input to head.
        heads: paths of the final layers, in forward order; several where the network adds up what they answer.
        weights_hash: of what the backbone holds.
        info: the backbone's entry in the catalogue, its images prepared as the run says.
        image_size: of the images that it is for, pixels; None where that was not said.
        features_from: the stage that it ends after; None where it has all of them.
        members: of an ensemble: its networks. None in others.
    """

    model: nn.Module
    pretrained: nn.Module
    stages: tuple[Stage, ...]
    heads: tuple[str, ...]
    weights_hash: str
    info: BackboneInfo
    image_size: int | None = None
    features_from: str | None = None
    members: "tuple[Network, ...]" = ()

    @property
    def head_layers(self) -> list[nn.Linear | nn.Conv2d]:
        """The final layers themselves."""
        return [self.model.get_submodule(head) for head in self.heads]  # type: ignore[misc]


@dataclass(frozen=True)
class _Structure:
    """What there is to know of a network without its weights: all of it from one network that is built.

    Attributes:
        stages: with a head for ``_CLASSES`` classes.
        linear: whether all final layers are.
    """

    heads: tuple[str, ...]
    stages: tuple[Stage, ...]
    linear: bool


def head_paths(name: str, image_size: int | None = None) -> tuple[str, ...]:
    """Paths of a backbone's final layers, in forward order.

    Args:
        image_size: that its stages are asked for, too: they do not depend on it, but a structure is built for each.

    Raises:
        ConfigError: when there are none, or they are no linear layers or convolutions, which alone can be replaced.
    """
    return _structure(name, *_side_and_version(name, image_size)).heads


def has_linear_head(name: str, image_size: int | None = None) -> bool:
    """Whether a backbone has one final layer, and that is linear; else there are several, or it is a convolution.

    Args:
        image_size: as for ``head_paths``.
    """
    found = _structure(name, *_side_and_version(name, image_size))
    return len(found.heads) == 1 and found.linear


def parameter_count(name: str) -> int:
    """Numbers in the parameters of a published network, with the head that it was published with.

    Raises:
        ConfigError, WeightsError: as ``network_stages``.
    """
    if known := backbone_info(name).known_parameters:
        return known
    return sum(
        stage.parameter_count for stage in network_stages(name, find(name).classes or CLASSES)
    )


def network_stages(
    name: str, classes: int = 1000, image_size: int | None = None, features_from: str | None = None
) -> tuple[Stage, ...]:
    """The stages of a backbone with a head for ``classes`` classes, without building its weights.

    Args:
        image_size: that it is built for, where it is built for one; None for the one it was pretrained on.
        features_from: the stage that it ends after; None for all of them.

    Raises:
        ConfigError: when there is no backbone of that name, it does not take images of that size, or cannot end after that stage.
        WeightsError: when the Hub describes it and that description is not on this machine.
    """
    seen = _side_and_version(name, image_size)
    if features_from is not None:
        return _ended_stages(name, classes, *seen, features_from)
    found = _structure(name, *seen)
    *stages, head = found.stages
    sizes = {
        n: size // _CLASSES * classes if n.rpartition(".")[0] in found.heads else size
        for n, size in head.sizes.items()
    }
    return (*stages, replace(head, sizes=sizes, parameter_count=sum(sizes.values())))


def _side_and_version(name: str, image_size: int | None) -> tuple[int, Hashable]:
    """Side of the images that a structure is looked at with (torchvision's is the same for all of them), and the version of what
    describes it."""
    if not is_timm_name(name):
        check_backbone_name(name)
        return 224, None
    network = find(name)
    return image_size or network.image_size, network.version


@Remembered
def _ended_stages(
    name: str, classes: int, side: int, version: Hashable, stage: str
) -> tuple[Stage, ...]:
    model = create_on_meta(name, side) if is_timm_name(name) else create_on_meta(name)
    return ended_after(name, model, _structure(name, side, version).stages, stage, classes, side)[1]


@Remembered
def _structure(name: str, side: int, _version: Hashable) -> _Structure:
    if is_timm_name(name):
        model = create_on_meta(name, side, _CLASSES)
        heads = tuple(
            dict.fromkeys(
                key.rpartition(".")[0] for key, p in model.named_parameters() if _CLASSES in p.shape
            )
        )
    else:
        model = create_on_meta(name)
        heads = (find_head(model),)
    layers = [model.get_submodule(head) for head in heads]
    if not heads:
        raise headless(name)
    if not all(isinstance(layer, nn.Linear | nn.Conv2d) for layer in layers):
        raise ConfigError(
            {
                "backbone": f"the head of {name} is no linear layer or convolution, so Thaw cannot replace it"
            }
        )
    for head in heads:
        replace_head(model, head, _CLASSES)
    try:
        return _Structure(
            heads,
            derive_stages(model, heads, side),
            all(isinstance(layer, nn.Linear) for layer in layers),
        )
    except MISFITS:
        raise _cannot_take(name, side) from None


def ended_after(
    name: str,
    model: nn.Module,
    stages: Sequence[Stage],
    stage: str,
    classes: int,
    image_size: int | None,
) -> tuple[nn.Module, tuple[Stage, ...]]:
    """A backbone up to one of its stages, with a linear head whose weights are not yet set, and its stages then. Modules are shared.

    Raises:
        ConfigError: when it has no such stage, or cannot end after it.
    """
    names = [one.name for one in stages[:-1]]
    if stage not in names:
        raise ConfigError(
            {
                "features_from": f"there is no stage {stage!r}; the stages of {name} are {', '.join(names)}"
            }
        )
    side = image_size or _side_and_version(name, None)[0]
    try:
        return truncated(
            model, stages, head_paths(name, image_size)[0], names.index(stage), classes, side
        )
    except CannotSplit as error:
        raise ConfigError({"features_from": f"{name} cannot end after {stage}: {error}"}) from None


def check_image_size(name: str, image_size: int) -> None:
    """Try a forward pass without numbers.

    Raises:
        ConfigError: when the network cannot take images of that size.
    """
    if is_timm_name(name):
        network_stages(name, image_size=image_size)
    else:
        _try_size(name, image_size)


@Remembered
def _try_size(name: str, image_size: int) -> None:
    model = create_on_meta(name).eval()
    try:
        with torch.no_grad():
            model(torch.empty(1, 3, image_size, image_size, device="meta"))
    except MISFITS:
        raise _cannot_take(name, image_size) from None


def _cannot_take(name: str, image_size: int) -> ConfigError:
    own = backbone_info(name).image_size
    return ConfigError(
        {
            "image_size": f"{name} cannot take images of {image_size} × {image_size} pixels; {own} works"
        }
    )


def build_network(
    name: str,
    weights: str,
    classes: int,
    seed: int,
    image_size: int | None = None,
    features_from: str | None = None,
) -> Network:
    """A backbone with its weights and a new head for ``classes`` classes.

    Args:
        name: the backbone.
        weights: ``"pretrained"``, a file, or ``"none"`` for random weights.
        classes: outputs of the head.
        seed: of the head's first weights, and of all weights where they are random.
        image_size: that it is built for, where it is built for one; None for the one it was pretrained on.
        features_from: the stage that it ends after; None for all of them.

    Raises:
        ConfigError, WeightsError.
    """
    heads, (side, version) = head_paths(name, image_size), _side_and_version(name, image_size)
    # else it is the same for all of them
    size = side if is_timm_name(name) and is_built_for_a_size(find(name)) else None
    with _building:  # two sessions that ask at once load it once
        first_seed = seed if weights == RANDOM else 0
        source, weights_hash = _held(
            name, weights, (version, _identity(name, weights)), first_seed, size, heads
        )
    return _with_new_head(name, source, weights_hash, classes, seed, image_size, features_from)


def network_of(
    name: str,
    tensors: Mapping[str, torch.Tensor],
    classes: int,
    seed: int,
    image_size: int | None = None,
    features_from: str | None = None,
) -> Network:
    """A backbone that starts from the tensors of a whole network, with a new head: theirs is left out.

    Args:
        tensors: parameters and buffers by name, of the shapes that the backbone has at that size.
        classes, seed, image_size, features_from: as for ``build_network``.

    Raises:
        ConfigError: when there is no backbone of that name, it cannot be built for that size, or cannot end after that stage.
    """
    heads = head_paths(name, image_size)
    with seeded(0):
        source = create(name, image_size).eval()
    put_tensors(source, {key: tensor for key, tensor in tensors.items() if not of_head(key, heads)})
    return _with_new_head(
        name,
        source,
        state_hash(source.state_dict(), heads),
        classes,
        seed,
        image_size,
        features_from,
    )


def headed_state(name: str, classes: int, image_size: int | None = None) -> dict[str, torch.Tensor]:
    """Names, shapes and types of all tensors of a backbone with a head for ``classes`` classes, on the meta device."""
    model = create_on_meta(name, image_size)
    for head in head_paths(name, image_size):
        replace_head(model, head, classes)
    return {key: tensor.to("meta") for key, tensor in model.state_dict().items()}


def _with_new_head(
    name: str,
    source: nn.Module,
    weights_hash: str,
    classes: int,
    seed: int,
    image_size: int | None,
    features_from: str | None,
) -> Network:
    heads, stages = head_paths(name, image_size), network_stages(name, classes, image_size)
    if features_from is not None:
        heads, (source, stages) = (
            heads[:1],
            ended_after(name, source, stages, features_from, classes, image_size),
        )
    model = copy.deepcopy(source)
    for head in heads:
        _initialise(replace_head(model, head, classes), seed)
    return Network(
        model.eval(),
        source,
        stages,
        heads,
        weights_hash,
        backbone_info(name),
        image_size,
        features_from,
    )


@lru_cache(maxsize=4)
def _held(
    name: str,
    weights: str,
    _files: Hashable,
    seed: int,
    image_size: int | None,
    heads: tuple[str, ...],
) -> tuple[nn.Module, str]:
    info = backbone_info(name)
    with seeded(seed):
        if is_timm_name(name) and weights == PRETRAINED:
            model = pretrained_timm(info, image_size).eval()
            return model, state_hash(model.state_dict(), heads)
        model = create(name, image_size).eval()
    if weights == RANDOM:
        return model, state_hash(model.state_dict(), heads)
    return model, load_weights(model, heads, info, weights)


def _identity(name: str, weights: str) -> tuple[str, int] | None:
    """Changes when the file of weights does, so that a replaced file is read again."""
    if weights == RANDOM:
        return None
    file = backbone_info(name).file if weights == PRETRAINED else Path(weights).expanduser()
    return (str(file), file.stat().st_mtime_ns) if file is not None and file.is_file() else None


def _initialise(layer: nn.Linear | nn.Conv2d, seed: int) -> None:
    """torch's own initialisation of Linear and Conv2d (uniform within 1/√inputs), drawn from a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(layer.weight[0].numel())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)

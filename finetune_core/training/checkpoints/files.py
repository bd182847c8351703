"""Checkpoints: the trained tensors of a run on disk.

Frozen tensors equal the backbone's own, bit for bit, and are not written again.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AliasChoices, Field, TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from finetune_core.errors import RunError
from finetune_core.files import describe_problem, open_regular, write_bytes
from finetune_core.formatting import pluralize
from finetune_core.models.network import Network
from finetune_core.models.stages import Stage
from finetune_core.training.events import Count, Lineage, Name
from finetune_core.training.strategies.lora import NONE, LowRank, make_low_rank
from finetune_core.training.strategies.stage_plan import (
    Strategy,
    cut_index,
    factored_matrices,
    list_frozen_tensors,
)

LAST, BEST = "last", "best"
HEAD = "head"  # the head fitted before a run's first step
# A run's copy of the earlier run that it starts from: the whole network.
START = "start"


@dataclass(frozen=True)
class CheckpointInfo:
    """Everything beside tensors that is needed to put a checkpoint back into a network.

    Attributes:
        epoch: Number of epochs that are done.
        weights_hash: Hash of the backbone that the frozen tensors come from.
        fingerprint: Hash of the images, their labels and splits.
        lineage: In ``start``: the run that it comes from, and the runs before it.
        neighbours: Number of training images that a head of nearest neighbours holds. 0 in all
            other checkpoints.
        training_state: In ``last``: the position of the run (``training_state.py``).
    """

    epoch: Count
    backbone: Name
    weights_hash: Name
    classes: Annotated[tuple[Name, ...], Field(min_length=1, max_length=100_000)]
    fingerprint: Name = ""
    training_state: Annotated[
        dict[str, Any] | None, Field(validation_alias=AliasChoices("training_state", "standing"))
    ] = None
    neighbours: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    lineage: Lineage = field(default_factory=list)


_INFO = TypeAdapter(CheckpointInfo)
_LONGEST_INFO = 2**25  # characters
_MISSING = {
    BEST: "{run_dir} has no {name!r} checkpoint: the run ended before its first epoch did.",
    HEAD: "{run_dir} lacks head.safetensors, the head that it began with: put the file back.",
    START: "{run_dir} lacks start.safetensors, the weights of the earlier run that it started "
    "from: put the file back.",
}
_KINDS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def checkpoint_path(run_dir: Path, name: str) -> Path:
    """Return the path of a checkpoint.

    Args:
        run_dir: The run directory.
        name: ``last``, ``best``, ``head`` or ``start``.
    """
    return run_dir / f"{name}.safetensors"


def changing_tensors(
    model: nn.Module, stages: Sequence[Stage], strategy: Strategy, low_rank: LowRank = NONE
) -> dict[str, torch.Tensor]:
    """Return all tensors that training may change, by name: those in use, not copies.

    These are the parameters and buffers from the cut on. With LoRA, they are the factors, and the
    tensors that are neither frozen nor computed from factors.
    """
    state = model.state_dict()
    tensors = dict(low_rank.tensors)
    for stage, plan in list(zip(stages, strategy, strict=True))[cut_index(strategy) :]:
        excluded = (
            {*list_frozen_tensors(plan, stage), *factored_matrices(plan, stage)} if low_rank else ()
        )
        names = [
            name
            for name in (*stage.parameters, *stage.buffers)
            if name in state and name not in excluded
        ]
        tensors |= {name: state[name] for name in names}
    return tensors


@torch.no_grad()
def restore_tensors(
    changing: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor]
) -> None:
    """Copy saved values into the tensors that are in use."""
    for name, tensor in changing.items():
        tensor.copy_(saved[name])


def save_checkpoint(
    run_dir: Path, name: str, tensors: dict[str, torch.Tensor], info: CheckpointInfo
) -> None:
    """Write a checkpoint completely or not at all.

    An earlier one of that name stays until the new one is safe.
    """
    metadata = {"info": json.dumps(asdict(info))}
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    content = save(tensors, metadata)
    write_bytes(checkpoint_path(run_dir, name), content, make_folder=False)


def read_info(run_dir: Path, name: str) -> CheckpointInfo:
    """Read what a checkpoint's tensors belong to, without reading the tensors.

    Raises:
        RunError: If the checkpoint is missing or damaged.
    """
    with _open_checkpoint(run_dir, name) as (_, info):
        return info


def load_checkpoint(run_dir: Path, name: str) -> tuple[dict[str, torch.Tensor], CheckpointInfo]:
    """Load the network's tensors by name, and what they belong to.

    Raises:
        RunError: If the checkpoint is missing or damaged.
    """
    tensors, info = load_tensors(run_dir, name)
    return {key: tensor for key, tensor in tensors.items() if "/" not in key}, info


def load_tensors(
    run_dir: Path,
    name: str,
    needed: Mapping[str, torch.Tensor] | None = None,
    allowed: Mapping[str, torch.Tensor] | None = None,
) -> tuple[dict[str, torch.Tensor], CheckpointInfo]:
    """Load all tensors of a checkpoint.

    Names of the optimizer's tensors hold a ``/``.

    Args:
        run_dir: The run directory.
        name: ``last``, ``best``, ``head`` or ``start``.
        needed: Tensors that must be there, with these shapes and types.
        allowed: Tensors that may be there, too. No other may, where ``needed`` is given.

    Raises:
        RunError: If the checkpoint is missing or damaged.
    """
    with _open_checkpoint(run_dir, name) as (file, info):
        if needed is not None:
            check_tensors(file, needed, allowed)
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  safe_open is no mapping
        if bad := [
            key
            for key, tensor in tensors.items()
            if tensor.is_floating_point() and not tensor.isfinite().all()
        ]:
            raise ValueError(f"numbers in {bad[0]} are not finite")
    return tensors, info


def restore_network(
    network: Network, strategy: Strategy, run_dir: Path, name: str
) -> CheckpointInfo:
    """Load a checkpoint's tensors into a network and merge its factors.

    The checkpoint holds exactly those tensors that the strategy may change.

    Raises:
        RunError: If it is missing or damaged, holds other tensors than these, or holds frozen ones
            that have changed.
    """
    factors = make_low_rank(network, strategy, seed=0)
    changing = changing_tensors(network.model, network.stages, strategy, factors)
    tensors, info = load_tensors(run_dir, name, changing)
    check_frozen(network, strategy, tensors, checkpoint_path(run_dir, name))
    restore_tensors(changing, tensors)
    factors.merge()
    return info


def check_frozen(
    network: Network, strategy: Strategy, tensors: Mapping[str, torch.Tensor], path: Path
) -> None:
    """Check that frozen tensors are those that the run started from.

    Raises:
        RunError: If one is not.
    """
    before = network.pretrained.state_dict()
    names = [
        key
        for stage, plan in zip(network.stages, strategy, strict=True)
        for key in list_frozen_tensors(plan, stage)
    ]
    if changed := [
        key for key in names if key in tensors and not torch.equal(tensors[key], before[key])
    ]:
        raise RunError(
            f"{path} is damaged: {changed[0]} is frozen in this run, and not as it was at the "
            "start."
        )


@contextmanager
def _open_checkpoint(run_dir: Path, name: str) -> Iterator[tuple[Any, CheckpointInfo]]:
    """Open a checkpoint for reading and turn anything wrong with it into a RunError."""
    path = checkpoint_path(run_dir, name)
    try:
        # safetensors opens the file by its name, and would wait for a FIFO.
        os.close(open_regular(path))
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("info", "")
            if len(text) > _LONGEST_INFO:
                raise ValueError("what it says of itself is too long")
            yield file, _INFO.validate_json(text, strict=True)
    except FileNotFoundError:
        raise RunError(
            _MISSING.get(name, _MISSING[BEST]).format(run_dir=run_dir, name=name)
        ) from None
    except (OSError, SafetensorError, ValueError, MemoryError) as error:
        raise RunError(f"{run_dir}: {describe_problem(path, error)}.") from None


def check_tensors(
    file: Any, needed: Mapping[str, torch.Tensor], allowed: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Check that a file opened by ``safe_open`` holds the expected tensors, without reading one.

    Args:
        file: The open file.
        needed: Tensors that must be there, with these shapes and types.
        allowed: Tensors that may be there, too.

    Raises:
        ValueError: If names, shapes or types differ.
    """
    expected, found = {**(allowed or {}), **needed}, set(file.keys())
    if missing := needed.keys() - found:
        raise ValueError(
            f"{pluralize(len(missing), 'tensor')} of {len(needed)} are missing, {min(missing)} "
            "among them"
        )
    if unknown := found - expected.keys():
        raise ValueError(
            f"it holds {pluralize(len(unknown), 'tensor')} that do not belong there, "
            f"{min(unknown)} among them"
        )
    for key in sorted(found):
        tensor = file.get_slice(key)
        if (tuple(tensor.get_shape()), _KINDS.get(tensor.get_dtype())) != (
            tuple(expected[key].shape),
            expected[key].dtype,
        ):
            raise ValueError(f"{key} has another shape or type than in this network")

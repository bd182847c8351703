"""The runs whose weights another run averages: read from their folders, and checked against each other.

Averages are good where networks lie in one basin of the loss: they have to begin with the same weights, those of the head included
(Neyshabur et al. 2020, What is being transferred in transfer learning?).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import get_args

import torch

from finetune_core.config import RunConfig, make_config
from finetune_core.config.averaged import Averaged, How
from finetune_core.errors import ConfigError, FinetuneError
from finetune_core.models.network import has_linear_head
from finetune_core.models.weights import RANDOM, of_head
from finetune_core.training.checkpoints import CheckpointInfo
from finetune_core.training.networks import beginning_of, best_network, read_trained
from finetune_core.training.stage_plan import frozen_tensors, plan
from finetune_core.training.strategies import STRATEGIES

Problems = dict[Path, str]  # a run's folder -> why it cannot be averaged


@dataclass(frozen=True)
class _Begun:
    """What a run began with, as far as it can differ from another one's, and which of its tensors stayed so."""

    weights_hash: str
    head: Mapping[str, torch.Tensor]
    frozen: frozenset[str]


@dataclass(frozen=True)
class Parent:
    """A run whose weights are averaged."""

    folder: Path
    config: RunConfig
    info: CheckpointInfo

    @cached_property
    def begun(self) -> _Begun:
        """
        Raises:
            FinetuneError: when the weights that it began with are missing or damaged.
        """
        network = beginning_of(self.config, self.info.classes, self.folder).network
        state = network.model.state_dict()
        frozen = frozenset(
            name
            for stage, each in zip(network.stages, plan(self.config, network.stages), strict=True)
            for name in frozen_tensors(each, stage)
        )
        head = {name: tensor for name, tensor in state.items() if of_head(name, network.heads)}
        return _Begun(network.weights_hash, head, frozen)

    def tensors(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """These parameters and buffers of its best network, on the processor.

        Raises:
            FinetuneError: when its checkpoint, or the weights that it began with, are missing or damaged.
        """
        network, _ = best_network(self.config, self.folder)
        state = network.model.state_dict()
        return {name: state[name].detach() for name in names}


def averaged_config(how: str, folders: Sequence[Path]) -> RunConfig:
    """The settings of the run that averages the weights of these: those of one of them, in fp32, so that what is chosen is what is kept.

    The order of the folders makes no difference.

    Raises:
        ConfigError: when there is no such way to average, or they cannot be averaged, naming each run and the reason.
    """
    if how not in get_args(How):
        raise ConfigError({"how": f"must be one of {', '.join(get_args(How))}, not {how!r}"})
    parents, problems = _read(folders)
    problems |= _differences(how, parents)
    if problems:
        raise _refused(problems)
    if not parents:
        raise ConfigError({"averaged": "name the runs to average"})
    base = _base(parents)
    runs = (base, *sorted((one for one in parents if one is not base), key=lambda one: str(one.folder)))
    averaged = {"how": how, "runs": [str(one.folder) for one in runs]}
    return make_config(base.config.model_dump() | {"averaged": averaged, "precision": "fp32"})


def why_not_averaged(how: str, folders: Sequence[Path]) -> list[str]:
    """What keeps each of these runs from being averaged with the first of them, in words; empty where nothing does."""
    parents, problems = _read(folders)
    return _in_words(problems | _differences(how, parents))


def read_parents(averaged: Averaged) -> list[Parent]:
    """The runs that a config names, in its order. Their tensors are not read.

    Raises:
        ConfigError: when one is gone or damaged.
    """
    parents, problems = _read([Path(run) for run in averaged.runs])
    if problems:
        raise _refused(problems)
    return parents


def checked_parents(averaged: Averaged) -> list[Parent]:
    """The same, once more compared with each other: they may have changed since the config was made.

    Raises:
        ConfigError: when they cannot be averaged.
    """
    parents = read_parents(averaged)
    if problems := _differences(averaged.how, parents):
        raise _refused(problems)
    _base(parents)
    return parents


def _read(folders: Sequence[Path]) -> tuple[list[Parent], Problems]:
    parents: list[Parent] = []
    problems: Problems = {}
    for folder in folders:
        try:
            parents.append(Parent(folder, *read_trained(folder)))
        except FinetuneError as error:
            problems[folder] = " ".join(str(error).split())
    return parents, problems


def _differences(how: str, parents: Sequence[Parent]) -> Problems:
    """What keeps each run from being averaged with the first of them."""
    found: Problems = {}
    for parent in parents:
        try:
            reason = _unfit(how, parent) or _differs(parent, parents[0])
        except FinetuneError as error:
            reason = " ".join(str(error).split())
        if reason:
            found[parent.folder] = reason
    return found


def _unfit(how: str, parent: Parent) -> str:
    """Why a run cannot be averaged with any; empty where it can."""
    config = parent.config
    if STRATEGIES[config.strategy].fits:
        return "its head was fitted without epochs, so no weights have trained"
    if config.strategy == "lora":
        return "it keeps low-rank factors, and the mean of such products is none of that rank"
    if how != "wise":
        return ""
    if config.starts_from == RANDOM:
        return "it started from random weights, so that there is nothing to go back to"
    if not has_linear_head(config.backbone, config.image_size):
        return f"the head of {config.backbone} is not one linear layer, so no linear probe can be put in its place"
    return ""


def _differs(one: Parent, first: Parent) -> str:
    """In what a run differs from the first, so that an average of both means nothing; empty where it does not."""
    name = first.folder.name
    if one.config.backbone != first.config.backbone:
        return f"its backbone is {one.config.backbone}, that of {name} is {first.config.backbone}"
    if one.info.classes != first.info.classes:
        return f"its classes are not those of {name}"
    if one.config.input_settings != first.config.input_settings:
        differing = [key for key, value in one.config.input_settings.items() if value != first.config.input_settings[key]]
        return f"its images are prepared otherwise than those of {name}: {', '.join(differing).replace('_', ' ')}"
    if one.info.fingerprint != first.info.fingerprint:
        return f"its images, their labels or their split are not those of {name}"
    if one.begun.weights_hash != first.begun.weights_hash:
        return f"it started from other weights than {name}"
    head = first.begun.head
    if any(not torch.equal(tensor, head[key]) for key, tensor in one.begun.head.items()):
        seeds = f"seed {one.config.first_seed}, not {first.config.first_seed}"
        return f"its head began with other weights than that of {name} ({seeds}): train them again with one seed of the head (--head-seed)"
    return ""


def _base(parents: Sequence[Parent]) -> Parent:
    """The run with the fewest frozen weights: what it may change, no other one freezes otherwise.

    Raises:
        ConfigError: when there is none, or these settings cannot be averaged.
    """
    ordered = sorted(parents, key=lambda parent: (len(parent.begun.frozen), str(parent.folder)))
    base = ordered[0]
    if other := next((one for one in ordered if not base.begun.frozen <= one.begun.frozen), None):
        raise _refused({other.folder: f"it trains weights that are frozen in {base.folder.name}, and the other way round"})
    return base


def _refused(problems: Problems) -> ConfigError:
    return ConfigError({"averaged": "; ".join(_in_words(problems))})


def _in_words(problems: Problems) -> list[str]:
    return [f"{folder.name}: {reason.rstrip('.')}" for folder, reason in problems.items()]

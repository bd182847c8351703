"""The runs that another run averages: read from their folders and compared with each other.

Averages of weights are good where networks lie in one basin of the loss. So they have to begin with
the same weights, those of the head included (Neyshabur et al. 2020, What is being transferred in
transfer learning?). An ensemble only needs the same images and classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import get_args

import pandas as pd
import torch

from finetune_core.config import RunConfig, make_config
from finetune_core.config.averaged import Averaging, AveragingMethod
from finetune_core.data.dataset import Dataset
from finetune_core.data.same_classes import describe_class_difference
from finetune_core.errors import ConfigError, FinetuneError, TrainingError
from finetune_core.formatting import format_percent
from finetune_core.models.catalogue import backbone_info_for
from finetune_core.models.network import has_linear_head
from finetune_core.models.weights import RANDOM
from finetune_core.training.checkpoints.files import BEST, CheckpointInfo, load_checkpoint
from finetune_core.training.checkpoints.networks import (
    build_initial_network,
    head_tensors,
    load_best_network,
    read_trained_run,
)
from finetune_core.training.predictions import (
    FINAL_PRECISION,
    load_predictions,
    predictions_precision,
)
from finetune_core.training.strategies.catalogue import STRATEGIES, has_fitted_initial_head
from finetune_core.training.strategies.stage_plan import list_frozen_tensors, plan_strategy

Problems = dict[Path, str]  # a run's folder -> why it cannot be averaged


@dataclass(frozen=True)
class _InitialState:
    """The part of a run's initial network that can differ from another run's.

    Attributes:
        head: Head of an earlier run, or a random one.
        fitted: Whether a linear probe has replaced it. The seed of the head decides both.
        frozen: Names of the tensors that stayed as they were.
    """

    weights_hash: str
    head: Mapping[str, torch.Tensor]
    fitted: bool
    frozen: frozenset[str]


@dataclass(frozen=True)
class Parent:
    """A run that is averaged."""

    folder: Path
    config: RunConfig
    info: CheckpointInfo

    @cached_property
    def initial_state(self) -> _InitialState:
        """Initial weights of the run.

        Raises:
            FinetuneError: If the weights that the run began with are missing or damaged.
        """
        beginning = build_initial_network(self.config, self.info.classes, self.folder)
        network = beginning.network
        frozen = frozenset(
            name
            for stage, each in zip(
                network.stages, plan_strategy(self.config, network.stages), strict=True
            )
            for name in list_frozen_tensors(each, stage)
        )
        fitted = has_fitted_initial_head(self.config, head_kept=beginning.head_kept)
        return _InitialState(network.weights_hash, head_tensors(network), fitted, frozen)

    def load_tensors(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return parameters, buffers and factors of the run's best network, on the processor.

        Raises:
            FinetuneError: If its checkpoint, or the weights that it began with, are missing or
                damaged.
        """
        network, _ = load_best_network(self.config, self.folder)
        state = network.model.state_dict()
        # The network holds LoRA's merged weights. Only the checkpoint holds its factors.
        if any(name not in state for name in names):
            state |= load_checkpoint(self.folder, BEST)[0]
        return {name: state[name].detach() for name in names}

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """Table ``split, id, label, logits``, sorted by the first two.

        Raises:
            RunError: If the run has none, or they are damaged.
        """
        return load_predictions(self.folder, len(self.info.classes)).sort_values(
            ["split", "id"], ignore_index=True
        )


def make_averaged_config(how: str, folders: Sequence[Path]) -> RunConfig:
    """Return the settings of the run that averages these runs.

    These are the settings of one of them, in fp32, so that what is chosen is what is kept. The
    order of the folders makes no difference.

    Raises:
        ConfigError: If there is no such way to average, or the runs cannot be averaged. It names
            each run and the reason.
    """
    if how not in get_args(AveragingMethod):
        raise ConfigError(
            {"how": f"must be one of {', '.join(get_args(AveragingMethod))}, not {how!r}"}
        )
    parents, problems = _read_runs(folders)
    problems |= _find_differences(how, parents)
    if problems:
        raise _make_error(problems)
    if not parents:
        raise ConfigError({"averaged": "name the runs to average"})
    base = (
        min(parents, key=lambda one: str(one.folder))
        if how == "ensemble"
        else _choose_base(parents)
    )
    runs = (
        base,
        *sorted((one for one in parents if one is not base), key=lambda one: str(one.folder)),
    )
    averaged = {"how": how, "runs": [str(one.folder) for one in runs]}
    return make_config(base.config.model_dump() | {"averaged": averaged, "precision": "fp32"})


def why_not_averaged(how: str, folders: Sequence[Path]) -> list[str]:
    """Return what keeps each of these runs from being averaged with the first of them.

    The list is empty where nothing does.
    """
    parents, problems = _read_runs(folders)
    return _format_problems(problems | _find_differences(how, parents))


def read_parents(averaged: Averaging) -> list[Parent]:
    """Read the runs that a config names, in its order, but not their tensors.

    Raises:
        ConfigError: If one is gone or damaged.
    """
    parents, problems = _read_runs([Path(run) for run in averaged.runs])
    if problems:
        raise _make_error(problems)
    return parents


def read_matching_parents(averaged: Averaging) -> list[Parent]:
    """Read the runs that a config names and compare them with each other once more.

    They may have changed since the config was made.

    Raises:
        ConfigError: If they cannot be averaged.
    """
    parents = read_parents(averaged)
    if problems := _find_differences(averaged.how, parents):
        raise _make_error(problems)
    _choose_base(parents)
    return parents


def read_members(folders: Sequence[Path]) -> list[Parent]:
    """Read what an ensemble has kept of its runs, in its order.

    Raises:
        ConfigError: If one is gone or damaged, or their predictions cannot be averaged.
    """
    members, problems = _read_runs(folders)
    problems |= _find_differences("ensemble", members)
    if problems:
        raise _make_error(problems)
    return members


def check_unchanged(dataset: Dataset, names: Sequence[str], parents: Sequence[Parent]) -> None:
    """Check that the images are those that the runs were trained on.

    Args:
        dataset: The data set as it is now.
        names: Names of the runs, in their order.
        parents: The runs, in the order of ``names``.

    Raises:
        TrainingError: If they are not.
    """
    for name, parent in zip(names, parents, strict=True):
        if parent.info.fingerprint != dataset.fingerprint:
            raise TrainingError(
                f"The images in {parent.config.data}, their labels or their split have changed "
                f"since {name} was trained on them. Train the runs again, then average those."
            )


def _read_runs(folders: Sequence[Path]) -> tuple[list[Parent], Problems]:
    parents: list[Parent] = []
    problems: Problems = {}
    for folder in folders:
        try:
            parents.append(Parent(folder, *read_trained_run(folder)))
        except FinetuneError as error:
            problems[folder] = " ".join(str(error).split())
    return parents, problems


def _find_differences(how: str, parents: Sequence[Parent]) -> Problems:
    """Return what keeps each run from being averaged with the first of them."""
    problems: Problems = {}
    for parent in parents:
        try:
            compare = _why_predictions_differ if how == "ensemble" else _why_different
            reason = _why_unfit(how, parent) or compare(parent, parents[0])
        except FinetuneError as error:
            reason = " ".join(str(error).split())
        if reason:
            problems[parent.folder] = reason
    return problems


def _why_unfit(how: str, parent: Parent) -> str:
    """Return why a run cannot be averaged with any other. Empty where it can."""
    config = parent.config
    if config.is_ensemble:
        return (
            "it is an ensemble itself: name its runs"
            if how == "ensemble"
            else "it is an ensemble, which has no weights of its own"
        )
    if how == "ensemble":
        return _why_not_predicted(parent)
    if STRATEGIES[config.strategy].fits:
        return "its head was fitted without epochs, so no weights have trained"
    if config.strategy == "lora" and how != "wise":
        return "it keeps low-rank factors, and the mean of such products is none of that rank"
    if how != "wise":
        return ""
    if config.initial_weights == RANDOM:
        return "it started from random weights, so that there is nothing to go back to"
    if not has_linear_head(config.backbone, config.image_size):
        return (
            f"the head of {config.backbone} is not one linear layer, so no linear probe can be put "
            "in its place"
        )
    return ""


def _why_different(one: Parent, first: Parent) -> str:
    """Return how a run differs from the first, so that their average would mean nothing.

    It is empty where they do not differ.
    """
    name = first.folder.name
    if one.config.backbone != first.config.backbone:
        return f"its backbone is {one.config.backbone}, that of {name} is {first.config.backbone}"
    if difference := _describe_data_difference(one, first):
        return difference
    if one.config.input_settings != first.config.input_settings:
        changed = [
            key
            for key, value in one.config.input_settings.items()
            if value != first.config.input_settings[key]
        ]
        return (
            f"its images are prepared otherwise than those of {name}: "
            f"{', '.join(changed).replace('_', ' ')}"
        )
    if difference := _describe_subset_difference(one.config, first.config):
        return f"{difference} of {name}: average runs that trained on the same images"
    if one.initial_state.weights_hash != first.initial_state.weights_hash:
        return f"it started from other weights than {name}"
    if one.initial_state.fitted != first.initial_state.fitted:
        kinds = ["random", "a linear probe"]
        own, others = kinds if first.initial_state.fitted else reversed(kinds)
        return f"its initial head was {own}, that of {name} {others} (--initial-head)"
    head = first.initial_state.head
    if any(not torch.equal(tensor, head[key]) for key, tensor in one.initial_state.head.items()):
        seeds = f"seed {one.config.init_seed}, not {first.config.init_seed}"
        return (
            f"its head began with other weights than that of {name} ({seeds}): train them again "
            "with one seed of the head (--head-seed)"
        )
    return ""


def _describe_data_difference(one: Parent, first: Parent) -> str:
    """Return how a run's images or classes differ from the first run's. Empty where they do not."""
    if difference := describe_class_difference(one.info.classes, first.info.classes):
        return f"its classes are not those of {first.folder.name}: it {difference}"
    if one.info.fingerprint != first.info.fingerprint:
        return f"its images, their labels or their split are not those of {first.folder.name}"
    return ""


def _describe_subset_difference(config: RunConfig, first: RunConfig) -> str:
    """Return how the training images that a run drew differ from the first run's.

    It is empty where they do not. A share of the training images is drawn by the seed. A soup of
    runs with different shares would have seen more images than its settings say, and its BatchNorm
    statistics would be those of one run's share.
    """
    if config.train_fraction != first.train_fraction:
        return (
            f"it trained on {format_percent(config.train_fraction)} of the training images, not "
            f"on the {format_percent(first.train_fraction)}"
        )
    if config.train_fraction < 1 and config.seed != first.seed:
        return (
            f"its seed {config.seed} drew other {format_percent(config.train_fraction)} of the "
            f"training images (--train-fraction) than seed {first.seed}"
        )
    return ""


def _why_not_predicted(parent: Parent) -> str:
    """Return why a run's predictions are not those of the network that it keeps.

    It is empty where they are.
    """
    precision = predictions_precision(parent.folder)
    if not parent.predictions.empty and precision != FINAL_PRECISION:
        return (
            f"it was evaluated in {precision or 'a precision that is not recorded'}: evaluate it "
            "in fp32 first (evaluate --fp32)"
        )
    return ""


def _why_predictions_differ(one: Parent, first: Parent) -> str:
    """Return why a run's probabilities mean something else than the first run's.

    It is empty where they mean the same.
    """
    name = first.folder.name
    if difference := _describe_data_difference(one, first):
        return difference
    if framed := [
        what for what, value in _get_framing(one).items() if value != _get_framing(first)[what]
    ]:
        return (
            f"its images are framed otherwise than those of {name} ({', '.join(framed)}), and one "
            "network takes one image"
        )
    ours, theirs = (
        one.predictions[["split", "id", "label"]],
        first.predictions[["split", "id", "label"]],
    )
    return "" if ours.equals(theirs) else f"it has not predicted the same images as {name}"


def _get_framing(parent: Parent) -> dict[str, int | str]:
    """Return the settings that decide which pixels a network sees.

    Their normalisation is not among them: it can be changed afterwards.
    """
    config, info = parent.config, backbone_info_for(parent.config)
    return {
        "image size": config.image_size,
        "centre crop": info.compute_resize_size(config.image_size),
        "interpolation": info.interpolation,
        "image fit": info.fit,
    }


def _choose_base(parents: Sequence[Parent]) -> Parent:
    """Return the run with the fewest frozen weights.

    Every other run must freeze what this one freezes, too.

    Raises:
        ConfigError: If there is none, or these settings cannot be averaged.
    """
    ordered = sorted(
        parents, key=lambda parent: (len(parent.initial_state.frozen), str(parent.folder))
    )
    base = ordered[0]
    if other := next(
        (one for one in ordered if not base.initial_state.frozen <= one.initial_state.frozen), None
    ):
        raise _make_error(
            {
                other.folder: f"it trains weights that are frozen in {base.folder.name}, and the "
                "other way round"
            }
        )
    return base


def _make_error(problems: Problems) -> ConfigError:
    return ConfigError({"averaged": "; ".join(_format_problems(problems))})


def _format_problems(problems: Problems) -> list[str]:
    return [f"{folder.name}: {reason.rstrip('.')}" for folder, reason in problems.items()]

"""Initial networks of runs, and the networks of their best checkpoints.

A run begins with published weights, a file, random weights, or the best network of an earlier run.
It keeps a copy of the latter in its own folder (``start``), so that it can be resumed, used and
exported when the earlier run is gone. For the same reason an ensemble keeps a copy of what it needs
of its runs (``members``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from finetune_core.config import CONFIG_FILE, RunConfig, make_config, read_config
from finetune_core.data.splits import VAL
from finetune_core.errors import ConfigError, FinetuneError, RunError
from finetune_core.files import copy_regular, is_link, stat_regular
from finetune_core.models.catalogue import backbone_info_for
from finetune_core.models.ensemble import build_ensemble
from finetune_core.models.nearest import add_empty_neighbours, count_features
from finetune_core.models.network import (
    Network,
    build_network,
    build_network_from_state,
    meta_state_dict,
)
from finetune_core.models.timm_networks import find, is_timm_name, resize_embeddings
from finetune_core.models.weights import (
    PRETRAINED,
    RANDOM,
    is_head_tensor,
    load_state_tensors,
    state_hash,
)
from finetune_core.training.checkpoints.files import (
    BEST,
    HEAD,
    START,
    CheckpointInfo,
    checkpoint_path,
    load_tensors,
    read_info,
    restore_network,
    save_checkpoint,
)
from finetune_core.training.events import Ancestor
from finetune_core.training.predictions import PREDICTIONS_FILE, load_predictions
from finetune_core.training.strategies.catalogue import STRATEGIES
from finetune_core.training.strategies.stage_plan import find_last_stage, plan_strategy

_MEMBERS = "members"  # folder of an ensemble's run


@dataclass(frozen=True)
class Start:
    """The network of an earlier run with its head, on the processor.

    Attributes:
        info: The classes of that head, the ``weights_hash`` of all other tensors, and the runs
            before.
    """

    tensors: Mapping[str, torch.Tensor]
    info: CheckpointInfo


@dataclass(frozen=True)
class InitialNetwork:
    """Initial network of a run.

    Attributes:
        start: The earlier run's network. None where the run starts from no earlier run.
        head_kept: Whether the head is that of the earlier run, with its outputs in the order of
            this run's classes.
    """

    network: Network
    start: Start | None = None
    head_kept: bool = False


def check_earlier_run(config: RunConfig) -> None:
    """Check that a run can start from the earlier run it names, without building a network.

    Raises:
        ConfigError: If there is no such run, it is damaged, or it has no best epoch, no plain head,
            or another backbone.
    """
    _read_earlier_run(config)


def build_start(config: RunConfig) -> Start:
    """Return the best network of the run that a config starts from, for its image size.

    Raises:
        ConfigError: As ``check_earlier_run``.
        FinetuneError: If that run's checkpoint is damaged, or the weights it started from are no
            longer on this machine.
    """
    folder, earlier = _read_earlier_run(config)
    network, info = load_best_network(earlier, folder)
    tensors = {name: tensor.detach().clone() for name, tensor in network.model.state_dict().items()}
    if config.image_size != earlier.image_size and is_timm_name(config.backbone):
        tensors = resize_embeddings(
            find(config.backbone), tensors, len(info.classes), config.image_size
        )
    lineage = read_info(folder, START).lineage if earlier.earlier_run else []
    return Start(
        tensors,
        CheckpointInfo(
            info.epoch,
            config.backbone,
            state_hash(tensors, network.heads),
            info.classes,
            info.fingerprint,
            lineage=[describe_ancestor(folder, earlier, info), *lineage],
        ),
    )


def copy_earlier_runs(config: RunConfig, run_dir: Path) -> None:
    """Copy what a run needs of earlier runs into its folder.

    That is the network it starts from, or an ensemble's members. A run of averaged weights keeps
    what the first of its runs kept.

    Raises:
        FinetuneError: As ``build_start``.
        OSError: If the copy cannot be written.
    """
    if config.averaged and config.is_ensemble:
        for run, folder in zip(config.averaged.runs, member_folders(config, run_dir), strict=True):
            _copy_member(Path(run), folder)
    elif config.earlier_run:
        start = (
            load_start(config, Path(config.averaged.runs[0]))
            if config.averaged
            else build_start(config)
        )
        save_checkpoint(run_dir, START, dict(start.tensors), start.info)


def member_folders(config: RunConfig, run_dir: Path) -> list[Path]:
    """Return where an ensemble keeps what it needs of its runs, in the order of its config.

    Each folder holds a run's settings, best network and predictions, and is read as a run
    directory.

    Raises:
        RunError: If a link leads to them.
    """
    if is_link(run_dir / _MEMBERS):
        raise RunError(f"{run_dir / _MEMBERS} is a link, which is not followed.")
    return [
        run_dir / _MEMBERS / str(number)
        for number, _ in enumerate(config.averaged.runs if config.averaged else (), start=1)
    ]


def _copy_member(run: Path, folder: Path) -> None:
    names = [CONFIG_FILE, checkpoint_path(run, BEST).name, PREDICTIONS_FILE]
    if stat_regular(checkpoint_path(run, START)):
        names.append(checkpoint_path(run, START).name)
    folder.mkdir(parents=True)
    for name in names:
        try:
            copy_regular(run / name, folder / name)
        except FileNotFoundError:
            raise RunError(
                f"{run.name} has lost its {name}, so nothing can be made of it."
            ) from None


def load_start(config: RunConfig, run_dir: Path) -> Start:
    """Load what a run has kept of the earlier run that it started from.

    Raises:
        RunError: If it is missing or damaged.
    """
    info = read_info(run_dir, START)
    needed = meta_state_dict(config.backbone, len(info.classes), config.image_size)
    tensors, info = load_tensors(run_dir, START, needed)
    return Start(tensors, info)


def build_initial_network(
    config: RunConfig, classes: Sequence[str], run_dir: Path | None = None
) -> InitialNetwork:
    """Build the initial network of a run: float32, on the processor, in eval mode.

    Args:
        config: Settings of the run.
        classes: Class names, in the order of the labels.
        run_dir: The run directory. None where there is none, and no copy of an earlier run.

    Raises:
        FinetuneError: If weights are missing or damaged.
    """
    options = config.init_seed, config.image_size, find_last_stage(config)
    if not config.earlier_run:
        network = build_network(config.backbone, config.initial_weights, len(classes), *options)
        return InitialNetwork(replace(network, info=backbone_info_for(config)))
    start = load_start(config, run_dir) if run_dir else build_start(config)
    network = build_network_from_state(config.backbone, start.tensors, len(classes), *options)
    if network.weights_hash != start.info.weights_hash:
        raise RunError(
            f"{checkpoint_path(run_dir or Path(), START)} is damaged: its weights are not those "
            "that it says."
        )
    head_kept = set(start.info.classes) == set(classes) and not STRATEGIES[config.strategy].fits
    if head_kept:
        order = torch.tensor([start.info.classes.index(name) for name in classes])
        load_state_tensors(
            network.model,
            {
                name: tensor[order]
                for name, tensor in start.tensors.items()
                if is_head_tensor(name, network.heads)
            },
        )
    return InitialNetwork(replace(network, info=backbone_info_for(config)), start, head_kept)


def head_tensors(network: Network) -> dict[str, torch.Tensor]:
    """Return the tensors of a network's head by name: those that are in use, not copies."""
    state = network.model.state_dict()
    return {name: tensor for name, tensor in state.items() if is_head_tensor(name, network.heads)}


def load_initial_head(network: Network, run_dir: Path) -> dict[str, torch.Tensor]:
    """Load the head that a run has fitted before its first step.

    Args:
        network: Any network of the run.
        run_dir: The run directory.

    Raises:
        RunError: If it is missing or damaged.
    """
    return load_tensors(run_dir, HEAD, head_tensors(network))[0]


def load_best_network(config: RunConfig, run_dir: Path) -> tuple[Network, CheckpointInfo]:
    """Build the network of a run's best checkpoint: float32, on the processor, in eval mode.

    Raises:
        RunError: If the checkpoint is missing or damaged, or the weights that the run began with
            have changed since.
        WeightsError: If those weights are not on this machine.
    """
    info = read_info(run_dir, BEST)
    if config.is_ensemble:
        return build_ensemble(_load_members(config, run_dir, info)), info
    network = build_initial_network(config, info.classes, run_dir).network
    if network.weights_hash != info.weights_hash:
        place = (
            checkpoint_path(run_dir, START)
            if config.earlier_run
            else f"The weights of {info.backbone} on this machine"
        )
        raise RunError(f"{place} are not those that {run_dir.name} was trained from.")
    strategy = plan_strategy(config, network.stages)
    if STRATEGIES[config.strategy].fits == "nearest_neighbours":
        width = count_features(network, len(info.classes))
        network = add_empty_neighbours(
            network, _count_neighbours(run_dir, info, width), width, len(info.classes)
        )
    restore_network(network, strategy, run_dir, BEST)
    network.model.eval()
    return network, info


def _load_members(config: RunConfig, run_dir: Path, info: CheckpointInfo) -> list[Network]:
    """Build the best network of each member of an ensemble.

    Raises:
        RunError: If one is missing or damaged.
    """
    networks = []
    for folder in member_folders(config, run_dir):
        member, member_info = read_trained_run(folder)
        if member.is_ensemble or member_info.classes != info.classes:
            raise RunError(
                f"{folder} is damaged: it is no network for the classes of {run_dir.name}."
            )
        networks.append(load_best_network(member, folder)[0])
    return networks


def _count_neighbours(run_dir: Path, info: CheckpointInfo, width: int) -> int:
    """Return how many training images a checkpoint holds.

    Each takes ``width`` float32 features and an int64 label.

    Raises:
        RunError: If it claims none, or more than its file can hold. No memory is taken for those.
    """
    path = checkpoint_path(run_dir, BEST)
    status = stat_regular(path)
    if not 0 < info.neighbours <= (status.st_size if status else 0) // (4 * width + 8):
        raise RunError(f"{path} is damaged: it holds no training images that could vote.")
    return info.neighbours


def read_trained_run(folder: Path) -> tuple[RunConfig, CheckpointInfo]:
    """Read the settings of a trained run and its best checkpoint's info, but no tensor.

    Raises:
        FinetuneError: If there is no run, it is a link or damaged, or it has no best epoch.
    """
    if is_link(folder):
        raise RunError(f"{folder} is a link, which is not followed")
    if not stat_regular(folder / CONFIG_FILE):
        raise RunError(f"there is no run in {folder}")
    config, info = make_config(read_config(folder / CONFIG_FILE)), read_info(folder, BEST)
    if info.backbone != config.backbone:
        raise RunError(f"{folder.name} is damaged: its checkpoint is of {info.backbone}")
    return config, info


def _read_earlier_run(config: RunConfig) -> tuple[Path, RunConfig]:
    """Return the folder and the settings of the run that a config starts from."""
    folder = Path(config.earlier_run or "")
    try:
        earlier, _ = read_trained_run(folder)
    except FinetuneError as error:
        raise ConfigError({"from_run": " ".join(str(error).split())}) from None
    if earlier.is_ensemble:
        raise ConfigError({"from_run": f"{folder.name} is an ensemble: start from one of its runs"})
    if STRATEGIES[earlier.strategy].fits == "nearest_neighbours":
        raise ConfigError(
            {
                "from_run": f"{folder.name} classifies by its nearest training images and has "
                "trained nothing: start from the backbone itself"
            }
        )
    if last := find_last_stage(earlier):
        raise ConfigError(
            {
                "from_run": f"{folder.name} ends after {last} and lacks what follows: start from "
                "the backbone itself"
            }
        )
    if earlier.backbone != config.backbone:
        raise ConfigError(
            {
                "backbone": f"follows from the run to start from: {folder.name} has "
                f"{earlier.backbone}, not {config.backbone}"
            }
        )
    return folder, earlier


def describe_ancestor(folder: Path, earlier: RunConfig, info: CheckpointInfo) -> Ancestor:
    """Return what a run records of an earlier run that it is made from."""
    kinds = {PRETRAINED: "pretrained", RANDOM: "none"}
    data = Path(earlier.data.replace("\\", "/")).name
    return Ancestor(
        run=folder.name,
        backbone=earlier.backbone,
        data=data,
        strategy=earlier.strategy,
        epoch=info.epoch,
        accuracy=_compute_val_accuracy(folder, len(info.classes)),
        weights="run" if earlier.earlier_run else kinds.get(earlier.initial_weights, "file"),  # type: ignore[typeddict-item]
    )


def _compute_val_accuracy(folder: Path, classes: int) -> float | None:
    """Return a run's accuracy on the validation images.

    It is None where the predictions cannot be read: the weights can be used all the same.
    """
    try:
        table = load_predictions(folder, classes)
    except RunError:
        return None
    table = table[table["split"] == VAL]
    is_correct = [
        int(logits.argmax()) == label
        for logits, label in zip(table["logits"], table["label"], strict=True)
    ]
    return sum(is_correct) / len(is_correct) if is_correct else None

"""A run's best checkpoint -> a network that names new images."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax

from finetune_core.errors import RunError
from finetune_core.models.network import Network
from finetune_core.models.weights import state_hash
from finetune_core.runs.store import Run
from finetune_core.training.checkpoints import BEST, CheckpointInfo, checkpoint_path, read_info
from finetune_core.training.compiled import Part
from finetune_core.training.device import Device, choose_device
from finetune_core.training.evaluation import logits_of
from finetune_core.training.feeding import Forward
from finetune_core.training.networks import best_network
from finetune_core.training.preview import network_input
from finetune_core.training.strategies import epochs_of


@dataclass(frozen=True)
class Predictor:
    """A fine-tuned network, ready for images."""

    network: Network
    classes: tuple[str, ...]
    device: Device
    image_size: int

    def probabilities(self, images: Sequence[Path | bytes]) -> np.ndarray:
        """Float64 ``[n, classes]``, one row per image; preprocessing as in validation.

        Raises:
            ImageError: when one of them cannot be read.
        """
        info = self.network.info
        return self.probabilities_of(
            torch.stack([network_input(image, info, self.image_size).tensor for image in images])
        )

    def probabilities_of(self, squares: torch.Tensor, forward: Forward | None = None) -> np.ndarray:
        """The same of normalised images ``[n, 3, image_size, image_size]``.

        Args:
            forward: the network's pass, where it is compiled.
        """
        logits = logits_of(forward or self.network.model, squares, self.device).astype(np.float64)
        probabilities: np.ndarray = softmax(logits, axis=1)
        return probabilities

    def on(self, device: Device) -> "Predictor":
        """The same on another device: a copy, because others may be using this one."""
        if (device.kind, device.precision) == (self.device.kind, self.device.precision):
            return self
        network = replace(self.network, model=device.hold(copy.deepcopy(self.network.model)))
        return replace(self, network=network, device=device)

    @property
    def part(self) -> Part:
        """The whole network, to be compiled."""
        network = self.network
        return Part(
            network.model,
            f"{network.info.name} whole",
            lambda: state_hash(network.model.state_dict()),
        )


def load_predictor(run: Run, device: Device | None = None) -> Predictor:
    """Put a run's best network together again.

    Args:
        device: the processor when None: a run may need all of a GPU.

    Raises:
        RunError: when the run has no checkpoint, it is damaged, or the weights that it began with have changed since.
        WeightsError: when they are not on this machine.
    """
    _check_same_run(run, read_info(run.run_dir, BEST))
    network, info = best_network(run.config, run.run_dir)
    device = device or choose_device("cpu", "fp32")
    device.hold(network.model)
    return Predictor(network, info.classes, device, run.config.image_size)


def _check_same_run(run: Run, info: CheckpointInfo) -> None:
    """
    Raises:
        RunError: when a checkpoint is of another run.
    """
    started = run.history.started or {}
    recorded = (info.backbone, info.classes, info.fingerprint or started.get("fingerprint"))
    wanted = (
        run.config.backbone,
        tuple(started.get("classes", info.classes)),
        started.get("fingerprint", recorded[2]),
    )
    epochs = epochs_of(run.config)
    if recorded != wanted or not min(1, epochs) <= info.epoch <= epochs:
        path = checkpoint_path(run.run_dir, BEST)
        raise RunError(
            f"{path} is damaged: it says that it is of another run, with other classes, images or "
            "settings."
        )

"""Predictor: the network of a run's best checkpoint, applied to new images."""

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
from finetune_core.training.checkpoints.files import (
    BEST,
    CheckpointInfo,
    checkpoint_path,
    read_info,
)
from finetune_core.training.checkpoints.networks import load_best_network
from finetune_core.training.compile.compiler import Part
from finetune_core.training.data_pipeline.preview import network_input
from finetune_core.training.devices.device import Device, Forward, choose_device
from finetune_core.training.evaluation import compute_logits
from finetune_core.training.strategies.catalogue import count_epochs


@dataclass(frozen=True)
class Predictor:
    """A fine-tuned network with its classes and its device."""

    network: Network
    classes: tuple[str, ...]
    device: Device
    image_size: int

    def predict_proba(self, images: Sequence[Path | bytes]) -> np.ndarray:
        """Return float64 ``[n, classes]``, one row per image; preprocessing is as in validation.

        Raises:
            ImageError: if an image cannot be read.
        """
        info = self.network.info
        return self.predict_proba_tensor(
            torch.stack([network_input(image, info, self.image_size).tensor for image in images])
        )

    def predict_proba_tensor(
        self, squares: torch.Tensor, forward: Forward | None = None
    ) -> np.ndarray:
        """Return float64 ``[n, classes]`` of normalised images ``[n, 3, image_size, image_size]``.

        Args:
            squares: the images.
            forward: compiled forward pass of the network, if there is one.
        """
        logits = compute_logits(forward or self.network.model, squares, self.device).astype(
            np.float64
        )
        probabilities: np.ndarray = softmax(logits, axis=1)
        return probabilities

    def to(self, device: Device) -> "Predictor":
        """Return the predictor on another device.

        The network is copied, because other threads may be using this one.
        """
        if (device.kind, device.precision) == (self.device.kind, self.device.precision):
            return self
        network = replace(self.network, model=device.move_module(copy.deepcopy(self.network.model)))
        return replace(self, network=network, device=device)

    @property
    def part(self) -> Part:
        """The whole network as a unit to compile."""
        network = self.network
        return Part(
            network.model,
            f"{network.info.name} whole",
            lambda: state_hash(network.model.state_dict()),
        )


def load_predictor(run: Run, device: Device | None = None) -> Predictor:
    """Load a run's best network.

    Args:
        run: the run.
        device: the CPU if None, because a run may need all of a GPU.

    Raises:
        RunError: if the run has no checkpoint, the checkpoint is damaged, or the initial weights
            have changed since.
        WeightsError: if the initial weights are not on this machine.
    """
    _check_same_run(run, read_info(run.run_dir, BEST))
    network, info = load_best_network(run.config, run.run_dir)
    device = device or choose_device("cpu", "fp32")
    device.move_module(network.model)
    return Predictor(network, info.classes, device, run.config.image_size)


def _check_same_run(run: Run, info: CheckpointInfo) -> None:
    """Raise if a checkpoint belongs to another run.

    Raises:
        RunError: if it does.
    """
    started = run.history.started or {}
    recorded = (info.backbone, info.classes, info.fingerprint or started.get("fingerprint"))
    expected = (
        run.config.backbone,
        tuple(started.get("classes", info.classes)),
        started.get("fingerprint", recorded[2]),
    )
    epochs = count_epochs(run.config)
    if recorded != expected or not min(1, epochs) <= info.epoch <= epochs:
        path = checkpoint_path(run.run_dir, BEST)
        raise RunError(
            f"{path} is damaged: it says that it is of another run, with other classes, images or "
            "settings."
        )

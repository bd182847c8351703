"""A run's best checkpoint -> a network that names new images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from finetune_core.errors import RunError
from finetune_core.models.network import Network, build_network
from finetune_core.runs.store import Run
from finetune_core.training.checkpoints import BEST, load_checkpoint
from finetune_core.training.device import Device, choose_device
from finetune_core.training.preview import network_input


@dataclass(frozen=True)
class Predictor:
    """A fine-tuned network, ready for images."""

    network: Network
    classes: tuple[str, ...]
    device: Device
    image_size: int

    def probabilities(self, images: Sequence[Path | bytes]) -> np.ndarray:
        """Float64 ``[n, classes]``, one row an image; preprocessing as in validation.

        Raises:
            ImageError: when one of them cannot be read.
        """
        name = self.network.info.name
        return self.probabilities_of(torch.stack([network_input(image, name, self.image_size).tensor for image in images]))

    def probabilities_of(self, squares: torch.Tensor) -> np.ndarray:
        """The same of normalised images ``[n, 3, image_size, image_size]``."""
        with torch.no_grad(), self.device.autocast():
            logits = self.network.model(squares.to(self.device.torch_device))
        return logits.float().cpu().double().softmax(1).numpy()


def load_predictor(run: Run) -> Predictor:
    """Put a run's best network together again.

    Raises:
        RunError: when the run has no checkpoint, or its backbone's weights have changed since.
        WeightsError: when they are not on this machine.
    """
    tensors, info = load_checkpoint(run.run_dir, BEST)
    config = run.config
    network = build_network(info.backbone, config.starts_from, len(info.classes), config.seed)
    if network.weights_hash != info.weights_hash:
        raise RunError(f"The weights of {info.backbone} on this machine are not those that {run.run_id} was trained from.")
    network.model.load_state_dict(tensors, strict=False)
    device = choose_device("auto", "fp32")
    network.model.eval().to(device.torch_device, memory_format=torch.channels_last)
    return Predictor(network, info.classes, device, config.image_size)

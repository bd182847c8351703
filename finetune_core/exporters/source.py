"""The input of every export: a run's best network on the CPU, and its evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune_core.errors import ExportError
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.single_run.evaluate import evaluation
from finetune_core.evaluation.single_run.metrics import Evaluation
from finetune_core.models.network import Network
from finetune_core.models.timm_networks import portable_name
from finetune_core.models.weights import PRETRAINED, RANDOM
from finetune_core.runs.store import Run, summarize_run
from finetune_core.training.checkpoints.files import BEST, read_info
from finetune_core.training.devices.device import choose_device


@dataclass(frozen=True)
class Source:
    """A run that can be exported.

    Attributes:
        run: the run.
        network: the network with the weights of the best epoch, float32, on the CPU, in eval mode.
        classes: names of the classes, in the order of the logits.
        epoch: the best epoch.
        evaluation: evaluation on test images, or on validation images if there are no test images,
            from the run's predictions.
        roots: the only directories whose images may be read. Empty means all.
    """

    run: Run
    network: Network
    classes: tuple[str, ...]
    epoch: int
    evaluation: Evaluation
    roots: tuple[Path, ...] = ()

    @property
    def networks(self) -> tuple[Network, ...]:
        """The networks of an ensemble. Otherwise the one network."""
        return self.network.members or (self.network,)

    @property
    def backbones(self) -> str:
        """Names of the networks' backbones, without local paths, each once."""
        return ", ".join(
            dict.fromkeys(portable_name(network.info.name) for network in self.networks)
        )

    @property
    def image_size(self) -> int:
        """Side of the input images, in pixels."""
        return self.run.config.image_size

    @property
    def first_weights(self) -> str:
        """The weights at the start of the first run: ``pretrained``, ``none`` or ``file``.

        Earlier runs that this run started from are followed back. For an ensemble, the first of
        file, pretrained, none that holds for one of its networks.
        """
        lineage = (self.run.history.started or {}).get("lineage")
        # Unknown for an ensemble whose runs started differently.
        first = str(lineage[-1]["weights"]) if lineage else "file"
        if self.network.members and self.run.history.averaged:
            kinds = {
                first if one["weights"] == "run" else one["weights"]
                for one in self.run.history.averaged["parents"]
            }
            return next(kind for kind in ("file", PRETRAINED, RANDOM) if kind in kinds)
        if lineage:
            return first
        weights = self.run.config.initial_weights
        return weights if weights in (PRETRAINED, RANDOM) else "file"

    @property
    def data_name(self) -> str:
        """Name of the data set, without its path, which is private."""
        return get_data_name(self.run)

    @property
    def summary(self) -> dict[str, Any]:
        """The run in one flat row (see ``summarize_run``)."""
        return summarize_run(self.run)


def load_source(run: Run, roots: Sequence[Path] = ()) -> Source:
    """Load the network and the evaluation of a run to be exported.

    Args:
        run: the run.
        roots: the only directories whose images may be read. Empty means all.

    Raises:
        FinetuneError: if the run has not ended or has no finished epoch, or if the weights of its
            backbone are no longer on this machine.
    """
    if run.is_active:
        raise ExportError(
            f"The run {run.run_id} is going on. Wait until it ends, or stop it; then export it."
        )
    predictor = load_predictor(run)
    info = read_info(run.run_dir, BEST)
    choose_device("cpu", "fp32").move_module(predictor.network.model, torch.contiguous_format)
    return Source(
        run, predictor.network, predictor.classes, info.epoch, evaluation(run), tuple(roots)
    )


def get_data_name(run: Run) -> str:
    """Return the last part of the path of a run's data, without a manifest's suffix."""
    name = run.config.data.rstrip("/\\").replace("\\", "/").rpartition("/")[2]
    return name.removesuffix(".csv").removesuffix(".tsv").removesuffix(".parquet") or "data"


def _get_last_part(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def get_shareable_settings(run: Run) -> dict[str, Any]:
    """Return a run's settings as JSON values, without local paths and names of images."""
    config = run.config
    weights, earlier = (_get_last_part(path) for path in (config.weights, config.from_run or ""))
    return config.model_dump(mode="json", exclude={"edits"}) | {
        "data": get_data_name(run),
        "backbone": portable_name(config.backbone),
        "weights": weights,
        "from_run": earlier or None,
        "averaged": config.averaged
        and {
            "how": config.averaged.how,
            "runs": [_get_last_part(run) for run in config.averaged.runs],
        },
        "edits": len(config.edits),
    }

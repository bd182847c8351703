"""What every export starts from: a run's best network on the processor, and what is known of it."""

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
from finetune_core.models.timm_networks import shared_name
from finetune_core.models.weights import PRETRAINED, RANDOM
from finetune_core.runs.store import Run, summary
from finetune_core.training.checkpoints import BEST, read_info
from finetune_core.training.device import choose_device


@dataclass(frozen=True)
class Source:
    """A run that can be exported.

    Attributes:
        network: with the best epoch's weights, float32, on the processor, in eval mode.
        epoch: the best one.
        evaluation: its evaluation on test images, else on validation images, by the run's predictions.
        roots: when not empty, the only folders whose images may be read.
    """

    run: Run
    network: Network
    classes: tuple[str, ...]
    epoch: int
    evaluation: Evaluation
    roots: tuple[Path, ...] = ()

    @property
    def networks(self) -> tuple[Network, ...]:
        """Those of an ensemble; else the one."""
        return self.network.members or (self.network,)

    @property
    def backbones(self) -> str:
        """Their names, as they can be handed on, each once."""
        return ", ".join(dict.fromkeys(shared_name(network.info.name) for network in self.networks))

    @property
    def image_size(self) -> int:
        return self.run.config.image_size

    @property
    def first_weights(self) -> str:
        """What the network began with, through all runs before this one: ``pretrained``, ``none``, or ``file``; of an ensemble, the first of
        file, pretrained, none that holds for one of its networks."""
        lineage = (self.run.history.started or {}).get("lineage")
        # of an ensemble whose runs began differently: not known
        before = str(lineage[-1]["weights"]) if lineage else "file"
        if self.network.members and self.run.history.averaged:
            kinds = {
                before if one["weights"] == "run" else one["weights"]
                for one in self.run.history.averaged["parents"]
            }
            return next(kind for kind in ("file", PRETRAINED, RANDOM) if kind in kinds)
        if lineage:
            return before
        begun = self.run.config.starts_from
        return begun if begun in (PRETRAINED, RANDOM) else "file"

    @property
    def data_name(self) -> str:
        """The data set's own name: where it lies is nobody else's business."""
        return data_name(self.run)

    @property
    def summary(self) -> dict[str, Any]:
        """The run in one flat row (see ``summary``)."""
        return summary(self.run)


def load_source(run: Run, roots: Sequence[Path] = ()) -> Source:
    """Put together what a run is exported from.

    Args:
        roots: when given, images that lie elsewhere are not read.

    Raises:
        FinetuneError: when the run is going on, has no finished epoch, or its backbone's weights are not here any more.
    """
    if run.active:
        raise ExportError(
            f"The run {run.run_id} is going on. Wait until it ends, or stop it; then export it."
        )
    predictor = load_predictor(run)
    info = read_info(run.run_dir, BEST)
    choose_device("cpu", "fp32").hold(predictor.network.model, torch.contiguous_format)
    return Source(
        run, predictor.network, predictor.classes, info.epoch, evaluation(run), tuple(roots)
    )


def data_name(run: Run) -> str:
    """The last part of the path of a run's data, without a manifest's suffix."""
    name = run.config.data.rstrip("/\\").replace("\\", "/").rpartition("/")[2]
    return name.removesuffix(".csv").removesuffix(".tsv").removesuffix(".parquet") or "data"


def _last_part(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def shared_settings(run: Run) -> dict[str, Any]:
    """A run's settings without where things lie on this machine, and without the names of single images; plain JSON values."""
    config = run.config
    weights, earlier = (_last_part(path) for path in (config.weights, config.from_run or ""))
    return config.model_dump(mode="json", exclude={"edits"}) | {
        "data": data_name(run),
        "backbone": shared_name(config.backbone),
        "weights": weights,
        "from_run": earlier or None,
        "averaged": config.averaged
        and {"how": config.averaged.how, "runs": [_last_part(run) for run in config.averaged.runs]},
        "edits": len(config.edits),
    }

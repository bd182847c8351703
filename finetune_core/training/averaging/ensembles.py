"""Ensembles: runs without epochs that average the predictions of other runs.

An ensemble keeps its runs' networks. Its predictions are the mean of the probabilities that these
runs have left, so no image goes through a network.
"""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from finetune_core.config import RunConfig
from finetune_core.data.dataset import Dataset, index_dataset
from finetune_core.data.splits import TEST, TRAIN, VAL
from finetune_core.models.ensemble import mean_log_probabilities
from finetune_core.models.network import Network
from finetune_core.training.checkpoints.files import (
    BEST,
    START,
    CheckpointInfo,
    read_info,
    save_checkpoint,
)
from finetune_core.training.checkpoints.networks import (
    describe_ancestor,
    load_best_network,
    member_folders,
)
from finetune_core.training.checkpoints.parents import Parent, check_unchanged, read_members
from finetune_core.training.data_pipeline.batches import sample_keys, take_subset
from finetune_core.training.devices.device import choose_device, read_numerics
from finetune_core.training.evaluation import evaluate_table
from finetune_core.training.events import (
    Ancestor,
    CacheReport,
    CheckpointSaved,
    ClassCounts,
    Counts,
    Event,
    Lineage,
    Progress,
    RunFinished,
    RunStarted,
    WeightsAveraged,
)
from finetune_core.training.predictions import FINAL_PRECISION, remove_predictions, save_predictions
from finetune_core.training.prepare import check_config, list_finding_rows, report_progress
from finetune_core.training.strategies.stage_plan import (
    count_parameters,
    count_trainable_parameters,
    describe_strategy,
    plan_strategy,
)

_NO_CACHE = "no image goes through a network"


def create_ensemble_run(
    config: RunConfig, run_dir: Path, roots: Sequence[Path] = ()
) -> Generator[Event, None, None]:
    """Make an ensemble of the copies of its runs in its folder. If stopped, it starts again.

    Args:
        config: Settings of the ensemble.
        run_dir: The run directory of the ensemble.
        roots: When given, images outside these folders are left out.

    Raises:
        FinetuneError: If the images have changed, or a network is gone, damaged, or has not
            predicted the same images.
    """
    start_time = time.monotonic()
    check_config(config, run_dir)
    dataset = yield from report_progress(
        "index",
        index_dataset(config.data, **config.split_settings, edits=config.edits, roots=roots),
    )
    remove_predictions(run_dir)
    yield Progress("prepare", 0, 0)
    members = _Members.read(config, run_dir)
    check_unchanged(dataset, members.names, members.parents)
    yield members.make_run_started(config, dataset)
    table = members.average_predictions()
    yield WeightsAveraged(
        "ensemble",
        members.describe_ancestors(),
        time.monotonic() - start_time,
        memory_bytes=members.memory_bytes,
    )
    save_checkpoint(run_dir, BEST, {}, members.make_checkpoint_info(dataset))
    yield CheckpointSaved(BEST, 0)
    save_predictions(run_dir, table, FINAL_PRECISION)
    final = evaluate_table(table, 0.0)
    yield RunFinished(
        0,
        0,
        final.val_accuracy,
        final.val_loss,
        final.test_accuracy,
        seconds=time.monotonic() - start_time,
        evaluation_precision=FINAL_PRECISION,
    )


@dataclass(frozen=True)
class _Members:
    """The runs of an ensemble with their networks, as read from their copies in its folder.

    Attributes:
        names: Names of the runs that were copied.
    """

    names: list[str]
    parents: list[Parent]
    networks: list[Network]

    @classmethod
    def read(cls, config: RunConfig, run_dir: Path) -> "_Members":
        """Read the copies in an ensemble's folder.

        Raises:
            FinetuneError: If one is gone, damaged, or does not fit the others.
        """
        parents = read_members(member_folders(config, run_dir))
        networks = [load_best_network(parent.config, parent.folder)[0] for parent in parents]
        return cls(
            [Path(run).name for run in config.averaged.runs] if config.averaged else [],
            parents,
            networks,
        )

    @property
    def memory_bytes(self) -> int:
        states = [network.model.state_dict() for network in self.networks]
        return sum(
            tensor.numel() * tensor.element_size() for state in states for tensor in state.values()
        )

    def average_predictions(self) -> pd.DataFrame:
        """Return ``split, id, label, logits``: the logarithm of the mean probabilities."""
        tables = [parent.predictions for parent in self.parents]
        mean = mean_log_probabilities(
            np.stack([np.stack(table["logits"].tolist()) for table in tables])
        )
        return tables[0].assign(logits=list(mean.astype(np.float32)))

    def describe_ancestors(self) -> list[Ancestor]:
        """Return what is recorded of each run, under the name of the run that was copied."""
        return [
            {**describe_ancestor(one.folder, one.config, one.info), "run": name}
            for name, one in zip(self.names, self.parents, strict=True)
        ]

    def make_checkpoint_info(self, dataset: Dataset) -> CheckpointInfo:
        """Return the info of a checkpoint without tensors: the members have their own."""
        first = self.networks[0]
        return CheckpointInfo(
            0,
            self.parents[0].config.backbone,
            first.weights_hash,
            dataset.classes,
            dataset.fingerprint,
        )

    def make_run_started(self, config: RunConfig, dataset: Dataset) -> RunStarted:
        strategies = [
            plan_strategy(one.config, network.stages)
            for one, network in zip(self.parents, self.networks, strict=True)
        ]
        first_network, device = self.networks[0], choose_device("cpu", FINAL_PRECISION)
        return RunStarted(
            backbone=config.backbone,
            weights=config.initial_weights,
            weights_hash=first_network.weights_hash,
            strategy=config.strategy,
            stages=describe_strategy(strategies[0], first_network.stages),
            trainable_parameters=sum(
                count_trainable_parameters(strategy, network.stages)
                for strategy, network in zip(strategies, self.networks, strict=True)
            ),
            total_parameters=sum(
                count_parameters(strategy, network.stages)
                for strategy, network in zip(strategies, self.networks, strict=True)
            ),
            classes=list(dataset.classes),
            counts=self._count_images(dataset),
            class_counts=self._count_classes(dataset),
            fingerprint=dataset.fingerprint,
            findings=list_finding_rows(dataset),
            epochs=0,
            steps_per_epoch=0,
            device=device.kind,
            device_label=device.label,
            precision=FINAL_PRECISION,
            cache=CacheReport("off", _NO_CACHE),
            numerics=read_numerics(),
            lineage=self._common_lineage(),
            averaged="ensemble",
        )

    def _count_images(self, dataset: Dataset) -> Counts:
        """Count the used training images, and those that all networks have predicted."""
        predicted = self.parents[0].predictions["split"].value_counts()
        counts = Counts(train=len(self._find_training_rows(dataset)), val=int(predicted[VAL]))
        return {**counts, "test": int(predicted[TEST])} if TEST in predicted else counts

    def _count_classes(self, dataset: Dataset) -> ClassCounts:
        predicted = self.parents[0].predictions
        labels = {split: some.to_numpy() for split, some in predicted.groupby("split")["label"]}
        labels[TRAIN] = dataset.table["label"].to_numpy()[self._find_training_rows(dataset)]
        classes = len(dataset.classes)
        return {
            str(split): np.bincount(some, minlength=classes).tolist()
            for split, some in labels.items()
        }

    def _find_training_rows(self, dataset: Dataset) -> np.ndarray:
        """Return the rows of the training images that at least one of the networks used."""
        table = dataset.table
        training, keys = np.flatnonzero(table["split"] == TRAIN), sample_keys(table["id"])
        used = [
            take_subset(
                training,
                table["label"].to_numpy(),
                keys,
                one.config.train_fraction,
                one.config.seed,
            )
            for one in self.parents
        ]
        return np.unique(np.concatenate(used))

    def _common_lineage(self) -> Lineage:
        """Return the runs before the members, where these are the same for all of them."""
        first, *others = [
            read_info(one.folder, START).lineage if one.config.earlier_run else []
            for one in self.parents
        ]
        return first if all(other == first for other in others) else []

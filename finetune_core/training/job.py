"""A run that is ready to start: what the loop needs, and the inputs of each step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import nn
from torchvision.transforms.v2 import CutMix, MixUp, RandomChoice

from finetune_core.config import RunConfig
from finetune_core.data.dataset import Dataset
from finetune_core.data.splits import TRAIN
from finetune_core.models.network import Network
from finetune_core.training.checkpoints.files import changing_tensors
from finetune_core.training.data_pipeline.batches import (
    TOO_LARGE_A_BATCH,
    make_balanced_batches,
    make_epoch_batches,
    split_batches,
)
from finetune_core.training.data_pipeline.feeding import forward_batch_size, load_batches
from finetune_core.training.data_pipeline.training_images import TrainingImages
from finetune_core.training.data_pipeline.trunk import CachedTrunk
from finetune_core.training.devices.device import Device
from finetune_core.training.devices.out_of_memory import explain_out_of_memory
from finetune_core.training.devices.ranks import ALONE, Ranks
from finetune_core.training.events import CacheReport, Lineage
from finetune_core.training.step.compute import StepRule
from finetune_core.training.strategies.catalogue import count_epochs
from finetune_core.training.strategies.lora import LowRank, make_low_rank
from finetune_core.training.strategies.stage_plan import Strategy, list_trained_parameters
from finetune_core.transfers import copy_to_device

Inputs = Iterator[tuple[np.ndarray, torch.Tensor]]


@dataclass(frozen=True)
class Job:
    """Everything the training loop needs.

    Attributes:
        keys: uint64, one per row of the data set's table, from its sample id.
        labels: int64, one per row.
        rows: Row numbers of the readable images, by split.
        source: The images, where the whole network runs in every step. Otherwise the cached output
            of its trunk.
        report: Use of the cache, or why there is none.
        decode_seconds: Time spent on reading images that no run had read before.
        decoded: How many images these were.
        lineage: As in RunStarted.
        head_kept: As in RunStarted.
        ranks: The processes that train the run together.
    """

    config: RunConfig
    dataset: Dataset
    network: Network
    strategy: Strategy
    device: Device
    keys: np.ndarray
    labels: np.ndarray
    rows: dict[str, np.ndarray]
    source: TrainingImages | CachedTrunk
    report: CacheReport
    decode_seconds: float
    decoded: int
    lineage: Lineage = field(default_factory=list)
    head_kept: bool = False
    ranks: Ranks = ALONE

    @property
    def forward(self) -> nn.Module:
        """The module that a step runs: the network, or its tail."""
        return self.source.tail if isinstance(self.source, CachedTrunk) else self.network.model

    @cached_property
    def low_rank(self) -> LowRank:
        """Factors that train in place of weights, once the network is on its device."""
        return make_low_rank(self.network, self.strategy, self.config.seed)

    def changing_tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors that training may change, by name: those in use, not copies."""
        return changing_tensors(
            self.network.model, self.network.stages, self.strategy, self.low_rank
        )

    def get_targets(self, rows: np.ndarray) -> torch.Tensor:
        """Return the labels of the rows, int64 ``[n]``, on the device."""
        return self._device_labels.index_select(
            0, copy_to_device(torch.from_numpy(rows), self._device_labels.device)
        )

    @cached_property
    def _device_labels(self) -> torch.Tensor:
        return torch.tensor(self.labels, device=self.device.torch_device)

    def training_batches(self, epoch: int) -> list[np.ndarray]:
        """Return the row numbers of each batch of an epoch, which is counted from 1."""
        rows, config = self.rows[TRAIN], self.config
        if config.sampling == "balanced":
            return make_balanced_batches(
                rows, self.labels, self.keys, config.batch_size, config.seed, epoch
            )
        return make_epoch_batches(rows, self.keys, config.batch_size, config.seed, epoch)

    def training_inputs(self, batches: list[np.ndarray], epoch: int) -> Inputs:
        """Yield the inputs of this rank's share of each batch.

        Rows whose image is lost are left out. The last ``num_partners`` rows do not belong to the
        share.

        Yields:
            Row numbers, and the input of ``forward`` on the device.
        """
        views = self.report.views
        version = (epoch - 1) % views if views else epoch - 1
        return self._on_device(batches, lambda batch: self._load_share(batch, version), version)

    def num_partners(self, batch: np.ndarray) -> int:
        """Return how many images beside its share of a batch a rank needs, if it has a share.

        Mixing blends each image with the one before it.
        """
        share = self.ranks.batch_slice(len(batch))
        return int(
            bool(self.config.mixup or self.config.cutmix) and share.stop - share.start < len(batch)
        )

    def _load_share(self, batch: np.ndarray, version: int) -> tuple[np.ndarray, torch.Tensor]:
        share = self.ranks.batch_slice(len(batch))
        own, loaded = self._load_trainable(batch[share], version)
        if not (len(own) and self.num_partners(batch)):
            return own, loaded
        for previous in np.roll(batch, -share.start)[::-1]:
            partner, image = self.source.load_readable(previous[None], version)
            if len(partner):
                break
        return np.concatenate([own, partner]), torch.cat([loaded, image])

    def _load_trainable(
        self, rows: np.ndarray, version: int | None
    ) -> tuple[np.ndarray, torch.Tensor]:
        """Return the readable rows and what is sent to the device for them.

        A single image that is left of several is dropped: BatchNorm cannot train on it.
        """
        left, loaded = self.source.load_readable(rows, version)
        if len(left) == 1 < len(rows):
            return left[:0], loaded[:0]
        return left, loaded

    def evaluation_inputs(self, split: str) -> Inputs:
        """Yield the inputs of this rank's batches of a split, in the table's order, not augmented.

        Ranks take turns batch by batch. So each batch is computed as by a single rank, to the last
        bit.

        Yields:
            Row numbers, and the input of ``forward`` on the device.
        """
        batches = split_batches(self.rows[split], self.evaluation_batch)
        return self._on_device(
            batches[self.ranks.rank :: self.ranks.world_size],
            lambda rows: self.source.load_readable(rows, None),
            None,
        )

    def plain_training_inputs(self) -> Inputs:
        """Return the batches of the first epoch without augmentation, to recompute statistics on.

        Only a run without epochs has them: others may have cached augmented versions only.
        """
        batches = self.training_batches(1)
        return self._on_device(batches, lambda rows: self._load_trainable(rows, None), None)

    @property
    def evaluation_batch(self) -> int:
        """Number of images that are evaluated at a time."""
        if self.config.micro_batch or not count_epochs(self.config):
            return self.config.micro_batch or forward_batch_size(self.device)
        return max(forward_batch_size(self.device), self.config.batch_size)

    @property
    def lost(self) -> dict[int, str]:
        """Reasons why images can no longer be read, by row."""
        return dict(self.source.pixels.lost) if isinstance(self.source, TrainingImages) else {}

    def _on_device(
        self,
        batches: list[np.ndarray],
        load: Callable[[np.ndarray], tuple[np.ndarray, torch.Tensor]],
        version: int | None,
    ) -> Inputs:
        for rows, loaded in load_batches(load, batches, self.device):
            with explain_out_of_memory(TOO_LARGE_A_BATCH):
                inputs = self.device.move_inputs(self.source.finish(loaded, rows, version))
            yield rows, inputs


def make_step_rule(job: Job) -> StepRule:
    """Return the options that the config sets for each step, on the job's device."""
    config, network = job.config, job.network
    weights = None
    if config.class_weights == "balanced":
        counts = np.bincount(job.labels[job.rows[TRAIN]], minlength=len(job.dataset.classes))
        balanced = counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
        weights = torch.tensor(balanced, dtype=torch.float32, device=job.device.torch_device)
    parameters_and_starts = []
    if config.l2_sp:
        parameters, start = dict(network.model.named_parameters()), network.pretrained.state_dict()
        # The head is usually new: it has no pretrained weights to be pulled to.
        for stage, plan in zip(network.stages[:-1], job.strategy[:-1], strict=True):
            for name in list_trained_parameters(plan, stage):
                parameters_and_starts.append(
                    (parameters[name], start[name].to(job.device.torch_device))
                )
    l2_sp = (config.l2_sp, tuple(parameters_and_starts))
    return StepRule(
        config.label_smoothing,
        weights,
        config.clip_norm,
        config.micro_batch,
        l2_sp,
        _make_mixer(job),
        job.low_rank,
    )


def _make_mixer(
    job: Job,
) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None:
    """Return Mixup, CutMix, or a random choice of the two for each batch.

    torch's random state decides how images are mixed.
    """
    config, classes = job.config, len(job.dataset.classes)
    transforms = [
        transform(alpha=alpha, num_classes=classes)
        for transform, alpha in ((MixUp, config.mixup), (CutMix, config.cutmix))
        if alpha
    ]
    return RandomChoice(transforms) if transforms else None

"""Preparation of a run, from its config to everything the loop needs.

Data are decoded, the network is built, the strategy is planned and the device is chosen.
"""

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from finetune_core.config import RunConfig, config_bytes
from finetune_core.data.dataset import Dataset, index_dataset
from finetune_core.data.listing import check_data
from finetune_core.data.pixels import Pixels, decode_pixels
from finetune_core.data.rowcache import Lookup
from finetune_core.data.splits import SPLITS, TEST, TRAIN, VAL
from finetune_core.errors import ConfigError, DataError, FinetuneError, TrainingError
from finetune_core.files import is_file
from finetune_core.models.catalogue import BackboneInfo, backbone_info
from finetune_core.models.network import Network, check_image_size, has_linear_head
from finetune_core.models.partition import Segments, SplitError
from finetune_core.models.weights import PRETRAINED, RANDOM, download
from finetune_core.training.checkpoints.networks import (
    InitialNetwork,
    build_initial_network,
    check_earlier_run,
)
from finetune_core.training.checkpoints.parents import read_parents
from finetune_core.training.data_pipeline.batches import sample_keys, take_subset
from finetune_core.training.data_pipeline.feeding import forward_batch_size
from finetune_core.training.data_pipeline.gather import find_cached_nowhere, gather_rows
from finetune_core.training.data_pipeline.placement import measure_row_budget, place_lookups
from finetune_core.training.data_pipeline.training_images import TrainingImages
from finetune_core.training.data_pipeline.trunk import (
    CachedTrunk,
    TrunkTables,
    choose_num_views,
    fill_trunk,
    find_missing,
    find_uncached,
    make_trunk_compiler,
    split_network,
    why_eager,
    why_uncached,
)
from finetune_core.training.devices.device import Device, choose_device, device_for_run
from finetune_core.training.devices.memory import reset_peak_memory
from finetune_core.training.devices.ranks import ALONE, Ranks, check_gpus
from finetune_core.training.events import CacheReport, Event, FindingRow, ImagesSkipped, Progress
from finetune_core.training.job import Job
from finetune_core.training.step.compute import place_network
from finetune_core.training.strategies.catalogue import count_epochs, has_fitted_initial_head
from finetune_core.training.strategies.stage_plan import (
    Strategy,
    cut_index,
    list_stages,
    plan_strategy,
)
from finetune_core.work import Work, with_phase

EVENT_SECONDS = 0.2  # no one needs progress more often
_EXAMPLES = 20

Value = TypeVar("Value")


def check_config(config: RunConfig, run_dir: Path | None = None, *, remote: bool = False) -> None:
    """Check everything that can be checked before any work is done.

    Args:
        config: Settings of the run.
        run_dir: Folder of an existing run, which keeps a copy of what it starts from.
        remote: The run may train on another machine, so its device need not exist here.

    Raises:
        ConfigError: If anything is wrong. It names all problems at once.
    """
    problems: dict[str, str] = {}

    def check_field(field: str, check: Callable[..., object], *arguments: object) -> None:
        try:
            check(*arguments)
        except ConfigError as error:
            problems.update(error.problems)
        except FinetuneError as error:
            problems[field] = str(error)

    check_field("data", check_data, config.data)
    check_field("edits", config_bytes, config)
    if not remote:
        check_field("device", choose_device, config.device, config.precision)
    check_field("backbone", backbone_info, config.backbone)
    if "backbone" not in problems:
        check_field("strategy", lambda: plan_strategy(config, list_stages(config)))
        check_field("image_size", check_image_size, config.backbone, config.image_size)
    if not {"backbone", "image_size"} & problems.keys():
        check_field("initial_head", _check_initial_head, config)
    if config.averaged and run_dir is None:
        check_field("averaged", read_parents, config.averaged)
    if config.earlier_run:
        if run_dir is None and not config.averaged:
            check_field("from_run", check_earlier_run, config)
    elif config.initial_weights not in (PRETRAINED, RANDOM) and not is_file(config.weights):
        problems["weights"] = f"there is no file {config.weights}"
    if problems:
        raise ConfigError(problems)


def _check_initial_head(config: RunConfig) -> None:
    """Check that a fitted initial head can replace the network's head.

    Raises:
        ConfigError: If the network's head is not linear.
    """
    fits = count_epochs(config) and has_fitted_initial_head(config)
    if fits and not has_linear_head(config.backbone, config.image_size):
        raise ConfigError(
            {
                "initial_head": f"the head of {config.backbone} is not one linear layer, so no "
                "linear probe can be put in its place: choose random"
            }
        )


def check_devices(config: RunConfig, devices: int, *, remote: bool = False) -> None:
    """Check that a run can train on that many devices of one machine.

    Args:
        config: Settings of the run.
        devices: Number of devices.
        remote: As for ``check_config``.

    Raises:
        ConfigError: If the run has no steps to share, or this machine lacks the devices.
    """
    check_shared(config, devices, remote=remote)
    if not remote:
        check_gpus(devices)


def check_shared(config: RunConfig, ranks: int, *, remote: bool = False) -> None:
    """Check that a run can be shared by that many ranks, on any machines.

    Args:
        config: Settings of the run.
        ranks: Number of ranks. A single rank can always train.
        remote: As for ``check_config``.

    Raises:
        ConfigError: If the run has no steps to share, or this machine's device cannot share them.
    """
    if ranks == 1:
        return
    if not count_epochs(config):
        raise ConfigError(
            {
                "devices": "this run takes no steps that devices could share: what it computes of "
                "frozen features is too little to be distributed. Train it on one device"
            }
        )
    if not remote and choose_device(config.device, config.precision).kind == "mps":
        raise ConfigError(
            {
                "devices": "an Apple GPU is the only one of its machine: train on one device, or "
                "with --device cpu"
            }
        )


def list_missing_weights(configs: Iterable[RunConfig]) -> list[BackboneInfo]:
    """Return the backbones whose pretrained weights these runs need and this machine lacks."""
    names = dict.fromkeys(
        config.backbone for config in configs if config.initial_weights == PRETRAINED
    )
    return [info for info in map(backbone_info, names) if not info.is_ready]


def fetch_weights(missing: Sequence[BackboneInfo]) -> Work[None]:
    """Download pretrained weights.

    Yields:
        Steps that count bytes, one backbone after the other.

    Raises:
        WeightsError: If there is no network, or the download differs from what was published.
    """
    for info in missing:
        yield from with_phase("download", download(info))


def check_classes(dataset: Dataset) -> None:
    """Check that at least two classes have training images.

    Raises:
        DataError: If fewer than two have.
    """
    classes = dataset.table.loc[dataset.table["split"] == TRAIN, "class"].unique()
    if len(classes) < 2:
        name = f": “{classes[0]}”" if len(classes) else ""
        raise DataError(
            f"There is only one class with training images{name}. A classifier needs at least two: "
            "put the images of each class into a folder of its own, or relabel some of them."
        )


def prepare(
    config: RunConfig, roots: Sequence[Path] = (), run_dir: Path | None = None, ranks: Ranks = ALONE
) -> Generator[Event, None, Job]:
    """Prepare a run up to its first step and report the progress.

    Args:
        config: Settings of the run.
        roots: When given, images outside these folders are left out.
        run_dir: The run directory, if the run has one.
        ranks: The processes that prepare the same run. Each decodes its share of the images.

    Raises:
        FinetuneError: If the data, the weights or a setting cannot be used.
    """
    check_config(config, run_dir)
    check_shared(config, ranks.world_size)
    indexing = index_dataset(config.data, **config.split_settings, edits=config.edits, roots=roots)
    dataset = yield from _run_local_main_first(ranks, report_progress("index", indexing))
    check_classes(dataset)
    if dataset.unreadable:
        yield _make_images_skipped(dataset.unreadable)
    yield from _run_local_main_first(ranks, _download_weights(config))
    device = device_for_run(config)
    beginning = build_initial_network(config, dataset.classes, run_dir)
    network = beginning.network
    _check_equal(ranks, dataset.fingerprint, network.weights_hash, device)
    prepared = _Prepared(
        config, dataset, beginning, plan_strategy(config, network.stages), device, ranks
    )
    place_network(network, prepared.strategy, device)
    reset_peak_memory(device)
    reason = why_uncached(config, cut_index(prepared.strategy))
    if not reason:
        try:
            return (yield from _prepare_trunk(prepared, split_network(network)))
        except SplitError as error:
            reason = str(error)
    return (yield from _prepare_images(prepared, reason))


def _download_weights(config: RunConfig) -> Generator[Event, None, None]:
    for info in list_missing_weights([config]):
        yield from report_progress("download", download(info))


def _run_local_main_first(
    ranks: Ranks, work: Generator[Event, None, Value]
) -> Generator[Event, None, Value]:
    """Run work on one rank of each machine, then on the machine's other ranks.

    The other ranks start when they can read what the first has written.
    """
    if ranks.local_rank == 0:
        result = yield from work
        ranks.all_gather(None)
        return result
    ranks.all_gather(None)
    return (yield from work)


def _check_equal(ranks: Ranks, fingerprint: str, weights_hash: str, device: Device) -> None:
    """Check that all ranks have the same images, weights, kind of device and precision.

    Raises:
        TrainingError: If they have not.
    """
    values = ranks.all_gather((fingerprint, weights_hash, device.kind, device.precision))
    for number, subject in enumerate(
        ("images, labels or splits", "pretrained weights", "kind of device", "precision")
    ):
        if len({value[number] for value in values}) > 1:
            raise TrainingError(
                f"The processes of this run do not have the same {subject}. Give all machines the "
                "same data, weights and libraries, then start it again."
            )


def make_exact_job(
    job: Job, network: Network, splits: Sequence[str]
) -> Generator[Event, None, Job]:
    """Return a job that evaluates ``network`` in fp32 on some splits of a run, from pixels.

    Where the run has a cached trunk, this job has one, too. In fp32 a cached trunk gives what the
    whole network gives (to rounding, 1e-5 of a logit), and runs with the same trunk compute it for
    these images once. Images that can no longer be read are missing in the job's ``rows``.

    Raises:
        DataError: If none of a split's images can be read.
    """
    job.device.move_module(network.model)
    if isinstance(job.source, TrainingImages):
        return replace(
            job,
            network=network,
            device=job.device.exact,
            source=replace(job.source, device=job.device.exact),
        )
    segments, cut = split_network(network), cut_index(job.strategy)
    # In fp32 the run's cached rows are exact already.
    if job.device.precision == "fp32":
        return replace(
            job, network=network, source=replace(job.source, tail=segments.part(cut, None))
        )
    used = np.concatenate(list(job.rows.values()))
    unused = frozenset(np.setdiff1d(np.arange(len(job.dataset.table)), used).tolist())
    beginning, exact = InitialNetwork(network), job.device.exact
    prepared = _Prepared(
        job.config, job.dataset, beginning, job.strategy, exact, job.ranks, tuple(splits), unused
    )
    return (yield from _prepare_trunk(prepared, segments))


@dataclass(frozen=True)
class _Prepared:
    """The parts of a job that are known before its images are decoded.

    Attributes:
        splits: Splits whose images are needed.
        unused: Rows to leave out from the start.
    """

    config: RunConfig
    dataset: Dataset
    beginning: InitialNetwork
    strategy: Strategy
    device: Device
    ranks: Ranks
    splits: tuple[str, ...] = SPLITS
    unused: frozenset[int] = frozenset()

    @property
    def network(self) -> Network:
        return self.beginning.network

    @cached_property
    def content(self) -> np.ndarray:
        return self.dataset.table["content"].to_numpy(np.uint64)

    @cached_property
    def keys(self) -> np.ndarray:
        return sample_keys(self.dataset.table["id"])

    @cached_property
    def labels(self) -> np.ndarray:
        return self.dataset.table["label"].to_numpy()

    def images(self, pixels: Pixels) -> TrainingImages:
        return TrainingImages(pixels, self.device, self.config, self.network.info, self.keys)

    def rows(self, failed: dict[int, str]) -> dict[str, np.ndarray]:
        """Return the rows of the readable images by split.

        Raises:
            DataError: If no image is left to train on or to validate with.
        """
        split = self.dataset.table["split"].to_numpy()
        usable = ~np.isin(np.arange(len(split)), [*failed, *self.unused])
        rows = {name: np.flatnonzero(usable & (split == name)) for name in self.splits}
        if TRAIN in rows:
            rows[TRAIN] = take_subset(
                rows[TRAIN], self.labels, self.keys, self.config.train_fraction, self.config.seed
            )
        for name in {TRAIN, VAL} & rows.keys():
            if not len(rows[name]):
                raise DataError(f"None of the {name} images in {self.config.data} can be decoded.")
        return rows

    def job(
        self,
        rows: dict[str, np.ndarray],
        source: TrainingImages | CachedTrunk,
        report: CacheReport,
        decode_seconds: float,
        decoded: int,
    ) -> Job:
        used, device = np.unique(np.concatenate(list(rows.values()))), self.device
        source = source.with_lookups(
            place_lookups(source.lookups, used, device.torch_device, measure_row_budget(device))
        )
        return Job(
            self.config,
            self.dataset,
            self.network,
            self.strategy,
            self.device,
            self.keys,
            self.labels,
            rows,
            source,
            report,
            decode_seconds,
            decoded,
            self.beginning.start.info.lineage if self.beginning.start else [],
            self.beginning.head_kept,
            self.ranks,
        )


def _prepare_images(prepared: _Prepared, reason: str) -> Generator[Event, None, Job]:
    """Prepare a job that runs the whole network in every step."""
    start_time = time.monotonic()
    rows = np.sort(np.concatenate(list(prepared.rows({}).values())))
    pixels = yield from _decode(prepared, rows)
    seconds = time.monotonic() - start_time
    views = choose_num_views(prepared.config, cut_index(prepared.strategy)) or 0
    report = CacheReport("off", reason, views=views)
    return prepared.job(
        prepared.rows(pixels.failed), prepared.images(pixels), report, seconds, pixels.decoded
    )


def _prepare_trunk(prepared: _Prepared, segments: Segments) -> Generator[Event, None, Job]:
    """Prepare a job that runs the trunk once, and only the tail in every step.

    Raises:
        SplitError: If the network cannot be cut where this strategy cuts it.
    """
    config, cut = prepared.config, cut_index(prepared.strategy)
    tail = segments.part(cut, None)
    tables = TrunkTables(prepared.network, prepared.device, config.image_size)
    start_time = time.monotonic()
    needed = [
        _find_rows_to_decode(prepared, tables, one)
        for one in _plan_passes(prepared, prepared.rows({}))
    ]
    # Images that the best epoch is evaluated on: unreadable ones must be known now.
    if prepared.device.precision != "fp32":
        exact = TrunkTables(prepared.network, prepared.device.exact, config.image_size)
        rows = prepared.rows({})
        needed += [
            _find_rows_to_decode(prepared, exact, _Pass(rows[name], prepared.content, None, ""))
            for name in (VAL, TEST)
        ]
    pixels = yield from _decode(prepared, np.unique(np.concatenate(needed)))
    decode_seconds = time.monotonic() - start_time
    rows = prepared.rows(pixels.failed)
    images = prepared.images(pixels)
    passes = _plan_passes(prepared, rows)
    filled = yield from _compute_trunk(prepared, tables, segments, passes, images)
    if filled is None:
        reason = "the output of the frozen stages fits neither into memory nor onto the disk"
        return (yield from _prepare_images(prepared, reason))
    lookups = filled.lookups
    report = CacheReport(
        "disk" if any(lookup.where == "disk" for lookup in lookups) else "memory",
        views=len(lookups) - 1,
        rows=sum(len(one.rows) for one in passes),
        bytes=sum(
            len(one.rows) * lookup.row_bytes for one, lookup in zip(passes, lookups, strict=True)
        ),
        found=filled.found,
        trunk_seconds=filled.seconds,
        seconds_per_row=tables.seconds_per_row(cut),
        compilation=filled.compilation,
    )
    return prepared.job(
        rows,
        CachedTrunk(tail, lookups[0], tuple(lookups[1:])),
        report,
        decode_seconds,
        pixels.decoded,
    )


@dataclass(frozen=True)
class _TrunkOutput:
    """The trunk's output for every pass.

    Attributes:
        lookups: One per pass.
        found: How many rows were cached before.
        seconds: Time spent on the other rows.
        compilation: Whether the trunk was compiled for these, or why not.
    """

    lookups: list[Lookup]
    found: int
    seconds: float
    compilation: str


def _compute_trunk(
    prepared: _Prepared,
    tables: TrunkTables,
    segments: Segments,
    passes: "list[_Pass]",
    images: TrainingImages,
) -> Generator[Event, None, _TrunkOutput | None]:
    """Compute the trunk's output for every pass, or return None if a machine lacks the space."""
    cut, lookups, seconds, ranks = cut_index(prepared.strategy), [], 0.0, prepared.ranks
    shares, found = zip(*(_share_pass(prepared, tables, one) for one in passes), strict=True)
    num_missing = sum(
        len(find_missing(tables, cut, one.keys, one.rows, one.view)) for one in shares
    )
    phase = "trunk" if TRAIN in prepared.splits else "evaluate"
    with make_trunk_compiler(
        prepared.device, num_missing, why_eager(prepared.config, prepared.device)
    ) as compiler:

        def fill(one: _Pass) -> Generator[Event, None, tuple[Lookup | None, float]]:
            feed = images.feed(one.version)
            filling = fill_trunk(
                tables, segments, cut, one.keys, one.rows, feed, compiler, one.view
            )
            return (yield from report_progress(phase, filling))

        for one, share in zip(passes, shares, strict=True):
            lookup, elapsed = yield from fill(share)
            # The other ranks' rows are on their machines' disks now.
            if ranks.is_distributed and all(ranks.all_gather(lookup is not None)):
                start_time = time.monotonic()
                has_space = yield from report_progress(
                    "gather", gather_rows(ranks, tables.get_name(cut, one.view), one.keys[one.rows])
                )
                elapsed += time.monotonic() - start_time
                lookup = (yield from fill(one))[0] if has_space else None
            if not all(ranks.all_gather(lookup is not None)) or lookup is None:
                return None
            lookups.append(lookup)
            seconds += elapsed
    return _TrunkOutput(lookups, sum(found), seconds, compiler.report)


@dataclass(frozen=True)
class _Pass:
    """One pass of images through the trunk.

    Attributes:
        rows: Rows of the images.
        keys: Keys of all rows in the cache.
        version: The augmented version, or None without augmentation.
        view: Name of that version in the cache.
    """

    rows: np.ndarray
    keys: np.ndarray
    version: int | None
    view: str


def _find_rows_to_decode(prepared: _Prepared, tables: TrunkTables, one: _Pass) -> np.ndarray:
    """Return the rows of a pass whose pixels this machine needs.

    These are its share of the rows that no machine has cached.
    """
    cut, ranks = cut_index(prepared.strategy), prepared.ranks
    new = one.rows[
        find_cached_nowhere(ranks, tables.find_missing(cut, one.keys[one.rows], one.view))
    ]
    return find_uncached(
        tables,
        cut,
        one.keys,
        ranks.machine_rows(new, forward_batch_size(prepared.device)),
        one.view,
    )


def _share_pass(prepared: _Prepared, tables: TrunkTables, one: _Pass) -> tuple[_Pass, int]:
    """Return this rank's part of a pass, and how many rows any machine has cached.

    Rows that another rank computes, or that come from another machine, are left out.
    """
    missing = tables.find_missing(cut_index(prepared.strategy), one.keys[one.rows], one.view)
    new = one.rows[find_cached_nowhere(prepared.ranks, missing)]
    own_rows = prepared.ranks.rank_rows(new, forward_batch_size(prepared.device))
    return replace(one, rows=one.rows[~missing | np.isin(one.rows, own_rows)]), len(one.rows) - len(
        new
    )


def _plan_passes(prepared: _Prepared, rows: dict[str, np.ndarray]) -> list[_Pass]:
    config = prepared.config
    # Test images are used once, in fp32: see ``make_exact_job``.
    if prepared.device.precision != "fp32":
        rows = {name: found for name, found in rows.items() if name != TEST}
    views = choose_num_views(config, cut_index(prepared.strategy))
    if views is None or TRAIN not in rows:
        return [_Pass(np.sort(np.concatenate(list(rows.values()))), prepared.content, None, "")]
    # A head is fitted to images without augmentation.
    fits = has_fitted_initial_head(config, head_kept=prepared.beginning.head_kept)
    kept = np.sort(np.concatenate([found for name, found in rows.items() if fits or name != TRAIN]))
    # An augmented version also depends on the sample's id, and so does its key.
    with np.errstate(over="ignore"):
        keys = prepared.content * np.uint64(0x9E3779B97F4A7C15) + prepared.keys
    augmented = [
        _Pass(rows[TRAIN], keys, version, f"{config.augmentation}-{config.seed}-{version}")
        for version in range(views)
    ]
    return [_Pass(kept, prepared.content, None, ""), *augmented]


def _decode(prepared: _Prepared, wanted: np.ndarray) -> Generator[Event, None, Pixels]:
    resize = prepared.network.info.get_resize(prepared.config.image_size)
    ranks = prepared.ranks

    def decode_rows(rows: np.ndarray) -> Generator[Event, None, Pixels]:
        work = decode_pixels(
            prepared.dataset.get_paths(prepared.dataset.table),
            prepared.content,
            rows,
            resize,
        )
        return (yield from report_progress("decode", work))

    pixels = yield from decode_rows(ranks.local_rows(wanted, forward_batch_size(prepared.device)))
    if ranks.is_distributed:
        gathered = ranks.all_gather((pixels.failed, pixels.decoded, pixels.kept is not None))
        failed = {row: reason for each, _, _ in gathered for row, reason in each.items()}
        # Images that the other ranks have decoded are on the disk now.
        if all(kept for _, _, kept in gathered):
            pixels = yield from decode_rows(np.setdiff1d(wanted, list(failed)))
        kept = all(ranks.all_gather(pixels.kept is not None))
        count = sum(count for _, count, _ in gathered[: ranks.local_world_size])
        pixels = replace(pixels, kept=pixels.kept if kept else None, failed=failed, decoded=count)
    # Later in a run such images are lost, not skipped.
    if pixels.failed and TRAIN in prepared.splits:
        yield _make_images_skipped([*prepared.dataset.unreadable, *pixels.failed.values()])
    return pixels


def list_finding_rows(dataset: Dataset) -> list[FindingRow]:
    """Return the findings of a data set as a run records them."""
    return [
        {
            "kind": finding.kind,
            "severity": finding.severity,
            "count": finding.count,
            "message": finding.message,
        }
        for finding in dataset.findings
    ]


def _make_images_skipped(reasons: Sequence[str]) -> ImagesSkipped:
    return ImagesSkipped(len(reasons), list(reasons[:_EXAMPLES]))


def report_progress(phase: str, work: Work[Value]) -> Generator[Event, None, Value]:
    """Turn the steps of some work into events, not too many, and return its result.

    Args:
        phase: Phase of steps that name none. Steps of the frozen stages name a stage as their
            subject.
        work: The work. It is closed at the end.
    """
    last_time, last_phase = 0.0, ""
    try:
        while True:
            try:
                done, total, step_phase, stage = next(work)
            except StopIteration as finished:
                result: Value = finished.value
                return result
            if (
                done == total
                or step_phase != last_phase
                or time.monotonic() - last_time >= EVENT_SECONDS
            ):
                last_time, last_phase = time.monotonic(), step_phase
                yield Progress(step_phase or phase, done, total or 0, stage)
    finally:
        work.close()

"""A run's best network asked about all images of another data set with the same classes, once for each data set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from finetune_core.data.checks import some
from finetune_core.data.closeness import gray_squares
from finetune_core.data.dataset import assemble, fingerprint_of, look_through
from finetune_core.data.duplicates import near_sets
from finetune_core.data.edits import apply_edits, load_edits
from finetune_core.data.pixels import Pixels, decode_pixels
from finetune_core.data.same_classes import SameClasses, same_classes
from finetune_core.data.sources import check_roots, readable_data
from finetune_core.data.splits import SHIFTED, TRAIN, VAL
from finetune_core.errors import DataError, FinetuneError
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.single_run.shift_files import Copies, Shift, lacking_shift, save_shift
from finetune_core.runs.store import Run
from finetune_core.training.answers import answers
from finetune_core.training.device import Device
from finetune_core.training.device_turn import on_idle_device
from finetune_core.training.evaluation import logits_of
from finetune_core.training.predictions import FINAL_PRECISION, prediction_table, predictions_changed
from finetune_core.work import Work, in_phase, with_subject


@dataclass(frozen=True)
class _OtherData:
    """Another data set, all of whose images are to be predicted, whatever their split.

    Attributes:
        table: one row per readable image: ``id, class, split, content, thumb``, by id.
        unreadable: how many files could not be read.
    """

    data: str
    root: Path
    table: pd.DataFrame
    unreadable: int

    @property
    def paths(self) -> list[Path]:
        return [self.root / sample for sample in self.table["id"]]


def predict_shifted(runs: Sequence[Run], data: str, roots: Sequence[Path] = ()) -> Work[str]:
    """Have runs predict another data set, on the GPU where nothing uses it, and keep the answers in their folders. Those that have
    predicted it as it is now are not asked again.

    Args:
        data: as a person names it (``resolve_data``); changes made to it on the Dataset page count.
        roots: when given, what lies elsewhere is refused, and images that do are left out.

    Yields:
        Steps of the phases ``unpack``, ``index``, ``copies``, ``decode`` and ``evaluate``; of several runs, each with the run as the
        subject.

    Returns:
        The data set's fingerprint.

    Raises:
        DataError: when it cannot be read, has none of a run's classes, or nothing but copies of training images.
        FinetuneError: when a run has no network or no predictions, or cannot be written to.
    """
    other = yield from _looked_at(data, roots)
    fingerprint = fingerprint_of(other.table)
    known: dict[str, _Known] = {}
    for run in lacking_shift(runs, fingerprint):
        work = _kept(run, other, fingerprint, known, roots)
        yield from (with_subject(run.run_id, work) if len(runs) > 1 else work)
    return fingerprint


def _looked_at(data: str, roots: Sequence[Path]) -> Work[_OtherData]:
    folder = yield from in_phase("unpack", readable_data(data, roots))
    seen = yield from in_phase("index", look_through(folder, roots))
    readable = seen.rows["problem"] == ""
    table = apply_edits(seen.rows[readable], load_edits(folder)).assign(split=SHIFTED)
    if table.empty:
        raise DataError(f"None of the images in {folder} can be read, or all of them are excluded.")
    table = table[["id", "class", "split", "content", "thumb"]].sort_values("id", ignore_index=True)
    return _OtherData(folder, seen.listing.root, table, int((~readable).sum()))


@dataclass(frozen=True)
class _Known:
    """What a run's own images say of another data set's.

    Attributes:
        left_out: bool ``[n]``: exact copies of training images. near, validation: of images that are not.
    """

    left_out: np.ndarray
    near: np.ndarray
    validation: np.ndarray
    problem: str = ""
    looked: bool = True

    def copies(self, used: np.ndarray) -> Copies:
        """Of the images that a run's classes leave (bool ``[n]``)."""
        if not self.looked:
            return Copies(None, None, None, self.problem)
        training, near, validation = (int((one & used).sum()) for one in (self.left_out, self.near, self.validation))
        return Copies(training, near, validation, self.problem)


def _kept(run: Run, other: _OtherData, fingerprint: str, known: dict[str, _Known], roots: Sequence[Path]) -> Work[None]:
    """Predict for one run, and keep it.

    Args:
        known: by data set and split, what was found before: runs that are compared have the same images.
    """
    classes = run.started["classes"]
    matched = same_classes(classes, other.table["class"].unique())
    if not matched.labels:
        raise DataError(
            f"{other.data} has none of the classes of {run.run_id} ({some(classes)}): its own are {some(matched.unknown)}. "
            "Rename its folders, or rename its classes on the Dataset page."
        )
    key = str((run.config.data, run.config.split_settings, run.config.edits))
    if key not in known:
        known[key] = yield from _known(run, other, roots)
    of_class = other.table["class"].isin(list(matched.labels)).to_numpy()
    rows = np.flatnonzero(of_class & ~known[key].left_out)
    if not len(rows):
        raise DataError(
            f"Every image of {other.data} that has a class of {run.run_id} is an exact copy of one of its training images: "
            "there is nothing to evaluate on."
        )
    shift = _shift(run, other, fingerprint, matched, known[key].copies(of_class))
    yield from on_idle_device(partial(_predicted, run, other, rows, matched, shift), FINAL_PRECISION)


def _shift(run: Run, other: _OtherData, fingerprint: str, matched: SameClasses, copies: Copies) -> Shift:
    counts = other.table["class"].value_counts()
    return Shift(
        other.data,
        fingerprint,
        predictions_changed(run.run_dir),  # before the network is read: one that is trained on meanwhile is another one
        list(run.started["classes"]),
        matched.respelled,
        {name: int(counts[name]) for name in matched.unknown},
        other.unreadable,
        copies,
    )


def _predicted(run: Run, other: _OtherData, rows: np.ndarray, matched: SameClasses, shift: Shift, device: Device) -> Work[None]:
    predictor = load_predictor(run, device)
    info = predictor.network.info
    keys = other.table["content"].to_numpy(np.uint64)
    decoding = decode_pixels(other.paths, keys, rows, info.stored_side(predictor.image_size), info.interpolation)
    pixels: Pixels = yield from in_phase("decode", decoding)
    rows = np.setdiff1d(rows, list(pixels.failed))
    if not len(rows):
        raise DataError(f"None of the images in {other.data} can be decoded.")

    def answer(inputs: torch.Tensor) -> np.ndarray:
        return logits_of(predictor.network.model, inputs, predictor.device)

    logits = yield from answers(pixels, rows, info, predictor.image_size, answer, "evaluate")
    table = other.table.iloc[rows]
    labels = table["class"].map(matched.labels).to_numpy(np.int64)
    save_shift(
        run,
        replace(shift, unreadable=shift.unreadable + len(pixels.failed)),
        prediction_table(table["id"], SHIFTED, labels, logits),
    )


def _known(run: Run, other: _OtherData, roots: Sequence[Path]) -> Work[_Known]:
    """Look for copies of the run's images; where those cannot be looked at, that is said, and nothing is left out.

    All images of the training split count, also those that a run on a share of them did not see: runs that are compared then leave
    out the same.
    """
    config, none = run.config, np.zeros(len(other.table), dtype=bool)
    try:
        if roots:
            check_roots(config.data, roots)
        seen = yield from in_phase("index", look_through(config.data, roots))
        own = assemble(config.data, seen, **config.split_settings, edits=config.edits)
    except FinetuneError as error:
        return _Known(none, none, none, f"Copies of training images were not looked for: {error}", looked=False)
    table = own.table.merge(seen.rows[["id", "thumb"]], on="id")
    training = table[table["split"] == TRAIN]
    content = other.table["content"]
    exact = content.isin(training["content"]).to_numpy()
    near = yield from in_phase("copies", _near(training, own.root, other))
    validation = content.isin(table.loc[table["split"] == VAL, "content"]).to_numpy()
    unchanged = own.fingerprint == run.started["fingerprint"]
    problem = (
        "" if unchanged else "The run's own images have changed since: copies of the training images of now were looked for."
    )
    return _Known(exact, near & ~exact, validation & ~exact, problem)


def _near(training: pd.DataFrame, root: Path, other: _OtherData) -> Work[np.ndarray]:
    """Bool ``[n]``: which of the other images are, or nearly are, one of the training images."""
    count = len(training)
    both = pd.concat([training[["thumb", "content"]], other.table[["thumb", "content"]]], ignore_index=True)
    paths = [*(root / sample for sample in training["id"]), *other.paths]

    def squares(positions: np.ndarray, side: int) -> Iterator[np.ndarray | None]:
        return gray_squares([paths[at] for at in positions], side)

    sets, _ = yield from near_sets(both["thumb"], both["content"].to_numpy(np.uint64), squares)
    return np.isin(sets[count:], sets[:count])

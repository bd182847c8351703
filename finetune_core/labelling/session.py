"""Labelling with a linear probe: features once, then a fit and a new order every few labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA

from finetune_core.config import Edit
from finetune_core.data.dataset import Dataset
from finetune_core.data.decode import CROP
from finetune_core.data.edits import apply_edits, collect_ignored_paths, collect_labelled_paths
from finetune_core.data.splits import TEST, TRAIN, VAL
from finetune_core.errors import DataError
from finetune_core.inspection.features import compute_features
from finetune_core.labelling.answers import NONE_OF_THESE, SKIPPED
from finetune_core.labelling.orders import (
    BATCH,
    rank_probable,
    rank_similar,
    rank_uncertain_diverse,
)
from finetune_core.labelling.pool import Unlabelled, find_pool
from finetune_core.training.heads.logistic import Linear, Scale, fit_logistic
from finetune_core.work import Step, Work, finish, with_phase

ORDERS = {
    "uncertain": "Most uncertain and diverse",
    "similar": "Like one image",
    "probable": "Probably one class",
}

# Inverse strength of the penalty. Choosing it by cross-validation takes seconds, a single fit a
# tenth of a second. With 50, 200 and 800 labels it was within 2 points of the best of 0.001 to 1.
_C = 1e-2
_TOLERANCE = 1e-4
_DIRECTIONS = 64  # principal components for clustering


@dataclass(frozen=True)
class Probe:
    """A linear probe, fitted to the current labels.

    Attributes:
        classes: classes of its outputs.
        linear: None if fewer than two classes have labels.
        shares: float32 ``[n, classes]``: probabilities for each image of the pool.
        accuracy: on the validation images of the data set; None without any.
    """

    classes: tuple[str, ...]
    linear: Linear | None
    shares: np.ndarray
    accuracy: float | None


@dataclass(frozen=True)
class Labels:
    """Current answers about the images of the pool.

    Attributes:
        classes: str ``[n]``; empty for an image without a label.
        waiting: bool ``[n]``: without a label, and neither skipped nor of none of the classes.
        skipped: number of skipped images.
        none: number of images of none of the classes.
    """

    classes: np.ndarray
    waiting: np.ndarray
    skipped: int
    none: int

    @property
    def count(self) -> int:
        """Number of labelled images."""
        return int((self.classes != "").sum())


@dataclass(frozen=True)
class Ranking:
    """The images that wait for a label, in the order to label them in.

    Attributes:
        order: a key of ``ORDERS``.
        of: the image or class that the order refers to.
        labels: the labels that the probe was fitted to.
        probe: the linear probe.
        rows: int ``[n]``: positions in the pool, the first to be labelled first.
    """

    order: str
    of: str
    labels: Labels
    probe: Probe
    rows: np.ndarray


@dataclass(frozen=True)
class Labelling:
    """A data set and the unlabelled images that were added to it, with their features.

    Attributes:
        root: the folder that ids are relative to.
        classes: classes of the data set, and names that no image has yet.
        pool: one row per added image that could be decoded (see ``find_pool``).
        features: float32 ``[n, d]`` of the pool.
        directions: float32 ``[n, m]`` of the pool, for clusters.
        own: ``id, class, split, group`` of the data set's own images, without added ones.
        own_features: float32 ``[k, d]``.
    """

    root: Path
    classes: tuple[str, ...]
    pool: pd.DataFrame
    features: np.ndarray
    directions: np.ndarray
    own: pd.DataFrame
    own_features: np.ndarray

    @cached_property
    def split_of(self) -> dict[str, str]:
        """Id -> split that the image joins, for every image of the pool."""
        return dict(zip(self.pool["id"], self.pool["split"], strict=True))

    def list_classes(self, labels: Labels) -> tuple[str, ...]:
        """Return the classes of the data set in their order, followed by those of new labels."""
        new = sorted(set(labels.classes) - {""})
        return tuple(dict.fromkeys((*self.classes, *new)))

    def get_labels(self, edits: Sequence[Edit]) -> Labels:
        """Return the labels that the edits give to the pool."""
        table = self.pool[["id"]].assign(split="")
        table["class"] = ""
        classes = np.full(len(table), "", dtype=object)
        labelled = apply_edits(table, edits)
        classes[labelled.index] = labelled["class"]
        passed = collect_ignored_paths(edits)
        excluded = {path for edit in edits if edit.action == "exclude" for path in edit.paths}
        skipped, none = (
            self.pool["id"].isin(list(passed.get(kind, ()))).to_numpy() & (classes == "")
            for kind in (SKIPPED, NONE_OF_THESE)
        )
        passed_over = skipped | none | self.pool["id"].isin(list(excluded)).to_numpy()
        return Labels(classes, (classes == "") & ~passed_over, int(skipped.sum()), int(none.sum()))

    def fit(self, labels: Labels) -> Probe:
        """Fit the linear probe to the data set's training images and the labels of the pool."""
        training = (labels.classes != "") & (self.pool["split"] == TRAIN).to_numpy()
        own = (self.own["split"] == TRAIN).to_numpy()
        names = np.concatenate([self.own["class"].to_numpy()[own], labels.classes[training]])
        values = np.concatenate([self.own_features[own], self.features[training]])
        # A class without images has no output, because its probability would be meaningless.
        classes, targets = np.unique(names.astype(str), return_inverse=True)
        output_classes = tuple(map(str, classes))
        if len(output_classes) < 2:
            return Probe(
                output_classes,
                None,
                np.ones((len(self.pool), len(output_classes)), np.float32),
                None,
            )
        features = torch.from_numpy(values)
        scale = Scale.fit(features)
        fit = fit_logistic(
            scale.transform(features),
            torch.from_numpy(targets),
            len(output_classes),
            _C,
            None,
            _TOLERANCE,
        )
        linear = scale.fold_into(finish(fit))
        shares = linear.logits(torch.from_numpy(self.features)).softmax(1).numpy()
        return Probe(
            output_classes, linear, shares, self._validation_accuracy(linear, output_classes)
        )

    def order(
        self,
        labels: Labels,
        probe: Probe,
        order: str = "uncertain",
        of: str = "",
        batch: int = BATCH,
    ) -> np.ndarray:
        """Return the positions of the waiting images in the order to label them in.

        Images that were set aside for testing come first, in random order.

        Args:
            labels: the current labels.
            probe: the linear probe.
            order: a key of ``ORDERS``.
            of: id of an image of the pool for ``similar``, a class for ``probable``.
            batch: number of uncertain and diverse images.

        Raises:
            DataError: if there is no such order, image or class.
        """
        aside = labels.waiting & (self.pool["split"] == TEST).to_numpy()
        first = np.flatnonzero(aside)
        # The hash of a file's content serves as a random order.
        first = first[np.argsort(self.pool["content"].to_numpy()[first])]
        rest = np.flatnonzero(labels.waiting & ~aside)
        return np.concatenate([first, rest[self._rank_rows(rest, labels, probe, order, of, batch)]])

    def rank(self, labels: Labels, order: str = "uncertain", of: str = "") -> Work[Ranking]:
        """Fit the probe, and rank the waiting images.

        Args:
            labels: the current labels.
            order: as for the method ``order``.
            of: as for the method ``order``.

        Yields:
            Steps that count the fit and the order.

        Raises:
            DataError: as for the method ``order``.
        """
        yield Step(0, 2)
        probe = self.fit(labels)
        yield Step(1, 2)
        return Ranking(order, of, labels, probe, self.order(labels, probe, order, of))

    def propose_labels(
        self, probe: Probe, rows: np.ndarray | Sequence[int]
    ) -> tuple[list[str | None], list[float | None]]:
        """Return the probe's class for images of the pool, and its probability.

        None for images set aside for testing, whose labels the probe must not influence, and before
        two classes have labels.
        """
        rows = np.asarray(rows, dtype=int)
        if probe.linear is None or not len(rows):
            return [None] * len(rows), [None] * len(rows)
        aside = (self.pool["split"] == TEST).to_numpy()[rows]
        best, share = probe.shares[rows].argmax(1), probe.shares[rows].max(1)
        names = [
            None if test else probe.classes[value] for value, test in zip(best, aside, strict=True)
        ]
        return names, [
            None if test else float(value) for value, test in zip(share, aside, strict=True)
        ]

    def to_manifest(self, edits: Sequence[Edit]) -> pd.DataFrame:
        """Return ``path, label, split`` of the data set's own images and of the labelled ones."""
        table = self.pool[["id"]].assign(split="")
        table["class"] = ""
        labelled = pd.concat([self.own[["id", "class", "split"]], apply_edits(table, edits)])
        return labelled.rename(columns={"id": "path", "class": "label"})[["path", "label", "split"]]

    def _rank_rows(
        self, rows: np.ndarray, labels: Labels, probe: Probe, order: str, of: str, batch: int
    ) -> np.ndarray:
        if order == "uncertain":
            return rank_uncertain_diverse(
                self.features[rows], self.directions[rows], probe.linear, batch, labels.count
            )
        if order == "similar":
            matches = np.flatnonzero((self.pool["id"] == of).to_numpy())
            if not len(matches):
                raise DataError(f"There is no image {of!r} among those without labels.")
            return rank_similar(self.features[rows], self.features[matches[0]])
        if order == "probable":
            if of not in probe.classes:
                raise DataError(f"No image has the class {of!r} yet. Label one of it first.")
            return rank_probable(probe.shares[rows, probe.classes.index(of)])
        raise DataError(f"The order is one of {', '.join(ORDERS)}, not {order!r}.")

    def _validation_accuracy(self, linear: Linear, classes: tuple[str, ...]) -> float | None:
        rows = (self.own["split"] == VAL).to_numpy()
        if not rows.any():
            return None
        predicted = linear.logits(torch.from_numpy(self.own_features[rows])).argmax(1).numpy()
        right = np.array(classes, dtype=object)[predicted] == self.own["class"].to_numpy()[rows]
        return float(right.mean())


def prepare_labelling(
    dataset: Dataset,
    unlabelled: Unlabelled,
    backbone: str,
    image_size: int,
    roots: Sequence[Path] = (),
    fit: str = CROP,
) -> Work[Labelling]:
    """Find the images that were added to a data set, and compute features of all its images.

    Features are kept in the activation cache: only new images are decoded.

    Args:
        dataset: the data set.
        unlabelled: the added folders.
        backbone: name of the network.
        image_size: side of the images in pixels.
        roots: if given, folders outside of these are refused.
        fit: how images become squares: ``crop`` or ``pad``.

    Yields:
        Steps of the phases ``index``, ``decode`` and ``features``.

    Raises:
        FinetuneError: if a folder cannot be read, nothing is left to label, or features cannot be
            computed.
    """
    pool = yield from with_phase("index", find_pool(dataset, unlabelled, roots))
    if pool.empty:
        raise DataError(
            "The data set has no images without labels. Add a folder of images that are not in it "
            "yet."
        )
    own = dataset.table[~dataset.table["id"].isin(list(collect_labelled_paths(dataset.edits)))]
    both = pd.concat([own[["id", "content"]], pool[["id", "content"]]], ignore_index=True)
    everything = replace(dataset, table=both)
    features = yield from compute_features(everything, backbone, image_size, fit)
    of_own = features.rows < len(own)
    rows = features.rows[~of_own] - len(own)
    values = features.final[~of_own]
    if not len(rows):
        raise DataError("None of the images without labels could be decoded.")
    count = min(_DIRECTIONS, *values.shape)
    directions = PCA(count, svd_solver="randomized", random_state=0).fit_transform(values)
    return Labelling(
        dataset.root,
        tuple(dict.fromkeys((*sorted(set(own["class"])), *unlabelled.classes))),
        pool.iloc[rows].reset_index(drop=True),
        values,
        directions.astype(np.float32),
        own.iloc[features.rows[of_own]][["id", "class", "split", "group"]].reset_index(drop=True),
        features.final[of_own],
    )

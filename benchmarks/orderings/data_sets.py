"""Training and test images of an ordering, drawn from one data set and changed as it asks."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.orderings.protocol import Adaptation, Corrupted, Ordering, Setup
from finetune_core.data.dataset import Dataset
from finetune_core.data.decode import Resize, read_square
from finetune_core.data.splits import TEST, TRAIN, VAL
from finetune_core.errors import DataError
from finetune_core.evaluation.single_run.corruptions import CORRUPTIONS
from finetune_core.files import publish_folder, staging_folder

_USUAL_SIDE = 224
_SOURCE, _DATA, _SHIFTED = "source", "data", "shifted"

Change = Callable[[Image.Image, int], Image.Image]


@dataclass(frozen=True)
class Folders:
    """Image folders of an ordering.

    Attributes:
        data: images that the arms are trained and tested on.
        shifted: the same test images, corrupted. None without a shift.
        source: images that the run before the arms is trained on. None without an adaptation.
    """

    data: Path
    shifted: Path | None
    source: Path | None


def write_folders(ordering: Ordering, setup: Setup, dataset: Dataset, base: Path) -> Folders:
    """Write the images as squares of the runs' image size. A failure leaves nothing behind.

    Existing folders are reused, also those of another ordering with the same images, so that
    orderings share their runs.

    Raises:
        DataError: if the data set has too few images or the images cannot be written.
    """
    key = (
        f"{dataset.fingerprint}{setup.images}{_get_side(setup)}"
        f"{ordering.shift}{ordering.adaptation}"
    )
    folder = base / f"{setup.data}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        try:
            with staging_folder(base, "writing") as staging:
                _write(ordering, setup, dataset, staging / folder.name)
                publish_folder(staging / folder.name, folder)
        except OSError as error:
            raise DataError(
                f"The images cannot be written to {base}: {error}. Choose another --runs-dir, "
                "or make room."
            ) from None
    return Folders(
        folder / _DATA,
        folder / _SHIFTED if ordering.shift else None,
        folder / _SOURCE if ordering.adaptation else None,
    )


def draw_images(
    table: pd.DataFrame, setup: Setup, adaptation: Adaptation | None
) -> dict[tuple[str, str], pd.DataFrame]:
    """Draw the images of each split. No image is in two of them.

    Args:
        table: ``id, class`` of all images.
        setup: numbers of images.
        adaptation: how the classes change, or None.

    Returns:
        (folder, split) -> table of ``id, class``, with the class that the ordering assigns.

    Raises:
        DataError: if there are too few images.
    """
    images = setup.images
    order = np.random.default_rng(0).permutation(len(table))
    rows = table.sort_values("id", ignore_index=True).iloc[order]
    source, target = (rows, rows) if not adaptation else _select_sides(rows, adaptation)
    # If both sides draw from the same images, the second continues where the first ended.
    shared = adaptation is None or adaptation.kind != "groups"
    num_source = images.source_train + images.source_val
    parts = (
        _slice_rows(source, _SOURCE, {TRAIN: images.source_train, VAL: images.source_val})
        if num_source
        else {}
    )
    rest = target.iloc[num_source:] if shared else target
    return parts | _slice_rows(
        rest, _DATA, {TRAIN: images.train, VAL: images.val, TEST: images.test}
    )


def _slice_rows(
    rows: pd.DataFrame, folder: str, counts: Mapping[str, int]
) -> dict[tuple[str, str], pd.DataFrame]:
    if sum(counts.values()) > len(rows):
        raise DataError(
            f"The ordering takes {sum(counts.values())} images for its {folder}, and there "
            f"are {len(rows)}."
        )
    ends = np.cumsum(list(counts.values()))
    return {
        (folder, split): rows.iloc[end - count : end]
        for (split, count), end in zip(counts.items(), ends, strict=True)
    }


def _select_sides(rows: pd.DataFrame, adaptation: Adaptation) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the images that the first training may use, and those that the second may use."""
    if adaptation.kind == "groups":
        return _assign_groups(rows, adaptation, "source"), _assign_groups(
            rows, adaptation, "target"
        )
    if adaptation.kind == "mirrored":
        classes = sorted(rows["class"].unique())
        return rows, rows.assign(
            **{"class": rows["class"].map(dict(zip(classes, reversed(classes), strict=True)))}
        )
    return rows, rows


def _assign_groups(rows: pd.DataFrame, adaptation: Adaptation, side: str) -> pd.DataFrame:
    names = {
        name.casefold(): group
        for group, one in adaptation.groups.items()
        for name in getattr(one, side)
    }
    groups = rows["class"].str.casefold().map(names)
    return rows.assign(**{"class": groups})[groups.notna()]


def _get_side(setup: Setup) -> int:
    return int(setup.settings.get("image_size", _USUAL_SIDE))


def _write(ordering: Ordering, setup: Setup, dataset: Dataset, folder: Path) -> None:
    side = _get_side(setup)
    adaptation = ordering.adaptation
    worse = (
        _make_corruption(adaptation.corrupted)
        if adaptation and adaptation.corrupted
        else _keep_image
    )
    for (part, split), rows in draw_images(
        dataset.table[["id", "class"]], setup, adaptation
    ).items():
        _write_images(
            folder / part / split, rows, dataset.root, side, worse if part == _DATA else _keep_image
        )
        if ordering.shift and (part, split) == (_DATA, TEST):
            _write_images(
                folder / _SHIFTED, rows, dataset.root, side, _make_corruption(ordering.shift)
            )


def _write_images(folder: Path, rows: pd.DataFrame, root: Path, side: int, change: Change) -> None:
    for number, (name, label) in enumerate(zip(rows["id"], rows["class"], strict=True)):
        image = change(Image.fromarray(read_square(root / name, Resize(side))), number)
        file = folder / label / f"{number:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)


def _keep_image(image: Image.Image, _number: int) -> Image.Image:
    return image


def _make_corruption(how: Corrupted) -> Change:
    def change(image: Image.Image, number: int) -> Image.Image:
        corruption = CORRUPTIONS[how.corruptions[number % len(how.corruptions)]]
        return corruption.apply(
            image, corruption.severities[how.severity - 1], np.random.default_rng(number)
        )

    return change

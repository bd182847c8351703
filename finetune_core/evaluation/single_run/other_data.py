"""Another data set, all of whose images a run predicts, whatever their split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from finetune_core.data.dataset import compute_fingerprint, index_data
from finetune_core.data.edits import apply_edits, load_edits
from finetune_core.data.image_paths import ImagePaths
from finetune_core.data.sources import resolve_readable_data
from finetune_core.data.splits import SHIFTED
from finetune_core.errors import DataError
from finetune_core.work import Work, with_phase


@dataclass(frozen=True)
class OtherData:
    """Readable images of another data set.

    Attributes:
        data: the folder or manifest.
        root: the folder that ids are relative to.
        table: one row per image: ``id, class, split, content, thumb``, sorted by id.
        unreadable: number of files that could not be read.
    """

    data: str
    root: Path
    table: pd.DataFrame
    unreadable: int

    @property
    def paths(self) -> ImagePaths:
        """Files of the images, by row of the table."""
        return ImagePaths(self.root, self.table["id"])

    @property
    def fingerprint(self) -> str:
        """Hash of the images' names, content and classes."""
        return compute_fingerprint(self.table)


def index_other_data(data: str, roots: Sequence[Path] = ()) -> Work[OtherData]:
    """Index the images of a data set, with the edits that were made to it.

    Args:
        data: the data set as a person names it (``resolve_data``).
        roots: if given, data outside of these folders is refused, and such images are left out.

    Yields:
        Steps of the phases ``unpack`` and ``index``.

    Raises:
        DataError: if the data set cannot be read, or has no readable image.
    """
    folder = yield from with_phase("unpack", resolve_readable_data(data, roots))
    survey = yield from with_phase("index", index_data(folder, roots, thumbs=True))
    readable = survey.rows["problem"] == ""
    table = apply_edits(survey.rows[readable], load_edits(folder)).assign(split=SHIFTED)
    if table.empty:
        raise DataError(f"None of the images in {folder} can be read, or all of them are excluded.")
    table = table[["id", "class", "split", "content", "thumb"]].sort_values("id", ignore_index=True)
    return OtherData(folder, survey.listing.root, table, int((~readable).sum()))

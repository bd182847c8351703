"""Copies in another data set of images that a run, or the runs before it, trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from finetune_core.config import RunConfig
from finetune_core.data.closeness import load_gray_squares
from finetune_core.data.dataset import Dataset, assemble_dataset, index_data
from finetune_core.data.duplicates import find_near_duplicates
from finetune_core.data.image_paths import ImagePaths
from finetune_core.data.sources import check_roots
from finetune_core.data.splits import TEST, TRAIN, VAL
from finetune_core.errors import FinetuneError, RunError
from finetune_core.evaluation.single_run.other_data import OtherData
from finetune_core.evaluation.single_run.shift_files import Copies
from finetune_core.runs.store import Run, is_run_dir, read_run
from finetune_core.work import Work, with_phase

_MOST_EARLIER = 20  # runs in a chain


@dataclass(frozen=True)
class KnownCopies:
    """Copies of a run's images in another data set: bool ``[n]`` each.

    An image belongs to the first category that applies.

    Attributes:
        training: exact copies of training images.
        validation: exact copies of validation images.
        test: exact copies of test images.
        near: near-copies of training images.
        earlier: exact and near copies of training images of the runs that the run started from.
        problem: description of the copies that could not be searched for.
        looked: True if the run's own images could be read.
    """

    training: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    near: np.ndarray
    earlier: np.ndarray
    problem: str = ""
    looked: bool = True

    @property
    def own(self) -> np.ndarray:
        """Exact copies of the run's own images, which are left out."""
        return np.asarray(self.training | self.validation | self.test)

    def count_copies(self, used: np.ndarray) -> Copies:
        """Count the copies among the images of the run's classes.

        Args:
            used: bool ``[n]``, images of the run's classes.
        """
        earlier = int((self.earlier & used).sum())
        if not self.looked:
            return Copies(None, None, None, None, self.problem, earlier)
        training, near, validation, test = (
            int((mask & used).sum())
            for mask in (self.training, self.near, self.validation, self.test)
        )
        return Copies(training, near, validation, test, self.problem, earlier)


def images_key(run: Run) -> str:
    """Return a key that is equal for runs with the same images that started from the same run."""
    config = run.config
    return f"{_data_key(config)} {config.earlier_run}"


def find_known_copies(run: Run, other: OtherData, roots: Sequence[Path] = ()) -> Work[KnownCopies]:
    """Search another data set for copies of the images that a run has used.

    If these cannot be read, the result says so, and nothing is left out. All images of the training
    split count, also those that a run on a share of them did not see, so that compared runs leave
    out the same images. Copies of training images of earlier runs are only counted, for the same
    reason.

    Args:
        run: the run.
        other: the other data set.
        roots: if given, data outside of these folders is refused.

    Yields:
        Steps of the phases ``index`` and ``copies``.
    """
    none = np.zeros(len(other.table), dtype=bool)
    earlier, problems = yield from _search_earlier_runs(run, other, roots)
    try:
        own, table = yield from _load_images(run.config, roots)
    except FinetuneError as error:
        problems.insert(0, f"Copies of the run's own images were not looked for: {error}")
        return KnownCopies(none, none, none, none, earlier, " ".join(problems), looked=False)
    exact, near = yield from _find_copies(own, table, other)
    validation = _find_exact_copies(table, VAL, other) & ~exact
    test = _find_exact_copies(table, TEST, other) & ~exact & ~validation
    known = exact | validation | test
    if own.fingerprint != run.started["fingerprint"]:
        problems.insert(
            0,
            "The run's own images have changed since: copies of its images of now were looked for.",
        )
    return KnownCopies(
        exact, validation, test, near & ~known, earlier & ~known & ~near, " ".join(problems)
    )


def _search_earlier_runs(
    run: Run, other: OtherData, roots: Sequence[Path]
) -> Work[tuple[np.ndarray, list[str]]]:
    """Search for copies of the training images of the runs that this one started from.

    Returns:
        Bool ``[n]``, and descriptions of the copies that could not be searched for.
    """
    copies, problems = np.zeros(len(other.table), dtype=bool), []
    looked_at = {_data_key(run.config)}
    for _ in range(_MOST_EARLIER):
        if run.config.earlier_run is None:
            break
        try:
            run = _load_earlier_run(run, roots)
            if _data_key(run.config) not in looked_at:
                looked_at.add(_data_key(run.config))
                exact, near = yield from _find_copies(
                    *(yield from _load_images(run.config, roots)), other
                )
                copies |= exact | near
        except FinetuneError as error:
            problems.append(
                "Copies of the training images of the run that it started from were not looked "
                f"for: {error}"
            )
            break
    return copies, problems


def _load_earlier_run(run: Run, roots: Sequence[Path]) -> Run:
    """Return the run that a run started from.

    It is a run in the same directory or, if all files may be read, the one at the recorded path.
    """
    recorded = Path(run.config.earlier_run or "")
    beside = run.run_dir.parent / recorded.name
    if is_run_dir(beside) or not roots:
        return read_run(beside if is_run_dir(beside) else recorded)
    raise RunError(f"{recorded.name} is not among the runs any more.")


def _data_key(config: RunConfig) -> str:
    return str((config.data, config.split_settings, config.edits))


def _load_images(config: RunConfig, roots: Sequence[Path]) -> Work[tuple[Dataset, pd.DataFrame]]:
    """Load a run's data set in its current state, and its table with ``thumb``."""
    if roots:
        check_roots(config.data, roots)
    survey = yield from with_phase(
        "index", index_data(config.data, roots, thumbs=True, edits=config.edits)
    )
    own = assemble_dataset(config.data, survey, **config.split_settings, edits=config.edits)
    return own, own.table.merge(survey.rows[["id", "thumb"]], on="id")


def _find_copies(
    own: Dataset, table: pd.DataFrame, other: OtherData
) -> Work[tuple[np.ndarray, np.ndarray]]:
    """Return bool ``[n]`` each: exact copies of training images; exact or near copies."""
    training, exact = table[table["split"] == TRAIN], _find_exact_copies(table, TRAIN, other)
    return exact, (yield from with_phase("copies", _find_near_copies(training, own.root, other)))


def _find_exact_copies(table: pd.DataFrame, split: str, other: OtherData) -> np.ndarray:
    """Return bool ``[n]``: exact copies of a split's images."""
    return other.table["content"].isin(table.loc[table["split"] == split, "content"]).to_numpy()


def _find_near_copies(training: pd.DataFrame, root: Path, other: OtherData) -> Work[np.ndarray]:
    count = len(training)
    both = pd.concat(
        [training[["thumb", "content"]], other.table[["thumb", "content"]]], ignore_index=True
    )
    own, others = ImagePaths(root, training["id"]), other.paths

    def squares(positions: np.ndarray, side: int) -> Iterator[np.ndarray | None]:
        return load_gray_squares(
            [own[index] if index < count else others[index - count] for index in positions], side
        )

    sets, _ = yield from find_near_duplicates(
        both["thumb"], both["content"].to_numpy(np.uint64), squares
    )
    return np.isin(sets[count:], sets[:count])

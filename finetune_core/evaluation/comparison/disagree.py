"""Disagreement of two runs: images that only one of them classifies correctly, clearest first."""

from dataclasses import dataclass

import pandas as pd

from finetune_core.data.splits import TEST, VAL
from finetune_core.errors import RunError
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.single_run.evaluate import evaluation, list_predicted_splits
from finetune_core.runs.store import Run


@dataclass(frozen=True)
class Disagreement:
    """Predictions of two runs for the same images.

    Images are sorted by how much the probabilities of the true class differ, the largest first.

    Attributes:
        split: ``test`` if both runs have it, else ``val``.
        classes: names; a label is an index into them.
        only_a: one row per image that only the first run classifies correctly: ``id, label``, the
            class that each run predicts (``predicted_a``, ``predicted_b``) and its confidence
            (``confidence_a``, ``confidence_b``, 0…1).
        only_b: the same columns for the images that only the second run classifies correctly.
        both: number of images that both classify correctly.
        neither: number of images that neither classifies correctly.
    """

    split: str
    classes: tuple[str, ...]
    only_a: pd.DataFrame
    only_b: pd.DataFrame
    both: int
    neither: int

    @property
    def images(self) -> int:
        """Number of all images."""
        return len(self.only_a) + len(self.only_b) + self.both + self.neither


def find_disagreements(run_a: Run, run_b: Run) -> Disagreement:
    """Join the predictions of two runs image by image.

    Raises:
        RunError: if a run has no predictions, the class lists differ, or the runs were not
            evaluated on the same images.
    """
    compare_runs([run_a, run_b])  # raises if classes or images differ
    split = TEST if all(TEST in list_predicted_splits(run) for run in (run_a, run_b)) else VAL
    a, b = evaluation(run_a, split), evaluation(run_b, split)
    table = _select_columns(a.predictions).merge(
        _select_columns(b.predictions), on=["id", "label"], suffixes=("_a", "_b"), validate="1:1"
    )
    # The comparison skips the earlier one of two runs with equal settings, so check again.
    if not len(table) == a.images == b.images:
        raise RunError(
            f"{run_a.run_id} and {run_b.run_id} were not evaluated on the same images, so there is "
            "nothing to lay side by side. Choose runs on the same data with the same split."
        )
    right_a, right_b = table["correct_a"], table["correct_b"]
    return Disagreement(
        split,
        a.classes,
        _sort_by_clarity(table[right_a & ~right_b]),
        _sort_by_clarity(table[~right_a & right_b]),
        int((right_a & right_b).sum()),
        int((~right_a & ~right_b).sum()),
    )


def _select_columns(predictions: pd.DataFrame) -> pd.DataFrame:
    true = [
        row[label]
        for row, label in zip(predictions["probabilities"], predictions["label"], strict=True)
    ]
    return predictions[["id", "label", "predicted", "confidence", "correct"]].assign(true=true)


def _sort_by_clarity(table: pd.DataFrame) -> pd.DataFrame:
    apart = (table["true_a"] - table["true_b"]).abs()
    order = table.assign(apart=apart).sort_values(
        ["apart", "id"], ascending=[False, True], ignore_index=True
    )
    return order[["id", "label", "predicted_a", "predicted_b", "confidence_a", "confidence_b"]]

"""Two runs on the same images: those that only one of them classifies correctly, the clearest first."""

from dataclasses import dataclass

import pandas as pd

from finetune_core.data.splits import TEST, VAL
from finetune_core.errors import RunError
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.single_run.evaluate import evaluation, predicted_splits
from finetune_core.runs.store import Run


@dataclass(frozen=True)
class Disagreement:
    """What two runs make of the same images.

    Attributes:
        split: ``test`` where both have it, else ``val``.
        classes: a label is an index into them.
        only_a, only_b: one row per image that only the one run classifies correctly: ``id, label``, the class that each predicts (``predicted_a``,
            ``predicted_b``) and its confidence (``confidence_a``, ``confidence_b``, 0…1). The images in which the two give
            the true class the most different probabilities come first.
        both, neither: how many images both classify correctly, and neither.
    """

    split: str
    classes: tuple[str, ...]
    only_a: pd.DataFrame
    only_b: pd.DataFrame
    both: int
    neither: int

    @property
    def images(self) -> int:
        return len(self.only_a) + len(self.only_b) + self.both + self.neither


def disagreement(run_a: Run, run_b: Run) -> Disagreement:
    """Lay the predictions of two runs side by side.

    Raises:
        RunError: when one has no predictions, when their class lists differ, or when they were not evaluated on the same images.
    """
    compare_runs([run_a, run_b])  # refuses runs with other classes or images
    split = TEST if all(TEST in predicted_splits(run) for run in (run_a, run_b)) else VAL
    a, b = evaluation(run_a, split), evaluation(run_b, split)
    table = _told(a.predictions).merge(
        _told(b.predictions), on=["id", "label"], suffixes=("_a", "_b"), validate="1:1"
    )
    # Of two runs with equal settings the comparison looks at the later one only.
    if not len(table) == a.images == b.images:
        raise RunError(
            f"{run_a.run_id} and {run_b.run_id} were not evaluated on the same images, so there is "
            "nothing to lay side by side. Choose runs on the same data with the same split."
        )
    right_a, right_b = table["correct_a"], table["correct_b"]
    return Disagreement(
        split,
        a.classes,
        _clearest_first(table[right_a & ~right_b]),
        _clearest_first(table[~right_a & right_b]),
        int((right_a & right_b).sum()),
        int((~right_a & ~right_b).sum()),
    )


def _told(predictions: pd.DataFrame) -> pd.DataFrame:
    true = [
        row[label]
        for row, label in zip(predictions["probabilities"], predictions["label"], strict=True)
    ]
    return predictions[["id", "label", "predicted", "confidence", "correct"]].assign(true=true)


def _clearest_first(table: pd.DataFrame) -> pd.DataFrame:
    apart = (table["true_a"] - table["true_b"]).abs()
    order = table.assign(apart=apart).sort_values(
        ["apart", "id"], ascending=[False, True], ignore_index=True
    )
    return order[["id", "label", "predicted_a", "predicted_b", "confidence_a", "confidence_b"]]

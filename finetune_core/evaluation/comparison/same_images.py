"""Checks that runs can be compared: the same classes, predicted on the same images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from finetune_core.data.checks import join_names
from finetune_core.data.same_classes import describe_class_difference
from finetune_core.errors import RunError
from finetune_core.evaluation.comparison.tables import Images
from finetune_core.evaluation.single_run.corruptions import CorruptedSplit
from finetune_core.runs.store import Run


def check_same_classes(runs: Sequence[Run]) -> None:
    """Check that all runs have the same classes in the same order.

    Labels and logits are numbered by that list. Classes without an image among the evaluated ones
    count, too, because they shift the numbers of all later classes.

    Raises:
        RunError: if they differ.
    """
    first = runs[0]
    differences = [
        f"{run.run_id} {difference}"
        for run in runs[1:]
        if (
            difference := describe_class_difference(
                run.started["classes"], first.started["classes"]
            )
        )
    ]
    if differences:
        raise RunError(
            "These runs know different classes, so their predictions cannot be compared. Against "
            f"{first.run_id}: {join_names(differences)}. Compare runs that were trained on the "
            "same classes: train again where classes were added, removed or renamed since."
        )


def check_same_images(runs: Sequence[Run], tables: dict[Path, pd.DataFrame], on: Images) -> None:
    """Check that all runs, which have the same classes, have predicted the same images.

    Raises:
        RunError: if they have not.
    """
    evaluated = {folder: table[["id", "label"]].to_numpy() for folder, table in tables.items()}
    first = evaluated[runs[0].run_dir]
    others = [
        run.run_id
        for run in runs[1:]
        if not np.array_equal(evaluated[run.run_dir], first)
        or not (on or _same_source(runs[0], run))
    ]
    if not others:
        return
    named, first_id = ", ".join(others), runs[0].run_id
    if isinstance(on, CorruptedSplit):
        raise RunError(
            f"These runs did not predict the same images made worse: {named} did not use those of "
            f"{first_id}, because some could not be read. Measure their robustness again."
        )
    if on:
        raise RunError(
            f"These runs did not predict the same images of the other data set: of {named} others "
            f"were left out than of {first_id}, because they are copies of its own images or could "
            "not be read. Compare runs on the same images."
        )
    raise RunError(
        "These runs were not evaluated on the same images, so their accuracies cannot be compared: "
        f"{named} did not use those of {first_id}. Compare runs on the same data with the same "
        "split."
    )


def _same_source(first: Run, second: Run) -> bool:
    """Return whether two runs use the same data set.

    File names do not suffice, because two data sets may share them.
    """
    return (
        first.config.data == second.config.data
        or first.started["fingerprint"] == second.started["fingerprint"]
    )

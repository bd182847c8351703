"""All results on one split of a run, in one object that prints itself."""

from dataclasses import dataclass

import pandas as pd

from finetune_core.data.splits import VAL
from finetune_core.evaluation.reference_points import ReferencePoints, reference_points
from finetune_core.evaluation.single_run.binning import BINS
from finetune_core.evaluation.single_run.calibration import Calibration
from finetune_core.evaluation.single_run.corruptions import CLEAN, CORRUPTIONS
from finetune_core.evaluation.single_run.evaluate import (
    CalibrationPair,
    compute_run_calibration,
    evaluation,
    evaluation_precision,
    precision_note,
    score_run,
    slice_run,
)
from finetune_core.evaluation.single_run.metrics import Evaluation
from finetune_core.evaluation.single_run.robustness_files import Robustness
from finetune_core.evaluation.single_run.scores import Scores
from finetune_core.formatting import format_interval, format_percent, pluralize
from finetune_core.markup import paragraphs, table
from finetune_core.runs.store import Run


@dataclass(frozen=True, repr=False)
class RunEvaluation(Evaluation):
    """An evaluation with all other results on the split.

    Attributes:
        run: the run.
        scores: every number with its bootstrap interval.
        calibrated: calibration before and after temperature scaling.
        slices: accuracy in slices by facts about the images.
        robustness: None if it was not measured.
    """

    run: Run
    scores: Scores
    calibrated: CalibrationPair
    slices: pd.DataFrame
    robustness: Robustness | None

    @property
    def precision(self) -> str | None:
        """Precision that the predictions were computed in; None if nothing records it."""
        return evaluation_precision(self.run)

    def list_caveats(self) -> list[str]:
        """Return notes to read before the numbers."""
        chosen = (
            "The best epoch was chosen on these images, so the numbers are a little optimistic."
        )
        notes = [chosen] if self.split == VAL and not self.run.history.fitted else []
        return [*notes, *filter(None, [precision_note(self.run).replace("*", "")])]

    def reference_points(self) -> ReferencePoints | None:
        """Return the reference points; None if the images are not all of a run's split."""
        return reference_points(self.run, split=self.split)

    def describe_reference_points(self) -> str:
        """Return the reference points as a sentence; empty if none is known."""
        known = self.reference_points()
        return known.to_sentence() if known else ""

    def describe_absent_classes(self) -> str:
        """Return a sentence on the classes that averages leave out; empty if there is none."""
        missing = ", ".join(self.classes[label] for label in self.scores.absent)
        return f"Without images here, and left out of averages: {missing}." if missing else ""

    def list_details(self) -> list[str]:
        """Describe the calibration, and the slices that clearly differ from the rest."""
        confidence = self.calibrated
        ece = (
            f"Expected calibration error (ECE) {_format_ece(confidence.before)}, {BINS} bins of "
            "equal width"
        )
        if confidence.scaling and confidence.after:
            temperatures = " and ".join(
                f"{temperature:.2f}" for temperature in confidence.scaling.temperatures
            )
            ece += (
                f"; {_format_ece(confidence.after)} at temperature {temperatures}, fitted on other "
                "images"
            )
        clear = self.slices[self.slices["verdict"].isin(["worse", "better"])]
        return [f"{ece}."] + [
            f"{row['by']} {row['slice']}: accuracy {format_percent(row['accuracy'])}, "
            f"{row['verdict']} than the rest ({pluralize(row['images'], 'image')})."
            for row in clear.to_dict("records")
        ]

    def robustness_rows(self) -> tuple[list[str], list[list[str]]]:
        """Return (columns, rows) with one row per corruption; no rows if it was not measured."""
        columns = ["Accuracy under", "clean", "mild", "middle", "strong"]
        if self.robustness is None:
            return columns, []
        right = self.robustness.rows.set_index(["corruption", "severity"])["accuracy"]
        rows = [
            [
                corruption.title,
                *(
                    format_percent(accuracy)
                    for accuracy in (right[CLEAN, 0], *(right[name, n] for n in (1, 2, 3)))
                ),
            ]
            for name, corruption in CORRUPTIONS.items()
        ]
        return columns, rows

    def _repr_html_(self) -> str:
        parts = [
            paragraphs(self.to_text(), self.describe_reference_points(), *self.list_caveats()),
            table(*self.scores.to_rows(self.split)),
            paragraphs(self.describe_absent_classes()),
        ]
        parts += [table(*self.class_table()), paragraphs(*self.list_details())]
        return "".join(parts) + (table(*self.robustness_rows()) if self.robustness else "")


def evaluate_run(run: Run, split: str, robustness: Robustness | None) -> RunEvaluation:
    """Evaluate a run on a split.

    Raises:
        RunError: if the run has no predictions for it.
    """
    return RunEvaluation(
        **vars(evaluation(run, split)),
        run=run,
        scores=score_run(run, split),
        calibrated=compute_run_calibration(run, split),
        slices=slice_run(run, split)[1],
        robustness=robustness,
    )


def _format_ece(calibration: Calibration) -> str:
    return (
        f"{format_percent(calibration.ece)} (95 % interval "
        f"{format_interval(calibration.ece_low, calibration.ece_high)})"
    )

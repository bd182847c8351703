"""Result of a profile: one sentence, a table, the path of the selection, JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from finetune_core.data.splits import TEST, VAL
from finetune_core.evaluation.comparison.strategies import Interval
from finetune_core.formatting import (
    format_duration,
    format_number,
    format_percent,
    format_points,
    pluralize,
)
from finetune_core.markup import paragraphs, table
from finetune_core.profiling.plan import PARTS, ROUNDS, Part, Round, SelectionStep
from finetune_core.runs.convergence import Convergence

Kind = Literal["short", "stage", "stages", "full"]
FATES: dict[Kind, str] = {
    "short": "stopped after the short round",
    "stage": "full length",
    "stages": "tried by the selection",
    "full": "reference",
}
_TOO_FEW = 5  # errors: even without any of them the sign test's p is above 5 %
NOTHING = "Train nothing: take the linear probe."
OPTIMISTIC = (
    "There are no test images: these are the validation images that chose the stages, so the gains "
    "are optimistic."
)
_COLUMNS = [
    "Trained",
    "Gain",
    "95 % interval",
    "Seeds",
    "Learning rate",
    "Parameters",
    "Time",
    "How far",
]


@dataclass(frozen=True)
class Prediction:
    """Forecasts of a stage's gain that need no training of their own; None if not known.

    Attributes:
        stage: name of the stage.
        probe: accuracy of a linear probe on the stage's pretrained features.
        gradient: norm of its gradient in the first measured step of full fine-tuning, relative to
            the norm of its weights (Auto-RGN, Lee et al. 2023).
        similarity: similarity of its features before and after full fine-tuning (CKA).
    """

    stage: str
    probe: float | None
    gradient: float | None
    similarity: float | None


@dataclass(frozen=True)
class ProfileArm:
    """Runs that train the same stages.

    Attributes:
        kind: a key of ``FATES``.
        stages: stages that train beside the head, in the order of the selection.
        accuracy: mean accuracy of the runs.
        gain: over the linear probe, with its simultaneous 95 % interval.
        seeds: number of runs.
        parameters: number of parameters that train, the head's included.
        seconds: duration of the median run.
        learning_rates: learning rate of each stage that trains.
        convergence: of the first run that has not converged if there is one, else of the first run.
        run_ids: ids of the runs.
    """

    kind: Kind
    stages: tuple[str, ...]
    accuracy: float
    gain: Interval
    seeds: int
    parameters: int
    seconds: float
    learning_rates: Mapping[str, float]
    convergence: Convergence
    run_ids: tuple[str, ...]

    @property
    def title(self) -> str:
        """Names of the stages, joined by ``+``."""
        return "all stages" if self.kind == "full" else " + ".join(self.stages)

    @property
    def has_gain(self) -> bool:
        """True if the gain is larger than other images and seeds explain."""
        return self.gain.low > 0 and not self.is_undertrained

    @property
    def is_undertrained(self) -> bool:
        """True if the runs support no conclusion; short runs are not expected to."""
        return self.convergence.converged is False and self.kind != "short"


@dataclass(frozen=True)
class Profile:
    """Gains of training each stage of a backbone on a data set.

    Attributes:
        backbone: name of the network.
        stages: all stages that were candidates, from the input to the head.
        round: the last round, or, if the profile is not complete, the current one.
        missing: number of runs of that round that are not finished.
        split: split of the images that gains are reported on: ``test``, or ``val`` without test
            images.
        images: number of these images.
        groups: number of clusters of these images: near-duplicates and groups count once.
        probe: accuracy of the linear probe.
        arms: single stages, from the input to the head, then sets of stages, then all stages.
        chosen: index of the selected stages' arm; None before the selection.
        against_full: gain of full fine-tuning over the selected stages; None without either.
        path: steps of the selection, by validation images.
        left_out: parts that did not fit into the budget.
        failed: titles of runs that could not be trained.
        predictions: forecasts of each stage's gain.
        total_parameters: number of parameters of the whole network.
    """

    backbone: str
    stages: tuple[str, ...]
    round: Round
    missing: int
    split: str
    images: int
    groups: int
    probe: float
    arms: tuple[ProfileArm, ...]
    chosen: int | None
    against_full: Interval | None
    path: tuple[SelectionStep, ...]
    left_out: tuple[Part, ...]
    failed: tuple[str, ...]
    predictions: tuple[Prediction, ...]
    total_parameters: int

    @property
    def is_complete(self) -> bool:
        """True if no run is missing."""
        return not self.missing

    @property
    def is_decided(self) -> bool:
        """True if the stages are selected; the missing runs then only add certainty."""
        return self.selected_arm is not None and (
            self.is_complete or self.round in ("full", "third_seeds")
        )

    @property
    def selected_arm(self) -> ProfileArm | None:
        """The arm of the selected stages; None before the selection."""
        return None if self.chosen is None else self.arms[self.chosen]

    @property
    def full(self) -> ProfileArm | None:
        """The arm of full fine-tuning; None without one."""
        return next((arm for arm in self.arms if arm.kind == "full"), None)

    @property
    def worth_training(self) -> tuple[str, ...]:
        """The stages to train; empty if nothing measurable is gained."""
        if not self.is_decided or self.selected_arm is None or self._probe_errors <= _TOO_FEW:
            return ()
        # The gain counts, but must not be compared with that of full fine-tuning.
        if self.selected_arm.is_undertrained:
            return self.selected_arm.stages if self.selected_arm.gain.low > 0 else ()
        if self._is_full_better:
            return self.stages
        return self.selected_arm.stages if self.selected_arm.has_gain else ()

    @property
    def _is_full_better(self) -> bool:
        """True if full fine-tuning gains more than the selected stages."""
        if self.full is None or self.selected_arm is None or self.full.is_undertrained:
            return False
        if not self.selected_arm.has_gain:
            return self.full.has_gain
        return self.against_full is not None and self.against_full.low > 0

    @property
    def sentence(self) -> str:
        """The result in one or two sentences, with what to do."""
        selected = self.selected_arm
        if not self.is_decided or selected is None:
            return self._missing_text
        if (errors := self._probe_errors) <= _TOO_FEW:
            kind = "test" if self.split == TEST else "validation"
            but = f" but {errors}" if errors else ""
            return (
                f"No gain could be measured: the linear probe classifies all{but} of "
                f"{pluralize(self.images, f'{kind} image')} correctly. {NOTHING}"
            )
        name = _join_names(selected.stages)
        if selected.is_undertrained:
            return self._describe_undertrained(selected, name)
        return (
            self._describe_gain(selected, name)
            if selected.has_gain
            else self._describe_no_gain(selected, name)
        )

    def _describe_undertrained(self, selected: ProfileArm, name: str) -> str:
        """Describe the gain of an undertrained stage, without comparing it with other stages."""
        reason = f"has not converged ({selected.convergence.reason})"
        if selected.gain.low <= 0:
            return f"Nothing is concluded: {name} {reason}. Train longer."
        gain = _format_gain(selected.gain)
        return (
            f"Training {name} gains {gain} over a linear probe, and {reason}: it may gain more. "
            "Train longer to compare it with other stages."
        )

    def _describe_gain(self, selected: ProfileArm, name: str) -> str:
        alone = " alone" if len(selected.stages) == 1 else ""
        parts = [f"Training {name}{alone} gains {_format_gain(selected.gain)} over a linear probe"]
        if self.path and not self.path[-1].kept:
            parts.append(f"adding {self.path[-1].stage} gains nothing measurable")
        against = self.against_full
        if against and self.full and not self.full.is_undertrained:
            better, worse = against.low > 0, against.high < 0
            parts.append(
                f"full fine-tuning gains {_format_gain(against)} more"
                if better
                else f"full fine-tuning loses {_format_gain(_negate(against))} against it"
                if worse
                else "full fine-tuning is not better"
            )
        return f"{'; '.join(parts)}. {self._describe_advice(selected, name)}"

    def _describe_no_gain(self, selected: ProfileArm, name: str) -> str:
        low, high = format_points(selected.gain.low), format_points(selected.gain.high)
        measured = f"{format_points(selected.gain.value)} points, {low} to {high}"
        others = [arm for arm in self.arms if arm.has_gain and arm.kind != "full"]
        if others:
            best = max(others, key=lambda arm: arm.gain.value)
            return (
                f"The validation images chose {name}, which gains nothing measurable "
                f"({measured}); {_join_names(best.stages)} gains {_format_gain(best.gain)}. "
                "Confirm it with more images before you train it."
            )
        text = f"No stage gains anything measurable over a linear probe (best: {name}, {measured})"
        if self._is_full_better and self.full:
            return (
                f"{text}; full fine-tuning gains {_format_gain(self.full.gain)}. Train all stages."
            )
        return f"{text}. {NOTHING}"

    def _describe_advice(self, selected: ProfileArm, name: str) -> str:
        if self._is_full_better:
            return "Train all stages."
        share = format_percent(selected.parameters / self.total_parameters, 0)
        time = ""
        if self.full and self.full.seconds > 0:
            time = f", {format_percent(selected.seconds / self.full.seconds, 0)} of the time"
        return f"Train {name}: {share} of the parameters{time}."

    @property
    def _probe_errors(self) -> int:
        """Number of images that the probe misclassifies; near-duplicates count once."""
        return round((1 - self.probe) * self.groups)

    @property
    def _missing_text(self) -> str:
        return (
            f"The profile is not complete: {pluralize(self.missing, 'run')} of the round "
            f"“{ROUNDS[self.round]}” to go."
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the result, a sentence each."""
        found = []
        if self.is_decided and not self.is_complete:
            found.append(self._missing_text)
        if self.split == VAL:
            found.append(OPTIMISTIC)
        named = [
            f"{arm.title} ({arm.convergence.reason})"
            for arm in self.arms
            if arm.is_undertrained and arm is not self.selected_arm
        ]
        if named:
            found.append(
                f"Not converged, so nothing is concluded about: {'; '.join(named)}. Train longer."
            )
        if any(arm.kind == "short" for arm in self.arms):
            found.append(
                "Stages stopped after the short round trained for a quarter of the epochs: "
                "their gains are those of short runs."
            )
        if self.left_out:
            parts = ", ".join(PARTS[part] for part in self.left_out)
            found.append(f"Left out, because the budget ended: {parts}.")
        if self.failed:
            found.append(f"Could not be trained: {', '.join(self.failed)}.")
        if self.arms and all(arm.seeds == 1 for arm in self.arms):
            found.append("With one seed each, the intervals leave out what other seeds change.")
        return tuple(found)

    def to_text(self) -> str:
        """Describe the images that the gains were measured on."""
        kind = "test" if self.split == TEST else "validation"
        copies = (
            f" Near-duplicates and groups count once: {format_number(self.groups)} of them."
            if self.groups < self.images
            else ""
        )
        return (
            f"Linear probe: {format_percent(self.probe)} {kind} accuracy. Gains in points on "
            f"{pluralize(self.images, f'{kind} image')}; stages were selected on validation images."
            f"{copies} The 95 % intervals hold for all rows together, for new images and new seeds."
        )

    def to_rows(self) -> tuple[list[str], list[list[str]]]:
        """Return (columns, rows) with one row per arm."""
        return _COLUMNS, [self._format_row(index, arm) for index, arm in enumerate(self.arms)]

    def _format_row(self, index: int, arm: ProfileArm) -> list[str]:
        fate = "selected" if index == self.chosen else FATES[arm.kind]
        if arm.is_undertrained:
            fate += ", not converged"
        return [
            arm.title,
            format_points(arm.gain.value),
            f"{format_points(arm.gain.low)} to {format_points(arm.gain.high)}",
            str(arm.seeds),
            ", ".join(f"{rate:g}" for rate in dict.fromkeys(arm.learning_rates.values())),
            format_percent(arm.parameters / self.total_parameters),
            format_duration(arm.seconds),
            fate,
        ]

    def path_rows(self) -> tuple[list[str], list[list[str]]]:
        """Return (columns, rows) with one row per step of the selection."""
        rows = [
            [
                step.stage,
                format_percent(step.accuracy),
                "" if step.gain is None else format_points(step.gain),
                "trains" if step.kept else "no significant gain: left out",
            ]
            for step in self.path
        ]
        return ["Stage", "Validation accuracy with it", "Gain", "Decision"], rows

    def prediction_rows(self) -> tuple[list[str], list[list[str]]]:
        """Return (columns, rows) of forecasts that need no training; no rows if none is known."""
        columns = ["Stage", "Probe by layer", "Relative gradient", "Similarity (CKA)"]
        rows = [
            [
                prediction.stage,
                "–" if prediction.probe is None else format_percent(prediction.probe),
                "–" if prediction.gradient is None else f"{prediction.gradient:.2g}",
                "–" if prediction.similarity is None else f"{prediction.similarity:.2f}",
            ]
            for prediction in self.predictions
        ]
        return columns, rows

    def __repr__(self) -> str:
        return f"<Profile of {self.backbone}: {self.sentence}>"

    def _repr_html_(self) -> str:
        return (
            paragraphs(self.sentence, *self.notes)
            + table(*self.to_rows())
            + table(*self.path_rows())
            + paragraphs(self.to_text())
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``profile --json`` prints them."""
        selected = self.selected_arm
        return {
            "backbone": self.backbone,
            "sentence": self.sentence,
            "worth_training": list(self.worth_training),
            "notes": list(self.notes),
            "complete": self.is_complete,
            "missing": self.missing,
            "split": self.split,
            "images": self.images,
            "groups": self.groups,
            "probe_accuracy": self.probe,
            "arms": [_arm_json(arm) for arm in self.arms],
            "selected": None if selected is None else list(selected.stages),
            "full_over_selected": self.against_full and asdict(self.against_full),
            "path": [asdict(step) for step in self.path],
            "left_out": list(self.left_out),
            "failed_runs": list(self.failed),
            "predictions": [asdict(prediction) for prediction in self.predictions],
            "total_parameters": self.total_parameters,
        }


def _arm_json(arm: ProfileArm) -> dict[str, Any]:
    return {
        "kind": arm.kind,
        "stages": list(arm.stages),
        "accuracy": arm.accuracy,
        "gain": arm.gain.value,
        "ci_low": arm.gain.low,
        "ci_high": arm.gain.high,
        "seeds": arm.seeds,
        "trainable_parameters": arm.parameters,
        "seconds": arm.seconds,
        "learning_rates": dict(arm.learning_rates),
        "converged": arm.convergence.converged,
        "convergence": arm.convergence.reason,
        "run_ids": list(arm.run_ids),
    }


def _join_names(stages: Sequence[str]) -> str:
    """Return ``block6``, ``block6 and block5``, ``block6, block5 and stem``."""
    *first, last = stages
    return f"{', '.join(first)} and {last}" if first else last


def _format_gain(gain: Interval) -> str:
    return (
        f"{format_points(gain.value)} points ({format_points(gain.low)} to "
        f"{format_points(gain.high)})"
    )


def _negate(gain: Interval) -> Interval:
    return Interval(-gain.value, -gain.high, -gain.low)


def arms_by_stage(profile: Profile) -> Mapping[str, ProfileArm]:
    """Return the arm that trained each stage alone, by stage."""
    return {arm.stages[0]: arm for arm in profile.arms if arm.kind in ("short", "stage")}

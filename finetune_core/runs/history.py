"""History of a run, read from its ``events.jsonl`` while the file grows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from threading import Lock

from finetune_core.files import Stamp
from finetune_core.runs.lines import EventLines
from finetune_core.runs.log import name_devices
from finetune_core.runs.record import EVENTS_FILE
from finetune_core.runs.steps import Steps
from finetune_core.training.devices.turn import WAITING
from finetune_core.training.events import END_EVENTS, Row

_ENDS = {event.__name__ for event in END_EVENTS}

_MOST_NOTABLE = 2000
_MAX_REREAD = 8  # ended runs whose steps are in memory
_NOTABLE = {
    "RunStarted",
    "RunResumed",
    "RunPlaced",
    "EpochEnded",
    "HeadFitted",
    "HeadInitialized",
    "WeightsAveraged",
    "CheckpointSaved",
    "ImagesSkipped",
    "ImagesLost",
    "MemoryShort",
} | _ENDS
_BEFORE_START = {
    "Progress",
    "RunStarted",
    "RunReopened",
    "RunPlaced",
    "ImagesSkipped",
    "RunStopped",
    "RunFailed",
}


@dataclass
class History:
    """The events of one run, by kind, as plain rows.

    Attributes:
        run_dir: the run directory.
        started: the RunStarted row; None before it.
        progress: the latest Progress row of work that is not a step; None during steps.
        progress_began: the first Progress row of the same phase; None during steps.
        epochs: EpochEnded rows.
        fitted: the HeadFitted row of a run whose head is fitted without epochs; None in other runs.
        head_initialized: the HeadInitialized row of a run with epochs whose head was fitted before
            the first one; None in other runs.
        averaged: the WeightsAveraged row of a run that averages weights instead of training; None
            in other runs.
        skipped: the ImagesSkipped row, or None.
        lost: the latest ImagesLost row, or None.
        short: the latest MemoryShort row, or None.
        notable: rows for a log, in order: those of most kinds, and the first Progress row of each
            phase.
        end: the RunFinished, RunStopped or RunFailed row; None before the end.
        places: RunPlaced rows, which name the machines of the run, the latest last.
        reopened: whether the run was reopened and has not continued yet.
    """

    run_dir: Path
    started: Row | None = None
    progress: Row | None = None
    progress_began: Row | None = None
    epochs: list[Row] = field(default_factory=list)
    fitted: Row | None = None
    head_initialized: Row | None = None
    averaged: Row | None = None
    skipped: Row | None = None
    lost: Row | None = None
    short: Row | None = None
    notable: list[Row] = field(default_factory=list)
    end: Row | None = None
    places: list[Row] = field(default_factory=list)
    reopened: bool = False
    _steps: Steps | None = field(default_factory=Steps, repr=False)  # None once the run has ended
    _lines: EventLines = field(init=False, repr=False)
    _orphans: int = 0
    _lock: Lock = field(default_factory=Lock, repr=False)

    def __post_init__(self) -> None:
        self._lines = EventLines(self.run_dir / EVENTS_FILE)

    def refresh(self) -> "History":
        """Read the events that were written since the last call.

        An unfinished last line is left for the next call.
        """
        with self._lock:
            self._read_new()
            if self.end:
                self._steps = None
        return self

    def _read_new(self) -> None:
        ended = self._steps is None
        if ended and not self._lines.has_changed():
            return
        # Events after an end are checked against the steps before, which were dropped at the end.
        if ended or self._lines.was_replaced():
            again = History(self.run_dir)
            again._read_new()
            vars(self).update(vars(again) | {"_lock": self._lock})
            return
        for row in self._lines.read_new():
            if self._is_consistent(row):
                self._apply(row)
            else:
                self._lines.skip()

    @property
    def steps(self) -> Sequence[Row]:
        """StepEnded rows, the older ones thinned out."""
        return tuple(self._get_steps().rows)

    @property
    def measured_steps(self) -> Sequence[Row]:
        """StepEnded rows with the values of each stage, the older ones thinned out."""
        return tuple(self._get_steps().measured)

    def _get_steps(self) -> Steps:
        """Return the steps; those of a run that has ended are read again.

        Thousands of runs are listed, and the steps of a long one take megabytes.
        """
        held = self._steps
        return _reread_steps(self.run_dir, self._lines.seen) if held is None else held

    @property
    def skipped_lines(self) -> int:
        """Number of lines that were skipped, unreadable or in contradiction to earlier ones."""
        return self._lines.skipped

    @property
    def problem(self) -> str:
        """Reason why the run cannot be read from its events; empty if it can."""
        if self._orphans and self.started is None:
            return f"{EVENTS_FILE} does not say how the run began"
        if (
            self.end
            and self.end["event"] == "RunFinished"
            and not (self.epochs or self.result_without_epochs)
        ):
            return f"{EVENTS_FILE} has no epoch of a run that has finished"
        return self._lines.problem

    def _is_consistent(self, row: Row) -> bool:
        """Return whether an event can follow the events before it."""
        kind, started = row["event"], self.started
        if kind == "Progress":
            return not row["total"] or row["done"] <= row["total"]
        if kind == "RunStarted" and (row["epochs"] == 0) != (row["steps_per_epoch"] == 0):
            return False
        if started is None:
            self._orphans += kind not in _BEFORE_START
            return kind in _BEFORE_START
        stages = row.get("stages")
        if isinstance(stages, dict) and not stages.keys() <= {
            stage["name"] for stage in started["stages"]
        }:
            return False
        match kind:
            case "StepEnded":
                return bool(
                    row["epoch"] <= started["epochs"]
                    and row["step"] <= started["steps_per_epoch"]
                    and (row["epoch"], row["step"]) > self._get_steps().last_position
                )
            case "EpochEnded":
                return bool(
                    (self.epochs[-1]["epoch"] if self.epochs else 0)
                    < row["epoch"]
                    <= started["epochs"]
                )
            case "HeadFitted" | "WeightsAveraged":
                return bool(started["epochs"] == 0)
            case "HeadInitialized":
                return bool(started["epochs"] > 0)
            case "RunResumed":
                return bool(
                    row["epoch"] <= started["epochs"] + 1
                    and row["step"] <= started["steps_per_epoch"]
                )
            case "RunFinished":
                return bool(min(1, started["epochs"]) <= row["best_epoch"] <= started["epochs"])
        return True

    def _apply(self, row: Row) -> None:
        kind = row["event"]
        if self._is_notable(row):
            self.notable = [*self.notable[-_MOST_NOTABLE:], row]
        if kind == "StepEnded":
            self._get_steps().add(row)
        elif kind == "EpochEnded":
            self.epochs.append(row)
        elif kind == "HeadFitted":
            self.fitted = row
        elif kind == "HeadInitialized":
            self.head_initialized = row
        elif kind == "WeightsAveraged":
            self.averaged = row
        elif kind == "RunStarted":
            self.started, self.fitted, self.averaged = row, None, None
        elif kind == "RunReopened":
            self.end = None
        elif kind == "RunPlaced":
            self.places.append(row)
        elif kind == "RunResumed":
            self._get_steps().truncate(row["epoch"], row["step"])
            self.epochs = [epoch for epoch in self.epochs if epoch["epoch"] < row["epoch"]]
        elif kind == "ImagesSkipped":
            self.skipped = row
        elif kind == "ImagesLost":
            self.lost = row
        elif kind == "MemoryShort":
            self.short = row
        elif kind in _ENDS:
            self.end = row
            # A run that was stopped again before it went on reports only the time since.
            if kind == "RunStopped" and self.epochs:
                self.end = row | {"seconds": max(row["seconds"], self.epochs[-1]["seconds"])}
        self.reopened = kind == "RunReopened"
        if kind != "Progress":
            self.progress = self.progress_began = None
            return
        if (
            self.progress is None
            or self.progress["phase"] != row["phase"]
            or row["done"] < self.progress["done"]
        ):
            self.progress_began = row
        self.progress = row

    def _is_notable(self, row: Row) -> bool:
        if row["event"] == "Progress":
            return row["phase"] != "validate" and (
                self.progress is None or self.progress["phase"] != row["phase"]
            )
        return row["event"] in _NOTABLE

    @property
    def has_predictions(self) -> bool:
        """True if the run has predictions for its validation images.

        It has them after the first epoch, or when it has finished without epochs.
        """
        return bool(self.epochs) or (
            self.result_without_epochs is not None
            and (self.end or {}).get("event") == "RunFinished"
        )

    @property
    def result_without_epochs(self) -> Row | None:
        """The HeadFitted or WeightsAveraged row of a run without epochs; None in other runs."""
        return self.averaged or self.fitted

    @property
    def has_begun(self) -> bool:
        """True if any event was written since the run was queued."""
        return self._lines.offset > 0 and not self.reopened

    @property
    def is_waiting_for_device(self) -> bool:
        """True if the latest event says that another program trains on the device."""
        return self.progress is not None and self.progress["phase"] == WAITING

    @property
    def where(self) -> str:
        """The machine and device that the run trains on; empty before they are known.

        The machine is named only if a task trains the run.
        """
        host = self.places[-1]["host"] if self.places else ""
        return ", ".join(filter(None, (host, name_devices(self.started) if self.started else "")))

    @property
    def fraction(self) -> float:
        """Share of all steps that are done, 0…1."""
        if not self.started or not self.steps:
            return 0.0
        last = self.steps[-1]
        per_epoch: int = self.started["steps_per_epoch"]
        done: int = (last["epoch"] - 1) * per_epoch + last["step"]
        total: int = self.started["epochs"] * per_epoch
        return done / total

    @property
    def progress_seconds_left(self) -> float | None:
        """Seconds left of the phase before the first step; None if they cannot be estimated."""
        now, first = self.progress, self.progress_began
        if not now or not first or not now["total"] or now["done"] <= first["done"]:
            return None
        left: float = (
            (now["at"] - first["at"]) / (now["done"] - first["done"]) * (now["total"] - now["done"])
        )
        return left

    @property
    def seconds_left(self) -> float | None:
        """Seconds left for training and validation at the pace so far.

        None before the first step.
        """
        if not self.fraction:
            return None
        now: float = max(
            self.steps[-1]["seconds"], self.epochs[-1]["seconds"] if self.epochs else 0.0
        )
        return now * (1 - self.fraction) / self.fraction

    def sum_seconds_by_part(self) -> dict[str, float]:
        """Return the seconds spent on each part of the run.

        The parts are ``decode``, ``trunk``, ``train``, ``validate`` and ``evaluate``.
        """
        if not self.started:
            return {}
        at_once = [
            row["seconds"] for row in (self.head_initialized, self.result_without_epochs) if row
        ]
        return {
            "decode": self.started["decode_seconds"],
            "trunk": self.started["cache"]["trunk_seconds"],
            "train": sum(row["train_seconds"] for row in self.epochs) + sum(at_once),
            "validate": sum(row["val_seconds"] for row in self.epochs),
            "evaluate": (self.end or {}).get("evaluation_seconds", 0.0),
        }

    def estimate_saved_seconds(self) -> float | None:
        """Return the seconds that the cache has saved so far.

        These are the trunk's seconds for all images of all ended epochs, less the seconds spent on
        filling the cache. None without a cache, or if the trunk was never timed.
        """
        if not self.started or not self.started["cache"].get("seconds_per_row"):
            return None
        cache, counts = self.started["cache"], self.started["counts"]
        passed = len(self.epochs) * (counts["train"] + counts["val"])
        saved: float = passed * cache["seconds_per_row"] - cache["trunk_seconds"]
        return max(0.0, saved)

    @property
    def images_per_second(self) -> float | None:
        """Training images per second over the last 50 steps of this epoch.

        None before the second step of the epoch.
        """
        if not self.steps:
            return None
        last = self.steps[-1]
        recent = [row for row in self.steps[-50:] if row["epoch"] == last["epoch"]]
        seconds: float = last["seconds"] - recent[0]["seconds"]
        images: int = last["images"] - recent[0]["images"]
        return images / seconds if seconds > 0 else None


@lru_cache(maxsize=_MAX_REREAD)
def _reread_steps(run_dir: Path, _version: Stamp | None) -> Steps:
    whole = History(run_dir)
    whole._read_new()
    return whole._get_steps()

"""What the command line looks like on a terminal: results on stdout, bars and problems on stderr."""

import json
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import isnan
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from finetune_core.data.dataset import Dataset
from finetune_core.data.edits import edits_in_words
from finetune_core.data.findings import KINDS, Finding
from finetune_core.evaluation.single_run.metrics import Evaluation
from finetune_core.evaluation.single_run.scores import AREAS, NAMES, Scores
from finetune_core.formatting import PHASE_WORDS, SPLIT_WORDS, duration, percent, things
from finetune_core.inspection.deep import DeepReport
from finetune_core.runs.log import live_numbers, log_line
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import Run, read_run
from finetune_core.training import events
from finetune_core.work import Step, Work, finish

Result = TypeVar("Result")

# A name may hold what commands a terminal, or reorders what it shows. Lines end, and columns are parted, as ever.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class _Console(Console):
    """Shows what would command the terminal, instead of sending it there; styles are added later."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(harmless(text), **options)


def harmless(text: str) -> str:
    """A text for a terminal: its control characters are shown, ``\\x1b``."""
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


out = _Console(highlight=False, soft_wrap=True)
err = _Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: dict[str, Any]) -> None:
    """One object, on one line."""
    sys.stdout.write(json.dumps(value) + "\n")


def opened(run_dir: Path) -> Run:
    """The run in a folder that a person names; what of it could not be read is told on stderr.

    Raises:
        RunError: when it is none, or damaged.
    """
    run = read_run(run_dir)
    for notice in run.notices:
        err.print(escape(notice))
    return run


def progress_bar() -> Progress:
    """For any number of tasks; drawn on a terminal only, and gone at the end."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", markup=False),
        console=err,
        transient=True,
        disable=not err.is_interactive,  # else it leaves an empty line
    )


def show_work(bar: Progress, work: Work[Result], title: str = "") -> Result:
    """Do the work to its end, each of its phases with a bar of its own; returns its result.

    Args:
        title: stands at the bar of steps without a phase, which is there from the start.
    """
    tasks = {"": bar.add_task(harmless(title), total=None, note="")} if title else {}

    def draw(step: Step) -> None:
        if step.phase not in tasks:
            tasks[step.phase] = bar.add_task(PHASE_WORDS[step.phase], total=step.total, note="")
        bar.update(tasks[step.phase], completed=step.done, total=step.total)

    return finish(work, draw)


def _print_transfer(report: DeepReport) -> None:
    if report.probes:
        table = Table("Stage", "Accuracy of a linear probe", box=None)
        for one in report.probes:
            table.add_row(escape(one.stage), f"{percent(one.accuracy)} ± {percent(one.error)}")
        out.print(table)
        out.print(escape(f"{report.suggestion.reason} Suggested: {report.suggestion.strategy}."))
    for split, auc in report.auc.items():
        out.print(
            f"Training against {SPLIT_WORDS[split].lower()} images, told apart by features: AUC {auc:.2f} (0.5: not at all)."
        )


def show_training(bar: Progress, stream: Iterator[events.Event]) -> None:
    """Drain a run's events: steps into the bar, epochs in lines."""
    tasks: dict[str, Any] = {}

    def task(name: str, total: int) -> Any:
        if name not in tasks:
            tasks[name] = bar.add_task(name, total=total or None, note="")
        return tasks[name]

    started = None
    for event in stream:
        match event:
            case events.Progress(phase="device"):
                err.print(f"{PHASE_WORDS['device']}.")
            case events.Progress(phase, done, total):
                bar.update(task(PHASE_WORDS[phase], total), completed=done, visible=done != total)
            case events.ImagesSkipped() | events.ImagesLost() | events.MemoryShort():
                err.print(escape(log_line(event.to_json())))
            case events.RunStarted():
                started = event
                if event.weights == "none":
                    err.print("The backbone starts from random weights.")
                err.print(
                    f"{event.backbone}, {event.strategy}: {event.trainable_parameters:,} of {event.total_parameters:,} parameters "
                    f"train on {escape(event.device_label)} in {event.precision}"
                )
                if note := live_numbers(event.to_json()):
                    err.print(note)
            case events.RunResumed(epoch, step):
                err.print(f"Going on after {things(step, 'step')} of epoch {epoch}.")
            case events.StepEnded() if started:
                done = (event.epoch - 1) * started.steps_per_epoch + event.step
                note = f"loss {event.epoch_loss:.3f}  accuracy {event.epoch_accuracy:.1%}"
                bar.update(task("Training", started.epochs * started.steps_per_epoch), completed=done, note=note)
            case events.EpochEnded() if started:
                err.print(
                    f"epoch {event.epoch}/{started.epochs}: loss {event.train_loss:.4f}, accuracy {event.train_accuracy:.1%}; "
                    f"validation loss {event.val_loss:.4f}, accuracy {event.val_accuracy:.1%}"
                )


@contextmanager
def interrupts_stop(run_dir: Path) -> Iterator[None]:
    """Ctrl-C asks the run to stop; a second one breaks off."""

    def on_interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        err.print("Stopping after this step; Ctrl-C again breaks off.")
        request_stop(run_dir)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def result_in_words(result: dict[str, Any]) -> str:
    """What came of a run, from its ``summary``."""
    if not result["best_epoch"]:
        return f"Stopped before the first epoch ended. {escape(result['run_dir'])}"
    test = f", test accuracy {result['test_accuracy']:.1%}" if result["test_accuracy"] is not None else ""
    took = f" in {duration(result['seconds'])}"
    return (
        f"{result['status'].capitalize()}{took}: best epoch {result['best_epoch']}, validation accuracy "
        f"{result['val_accuracy']:.1%}{test} (in {result['evaluation_precision']})\n{escape(result['run_dir'])}"
    )


def print_scores(result: Evaluation, numbers: Scores) -> None:
    """Every number of a split with its interval, then the classes."""
    table = Table("Metric", "Value", "95 % interval", box=None)
    for row in numbers.table.itertuples(index=False):
        table.add_row(NAMES[row.name], _share(row.value), f"{_share(row.low)} to {_share(row.high)}")
    out.print(table)
    if numbers.absent:
        missing = ", ".join(result.classes[label] for label in numbers.absent)
        out.print(escape(f"Without images here, and left out of averages: {missing}."))
    judged = Table("Class", "Precision", "Recall", "Recall, 95 % interval", "F1", "Images", *AREAS.values(), box=None)
    for row in result.per_class.itertuples(index=False):
        interval = f"{_percent(row.recall_low)} to {_percent(row.recall_high)}" if row.images else "not defined"
        shares = (_percent(row.precision), _percent(row.recall), interval, _percent(row.f1))
        judged.add_row(escape(row[0]), *shares, f"{row.images:,}", *(_share(getattr(row, area)) for area in AREAS))
    out.print(judged)


def _share(value: float) -> str:
    return "not defined" if isnan(value) else f"{value:.3f}"


def _percent(value: float) -> str:
    return "not defined" if isnan(value) else f"{value:.1%}"


def print_inspection(dataset: Dataset, findings: list[Finding], report: DeepReport | None) -> None:
    """A data set, what was found, and where transfer ends."""
    counts, widths, heights = dataset.counts(), dataset.table["width"], dataset.table["height"]
    out.print(
        f"{things(len(dataset.table), 'image')} in {things(len(dataset.classes), 'class', 'classes')}, "
        f"{widths.min()}×{heights.min()} to {widths.max()}×{heights.max()} pixels; "
        f"{'the data say' if dataset.given_splits else 'the program decides'} which images validate."
    )
    if dataset.edits:
        out.print(f"Changes: {edits_in_words(dataset.edits)}.")
    table = Table("Class", *counts.columns, box=None)
    for name, row in counts.iterrows():
        table.add_row(escape(str(name)), *(f"{count:,}" for count in row))
    out.print(table)
    for finding in findings:
        out.print(f"[bold]{finding.severity}[/bold]: {KINDS[finding.kind].title}. {escape(finding.message)}")
    if not findings:
        out.print("Nothing looks wrong.")
    if report:
        _print_transfer(report)

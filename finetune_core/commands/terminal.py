"""Terminal output of the command line: results on stdout, progress bars and problems on stderr."""

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import FrameType
from typing import Any, TypeVar

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segments
from rich.table import Column, Table
from rich.text import Text

from finetune_core.commands.notebook import NotebookProgress
from finetune_core.formatting import PHASE_TITLES, format_duration, format_percent, pluralize
from finetune_core.runs.log import (
    describe_devices,
    describe_event,
    describe_lineage,
    describe_live_metrics,
    describe_overflow,
    describe_precision,
)
from finetune_core.training import events
from finetune_core.work import Step, Work, finish

Result = TypeVar("Result")

_silent = ContextVar("silent", default=False)

# Names may contain control characters that command a terminal or reorder its text. Line breaks and
# tabs are kept.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_MAX_LENGTH = 4000  # characters
_BURST = 1.0  # seconds


class _Console(Console):
    """A console that escapes control characters in text. Styles are added afterwards."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(escape_controls(text), **options)


def escape_controls(text: str) -> str:
    r"""Escape control characters as ``\x1b`` for a terminal.

    Very long text keeps only its ends.
    """
    if len(text) > _MAX_LENGTH:
        text = f"{text[: _MAX_LENGTH // 2]}…{text[-_MAX_LENGTH // 2 :]}"
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def escape_line(text: str) -> str:
    """Escape control characters, line breaks and tabs, so that a name stays on one line."""
    return escape_controls(text).replace("\n", "\\n").replace("\t", "\\t")


class _Messages(_Console):
    """The console for progress and problems."""

    @property
    def is_watched(self) -> bool:
        """True if somebody can see a bar move."""
        return self.is_interactive or self.is_jupyter

    def print(self, *objects: Any, **options: Any) -> None:
        if not _silent.get():
            super().print(*objects, **options)


out = _Console(highlight=False, soft_wrap=True)
err = _Messages(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def show_progress(wanted: bool | None) -> Iterator[None]:
    """Show or hide bars and messages within the block.

    Args:
        wanted: None shows them where somebody watches.
    """
    token = _silent.set(not (err.is_watched if wanted is None else wanted))
    try:
        yield
    finally:
        _silent.reset(token)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on one line."""
    sys.stdout.write(json.dumps(value) + "\n")


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    names: int = 1,
    prose: Collection[str] = (),
) -> None:
    """Print a table in which no cell is cut or wrapped.

    A terminal shows the first columns that fit, and a line names the omitted ones. Piped output has
    all columns.

    Args:
        columns: column titles.
        rows: cells of each row.
        names: number of leading columns that are never omitted.
        prose: columns whose cells may wrap.
    """
    cells = [[escape_line(cell) for cell in row] for row in rows]
    columns_of_cells = list(zip(*cells, strict=True)) or [()] * len(columns)
    natural_widths, least_widths = [], []
    for index, (title, column) in enumerate(zip(columns, columns_of_cells, strict=True)):
        words = [word for cell in column for word in cell.split()] if title in prose else column
        header = [title] if index < names else title.split()
        natural_widths.append(_max_width([title, *column]))
        least_widths.append(_max_width([*header, *words]))
    shown = len(columns)
    available = out.width if out.is_terminal else sum(natural_widths) + 2 * shown
    while shown > names and sum(least_widths[:shown]) + 2 * shown > available:
        shown -= 1
    widths = least_widths[:shown]
    spare = available - sum(widths) - 2 * shown
    for index in range(shown):
        extra = min(max(spare, 0), natural_widths[index] - widths[index])
        widths[index] += extra
        spare -= extra
    table = Table(
        *(Column(title, width=width) for title, width in zip(columns, widths, strict=False)),
        box=None,
    )
    for row in cells:
        table.add_row(*map(escape, row[:shown]))
    total = sum(widths) + 2 * shown
    # Names may be wider than the terminal, which wraps them. Copied names then stay whole.
    out.print(Segments(out.render(table, out.options.update(width=total, max_width=total))))
    if left_out := columns[shown:]:
        out.print(f"Not shown, for lack of room: {', '.join(left_out)}.")


def _max_width(texts: Iterable[str]) -> int:
    return max(map(cell_len, texts), default=0)


def progress_bar() -> Progress:
    """Return a progress display for any number of tasks.

    Bars are drawn only on a terminal and in a notebook, and disappear at the end.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", markup=False),
    )
    if err.is_jupyter and not _silent.get():
        return NotebookProgress(*columns, console=err)
    hidden = _silent.get() or not err.is_interactive  # otherwise an empty line stays behind
    return Progress(*columns, console=err, transient=True, disable=hidden)


def show_work(bar: Progress, work: Work[Result], title: str = "") -> Result:
    """Run work to its end with one bar per phase, and return its result.

    Args:
        bar: the progress display.
        work: the work.
        title: title of the bar for steps without a phase. That bar is shown from the start.
    """
    tasks = {"": bar.add_task(escape_line(title), total=None, note="")} if title else {}

    def draw(step: Step) -> None:
        if step.phase not in tasks:
            if step.phase == "device":  # printed once, with or without bars
                err.print(f"{PHASE_TITLES['device']}.")
            tasks[step.phase] = bar.add_task(
                PHASE_TITLES[step.phase], total=step.total, note="", visible=step.phase != "device"
            )
        bar.update(
            tasks[step.phase], completed=step.done, total=step.total, note=escape_line(step.subject)
        )

    return finish(work, draw)


def show_training(bar: Progress, stream: Iterator[events.Event]) -> None:
    """Consume a run's events. Steps update the bar, and epochs print lines."""
    tasks: dict[str, Any] = {}

    def task(name: str, total: int) -> Any:
        if name not in tasks:
            tasks[name] = bar.add_task(name, total=total or None, note="")
        return tasks[name]

    started = None
    for event in stream:
        match event:
            case events.Progress(phase="device"):
                err.print(f"{PHASE_TITLES['device']}.")
            case events.Progress(phase, done, total):
                bar.update(task(PHASE_TITLES[phase], total), completed=done, visible=done != total)
            case (
                events.RunPlaced()
                | events.ImagesSkipped()
                | events.ImagesLost()
                | events.MemoryShort()
                | events.HeadFitted()
                | events.HeadInitialized()
                | events.WeightsAveraged()
            ):
                err.print(escape(describe_event(event.to_json())))
            case events.RunStarted():
                started = event
                if event.weights == "none":
                    err.print("The backbone starts from random weights.")
                verb = "are fitted" if event.epochs == 0 and event.trainable_parameters else "train"
                err.print(
                    f"{event.backbone}, {event.strategy}: {event.trainable_parameters:,} of "
                    f"{event.total_parameters:,} parameters {verb} on "
                    f"{escape(describe_devices(event.to_json()))} in "
                    f"{describe_precision(event.to_json())}"
                )
                if lineage := describe_lineage(event.to_json()):
                    err.print(escape(lineage))
                if note := describe_live_metrics(event.to_json()):
                    err.print(note)
            case events.RunResumed(epoch, step):
                err.print(f"Resuming after {pluralize(step, 'step')} of epoch {epoch}.")
            case events.StepEnded() if started:
                done = (event.epoch - 1) * started.steps_per_epoch + event.step
                note = (
                    f"training loss {event.epoch_loss:.3f}  "
                    f"accuracy {format_percent(event.epoch_accuracy)}"
                )
                bar.update(
                    task("Training", started.epochs * started.steps_per_epoch),
                    completed=done,
                    note=note,
                )
            case events.EpochEnded() if started:
                err.print(
                    f"epoch {event.epoch}/{started.epochs}: training loss {event.train_loss:.4f}, "
                    f"training accuracy {format_percent(event.train_accuracy)}; validation loss "
                    f"{event.val_loss:.4f}, validation accuracy "
                    f"{format_percent(event.val_accuracy)}"
                )
                if note := describe_overflow(event.to_json()):
                    err.print(note)


def abort_on_first_interrupt() -> None:
    """Abort this program at the first Ctrl-C, and ignore later ones.

    A second interrupt would break the program's cleanup.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _abort)


def _abort(*_: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Write to the descriptor: the signal may have interrupted a write to the stream.
    with suppress(OSError):
        os.write(2, b"Aborted.\n")
    raise KeyboardInterrupt


@contextmanager
def stop_on_interrupt(stop: Callable[[], object]) -> Iterator[None]:
    """Call ``stop`` at the first Ctrl-C, and abort at another one more than a second later.

    Key presses in quick succession count as one. Signals reach the main thread only, so in other
    threads nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopped_at: float | None = None

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal stopped_at
        if stopped_at is None:
            stopped_at = time.monotonic()
            err.print("Stopping after this step; Ctrl-C again breaks off.")
            stop()
        elif time.monotonic() - stopped_at > _BURST:
            signal.signal(signal.SIGINT, before)
            before(number, frame)

    found = signal.signal(signal.SIGINT, on_interrupt)
    # A parent that ignores Ctrl-C leaves the handling to this program.
    before = found if callable(found) else signal.default_int_handler
    try:
        yield
    finally:
        # Skip this if ``before`` has ended the block: it may have chosen another handler for the
        # rest. Skip it after a stop on the command line, too: more key presses of the burst may
        # arrive while results are written, and ``on_interrupt`` hands later ones to ``before``.
        is_kept = stopped_at is not None and before is _abort
        if signal.getsignal(signal.SIGINT) is on_interrupt and not is_kept:
            signal.signal(signal.SIGINT, before)


@contextmanager
def ignore_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C within the block.

    Ctrl-C reaches all processes of a run. Rank 0 stops the run, and the other ranks wait for that.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def describe_result(result: dict[str, Any], beside: str = "") -> str:
    """Describe the outcome of a run.

    Args:
        result: the run's row from ``summarize_run``.
        beside: a sentence on its reference points.
    """
    if result["val_accuracy"] is None:
        return f"Stopped before there was anything to evaluate. {escape(result['run_dir'])}"
    test = (
        f", test accuracy {format_percent(result['test_accuracy'])}"
        if result["test_accuracy"] is not None
        else ""
    )
    took = f" in {format_duration(result['seconds'])}"
    warning = f"\nNot converged: {result['convergence']}." if result["converged"] is False else ""
    beside = f"\n{beside}" if beside else ""
    best = f"best epoch {result['best_epoch']}, " if result["best_epoch"] else ""
    return (
        f"{result['status'].capitalize()}{took}: {best}validation accuracy "
        f"{format_percent(result['val_accuracy'])}{test} (in {result['evaluation_precision']})"
        f"{beside}{warning}\n{escape(result['run_dir'])}"
    )

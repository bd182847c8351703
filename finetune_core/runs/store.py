"""All runs of a folder, as the app and the command line see them."""

import os
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from finetune_core.config import RunConfig, make_config, read_config
from finetune_core.errors import ConfigError, RunError
from finetune_core.runs.history import History
from finetune_core.runs.record import CONFIG_FILE, About, is_locked, read_about, write_about

_TRASH = ".trash"

Status = Literal["queued", "running", "finished", "stopped", "paused", "failed", "interrupted"]


@dataclass(frozen=True)
class Run:
    """One run as it stands now.

    Attributes:
        status: ``interrupted`` means that its process went away in the middle.
        about: the name and note that a person gave it, and whose it is.
    """

    run_dir: Path
    config: RunConfig
    history: History
    status: Status
    about: About = field(default_factory=About)

    @property
    def name(self) -> str:
        return self.about.name

    @property
    def note(self) -> str:
        return self.about.note

    @property
    def owner(self) -> str:
        return self.about.owner

    @property
    def run_id(self) -> str:
        return self.run_dir.name

    @property
    def active(self) -> bool:
        return self.status in ("queued", "running")

    @property
    def resumable(self) -> bool:
        """Whether it can go on from where it was left."""
        return self.status in ("stopped", "paused", "failed", "interrupted")

    @property
    def judged(self) -> bool:
        """Whether at least one epoch has ended, so that there are predictions."""
        return not self.active and bool(self.history.epochs)


def summary(run: Run) -> dict[str, Any]:
    """A run in one flat row of plain values; what is not known yet is None."""
    started, end = run.history.started or {}, run.history.end or {}
    best = max(run.history.epochs, key=lambda row: (row["val_accuracy"], -row["val_loss"]), default={})
    return {
        "run_id": run.run_id,
        "run_dir": str(run.run_dir),
        "status": run.status,
        "strategy": run.config.strategy,
        "backbone": run.config.backbone,
        "weights": run.config.starts_from,
        "trainable_parameters": started.get("trainable_parameters"),
        "total_parameters": started.get("total_parameters"),
        "epochs": len(run.history.epochs),
        "best_epoch": best.get("epoch"),
        "val_accuracy": best.get("val_accuracy"),
        "val_loss": best.get("val_loss"),
        "test_accuracy": end.get("test_accuracy"),
        "seconds": end.get("seconds"),
        "device": started.get("device"),
        "precision": started.get("precision"),
        "classes": started.get("classes"),
        "images": started.get("counts"),
        "skipped_images": run.history.skipped["count"] if run.history.skipped else 0,
        "frozen_tensors": end.get("frozen_tensors"),
        "message": end.get("message"),
    }


class RunStore:
    """Reads runs, and remembers how far it has read each. Safe to share between sessions."""

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir
        self._histories: dict[Path, History] = {}
        self._lock = Lock()

    def runs(self) -> list[Run]:
        """Every readable run, the newest first; the unreadable are in ``damaged``."""
        return [run for folder in self._folders() if (run := self._read_or_none(folder))]

    def damaged(self) -> list[str]:
        """Names of run folders whose config cannot be read."""
        return [folder.name for folder in self._folders() if self._read_or_none(folder) is None]

    def run(self, run_id: str) -> Run:
        """One run.

        Raises:
            RunError: when there is none of that name, or it cannot be read.
        """
        if Path(run_id).name != run_id or run_id in ("", ".", ".."):
            raise RunError(f"{run_id!r} is not the name of a run.")
        return self.read(self.runs_dir / run_id)

    def read(self, run_dir: Path) -> Run:
        """The run in a folder.

        Raises:
            RunError: when it is none.
        """
        if not (run_dir / CONFIG_FILE).is_file():
            raise RunError(f"There is no run in {run_dir}.")
        try:
            config = _config(run_dir / CONFIG_FILE, (run_dir / CONFIG_FILE).stat().st_mtime_ns)
        except ConfigError as error:
            raise RunError(f"The settings of the run in {run_dir} cannot be read: {error}") from None
        with self._lock:
            history = self._histories.setdefault(run_dir, History(run_dir))
        return Run(run_dir, config, history, _status(history), read_about(run_dir))

    def describe(self, run_id: str, name: str, note: str) -> None:
        """Give a run a name and a note.

        Raises:
            RunError: when they cannot be written.
        """
        run_dir = self.run(run_id).run_dir
        try:
            write_about(run_dir, replace(read_about(run_dir), name=name.strip(), note=note.strip()))
        except OSError as error:
            raise RunError(f"The name cannot be written to {run_dir}: {error}.") from None

    def delete(self, run_id: str, by: str | None = None) -> Path:
        """Move a run to the trash, from which a person can move it back; returns where it is.

        Args:
            by: who asks, where people sign in: only a run's owner deletes it.

        Raises:
            RunError: when it is somebody else's, is going on, or cannot be moved.
        """
        run = self.run(run_id)
        if by is not None and run.owner != by:
            whose = f"belongs to {run.owner}" if run.owner else "was started without signing in, and belongs to nobody"
            raise RunError(f"The run {run_id} {whose}: only its owner deletes it.")
        if run.active:
            raise RunError(f"The run {run_id} is going on; stop it first.")
        place = self.runs_dir / _TRASH / run_id
        try:
            place.parent.mkdir(exist_ok=True)
            os.rename(run.run_dir, place)
        except OSError as error:
            raise RunError(f"The run {run_id} cannot be moved to {place.parent}: {error}.") from None
        return place

    def _folders(self) -> list[Path]:
        if not self.runs_dir.is_dir():
            return []
        folders = [path for path in self.runs_dir.iterdir() if (path / CONFIG_FILE).is_file()]
        return sorted(folders, key=lambda path: path.name, reverse=True)

    def _read_or_none(self, folder: Path) -> Run | None:
        try:
            return self.read(folder)
        except RunError:
            return None


@lru_cache(maxsize=1000)
def _config(file: Path, _changed: int) -> RunConfig:
    """Written once, read at every look at the runs."""
    return make_config(read_config(file))


def _status(history: History) -> Status:
    locked = False
    if history.refresh().end is None:
        # Read on after the look at the lock: a run that ends between the two is seen as ended, never as interrupted.
        locked = is_locked(history.run_dir)
        history.refresh()
    if history.end:
        ends: dict[str, Status] = {"RunFinished": "finished", "RunStopped": "stopped", "RunFailed": "failed"}
        return "paused" if history.end.get("paused") else ends[history.end["event"]]
    if not locked:
        return "interrupted"
    return "running" if history.begun else "queued"

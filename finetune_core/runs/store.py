"""The runs of a folder, as the app and the command line see them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from finetune_core import paths
from finetune_core.config import CONFIG_FILE, RunConfig, make_config, read_config
from finetune_core.errors import ConfigError, RunError
from finetune_core.files import Stamp, file_stamp, is_link, path_exists
from finetune_core.formatting import pluralize
from finetune_core.models.catalogue import check_backbone_name
from finetune_core.runs.about import ABOUT_FILE, About, clean_tags, read_about, write_about
from finetune_core.runs.convergence import Convergence, judge_run
from finetune_core.runs.display import describe_run, render_run
from finetune_core.runs.history import History
from finetune_core.runs.locks import is_locked
from finetune_core.runs.record import EVENTS_FILE
from finetune_core.training.events import Row
from finetune_core.training.strategies.catalogue import STRATEGIES, count_epochs

_TRASH = ".trash"

Status = Literal[
    "queued",
    "waiting",
    "running",
    "finished",
    "stopped",
    "cancelled",
    "paused",
    "failed",
    "interrupted",
]


@dataclass(frozen=True)
class Run:
    """A run as it stands now.

    Attributes:
        run_dir: the run directory.
        config: its settings.
        history: its events.
        status: ``queued``: the program that has the run trains another run first; ``waiting``:
            another program uses the device; ``cancelled``: stopped before it began;
            ``interrupted``: its process died.
        about: name, note, tags and owner.
        notices: parts of the directory that could not be read, as text; the rest of the run is
            intact.
    """

    run_dir: Path
    config: RunConfig
    history: History
    status: Status
    about: About = field(default_factory=About)
    notices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name that a person gave the run."""
        return self.about.name

    @property
    def note(self) -> str:
        """Note that a person wrote."""
        return self.about.note

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags that a person set."""
        return self.about.tags

    @property
    def owner(self) -> str:
        """Person who started the run, where people sign in."""
        return self.about.owner

    @property
    def run_id(self) -> str:
        """Id of the run: the name of its directory."""
        return self.run_dir.name

    @property
    def started(self) -> Row:
        """The RunStarted row.

        Raises:
            RunError: if the run has not begun to train.
        """
        if self.history.started is None:
            raise RunError(f"The run {self.run_id} has not begun to train: wait until it has.")
        return self.history.started

    @property
    def convergence(self) -> Convergence:
        """Judgement whether the run, by its own curve, trained long enough."""
        return judge_run(self.config, self.history)

    @property
    def is_active(self) -> bool:
        """True if the run is queued, waits for its device, or trains."""
        return self.status in ("queued", "waiting", "running")

    @property
    def is_resumable(self) -> bool:
        """True if the run can go on from where it stopped."""
        return self.status in ("stopped", "cancelled", "paused", "failed", "interrupted")

    @property
    def is_evaluable(self) -> bool:
        """True if there are predictions to evaluate."""
        return not self.is_active and self.history.has_predictions

    def __repr__(self) -> str:
        return f"<Run {self.run_id}: {describe_run(summarize_run(self))}>"

    def _repr_html_(self) -> str:
        return render_run(self.run_id, self.run_dir, summarize_run(self), self.history.epochs)


@dataclass(frozen=True)
class DamagedRun:
    """A run directory, or one that was meant to be, that cannot be read.

    Attributes:
        run_dir: the directory.
        reason: the damage as text.
        owner: the owner, if known.
    """

    run_dir: Path
    reason: str
    owner: str = ""

    @property
    def run_id(self) -> str:
        """Id of the run: the name of its directory."""
        return self.run_dir.name


def is_run_dir(folder: Path) -> bool:
    """Return whether a folder holds a run, including a damaged one."""
    return any(path_exists(folder / name) for name in (CONFIG_FILE, EVENTS_FILE))


def resolve_run_dir(named: str | os.PathLike[str]) -> Path:
    """Return the directory of a run from its path or its id.

    An id is looked up among the runs in their usual place.
    """
    folder = Path(named)
    among = paths.runs_dir() / folder.name
    return (
        among
        if os.fspath(named) == folder.name and not is_run_dir(folder) and is_run_dir(among)
        else folder
    )


def read_run(folder: Path) -> Run:
    """Read the run in a folder.

    Raises:
        RunError: if the folder holds no run, or a damaged one.
    """
    try:
        whole = Path(os.path.abspath(folder))
        whole = Path(os.path.realpath(whole.parent), whole.name)
    except ValueError:
        raise RunError(f"{str(folder)!r} cannot be the name of a folder.") from None
    return RunStore(whole.parent).load_run(whole)


def find_best_epoch(run: Run) -> Row:
    """Return the EpochEnded row with the highest validation accuracy so far; empty before one."""
    return max(
        run.history.epochs, key=lambda row: (row["val_accuracy"], -row["val_loss"]), default={}
    )


def summarize_run(run: Run) -> dict[str, Any]:
    """Return a run as one flat row of plain values; unknown values are None.

    ``val_accuracy``, ``val_loss`` and ``test_accuracy`` of a finished run are those of its final
    evaluation. Of other runs they are those of the best epoch during training.
    ``evaluation_precision`` is the precision that they were computed in.

    ``live_val_accuracy`` is that of the best epoch during training, computed in ``precision``, for
    every run.

    ``started_from`` is the earlier run whose network this run started with: ``run, data, strategy,
    epoch, accuracy, weights``.

    ``averaged`` says how other runs were averaged: ``how, runs``, and once that is done
    ``parents, ingredients, curve, coefficient, shifted, batchnorm_layers``.

    ``converged`` is None if it is unknown; ``convergence`` is the reason.
    """
    started, end = run.history.started or {}, run.history.end or {}
    convergence = run.convergence
    best = find_best_epoch(run)
    return {
        "run_id": run.run_id,
        "run_dir": str(run.run_dir),
        "status": run.status,
        "strategy": run.config.strategy,
        "backbone": run.config.backbone,
        "weights": run.config.initial_weights,
        "started_from": next(iter(started.get("lineage", ())), None),
        "head_kept": started.get("head_kept"),
        "averaged": _summarize_average(run),
        "trainable_parameters": started.get("trainable_parameters"),
        "total_parameters": started.get("total_parameters"),
        "epochs": len(run.history.epochs),
        "best_epoch": best.get("epoch"),
        "converged": convergence.converged,
        "convergence": convergence.reason,
        "val_accuracy": end.get("val_accuracy", best.get("val_accuracy")),
        "val_loss": end.get("val_loss", best.get("val_loss")),
        "test_accuracy": end.get("test_accuracy"),
        "evaluation_precision": end.get("evaluation_precision") or started.get("precision"),
        "live_val_accuracy": best.get("val_accuracy"),
        "seconds": end.get("seconds"),
        "device": started.get("device"),
        "precision": started.get("precision"),
        "classes": started.get("classes"),
        "images": started.get("counts"),
        "skipped_images": run.history.skipped["count"] if run.history.skipped else 0,
        "frozen_tensors": end.get("frozen_tensors"),
        "message": end.get("message"),
    }


def _summarize_average(run: Run) -> dict[str, Any] | None:
    asked, done = run.config.averaged, run.history.averaged or {}
    if asked is None:
        return None
    kept = ("parents", "ingredients", "curve", "coefficient", "shifted", "batchnorm_layers")
    return {"how": asked.how, "runs": [Path(folder).name for folder in asked.runs]} | {
        name: done.get(name) for name in kept
    }


class RunStore:
    """Reader of the runs in a folder, which remembers its position in each.

    Sessions may share a store.
    """

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir
        self._histories: dict[Path, History] = {}
        # Ended runs change only if their files do.
        self._ended: dict[Path, tuple[_Version, Run]] = {}
        self._lock = Lock()

    def list_all(self) -> tuple[list[Run], list[DamagedRun]]:
        """Return every run, and every damaged one, the newest first."""
        folders = self._list_folders()
        self._forget(set(folders))
        found = [self._load(folder) for folder in folders]
        return [one for one in found if isinstance(one, Run)], [
            one for one in found if isinstance(one, DamagedRun)
        ]

    def list_runs(self) -> list[Run]:
        """Return every readable run, the newest first."""
        return self.list_all()[0]

    def list_damaged(self) -> list[DamagedRun]:
        """Return the run directories that cannot be read."""
        return self.list_all()[1]

    def get_run(self, run_id: str) -> Run:
        """Return a run by its id.

        Raises:
            RunError: if there is none of that id, or it cannot be read.
        """
        return self.load_run(self._find_folder(run_id))

    def load_run(self, run_dir: Path) -> Run:
        """Return the run in a directory.

        Raises:
            RunError: if the directory holds no run, or a damaged one.
        """
        if not is_run_dir(run_dir):
            raise RunError(f"There is no run in {run_dir}.")
        found = self._load(run_dir)
        if isinstance(found, DamagedRun):
            raise RunError(f"The run in {run_dir} is damaged: {found.reason}.")
        return found

    def _forget(self, existing: set[Path]) -> None:
        """Forget runs that were deleted."""
        with self._lock:
            for held in (self._histories, self._ended):
                for run_dir in held.keys() - existing:
                    if run_dir.parent == self.runs_dir:
                        del held[run_dir]

    def _load(self, run_dir: Path) -> Run | DamagedRun:
        if is_link(run_dir):
            return DamagedRun(run_dir, "its folder is a link, which is not followed")
        version = _version(run_dir)
        known = self._ended.get(run_dir)
        if known and known[0] == version:
            return known[1]
        found = self._read(run_dir, version)
        if isinstance(found, Run) and found.history.end:
            with self._lock:  # another session may be iterating
                self._ended[run_dir] = version, found
        return found

    def _read(self, run_dir: Path, version: "_Version") -> Run | DamagedRun:
        about, notices = _load_about(run_dir, version[0]), []
        if isinstance(about, str):
            notices.append(f"Its name, note and tags cannot be read: {about}")
            about = About()
        config = _load_config(run_dir / CONFIG_FILE, version[1])
        if isinstance(config, str):
            return DamagedRun(run_dir, config, about.owner)
        with self._lock:
            history = self._histories.setdefault(run_dir, History(run_dir))
        status = _determine_status(history)
        if problem := history.problem or _find_contradiction(config, history):
            return DamagedRun(run_dir, problem, about.owner)
        if history.skipped_lines:
            lines = pluralize(history.skipped_lines, "line")
            notices.append(
                f"{lines} of {EVENTS_FILE} could not be read and "
                f"{'is' if history.skipped_lines == 1 else 'are'} left out."
            )
        return Run(run_dir, config, history, status, about, tuple(notices))

    def set_about(self, run_id: str, name: str, note: str, tags: Sequence[str] = ()) -> None:
        """Replace the name, note and tags of a run.

        Raises:
            RunError: if they are too long, or cannot be written.
        """
        run = self.get_run(run_id)
        about = replace(run.about, name=name.strip(), note=note.strip(), tags=clean_tags(tags))
        try:
            write_about(run.run_dir, about)
        except OSError as error:
            raise RunError(f"The name cannot be written to {run.run_dir}: {error}.") from None

    def delete(self, run_id: str, by: str | None = None) -> Path:
        """Move a run, or a damaged one, to the trash, from which a person can move it back.

        Args:
            run_id: id of the run.
            by: the person who asks, where people sign in: only the owner may delete a run.

        Returns:
            The directory in the trash.

        Raises:
            RunError: if the run is another person's, is going on, or cannot be moved.
        """
        run = self._load(self._find_folder(run_id))
        if by is not None and run.owner != by:
            whose = (
                f"belongs to {run.owner}"
                if run.owner
                else "was started without signing in, and belongs to nobody"
            )
            raise RunError(f"The run {run_id} {whose}: only its owner deletes it.")
        if (
            run.is_active
            if isinstance(run, Run)
            else not is_link(run.run_dir) and is_locked(run.run_dir)
        ):
            raise RunError(f"The run {run_id} is going on; stop it first.")
        place = self.runs_dir / _TRASH / run_id
        try:
            place.parent.mkdir(exist_ok=True)
            os.rename(run.run_dir, place)
        except OSError as error:
            raise RunError(
                f"The run {run_id} cannot be moved to {place.parent}: {error}."
            ) from None
        return place

    def _list_folders(self) -> list[Path]:
        try:
            entries = [
                entry for entry in os.scandir(self.runs_dir) if not entry.name.startswith(".")
            ]
        except OSError:  # no run yet
            return []
        folders = [
            Path(entry.path)
            for entry in entries
            if entry.is_symlink() or is_run_dir(Path(entry.path))
        ]
        return sorted(folders, key=lambda path: path.name, reverse=True)

    def _find_folder(self, run_id: str) -> Path:
        """Return the directory of a run.

        Raises:
            RunError: if there is none of that id.
        """
        folder = self.runs_dir / run_id
        if Path(run_id).name != run_id or run_id in ("", ".", ".."):
            raise RunError(f"{run_id!r} is not the name of a run.")
        if not is_link(folder) and not is_run_dir(folder):
            raise RunError(f"There is no run in {folder}.")
        return folder


# Stamps of about.json, config.json and events.jsonl.
_Version = tuple[Stamp | None, Stamp | None, Stamp | None]


def _version(run_dir: Path) -> _Version:
    return (
        file_stamp(run_dir / ABOUT_FILE),
        file_stamp(run_dir / CONFIG_FILE),
        file_stamp(run_dir / EVENTS_FILE),
    )


# Written rarely, but read whenever runs are listed: parse each version of the file once.
@lru_cache(maxsize=2000)
def _load_about(run_dir: Path, _version: Stamp | None) -> About | str:
    """Return name, note, tags and owner of a run, or the damage of the file as text."""
    try:
        return read_about(run_dir)
    except RunError as error:
        return str(error)


@lru_cache(maxsize=2000)
def _load_config(file: Path, _version: Stamp | None) -> RunConfig | str:
    """Return the settings of a run, or the damage of the file as text."""
    try:
        return make_config(read_config(file))
    except ConfigError as error:
        return _describe_config_error(error)


def _describe_config_error(error: ConfigError) -> str:
    return f"its settings cannot be read: {' '.join(str(error).split())[:300]}"


def _find_contradiction(config: RunConfig, history: History) -> str:
    """Describe how the settings and events of a run contradict each other; else return "".

    A run that has begun to train had a network, even if today's libraries no longer have it. Its
    results can be read.
    """
    started = history.started
    if started is None:
        try:
            check_backbone_name(config.backbone)
        except ConfigError as error:
            return _describe_config_error(error)
        return ""
    for name, value in (
        ("backbone", config.backbone),
        ("strategy", config.strategy),
        ("epochs", count_epochs(config)),
    ):
        if started[name] != value:
            return (
                f"{CONFIG_FILE} and {EVENTS_FILE} are not of the same run: "
                f"they name different {name.removesuffix('s')}s"
            )
    try:
        STRATEGIES[config.strategy].rules(config, [stage["name"] for stage in started["stages"]])
    except ConfigError as error:
        return (
            f"{CONFIG_FILE} and {EVENTS_FILE} are not of the same run: "
            f"{' '.join(str(error).split())[:300]}"
        )
    return ""


def _determine_status(history: History) -> Status:
    locked = False
    if history.refresh().end is None:
        # Read the events again after probing the lock: a run that ends in between is then seen as
        # ended, never as interrupted.
        locked = is_locked(history.run_dir)
        history.refresh()
    if history.end:
        stopped: Status = "stopped" if history.started else "cancelled"
        ends: dict[str, Status] = {
            "RunFinished": "finished",
            "RunStopped": stopped,
            "RunFailed": "failed",
        }
        return "paused" if history.end.get("paused") else ends[history.end["event"]]
    if not locked:
        return "interrupted"
    if not history.has_begun:
        return "queued"
    return "waiting" if history.is_waiting_for_device else "running"

"""Sees runs through, a thread for each that trains, a queue before them: in this process, or wherever an executor has them trained."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Condition, Thread

from finetune_core.config import CONFIG_FILE, RunConfig, make_config, read_config
from finetune_core.errors import ConfigError, FinetuneError, RunError
from finetune_core.files import is_there
from finetune_core.runs.about import read_about
from finetune_core.runs.executors import Executor, InProcess
from finetune_core.runs.record import Reservation, create_run, execute, reopen_run
from finetune_core.runs.stop_request import request_stop
from finetune_core.training.events import Event
from finetune_core.training.prepare import missing_weights

log = logging.getLogger(__name__)

_LOOK = 1.0  # seconds


class Worker:
    """One per process. Runs of one queue of the executor wait for each other; those of different queues do not.

    Attributes:
        executor: who trains them; this process, unless another one is given.
        roots: the folders that runs may read; empty where they may read all.
        after: called with each run that has ended, its folder -> a warning for the log, or an empty string.
    """

    def __init__(
        self,
        runs_dir: Path,
        roots: Sequence[Path] = (),
        after: Callable[[Path], str] = lambda _: "",
        executor: Executor | None = None,
    ) -> None:
        self.runs_dir, self.roots, self.after = runs_dir, tuple(roots), after
        self.executor: Executor = executor or InProcess()
        self._queues: dict[str, _Queue] = {}
        self._changed = Condition()

    def submit(self, config: RunConfig, owner: str = "", devices: int = 1) -> str:
        """Queue a run; returns its id. The same settings of the same owner that wait or train already are not queued again: a second click.

        Args:
            owner: who asks, where people sign in.
            devices: on how many of one machine it is to train.

        Raises:
            ConfigError: when it cannot work, or its pretrained weights are not on this machine: it would wait for its turn, then fail.
                Then nothing is queued.
        """
        for info in missing_weights([config]):
            raise ConfigError(
                {
                    "backbone": f"the weights of {info.name} are not on this machine: "
                    "download them first"
                }
            )
        with self._changed:
            self.executor.check(config, devices)
            same = next(
                (
                    one
                    for queue in self._queues.values()
                    for one in queue.all()
                    if one.config == config and _belongs_to(one, owner)
                ),
                None,
            )
            return same.run_id if same else self._put(self._created(config, owner, devices), config)

    def resume(self, run_id: str, devices: int = 1) -> None:
        """Queue a run that had ended, or was cut off, to go on.

        Args:
            devices: as for ``submit``.

        Raises:
            ConfigError, RunError: when it cannot.
        """
        with self._changed:
            run_dir = self.runs_dir / run_id
            if is_there(run_dir / CONFIG_FILE):  # else it is refused in other words
                self.executor.check(make_config(read_config(run_dir / CONFIG_FILE)), devices)
            reservation = reopen_run(run_dir, elsewhere=self.executor.elsewhere, devices=devices)
            self._put(reservation, make_config(read_config(run_dir / CONFIG_FILE)))

    def waiting(self, run_id: str) -> tuple[int, int] | None:
        """(place in its queue from 1, how many wait there); None when it does not wait."""
        with self._changed:
            for queue in self._queues.values():
                ids = [one.run_id for one in queue.waiting]
                if run_id in ids:
                    return ids.index(run_id) + 1, len(ids)
        return None

    def queues(self) -> list[list[str]]:
        """Ids of the runs in each queue that is not empty: those that train, then those that wait, in their order."""
        with self._changed:
            found = [[one.run_id for one in queue.all()] for queue in self._queues.values()]
        return [ids for ids in found if ids]

    def move(self, run_id: str, places: int) -> None:
        """Let a waiting run go later by so many places, or earlier where they are negative; at the end of the queue it stays.

        One that does not wait any more is left alone.
        """
        with self._changed:
            for queue in self._queues.values():
                ids = [one.run_id for one in queue.waiting]
                if run_id in ids:
                    at = ids.index(run_id)
                    queue.waiting.insert(max(0, at + places), queue.waiting.pop(at))

    def cancel(self, run_id: str) -> None:
        """Take a run that waits out of its queue; one that had never begun is ``cancelled`` then. It can be resumed.

        Raises:
            RunError: when it does not wait any more, or that cannot be written to its folder.
        """
        with self._changed:
            queued = self._waiting(run_id)
            if queued is None:
                raise RunError(
                    f"The run {run_id} does not wait any more, so it was not cancelled. "
                    "If it trains, stop it."
                )
            self._leave(queued, pause=False)
        _end(queued.reservation)

    def stop(self, run_id: str, *, pause: bool = False) -> None:
        """Stop a run, for now or for good, wherever it is: one that waits leaves its queue, one that trains ends soon, in whichever
        process.

        Raises:
            RunError: when the request cannot be written to its folder.
        """
        with self._changed:
            queued = self._waiting(run_id)
            if queued:
                self._leave(queued, pause=pause)
        if queued:
            _end(queued.reservation)
        else:
            request_stop(self.runs_dir / run_id, pause=pause)

    def _waiting(self, run_id: str) -> "_Queued | None":
        return next(
            (
                one
                for queue in self._queues.values()
                for one in queue.waiting
                if one.run_id == run_id
            ),
            None,
        )

    def _leave(self, queued: "_Queued", *, pause: bool) -> None:
        """Take a run out of its queue, once the request to stop it is written: where it cannot be, the run still waits."""
        request_stop(self.runs_dir / queued.run_id, pause=pause)
        for queue in self._queues.values():
            queue.waiting = [one for one in queue.waiting if one is not queued]

    def _created(self, config: RunConfig, owner: str, devices: int) -> Reservation:
        return create_run(
            config, self.runs_dir, owner, elsewhere=self.executor.elsewhere, devices=devices
        )

    def _put(self, reservation: Reservation, config: RunConfig) -> str:
        name = self.executor.queue_of(config)
        queue = self._queues.setdefault(name, _Queue())
        queue.waiting.append(_Queued(reservation, config))
        self._hire(name, queue)
        self._changed.notify_all()
        return reservation.run_dir.name

    def _hire(self, name: str, queue: "_Queue") -> None:
        """A thread for each place that there is work for, and, where places can be added, one that looks for them."""
        wanted = self.executor.places(name) + self.executor.elsewhere
        while queue.threads < min(wanted, len(queue.all())):
            queue.threads += 1
            Thread(
                target=self._work,
                args=(name, queue),
                name=f"training-{name}-{queue.threads}",
                daemon=True,
            ).start()

    def _work(self, name: str, queue: "_Queue") -> None:
        """See runs through, one after the other, while a place is free."""
        while True:
            with self._changed:
                while not self._has_place(name, queue):
                    self._changed.wait(_LOOK if queue.waiting else None)
                queued = queue.waiting.pop(0)
                queue.training.append(queued)
                self._hire(name, queue)
            _drain(queued.run_id, self.executor.execute(queued.reservation, self.roots))
            if warning := self.after(queued.reservation.run_dir):
                log.warning("%s", warning)
            with self._changed:
                queue.training.remove(queued)

    def _has_place(self, name: str, queue: "_Queue") -> bool:
        """Whether the first run that waits can train; it is not overtaken by one that takes fewer places."""
        if not queue.waiting:
            return False
        taken = [
            self.executor.places_of(one.reservation.devices)
            for one in (*queue.training, queue.waiting[0])
        ]
        return not queue.training or sum(taken) <= self.executor.places(name)


def _drain(run_id: str, events: Iterator[Event]) -> None:
    try:
        for _ in events:
            pass
    except FinetuneError as error:
        log.warning("run %s failed: %s", run_id, error)
    except Exception:
        # a bug in one run must not end the queue; it is in the run's events and in the log
        log.exception("run %s failed", run_id)


def _end(reservation: Reservation) -> None:
    """Write that a run has ended which was asked to stop before it could begin, or go on."""
    _drain(reservation.run_dir.name, execute(replace(reservation, has_device=True)))


def _belongs_to(queued: "_Queued", owner: str) -> bool:
    try:
        return read_about(queued.reservation.run_dir).owner == owner
    except RunError:  # a damaged file names nobody
        return False


@dataclass(frozen=True)
class _Queued:
    reservation: Reservation
    config: RunConfig

    @property
    def run_id(self) -> str:
        return self.reservation.run_dir.name


@dataclass
class _Queue:
    waiting: list[_Queued] = field(default_factory=list)
    training: list[_Queued] = field(default_factory=list)
    threads: int = 0

    def all(self) -> list[_Queued]:
        return [*self.training, *self.waiting]

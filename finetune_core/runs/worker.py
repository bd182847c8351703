"""Worker that trains queued runs, in one thread per run that trains.

Runs train in this process, or as another executor has them trained.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Condition, Thread

from finetune_core.config import CONFIG_FILE, RunConfig, make_config, read_config
from finetune_core.errors import ConfigError, FinetuneError, RunError
from finetune_core.files import path_exists
from finetune_core.runs.about import read_about
from finetune_core.runs.executors.in_process import InProcess
from finetune_core.runs.executors.protocol import Executor
from finetune_core.runs.record import Reservation, create_run, execute, reopen_run
from finetune_core.runs.stop_request import request_stop
from finetune_core.training.events import Event
from finetune_core.training.prepare import list_missing_weights

log = logging.getLogger(__name__)

_LOOK = 1.0  # seconds


class Worker:
    """Queues of runs, and the threads that train them; one worker per process.

    Runs of one queue of the executor wait for each other. Runs of different queues do not.

    Attributes:
        runs_dir: the folder of the runs.
        roots: the folders that runs may read; empty if they may read all.
        after: called with the directory of each run that has ended; returns a warning for the log,
            or an empty string.
        executor: trains the runs; this process by default.
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
        """Queue a run.

        The same settings of the same owner that wait or train already are not queued again, so that
        a second click does nothing.

        Args:
            config: the settings.
            owner: the person who asks, where people sign in.
            devices: number of devices of one machine that the run is to train on.

        Returns:
            The id of the run.

        Raises:
            ConfigError: if the run cannot work, or its pretrained weights are not on this machine:
                it would wait for its turn, then fail. Then nothing is queued.
        """
        for info in list_missing_weights([config]):
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
                    for one in queue.list_queued()
                    if one.config == config and _is_owned_by(one, owner)
                ),
                None,
            )
            return (
                same.run_id
                if same
                else self._enqueue(self._create_run(config, owner, devices), config)
            )

    def resume(self, run_id: str, devices: int = 1) -> None:
        """Queue a run that had ended, or was cut off, to go on.

        Args:
            run_id: id of the run.
            devices: as for ``submit``.

        Raises:
            ConfigError: if the run cannot work any more.
            RunError: if the run cannot be resumed.
        """
        with self._changed:
            run_dir = self.runs_dir / run_id
            if path_exists(run_dir / CONFIG_FILE):  # else reopen_run reports the error
                self.executor.check(make_config(read_config(run_dir / CONFIG_FILE)), devices)
            reservation = reopen_run(run_dir, remote=self.executor.remote, devices=devices)
            self._enqueue(reservation, make_config(read_config(run_dir / CONFIG_FILE)))

    def find_position(self, run_id: str) -> tuple[int, int] | None:
        """Return the position of a run in its queue, from 1, and the number of waiting runs.

        None stands for a run that does not wait.
        """
        with self._changed:
            for queue in self._queues.values():
                ids = [one.run_id for one in queue.waiting]
                if run_id in ids:
                    return ids.index(run_id) + 1, len(ids)
        return None

    def list_queues(self) -> list[list[str]]:
        """Return the ids of the runs in each queue that is not empty.

        Runs that train come first, then those that wait, in order.
        """
        with self._changed:
            found = [[one.run_id for one in queue.list_queued()] for queue in self._queues.values()]
        return [ids for ids in found if ids]

    def move_in_queue(self, run_id: str, places: int) -> None:
        """Move a waiting run back by some places, or forward if ``places`` is negative.

        The run stays within the queue. A run that no longer waits is left alone.
        """
        with self._changed:
            for queue in self._queues.values():
                ids = [one.run_id for one in queue.waiting]
                if run_id in ids:
                    at = ids.index(run_id)
                    queue.waiting.insert(max(0, at + places), queue.waiting.pop(at))

    def cancel(self, run_id: str) -> None:
        """Take a waiting run out of its queue. It can be resumed.

        The status of a run that had never begun is then ``cancelled``.

        Raises:
            RunError: if the run no longer waits, or the request cannot be written to its directory.
        """
        with self._changed:
            queued = self._find_waiting(run_id)
            if queued is None:
                raise RunError(
                    f"The run {run_id} does not wait any more, so it was not cancelled. "
                    "If it trains, stop it."
                )
            self._dequeue(queued, pause=False)
        _record_stop(queued.reservation)

    def stop(self, run_id: str, *, pause: bool = False) -> None:
        """Stop or pause a run, wherever it is.

        A waiting run leaves its queue. A run that trains ends soon, in whichever process.

        Raises:
            RunError: if the request cannot be written to the run directory.
        """
        with self._changed:
            queued = self._find_waiting(run_id)
            if queued:
                self._dequeue(queued, pause=pause)
        if queued:
            _record_stop(queued.reservation)
        else:
            request_stop(self.runs_dir / run_id, pause=pause)

    def _find_waiting(self, run_id: str) -> "_Queued | None":
        return next(
            (
                one
                for queue in self._queues.values()
                for one in queue.waiting
                if one.run_id == run_id
            ),
            None,
        )

    def _dequeue(self, queued: "_Queued", *, pause: bool) -> None:
        """Take a run out of its queue, once the request to stop it is written.

        If the request cannot be written, the run still waits.
        """
        request_stop(self.runs_dir / queued.run_id, pause=pause)
        for queue in self._queues.values():
            queue.waiting = [one for one in queue.waiting if one is not queued]

    def _create_run(self, config: RunConfig, owner: str, devices: int) -> Reservation:
        return create_run(
            config, self.runs_dir, owner, remote=self.executor.remote, devices=devices
        )

    def _enqueue(self, reservation: Reservation, config: RunConfig) -> str:
        name = self.executor.queue_name(config)
        queue = self._queues.setdefault(name, _Queue())
        queue.waiting.append(_Queued(reservation, config))
        self._start_threads(name, queue)
        self._changed.notify_all()
        return reservation.run_dir.name

    def _start_threads(self, name: str, queue: "_Queue") -> None:
        """Start a thread for each slot that there is work for.

        If the executor can get more slots, one more thread waits for them.
        """
        wanted = self.executor.slots(name) + self.executor.remote
        while queue.threads < min(wanted, len(queue.list_queued())):
            queue.threads += 1
            Thread(
                target=self._train_queue,
                args=(name, queue),
                name=f"training-{name}-{queue.threads}",
                daemon=True,
            ).start()

    def _train_queue(self, name: str, queue: "_Queue") -> None:
        """Train runs, one after the other, while a slot is free."""
        while True:
            with self._changed:
                while not self._has_slot(name, queue):
                    self._changed.wait(_LOOK if queue.waiting else None)
                queued = queue.waiting.pop(0)
                queue.training.append(queued)
                self._start_threads(name, queue)
            _consume(queued.run_id, self.executor.execute(queued.reservation, self.roots))
            if warning := self.after(queued.reservation.run_dir):
                log.warning("%s", warning)
            with self._changed:
                queue.training.remove(queued)

    def _has_slot(self, name: str, queue: "_Queue") -> bool:
        """Return whether the first waiting run can train.

        A run that takes fewer slots does not overtake it.
        """
        if not queue.waiting:
            return False
        taken = [
            self.executor.slots_needed(one.reservation.devices)
            for one in (*queue.training, queue.waiting[0])
        ]
        return not queue.training or sum(taken) <= self.executor.slots(name)


def _consume(run_id: str, events: Iterator[Event]) -> None:
    try:
        for _ in events:
            pass
    except FinetuneError as error:
        log.warning("run %s failed: %s", run_id, error)
    except Exception:
        # A bug in one run must not end the queue. It is in the run's events and in the log.
        log.exception("run %s failed", run_id)


def _record_stop(reservation: Reservation) -> None:
    """Record that a run has ended which was asked to stop before it could begin, or go on."""
    _consume(reservation.run_dir.name, execute(replace(reservation, has_device=True)))


def _is_owned_by(queued: "_Queued", owner: str) -> bool:
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

    def list_queued(self) -> list[_Queued]:
        return [*self.training, *self.waiting]

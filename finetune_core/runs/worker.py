"""Trains runs inside the app's own process: one thread a device, a queue before it. Knows nothing of Streamlit."""

import logging
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread

from finetune_core.config import RunConfig
from finetune_core.errors import FinetuneError
from finetune_core.runs.record import Reservation, create_run, execute
from finetune_core.training.device import choose_device

log = logging.getLogger(__name__)


class Worker:
    """One a process. Runs on one device wait for each other; those on different devices do not."""

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir
        self._queues: dict[str, SimpleQueue[Reservation]] = {}
        self._lock = Lock()

    def submit(self, config: RunConfig) -> str:
        """Queue a run; returns its id.

        Raises:
            ConfigError: when it cannot work; then nothing is queued.
        """
        reservation = create_run(config, self.runs_dir)
        self._queue(choose_device(config.device).kind).put(reservation)
        return reservation.run_dir.name

    def _queue(self, device: str) -> "SimpleQueue[Reservation]":
        with self._lock:
            if device not in self._queues:
                queue = self._queues[device] = SimpleQueue()
                Thread(target=_work, args=(queue,), name=f"training-{device}", daemon=True).start()
            return self._queues[device]


def _work(queue: "SimpleQueue[Reservation]") -> None:
    while True:
        reservation = queue.get()
        try:
            for _ in execute(reservation):
                pass
        except FinetuneError as error:
            log.warning("run %s failed: %s", reservation.run_dir.name, error)
        except Exception:  # a bug in one run must not end the queue; it is in the run's events and in the log
            log.exception("run %s failed", reservation.run_dir.name)

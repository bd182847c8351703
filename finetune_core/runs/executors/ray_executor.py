"""Executor that trains runs with Ray, on this machine's devices or on those of a cluster.

Each run is a task that works in the run directory. Ray's own driver is another process
(``ray_driver.py``). Events of a run are read from its directory, as pages do.
"""

import json
import logging
import os
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from queue import Empty, Queue

from finetune_core import paths
from finetune_core.config import CONFIG_FILE, RunConfig, make_config, read_config
from finetune_core.errors import ConfigError, FinetuneError, RunError
from finetune_core.formatting import pluralize
from finetune_core.runs.executors.protocol import Machine
from finetune_core.runs.executors.remote import (
    LOOK,
    Row,
    follow_events,
    hand_over,
    raise_problem,
    run_to_row,
)
from finetune_core.runs.executors.storage import show_storage
from finetune_core.runs.lines import EventLines
from finetune_core.runs.record import EVENTS_FILE, Reservation, append_event, execute
from finetune_core.runs.stop_request import read_stop_request
from finetune_core.training.events import Event, RunFailed
from finetune_core.training.prepare import check_devices

log = logging.getLogger(__name__)

_START_SECONDS, _CHECK_SECONDS, _END_SECONDS = 300.0, 300.0, 20.0
_MORE_TRIES = 2
_PROJECT = Path(__file__).resolve().parents[3]


class RayExecutor:
    """Executor of runs by Ray, one per process.

    The driver starts when it is first needed, and again if it was lost.

    Args:
        address: HOST:PORT of a cluster's head; empty: a Ray of this machine's own devices, which
            ends with this process.
    """

    remote = True

    def __init__(self, address: str = "") -> None:
        self.address = address
        self._driver: _Driver | None = None
        self._starting = threading.Lock()
        self._checked: set[tuple[str, ...]] = set()

    def queue_name(self, config: RunConfig) -> str:
        """Return ``ray``: all runs wait in one queue."""
        return "ray"

    def slots(self, queue: str) -> int:
        """Return how many runs the cluster can train at a time, at least 1."""
        return sum(self.slots_by_machine()) or 1

    def slots_needed(self, devices: int) -> int:
        """Return one slot per GPU, or 1 on processors."""
        has_gpus = any(one.gpus for one in self.list_machines())
        return devices if has_gpus else 1  # on processors, all ranks share one slot

    def check(self, config: RunConfig, devices: int) -> None:
        """Check that a run can train on so many devices of one machine."""
        check_devices(config, devices, remote=True)
        machines = self.list_machines()
        if machines:  # empty before the driver has connected
            _check_devices_exist(devices, machines, gpu=_wants_gpu(config, machines))

    def slots_by_machine(self) -> list[int]:
        """Return how many runs each machine can train at a time."""
        nodes = self._driver.nodes if self._driver else []
        if any(node["gpus"] for node in nodes):
            return [int(node["gpus"]) for node in nodes if node["gpus"]]
        cores = [node["cpus"] for node in nodes if node["cpus"]]
        return [int(own // min(cores)) for own in cores]

    def max_devices(self) -> int:
        """Return the largest number of devices of one machine, at least 1."""
        machines = self.list_machines()
        gpu = any(one.gpus for one in machines)
        return max([1, *(one.gpus if gpu else one.cores for one in machines)])

    def list_machines(self) -> list[Machine]:
        """Return the machines of the cluster."""
        nodes = self._driver.nodes if self._driver else []
        return [Machine(node["host"], int(node["gpus"]), int(node["cpus"])) for node in nodes]

    def execute(
        self, reservation: Reservation, roots: Sequence[Path] = ()
    ) -> Generator[Event, None, None]:
        """Train a run to its end on some machine.

        If the generator is closed before that, the task ends, and the run counts as interrupted.

        Raises:
            TrainingError: if the run could not be trained to its end.
            FinetuneError: if Ray is not available, or a machine does not see the run directory or
                the data.
        """
        run_dir = reservation.run_dir
        lines = EventLines(run_dir / EVENTS_FILE)
        lines.read_new()
        try:
            try:
                config = make_config(read_config(run_dir / CONFIG_FILE))
                driver = self.driver()
                self.check(config, reservation.devices)
                self._check_storage(driver, config, run_dir.parent)
            except FinetuneError as error:
                append_event(run_dir, RunFailed(str(error), ""))
                raise
            request = _make_request(
                reservation, roots, config, gpu=_wants_gpu(config, self.list_machines())
            )
            yield from self._follow_task(driver, request, lines, reservation)
        finally:
            reservation.lock.release()

    def driver(self) -> "_Driver":
        """Return the driver, once it is connected.

        Raises:
            ConfigError: if Ray is not installed, or the address is no cluster's.
            RunError: if the driver cannot connect, or a local Ray cannot start.
        """
        if "://" in self.address:
            raise ConfigError(
                {
                    "ray_address": f"{self.address} is no address of a cluster's head: "
                    "give HOST:PORT, without ray://"
                }
            )
        if not find_spec("ray"):
            raise ConfigError({"executor": 'Ray is not installed: pip install "ray>=2.60"'})
        with self._starting:
            if self._driver is None or not self._driver.is_alive:
                self._driver, self._checked = self._start_driver(), set()
            return self._driver

    def _start_driver(self) -> "_Driver":
        """Start the driver.

        A local Ray gives its own processes 30 s to start, which is too short on a busy machine, so
        the start is tried again.
        """
        for _ in range(0 if self.address else _MORE_TRIES):
            with suppress(RunError):
                return _Driver(self.address)
        return _Driver(self.address)

    def connect_in_background(self) -> None:
        """Start the driver in a thread. The first run reports why it could not connect."""

        def connect() -> None:
            with suppress(FinetuneError):
                self.driver()

        threading.Thread(target=connect, name="connecting to Ray", daemon=True).start()

    def close(self) -> None:
        """End the driver, and with it a local Ray."""
        with self._starting:
            if self._driver:
                self._driver.close()
            self._driver = None

    def _follow_task(
        self, driver: "_Driver", request: Row, lines: EventLines, reservation: Reservation
    ) -> Iterator[Event]:
        """Yield the run's events, as the task writes them.

        If the run is stopped while Ray has no slot for it, this process writes the events.
        """
        answers = driver.ask(request)
        cancelled, answer = False, None

        def look() -> Row | None:
            nonlocal cancelled
            with suppress(Empty):
                return answers.get(timeout=LOOK)
            if (
                not cancelled
                and read_stop_request(reservation.run_dir)
                and reservation.lock.is_held()
            ):
                driver.send({"do": "cancel", "id": request["id"], "force": False})
                cancelled = True
            return None

        try:
            answer = yield from follow_events(lines, look)
        finally:
            if answer is None:
                driver.send({"do": "cancel", "id": request["id"], "force": True})
        if cancelled and reservation.lock.is_held():
            yield from execute(replace(reservation, has_device=True))
            return
        raise_problem(answer, f"the task {request['task']}")

    def _check_storage(self, driver: "_Driver", config: RunConfig, runs_dir: Path) -> None:
        """Check once that every machine sees the run directory and the data.

        Raises:
            RunError: if a machine does not; the message names each of them.
        """
        data = [config.data, *([config.weights] if config.initial_weights == "file" else [])]
        key = (str(runs_dir), *data, *(node["id"] for node in driver.nodes))
        if key in self._checked:
            return
        problems = []
        with show_storage([runs_dir, paths.home()], data) as seen:
            answers, left = driver.ask({"do": "look", "id": driver.next_number(), "seen": seen}), 1
            while left:
                try:
                    answer = answers.get(timeout=_CHECK_SECONDS)
                except Empty:
                    raise RunError(
                        f"Ray has not looked at all of its machines within {_CHECK_SECONDS:.0f} s."
                    ) from None
                left = answer.get("left", 0)
                wrong = answer.get("problems") or [
                    answer[name] for name in ("problem", "traceback") if name in answer
                ]
                problems += [f"{answer.get('host', 'Ray')}: {one}." for one in wrong]
        if problems:
            raise RunError(
                "Not every machine of the cluster can train this run. "
                + " ".join(problems)
                + " Put data, runs and THAW_HOME on storage that all of them see under the same "
                "names, and install the same versions."
            )
        self._checked.add(key)


class _Driver:
    """The process of ``ray_driver.py``.

    Attributes:
        nodes: machines of the cluster that are alive: ``id, host, cpus, gpus``.

    Raises:
        RunError: if the process cannot connect.
    """

    def __init__(self, address: str) -> None:
        self.nodes: list[Row] = []
        self._numbers, self._waiting = count(1), dict[int, Queue[Row]]()
        self._writing, self._first = threading.Lock(), Queue[Row]()
        self._problems = tempfile.TemporaryFile()  # noqa: SIM115  closed with the driver
        self._process = subprocess.Popen(
            [sys.executable, "-m", "finetune_core.runs.executors.ray_driver", address],
            cwd=_PROJECT,
            env=os.environ | ({} if address else _local_environment()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._problems,
            start_new_session=True,  # Ctrl-C is for this process, which asks the runs to stop
        )
        threading.Thread(target=self._listen, name="Ray's answers", daemon=True).start()
        try:
            first = self._first.get(timeout=_START_SECONDS)
        except Empty:
            first = {"problem": f"it took longer than {_START_SECONDS:.0f} s"}
        if problem := first.get("problem"):
            self.close()
            what = (
                f"Ray's cluster at {address} cannot be reached"
                if address
                else "A local Ray cannot be started"
            )
            raise RunError(
                f"{what}: {problem}. Check the address, RAY_AUTH_TOKEN, and that all have the "
                "same version of Ray."
            )

    @property
    def is_alive(self) -> bool:
        """True if the process is running."""
        return self._process.poll() is None

    def next_number(self) -> int:
        """Return a number for a request."""
        return next(self._numbers)

    def ask(self, request: Row) -> "Queue[Row]":
        """Send a request, and return the queue of the answers to its ``id``."""
        answers = self._waiting[request.setdefault("id", self.next_number())] = Queue()
        self.send(request)
        return answers

    def send(self, request: Row) -> None:
        """Send a request that has no answer.

        If the driver is gone, nothing happens, because ``ask`` has answered so already.
        """
        assert self._process.stdin
        try:
            with self._writing:
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
        except (OSError, ValueError):
            if "id" in request and request["id"] in self._waiting:
                self._waiting[request["id"]].put({"problem": _LOST})

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        with self._writing:
            self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout
        with self._process.stdout as stdout:
            for line in stdout:
                answer = json.loads(line)
                if "nodes" in answer:
                    self.nodes = answer["nodes"]
                if "id" in answer:
                    self._waiting[answer["id"]].put(answer)
                else:
                    self._first.put(answer)
        self._first.put({"problem": self._read_last_line() or "it has ended"})
        for answers in self._waiting.values():
            answers.put({"problem": _LOST})

    def _read_last_line(self) -> str:
        self._problems.seek(0)
        lines = self._problems.read().decode(errors="replace").splitlines()
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


_LOST = "Ray's cluster is gone. The run keeps all that it has saved: resume it."


def _local_environment() -> dict[str, str]:
    """Return environment variables for a Ray of this machine.

    Ray then listens on 127.0.0.1 only, as it always does on Windows and macOS. It obeys everyone
    who has this token.
    """
    return {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }


def _make_request(
    reservation: Reservation, roots: Sequence[Path], config: RunConfig, *, gpu: bool
) -> Row:
    task = f"{reservation.run_dir.name}-{secrets.token_hex(4)}"
    row = run_to_row(hand_over(reservation, roots))
    return {
        "do": "train",
        "run": row,
        "gpu": gpu,
        "devices": reservation.devices,
        "task": task,
        "shared": _sharing_names(config),
    }


def _sharing_names(config: RunConfig) -> list[str]:
    """Return names that are equal for runs which can use each other's activations, the best first.

    The first name stands for the same frozen stages. The second stands for the same network,
    because deeper cuts are computed from shallower ones.
    """
    network = [
        config.data,
        config.backbone,
        config.weights,
        config.from_run,
        config.precision,
        config.input_settings,
    ]
    return [json.dumps([*network, config.strategy], default=str), json.dumps(network, default=str)]


def _check_devices_exist(devices: int, machines: Sequence[Machine], *, gpu: bool) -> None:
    """Check that a machine of the cluster has so many devices.

    Raises:
        ConfigError: if no machine has so many GPUs, or, without any GPU, cores.
    """
    largest = max(one.gpus if gpu else one.cores for one in machines)
    if devices > max(1, largest):
        most = pluralize(largest, "GPU" if gpu else "core")
        raise ConfigError(
            {
                "devices": f"no machine of the cluster has {devices}, and a run trains on one "
                f"machine: choose no more than its {most}"
            }
        )


def _wants_gpu(config: RunConfig, machines: Sequence[Machine]) -> bool:
    """Return whether a run trains on a GPU of the cluster.

    Raises:
        ConfigError: if the run needs a device that no machine of the cluster has.
    """
    has_gpu = any(one.gpus for one in machines)
    if config.device == "mps" or (config.device == "cuda" and not has_gpu):
        raise ConfigError({"device": f"no machine of the cluster has {config.device}"})
    return has_gpu and config.device != "cpu"

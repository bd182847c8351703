"""Ray's driver, in a process of its own.

The program is ``python -m finetune_core.runs.executors.ray_driver [ADDRESS]``. Without an address
it starts a local Ray.

Ray ends the processes of a local cluster with the thread that started it, replaces the handler of
SIGTERM, and ends its driver if the cluster's head is gone. None of this may happen to a server or a
command. Requests arrive on stdin and answers go to stdout, one JSON object per line. The process
ends when its stdin does, and so does all that it started.
"""

import ipaddress
import json
import os
import queue
import sys
import threading
import time
from typing import Any, BinaryIO

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

_LOOK, _LOOK_AT_NODES = 0.1, 1.0  # seconds
_OBJECT_STORE = 100 * 2**20  # bytes: arguments and results of tasks are a few words
_END_SECONDS = 15.0  # to end a local cluster in good order
_TRIES = 5  # after the first one

Row = dict[str, Any]


def connect(address: str) -> None:
    """Connect to a cluster, or start one of this machine.

    A local cluster listens on loopback, without a dashboard, and its token is known to nobody else.

    Raises:
        RuntimeError: if a local cluster could be reached from other machines.
        Exception: as ``ray.init``.
    """
    if address:
        ray.init(address, log_to_driver=False, logging_level="ERROR")
        return
    ray.init(
        "local",
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE,
        log_to_driver=False,
        logging_level="ERROR",
    )
    if not all(
        ipaddress.ip_address(node["NodeManagerAddress"]).is_loopback for node in ray.nodes()
    ):
        ray.shutdown()
        raise RuntimeError("this version of Ray would listen beyond this machine")


class Driver:
    """Driver that turns requests into Ray tasks, and their results into answers.

    Requests: ``{"do": "train", "id", "run", "gpu", "devices", "task", "shared"}``, ``{"do": "look",
    "id", "seen"}``, ``{"do": "cancel", "id", "force"}``.

    Answers: ``{"nodes"}`` at the start and after each change, ``{"id", …}`` with the result of a
    task, or ``{"id", "problem"}``.
    """

    def __init__(self, answers: BinaryIO) -> None:
        self._answers = answers
        self._going: dict[ray.ObjectRef, Row] = {}
        self._groups: dict[ray.ObjectRef, PlacementGroup] = {}  # of runs that several devices train
        self._looks: dict[ray.ObjectRef, tuple[int, str]] = {}
        # name of activations that runs can share -> the node that was the last to compute them
        self._holders: dict[str, str] = {}
        self._nodes: list[Row] = []
        self._looked = -_LOOK_AT_NODES

    def serve(self, requests: "queue.Queue[Row | None]") -> None:
        """Serve requests until there are no more."""
        while True:
            self._send_nodes()
            self._send_results()
            try:
                request = requests.get(timeout=_LOOK)
            except queue.Empty:
                continue
            if request is None:
                return
            getattr(self, f"_{request['do']}")(request)

    def _train(self, request: Row) -> None:
        devices = request["devices"]
        share = compute_share(self._nodes, gpu=request["gpu"], devices=devices)
        gpus, cores = int(share["num_gpus"]), int(share["num_cpus"])
        run = request["run"] | {
            "threads": 0 if gpus else cores,
            "gpus": devices * gpus,
            "cores": devices * cores,
        }
        # Prefer the machine that has the output of the frozen stages, if it has a free slot. The
        # run trains on another one rather than wait.
        node = next(
            (self._holders[name] for name in request["shared"] if name in self._holders), None
        )
        options = {"name": request["task"], "max_retries": _TRIES}
        if devices > 1:
            bundles = [{"GPU": gpus, "CPU": cores} if gpus else {"CPU": cores}] * devices
            group = placement_group(
                bundles, "STRICT_PACK", request["task"], _soft_target_node_id=node
            )
            together = ray.remote(
                num_cpus=0, scheduling_strategy=PlacementGroupSchedulingStrategy(group)
            )(_run_on_devices)
            going = together.options(**options).remote(run, request["task"], share)
            self._groups[going] = group
        else:
            strategy = (
                NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True)
                if node
                else "SPREAD"
            )
            # A process that has used a GPU keeps the GPU, so it runs one task. Other processes stay
            # and keep their imports.
            alone = ray.remote(max_calls=gpus, scheduling_strategy=strategy)(_run_on_one_device)
            going = alone.options(**share, **options).remote(run, request["task"])
        self._going[going] = request

    def _look(self, request: Row) -> None:
        for node in self._nodes:
            here = NodeAffinitySchedulingStrategy(node["id"], soft=False)
            look = ray.remote(_look).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
            self._looks[look.remote(request["seen"])] = (request["id"], node["host"])

    def _cancel(self, request: Row) -> None:
        for task, other in self._going.items():
            if other["id"] == request["id"]:
                ray.cancel(task, force=request["force"])

    def _send_results(self) -> None:
        waiting = [*self._going, *self._looks]
        if not waiting:
            return
        for task in ray.wait(waiting, num_returns=len(waiting), timeout=0)[0]:
            if task in self._looks:
                number, host = self._looks.pop(task)
                left = sum(other == number for other, _ in self._looks.values())
                self._send({"id": number, "host": host, "left": left} | _get_result(task))
                continue
            request, result = self._going.pop(task), _get_result(task)
            if group := self._groups.pop(task, None):
                remove_placement_group(group)
            if "node" in result:
                self._holders |= dict.fromkeys(request["shared"], result["node"])
            self._send({"id": request["id"]} | result)

    def _send_nodes(self) -> None:
        if time.monotonic() - self._looked < _LOOK_AT_NODES:
            return
        self._looked = time.monotonic()
        nodes = [
            {
                "id": node["NodeID"],
                "host": node["NodeManagerHostname"],
                "cpus": node["Resources"].get("CPU", 0.0),
                "gpus": node["Resources"].get("GPU", 0.0),
            }
            for node in ray.nodes()
            if node["Alive"]
        ]
        if nodes != self._nodes:
            self._nodes = nodes
            self._send({"nodes": nodes})

    def _send(self, answer: Row) -> None:
        self._answers.write(json.dumps(answer).encode() + b"\n")
        self._answers.flush()


def compute_share(nodes: list[Row], *, gpu: bool, devices: int) -> dict[str, float]:
    """Return the resources that each process of a run asks for.

    On GPUs these are one GPU and its share of the machine's cores. On processors they are a share
    of all cores of the smallest machine.
    """
    if gpu:
        cores = min(node["cpus"] // node["gpus"] for node in nodes if node["gpus"])
        return {"num_gpus": 1, "num_cpus": max(1, cores)}
    cores = min((node["cpus"] for node in nodes if node["cpus"]), default=1)
    return {"num_gpus": 0, "num_cpus": cores if devices == 1 else max(1, cores // devices)}


def _run_on_devices(run: Row, task: str, share: dict[str, float]) -> Row:
    """Train a run on several devices.

    Ray sends this function by value, so its imports have to be installed on the machine that it is
    sent to.
    """
    import ray

    from finetune_core.runs.executors.ray_ranks import train_together

    return train_together(run, task, share) | {"node": ray.get_runtime_context().get_node_id()}


def _run_on_one_device(run: Row, task: str) -> Row:
    """Train a run on one device. Ray sends this function by value, too."""
    import ray

    from finetune_core.runs.executors.remote import run_from_row, train_and_report

    return train_and_report(run_from_row(run), task) | {
        "node": ray.get_runtime_context().get_node_id()
    }


def _look(seen: Row) -> Row:
    """Return what this machine does not see. Ray sends this function by value, too."""
    from finetune_core.runs.executors.storage import find_differences

    return {"problems": find_differences(seen)}


def _get_result(task: ray.ObjectRef) -> Row:
    try:
        result: Row = ray.get(task)
    except ray.exceptions.TaskCancelledError:
        return {"problem": "It was cancelled."}
    except ray.exceptions.RayTaskError as error:
        missing = isinstance(error.cause, ModuleNotFoundError)
        return (
            {"problem": f"Thaw is not installed there: {error.cause}"}
            if missing
            else {"traceback": str(error)}
        )
    except ray.exceptions.RayError as error:
        # The process or machine has died each time the task was tried.
        return {"problem": f"Ray could not see it through: {str(error).strip().splitlines()[0]}"}
    return result


def _read_requests(requests: "queue.Queue[Row | None]") -> None:
    """Read requests until stdin ends, then end this process even if it is still connecting."""
    for line in sys.stdin.buffer:
        requests.put(json.loads(line))
    requests.put(None)
    time.sleep(_END_SECONDS)
    os._exit(1)


def main(address: str) -> None:
    """Serve requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # everything else that is printed goes to stderr
    requests: queue.Queue[Row | None] = queue.Queue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    try:
        connect(address)
    except Exception as error:
        answers.write(json.dumps({"problem": f"{type(error).__name__}: {error}"}).encode() + b"\n")
        answers.flush()
        sys.exit(1)
    Driver(answers).serve(requests)
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")

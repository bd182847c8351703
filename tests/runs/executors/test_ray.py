"""Runs that Ray trains: on two nodes of this machine, and on a local Ray."""

import json
import os
import secrets
import signal
import subprocess
import sys

import psutil
import pytest
import torch
from typer.testing import CliRunner

from finetune_core.__main__ import app
from finetune_core.errors import ConfigError, RunError
from finetune_core.runs.executors.create import create_executor
from finetune_core.runs.executors.ray_executor import RayExecutor
from finetune_core.runs.record import create_run
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import RunStore
from finetune_core.runs.worker import Worker
from tests.deadline import SECONDS, wait_until
from tests.factories import shared_images, tiny_config, trained_run
from tests.forked import Command
from tests.ray_nodes import AUTH, two_nodes
from tests.training.equal import check_identical
from tests.training.rank_program import Machine, Task, train_on

pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray>=2.60'")
pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(
        sys.platform != "linux", reason="two nodes need two addresses of one machine"
    ),
]

OPTIONS = (
    *("--backbone", "timm/test_resnet", "--weights", "none", "--image-size", 32),
    *("--batch-size", 8, "--precision", "fp32", "--json"),
)
LONG = 50  # epochs, of which the last are far off when a test has seen the first
# A program that looks up what a Ray keeps, and has it run a task.
VISITOR = """
import sys
import ray
from ray._raylet import GcsClient
# ray.init says of a refusal only that it could not connect.
GcsClient(address=sys.argv[1]).internal_kv_keys(b"", b"")
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(ray.get(ray.remote(num_cpus=0)(lambda: "a task has run").remote()))
"""


@pytest.fixture(scope="module")
def nodes():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in AUTH.items():
            patch.setenv(name, value)
        with two_nodes() as started:
            yield started


@pytest.fixture(scope="module")
def executor(nodes):
    with create_executor("ray", nodes.address) as connected:
        wait_until(lambda: connected.slots("ray") == 2, "the second node does not come")
        yield connected


@pytest.fixture(autouse=True)
def one_thread():
    """Use as many threads as a run has on a node."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ray_images():
    return shared_images(red=20, blue=20)


def ray_config(**changes):
    return tiny_config(ray_images(), strategy="full", batch_size=8, **changes)


@pytest.fixture
def worker(tmp_path, request):
    """Worker whose executor is the one that the test asks for."""
    names = {"executor", "local"} & {*request.fixturenames}
    return Worker(tmp_path / "runs", executor=request.getfixturevalue(*names))


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs")


@pytest.fixture(scope="module")
def local():
    """Local Ray. A test that ends it leaves the next one to start it again."""
    executor = RayExecutor()
    yield executor
    executor.close()


def list_listening(process):
    """Return (address, port) of each port that the process listens on."""
    doors = [
        one.laddr for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN
    ]
    return [(door.ip.removeprefix("::ffff:"), door.port) for door in doors]


def read_owner(run_dir):
    """Return the holder of a run, as its owner's file names it."""
    files = sorted(run_dir.glob("owner-*.json"), key=lambda file: int(file.stem.split("-")[1]))
    return json.loads(files[-1].read_text())


def wait_for_epochs(store, *run_ids, more_than=0):
    wait_until(
        lambda: all(len(store.get_run(run_id).history.epochs) > more_than for run_id in run_ids)
    )


def wait_for_end(worker, store, run_id):
    wait_until(lambda: not worker.list_queues())
    return store.get_run(run_id)


def compare(runs, *more):
    arguments = ["compare", ray_images(), "--strategies", "feature_extraction,full"]
    arguments += ["--seeds", "0,1", "--epochs", 2, *OPTIONS, "--runs-dir", runs, *more]
    return CliRunner().invoke(app, [*map(str, arguments)])


def select_verdicts(result):
    """Return the results of a comparison that do not depend on machine and time."""
    measured = ("arm", "accuracy", "ci_low", "ci_high", "seeds")
    arms = [{name: arm[name] for name in measured if name in arm} for arm in result["arms"]]
    # Of arms that tie, a sentence on strategies names the quicker one.
    return arms, {name: result[name] for name in ("size", "baseline", "pairs", "ensemble")}


def test_a_comparison_on_two_workers_gives_the_verdict_of_one_process(executor, nodes, tmp_path):
    alone = compare(tmp_path / "alone")
    spread = compare(tmp_path / "ray", "--executor", "ray", "--ray-address", nodes.address)
    assert (alone.exit_code, spread.exit_code) == (0, 0), spread.stderr
    ours, theirs = (json.loads(done.stdout) for done in (alone, spread))
    assert select_verdicts(ours) == select_verdicts(theirs)
    processes, by_config = set(), {}
    for run in RunStore(tmp_path / "ray").list_runs():
        assert run.history.places
        processes.add(read_owner(run.run_dir)["pid"])
        by_config[run.config.model_dump_json()] = run.run_dir
    assert len(processes) >= 2
    for run in RunStore(tmp_path / "alone").list_runs():
        check_identical(run.run_dir, by_config[run.config.model_dump_json()])


def test_a_run_whose_worker_is_killed_and_that_is_paused_ends_with_the_same_weights(
    executor, worker, store
):
    config = ray_config(epochs=LONG)
    run_id = worker.submit(config)
    wait_for_epochs(store, run_id)
    os.kill(read_owner(store.runs_dir / run_id)["pid"], signal.SIGKILL)
    wait_until(lambda: len(store.get_run(run_id).history.places) == 2)
    wait_for_epochs(store, run_id, more_than=len(store.get_run(run_id).history.epochs))
    worker.stop(run_id, pause=True)
    run = wait_for_end(worker, store, run_id)
    assert run.status == "paused"
    assert [bool(place["moved_from"]) for place in run.history.places] == [False, True]
    worker.resume(run_id)
    run = wait_for_end(worker, store, run_id)
    assert run.status == "finished", run.history.end
    check_identical(run.run_dir, trained_run(config).run_dir)


def test_a_run_that_ray_has_no_place_for_is_stopped_all_the_same(executor, worker, store):
    going = [worker.submit(ray_config(epochs=1000, seed=seed)) for seed in (0, 1)]
    # else they are cancelled, not stopped
    wait_until(lambda: all(store.get_run(one).history.started for one in going))
    reservation = create_run(ray_config(seed=2), store.runs_dir, remote=True)
    request_stop(reservation.run_dir)
    assert [type(event).__name__ for event in executor.execute(reservation)] == ["RunStopped"]
    for one in going:
        worker.stop(one)
    wait_until(lambda: not worker.list_queues())
    assert [store.get_run(one).status for one in going] == ["stopped", "stopped"]
    assert store.get_run(reservation.run_dir.name).status == "cancelled"


def test_ctrl_c_stops_what_ray_trains(executor, nodes, store, tmp_path):
    arguments = ["train", ray_images(), "--executor", "ray", "--ray-address", nodes.address]
    arguments += ["--epochs", 1000, *OPTIONS, "--runs-dir", store.runs_dir]
    command = Command(tmp_path, *arguments)
    wait_until(lambda: command.has_ended() or any(run.history.epochs for run in store.list_runs()))
    command.interrupt()
    status, out, err = command.end()
    assert status == 1, err
    assert json.loads(out)["status"] == "stopped"
    assert store.list_runs()[0].status == "stopped"


def test_what_the_nodes_do_not_see_is_said_before_anything_trains(
    executor, store, tmp_path, monkeypatch
):
    seen = {"files": {str(tmp_path / "not there"): "x"}, "data": {}, "programs": {"torch": "0.1"}}

    class Shown:
        def __init__(self, *_): ...
        def __enter__(self):
            return seen

        def __exit__(self, *_): ...

    monkeypatch.setattr("finetune_core.runs.executors.ray_executor.show_storage", Shown)
    monkeypatch.setattr(executor, "_checked", set())
    reservation = create_run(ray_config(), store.runs_dir, remote=True)
    with pytest.raises(RunError, match="Not every machine") as caught:
        list(executor.execute(reservation))
    assert str(caught.value).count("is not the same folder there") == 2  # each node says it
    assert "not 0.1" in str(caught.value)
    assert store.list_runs()[0].status == "failed"


def test_more_devices_than_the_largest_machine_has_are_refused_before_there_is_a_run(
    executor, worker, store
):
    message = "no machine of the cluster has 2, and a run trains on one machine"
    with pytest.raises(ConfigError, match=message):
        worker.submit(ray_config(), devices=2)
    assert not store.runs_dir.exists()


def test_a_node_that_dies_changes_nothing(executor, nodes, worker, store):
    """The last test of the cluster, which leaves one node."""
    configs = [ray_config(epochs=LONG, seed=seed) for seed in (0, 1)]
    ids = [worker.submit(config) for config in configs]
    wait_for_epochs(store, *ids)
    dying = {one.pid for one in psutil.Process(nodes.processes[1].pid).children(recursive=True)}
    on_it = [one for one in ids if read_owner(store.runs_dir / one)["pid"] in dying]
    nodes.kill(nodes.processes[1])
    assert len(on_it) == 1
    wait_until(lambda: not worker.list_queues())
    assert [store.get_run(one).status for one in ids] == ["finished", "finished"]
    assert [len(store.get_run(one).history.places) for one in ids] == [
        1 + (one in on_it) for one in ids
    ]
    moved = on_it[0]
    check_identical(store.runs_dir / moved, trained_run(configs[ids.index(moved)]).run_dir)


def test_a_local_ray_does_nothing_for_who_does_not_have_its_token(local):
    driver = local.driver()
    [gcs] = [
        one
        for one in psutil.Process(driver._process.pid).children(recursive=True)
        if one.name() == "gcs_server"
    ]
    [(_, port)] = list_listening(gcs)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}

    def ask(**auth):
        return subprocess.run(
            [sys.executable, "-c", VISITOR, f"127.0.0.1:{port}"],
            # Without this Ray takes 127.0.0.1 for the machine's address on a network, where nobody
            # listens.
            env=plain | auth | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    with_none, with_another = (
        ask(),
        ask(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32)),
    )
    for refused in (with_none, with_another):
        assert refused.returncode == 1
        assert "InvalidAuthToken" in refused.stderr
        assert refused.stdout == ""
    let_in = ask(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=gcs.environ()["RAY_AUTH_TOKEN"])
    assert let_in.stdout == "a task has run\n", let_in.stderr


def other_rank(local, run_dir):
    """Return the process of the rank of a run that does not own it."""
    first = read_owner(run_dir)["pid"]
    family = psutil.Process(local.driver()._process.pid).children(recursive=True)
    ranks = [one.pid for one in family if one.cmdline()[:1] == ["ray::_train_rank"]]
    assert first in ranks
    return next(pid for pid in ranks if pid != first)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two ranks need two cores")
def test_two_ranks_of_which_each_is_killed_once_end_with_the_weights_without_ray(
    local, worker, store, tmp_path
):
    local.driver()
    [machine] = local.list_machines()
    share = machine.cores // 2
    threads = {"OMP_NUM_THREADS": str(min(share, psutil.cpu_count(logical=False) or share))}
    config = ray_config(epochs=LONG, batchnorm="frozen")
    (tmp_path / "whole").mkdir()
    train_on([Machine(2, threads)], tmp_path, {"whole": Task(config, tmp_path / "whole")})
    run_id = worker.submit(config, devices=2)
    wait_for_epochs(store, run_id)
    other = psutil.Process(other_rank(local, store.runs_dir / run_id))
    assert {ip for ip, _ in list_listening(other)} == {"127.0.0.1"}
    other.kill()
    wait_until(lambda: len(store.get_run(run_id).history.places) == 2)
    wait_for_epochs(store, run_id, more_than=len(store.get_run(run_id).history.epochs))
    os.kill(read_owner(store.runs_dir / run_id)["pid"], signal.SIGKILL)
    run = wait_for_end(worker, store, run_id)
    assert run.status == "finished", run.history.end
    assert run.started["ranks"] == 2
    assert [bool(place["moved_from"]) for place in run.history.places] == [False, True, True]
    assert {place["cores"] for place in run.history.places} == {2 * share}
    check_identical(run.run_dir, tmp_path / "whole")


def test_a_run_whose_ray_is_gone_is_interrupted_and_can_be_resumed(local, worker, store):
    run_id = worker.submit(ray_config(epochs=1000))
    wait_for_epochs(store, run_id)
    local.driver()._process.kill()
    wait_until(lambda: not worker.list_queues())
    wait_until(lambda: store.get_run(run_id).status == "interrupted")
    worker.resume(run_id)  # a new Ray is started
    wait_until(lambda: store.get_run(run_id).status == "running")
    worker.stop(run_id)
    run = wait_for_end(worker, store, run_id)
    assert run.status == "stopped"
    assert (run.run_dir / "best.safetensors").exists()


def test_a_local_ray_is_for_this_machine_only_and_leaves_nothing_behind(local, store, monkeypatch):
    """The last test of the local Ray, which ends it."""
    for name in AUTH:
        monkeypatch.delenv(name, raising=False)
    before, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    driver = local.driver()
    family = psutil.Process(driver._process.pid).children(recursive=True)
    doors = [
        door
        for process in (psutil.Process(driver._process.pid), *family)
        for door in list_listening(process)
    ]
    assert doors
    assert {ip for ip, _ in doors} == {"127.0.0.1"}
    assert 8265 not in {port for _, port in doors}, "the dashboard"
    # A worker's title may have been written over its environment.
    tokens = {process.environ().get("RAY_AUTH_TOKEN") for process in family} - {None}
    assert [len(token) for token in tokens] == [64]
    assert dict(os.environ) == before
    assert signal.getsignal(signal.SIGTERM) == handler
    reservation = create_run(ray_config(epochs=LONG), store.runs_dir, remote=True)
    for event in local.execute(reservation):
        if type(event).__name__ == "RunStarted":
            request_stop(reservation.run_dir)
    assert store.list_runs()[0].status == "stopped"
    local.close()
    gone, alive = psutil.wait_procs(family, SECONDS)
    assert not alive, gone

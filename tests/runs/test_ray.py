"""Runs that Ray trains, on two nodes of this machine: spread, killed, moved, stopped; and a Ray of this machine's own."""

import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from typer.testing import CliRunner

from finetune_core.__main__ import app
from finetune_core.config import make_config
from finetune_core.errors import ConfigError, RunError
from finetune_core.runs.executors import InProcess, executor_of
from finetune_core.runs.ray_executor import RayExecutor
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import RunStore
from finetune_core.runs.worker import Worker
from finetune_core.training.checkpoints import load_tensors
from tests.deadline import SECONDS, wait_until
from tests.ray_nodes import AUTH, two_nodes

pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray>=2.60'")
pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(
        sys.platform != "linux", reason="two nodes need two addresses of one machine"
    ),
]

ROOT = Path(__file__).resolve().parents[2]
QUICK = {
    "backbone": "squeezenet1_1",
    "weights": "none",
    "strategy": "full",
    "image_size": 32,
    "batch_size": 8,
    "precision": "fp32",
}
OPTIONS = (
    "--backbone",
    "squeezenet1_1",
    "--weights",
    "none",
    "--image-size",
    32,
    "--batch-size",
    8,
    "--precision",
    "fp32",
)
# A program that looks up what a Ray keeps, and has it run a task.
VISITOR = """
import sys
import ray
from ray._raylet import GcsClient
GcsClient(address=sys.argv[1]).internal_kv_keys(b"", b"")  # ray.init says of a refusal only that it could not connect
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
    with executor_of("ray", nodes.address) as connected:
        wait_until(lambda: connected.places("ray") == 2, "the second node does not come")
        yield connected


@pytest.fixture(autouse=True)
def one_thread():
    """As many as a run has on a node."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config(image_folder, tmp_path):
    data = image_folder(tmp_path / "images", {"red": 20, "blue": 20})
    return lambda **changes: make_config(QUICK | {"data": str(data)} | changes)


@pytest.fixture(scope="module")
def local():
    """A Ray of this machine's own; a test that ends it leaves the next one to start it anew."""
    executor = RayExecutor()
    yield executor
    executor.close()


def listening(process):
    """(address, port) of each of its open doors."""
    doors = [
        one.laddr for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN
    ]
    return [(door.ip.removeprefix("::ffff:"), door.port) for door in doors]


def owner_of(run_dir):
    """The process that has a run."""
    files = sorted(run_dir.glob("owner-*.json"), key=lambda file: int(file.stem.split("-")[1]))
    return json.loads(files[-1].read_text())


def weights(run_dir):
    return {
        (name, key): value
        for name in ("best", "last")
        for key, value in load_tensors(run_dir, name)[0].items()
    }


def assert_same_weights(one, other):
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def undisturbed(config, folder):
    reservation = create_run(config, folder)
    list(execute(reservation))
    return reservation.run_dir


def compare(data, runs, *more):
    arguments = [
        "compare",
        data,
        "--strategies",
        "feature_extraction,full",
        "--seeds",
        "0,1",
        "--epochs",
        3,
        *OPTIONS,
    ]
    return CliRunner().invoke(app, [*map(str, [*arguments, "--runs-dir", runs, "--json", *more])])


def verdicts(result):
    """What a comparison says, without what is of this machine and moment."""
    measured = ("arm", "accuracy", "ci_low", "ci_high", "seeds")
    arms = [{name: arm[name] for name in measured if name in arm} for arm in result["arms"]]
    return arms, {
        name: result[name]
        for name in ("verdict", "strategies", "networks", "baseline", "pairs", "ensemble")
    }


def test_a_comparison_on_two_workers_gives_the_verdict_of_one_process(
    executor, nodes, config, tmp_path
):
    data = config().data
    alone, spread = (
        compare(data, tmp_path / "alone"),
        compare(data, tmp_path / "ray", "--executor", "ray", "--ray-address", nodes.address),
    )
    assert (alone.exit_code, spread.exit_code) == (0, 0), spread.stderr
    ours, theirs = (json.loads(done.stdout) for done in (alone, spread))
    assert verdicts(ours) == verdicts(theirs)
    processes, by_config = set(), {}
    for run in RunStore(tmp_path / "ray").runs():
        assert run.history.places
        processes.add(owner_of(run.run_dir)["pid"])
        by_config[run.config.model_dump_json()] = run.run_dir
    assert len(processes) >= 2
    for run in RunStore(tmp_path / "alone").runs():
        assert_same_weights(run.run_dir, by_config[run.config.model_dump_json()])


def test_a_worker_that_is_killed_changes_nothing(executor, config, tmp_path):
    wanted = undisturbed(config(epochs=6), tmp_path / "undisturbed")
    worker, store = Worker(tmp_path / "runs", executor=executor), RunStore(tmp_path / "runs")
    run_id = worker.submit(config(epochs=6))
    wait_until(lambda: store.run(run_id).history.epochs)
    os.kill(owner_of(tmp_path / "runs" / run_id)["pid"], signal.SIGKILL)
    wait_until(lambda: not worker.queues())
    run = store.run(run_id)
    assert run.status == "finished", run.history.end
    assert [bool(place["moved_from"]) for place in run.history.places] == [False, True]
    assert_same_weights(run.run_dir, wanted)


def test_a_stop_reaches_a_run_on_another_node_and_ray_goes_on_with_it_later(
    executor, config, tmp_path
):
    wanted = undisturbed(config(epochs=6), tmp_path / "undisturbed")
    worker, store = Worker(tmp_path / "runs", executor=executor), RunStore(tmp_path / "runs")
    run_id = worker.submit(config(epochs=6))
    wait_until(lambda: store.run(run_id).history.epochs)
    worker.stop(run_id, pause=True)
    wait_until(lambda: not worker.queues())
    assert store.run(run_id).status == "paused"
    worker.resume(run_id)
    wait_until(lambda: not worker.queues())
    assert store.run(run_id).status == "finished"
    assert_same_weights(tmp_path / "runs" / run_id, wanted)


def test_a_run_that_ray_has_no_place_for_is_stopped_all_the_same(executor, config, tmp_path):
    worker, store = Worker(tmp_path / "runs", executor=executor), RunStore(tmp_path / "runs")
    going = [worker.submit(config(epochs=500, seed=seed)) for seed in (0, 1)]
    # else they are cancelled, not stopped
    wait_until(lambda: all(store.run(one).history.started for one in going))
    reservation = create_run(config(seed=2), tmp_path / "runs", elsewhere=True)
    request_stop(reservation.run_dir)
    assert [type(event).__name__ for event in executor.execute(reservation)] == ["RunStopped"]
    for one in going:
        worker.stop(one)
    wait_until(lambda: not worker.queues())
    assert [store.run(one).status for one in going] == ["stopped", "stopped"]
    assert store.run(reservation.run_dir.name).status == "cancelled"


def test_ctrl_c_stops_what_ray_trains(executor, nodes, config, tmp_path):
    arguments = [
        "train",
        config().data,
        "--executor",
        "ray",
        "--ray-address",
        nodes.address,
        "--epochs",
        500,
        *OPTIONS,
        "--json",
    ]
    command = [
        sys.executable,
        "-m",
        "finetune_core",
        *map(str, arguments),
        "--runs-dir",
        str(tmp_path / "runs"),
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    store = RunStore(tmp_path / "runs")
    wait_until(
        lambda: process.poll() is not None or any(run.history.epochs for run in store.runs())
    )
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, err
    assert json.loads(out)["status"] == "stopped"
    assert store.runs()[0].status == "stopped"


def test_what_the_nodes_do_not_see_is_said_before_anything_trains(
    executor, config, tmp_path, monkeypatch
):
    seen = {"files": {str(tmp_path / "not there"): "x"}, "data": {}, "programs": {"torch": "0.1"}}

    class Shown:
        def __init__(self, *_): ...
        def __enter__(self):
            return seen

        def __exit__(self, *_): ...

    monkeypatch.setattr("finetune_core.runs.ray_executor.shown", Shown)
    monkeypatch.setattr(executor, "_checked", set())
    reservation = create_run(config(epochs=1), tmp_path / "runs", elsewhere=True)
    with pytest.raises(RunError, match="Not every machine") as caught:
        list(executor.execute(reservation))
    assert str(caught.value).count("is not the same folder there") == 2  # each node says it
    assert "not 0.1" in str(caught.value)
    assert RunStore(tmp_path / "runs").runs()[0].status == "failed"


def test_more_devices_than_the_largest_machine_has_are_refused_before_there_is_a_run(
    executor, config, tmp_path
):
    with pytest.raises(
        ConfigError, match="no machine of the cluster has 2, and a run trains on one machine"
    ):
        Worker(tmp_path / "runs", executor=executor).submit(config(), devices=2)
    assert not (tmp_path / "runs").exists()


def test_a_node_that_dies_changes_nothing(executor, nodes, config, tmp_path):
    """The last test of the cluster: one node is left."""
    wanted = undisturbed(config(epochs=12), tmp_path / "undisturbed")
    worker, store = Worker(tmp_path / "runs", executor=executor), RunStore(tmp_path / "runs")
    ids = [worker.submit(config(epochs=12, seed=seed)) for seed in (0, 1)]
    wait_until(lambda: all(store.run(one).history.epochs for one in ids))
    dying = {one.pid for one in psutil.Process(nodes.processes[1].pid).children(recursive=True)}
    on_it = [one for one in ids if owner_of(tmp_path / "runs" / one)["pid"] in dying]
    nodes.kill(nodes.processes[1])
    assert len(on_it) == 1
    wait_until(lambda: not worker.queues())
    assert [store.run(one).status for one in ids] == ["finished", "finished"]
    assert [len(store.run(one).history.places) for one in ids] == [
        1 + (one in on_it) for one in ids
    ]
    assert_same_weights(tmp_path / "runs" / ids[0], wanted)


def test_a_local_ray_does_nothing_for_who_does_not_have_its_token(local):
    driver = local.driver()
    [gcs] = [
        one
        for one in psutil.Process(driver._process.pid).children(recursive=True)
        if one.name() == "gcs_server"
    ]
    [(_, port)] = listening(gcs)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}

    def asked(**auth):
        return subprocess.run(
            [sys.executable, "-c", VISITOR, f"127.0.0.1:{port}"],
            # Without this Ray takes 127.0.0.1 for the machine's own address on a network, where nobody listens.
            env=plain | auth | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    with_none, with_another = (
        asked(),
        asked(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32)),
    )
    for refused in (with_none, with_another):
        assert refused.returncode == 1
        assert "InvalidAuthToken" in refused.stderr
        assert refused.stdout == ""
    let_in = asked(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=gcs.environ()["RAY_AUTH_TOKEN"])
    assert let_in.stdout == "a task has run\n", let_in.stderr


def test_a_local_ray_is_for_this_machine_only_and_leaves_nothing_behind(
    local, config, tmp_path, monkeypatch
):
    for name in AUTH:
        monkeypatch.delenv(name, raising=False)
    before, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    driver = local.driver()
    family = psutil.Process(driver._process.pid).children(recursive=True)
    doors = [
        door
        for process in (psutil.Process(driver._process.pid), *family)
        for door in listening(process)
    ]
    assert doors
    assert {ip for ip, _ in doors} == {"127.0.0.1"}
    assert 8265 not in {port for _, port in doors}, "the dashboard"
    # A worker's title may have been written over its environment.
    tokens = {process.environ().get("RAY_AUTH_TOKEN") for process in family} - {None}
    assert [len(token) for token in tokens] == [64]
    assert dict(os.environ) == before
    assert signal.getsignal(signal.SIGTERM) == handler
    reservation = create_run(config(epochs=50), tmp_path / "runs", elsewhere=True)
    for event in local.execute(reservation):
        if type(event).__name__ == "RunStarted":
            request_stop(reservation.run_dir)
    assert RunStore(tmp_path / "runs").runs()[0].status == "stopped"
    local.close()
    gone, alive = psutil.wait_procs(family, 60)
    assert not alive, gone


def other_rank(local, run_dir):
    """The process of the second rank of a run: not the one that has it."""
    first = owner_of(run_dir)["pid"]
    family = psutil.Process(local.driver()._process.pid).children(recursive=True)
    ranks = [one.pid for one in family if one.cmdline()[:1] == ["ray::_rank"]]
    assert first in ranks
    return next(pid for pid in ranks if pid != first)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two ranks need two cores")
def test_two_ranks_of_which_each_is_killed_once_end_with_the_weights_that_they_have_without_ray(
    local, config, tmp_path, monkeypatch
):
    local.driver()
    [machine] = local.cluster()
    share = machine.cores // 2
    monkeypatch.setenv("OMP_NUM_THREADS", str(min(share, psutil.cpu_count(logical=False) or share)))
    wanted = create_run(config(epochs=6), tmp_path / "wanted", devices=2)
    list(InProcess().execute(wanted))
    worker, store = Worker(tmp_path / "runs", executor=local), RunStore(tmp_path / "runs")
    run_id = worker.submit(config(epochs=6), devices=2)
    run_dir = tmp_path / "runs" / run_id
    wait_until(lambda: store.run(run_id).history.epochs)
    other = psutil.Process(other_rank(local, run_dir))
    assert {ip for ip, _ in listening(other)} == {"127.0.0.1"}
    other.kill()
    wait_until(
        lambda: (
            len(store.run(run_id).history.places) == 2
            and len(store.run(run_id).history.epochs) >= 3
        )
    )
    os.kill(owner_of(run_dir)["pid"], signal.SIGKILL)
    wait_until(lambda: not worker.queues())
    run = store.run(run_id)
    assert run.status == "finished", run.history.end
    assert run.started["ranks"] == 2
    assert [bool(place["moved_from"]) for place in run.history.places] == [False, True, True]
    assert {place["cores"] for place in run.history.places} == {2 * share}
    assert_same_weights(run_dir, wanted.run_dir)


def test_a_run_whose_ray_is_gone_is_interrupted_and_can_be_resumed(local, config, tmp_path):
    worker, store = Worker(tmp_path / "runs", executor=local), RunStore(tmp_path / "runs")
    run_id = worker.submit(config(epochs=50))
    wait_until(lambda: store.run(run_id).history.epochs)
    local.driver()._process.kill()
    wait_until(lambda: not worker.queues())
    wait_until(lambda: store.run(run_id).status == "interrupted")
    worker.resume(run_id)  # a new Ray is started
    wait_until(lambda: store.run(run_id).status == "running")
    worker.stop(run_id)
    wait_until(lambda: not worker.queues())
    assert store.run(run_id).status == "stopped"
    assert Path(tmp_path, "runs", run_id, "best.safetensors").exists()

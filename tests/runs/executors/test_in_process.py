"""Choice of an executor, and refusals."""

from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from finetune_core.__main__ import app
from finetune_core.errors import ConfigError
from finetune_core.runs.executors import ray_executor
from finetune_core.runs.executors.create import create_executor, make_app_executor
from finetune_core.runs.executors.in_process import InProcess
from finetune_core.runs.executors.ray_executor import RayExecutor
from tests.factories import shared_images, tiny_config


def test_this_process_trains_unless_another_executor_is_named():
    with create_executor("here") as executor:
        assert isinstance(executor, InProcess)


@pytest.mark.parametrize(
    ("name", "address", "words"),
    [
        ("slurm", None, "there is no slurm"),
        ("here", "host:6379", "goes with --executor ray"),
        ("ray", "ray://host:10001", "without ray://"),
    ],
)
def test_what_there_is_not_is_refused_in_words(name, address, words):
    with pytest.raises(ConfigError, match=words), create_executor(name, address):
        pass


def test_without_ray_it_is_said_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(ray_executor, "find_spec", lambda _: None)
    arguments = ["--executor", "ray", "--runs-dir", str(tmp_path / "runs")]
    done = CliRunner().invoke(app, ["train", str(shared_images()), *arguments])
    assert done.exit_code == 2
    assert 'pip install "ray>=2.60"' in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("named", "address"), [("local", ""), ("host:6379", "host:6379")])
def test_the_app_takes_its_executor_from_the_environment(monkeypatch, named, address):
    monkeypatch.setattr(RayExecutor, "connect_in_background", lambda self: None)
    monkeypatch.setenv("THAW_RAY_ADDRESS", named)
    executor = make_app_executor()
    assert isinstance(executor, RayExecutor)
    assert executor.address == address


def test_the_app_trains_itself_without(monkeypatch):
    monkeypatch.delenv("THAW_RAY_ADDRESS", raising=False)
    assert isinstance(make_app_executor(), InProcess)


def connect_cluster(*machines):
    """Return an executor connected to machines with so many (GPUs, cores) each."""
    executor = RayExecutor()
    nodes = [
        {"id": str(at), "host": f"h{at}", "gpus": gpus, "cpus": cores}
        for at, (gpus, cores) in enumerate(machines)
    ]
    executor._driver = SimpleNamespace(nodes=nodes)
    return executor


@pytest.mark.parametrize(
    ("machines", "device", "most", "refused"),
    [
        ([(2.0, 16.0), (4.0, 64.0), (0.0, 96.0)], "auto", 4, "no more than its 4 GPUs"),
        ([(2.0, 16.0), (4.0, 64.0), (0.0, 96.0)], "cpu", 96, "no more than its 96 cores"),
        ([(0.0, 8.0), (0.0, 2.0)], "auto", 8, "no more than its 8 cores"),
    ],
)
def test_a_run_trains_on_as_many_devices_as_the_largest_machine_has(
    machines, device, most, refused
):
    executor, config = connect_cluster(*machines), tiny_config(strategy="full", device=device)
    executor.check(config, most)
    with pytest.raises(ConfigError, match=refused):
        executor.check(config, most + 1)


@pytest.mark.parametrize(
    ("machines", "most"),
    [
        ((), 1),
        (((2.0, 16.0), (4.0, 64.0), (0.0, 96.0)), 4),
        (((0.0, 8.0), (0.0, 2.0)), 8),
        (((0.0, 0.0),), 1),
    ],
)
def test_the_page_offers_as_many_devices_as_the_largest_machine_has(machines, most):
    assert connect_cluster(*machines).max_devices() == most


def test_what_runs_take_of_a_cluster_is_counted_in_gpus_where_there_are_some():
    assert [
        connect_cluster((2.0, 16.0), (4.0, 64.0)).slots(""),
        connect_cluster((2.0, 16.0)).slots_needed(2),
    ] == [6, 2]
    assert [
        connect_cluster((0.0, 8.0), (0.0, 16.0)).slots(""),
        connect_cluster((0.0, 8.0)).slots_needed(2),
    ] == [3, 1]

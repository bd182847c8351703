"""Who trains: what can be asked for, and what is refused."""

import pytest
from typer.testing import CliRunner

from finetune_core.__main__ import app
from finetune_core.errors import ConfigError
from finetune_core.runs import ray_executor
from finetune_core.runs.executors import InProcess, app_executor, executor_of
from finetune_core.runs.ray_executor import RayExecutor


def test_this_process_trains_unless_another_executor_is_named():
    with executor_of("here") as executor:
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
    with pytest.raises(ConfigError, match=words), executor_of(name, address):
        pass


def test_without_ray_it_is_said_how_to_get_it(monkeypatch, image_folder, tmp_path):
    data = image_folder(tmp_path / "images", {"red": 6, "blue": 6})
    monkeypatch.setattr(ray_executor, "find_spec", lambda _: None)
    done = CliRunner().invoke(app, ["train", str(data), "--executor", "ray", "--runs-dir", str(tmp_path / "runs")])
    assert done.exit_code == 2
    assert 'pip install "ray>=2.60"' in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("named", "address"), [("local", ""), ("host:6379", "host:6379")])
def test_the_app_takes_its_executor_from_the_environment(monkeypatch, named, address):
    monkeypatch.setattr(RayExecutor, "connect_meanwhile", lambda self: None)
    monkeypatch.setenv("THAW_RAY_ADDRESS", named)
    executor = app_executor()
    assert isinstance(executor, RayExecutor)
    assert executor.address == address


def test_the_app_trains_itself_without(monkeypatch):
    monkeypatch.delenv("THAW_RAY_ADDRESS", raising=False)
    assert isinstance(app_executor(), InProcess)

"""Reports of runs to MLflow. Without MLflow only the missing package is tested."""

import sys

import pytest

from finetune_core.exporters.mlflow import report_to_mlflow
from finetune_core.runs.record import create_run
from finetune_core.runs.store import RunStore
from tests.exporters.conftest import colours


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A client of a tracking store in a file."""
    mlflow = pytest.importorskip("mlflow")
    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.chdir(tmp_path)  # where MLflow puts artifacts
    return mlflow.MlflowClient(address)


def find_reported_runs(server, name="Thaw"):
    return server.search_runs([server.get_experiment_by_name(name).experiment_id])


def get_curve(server, result, metric):
    return [
        (point.step, point.value) for point in server.get_metric_history(result.info.run_id, metric)
    ]


def test_a_run_is_reported_once_with_settings_curves_and_card(server, run, tmp_path, capfd):
    assert report_to_mlflow(run.run_dir) == report_to_mlflow(run.run_dir) == ""
    assert capfd.readouterr().out == ""
    (result,) = find_reported_runs(server)
    assert result.info.status == "FINISHED"
    assert result.data.tags["thaw.run_id"] == result.info.run_name == run.run_id
    assert result.data.params["learning_rate"] == "0.02"
    assert result.data.params["data"] == colours().name
    for split in ("train", "val"):
        for metric in ("loss", "accuracy"):
            expected = [(row["epoch"], row[f"{split}_{metric}"]) for row in run.history.epochs]
            assert get_curve(server, result, f"{split}_{metric}") == expected
        expected = [
            (row["epoch"], row[f"{split}_scores"]["macro_f1"]) for row in run.history.epochs
        ]
        assert get_curve(server, result, f"{split}_macro_f1") == expected
    assert len(get_curve(server, result, "update/head")) == len(run.history.epochs)
    for name, metric in (
        ("test_accuracy", "test_accuracy"),
        ("val_accuracy", "final_val_accuracy"),
        ("val_loss", "final_val_loss"),
    ):
        assert result.data.metrics[metric] == run.history.end[name]
    assert result.info.end_time == round(run.history.end["at"] * 1000)
    assert {file.path for file in server.list_artifacts(result.info.run_id)} == {
        "README.md",
        "settings.json",
    }
    card = server.download_artifacts(result.info.run_id, "README.md", str(tmp_path))
    with open(card) as file:
        assert "## Licence" in (text := file.read())
    assert str(colours().parent) not in text + str(result.data)


def test_a_run_that_goes_on_later_is_added_to(server, run, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    reservation = create_run(run.config, tmp_path / "runs")
    reservation.lock.release()
    RunStore(tmp_path / "runs").set_about(reservation.run_dir.name, "it's", "a note")
    lines = (run.run_dir / "events.jsonl").read_bytes().splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if b'"EpochEnded"' in line) + 1
    (reservation.run_dir / "events.jsonl").write_bytes(b"".join(lines[:first]))
    # Everything but the card is reported.
    assert "has no 'best' checkpoint" in report_to_mlflow(reservation.run_dir)
    (result,) = find_reported_runs(server, "mine")
    assert (result.info.run_name, result.data.tags["mlflow.note.content"]) == ("it's", "a note")
    assert len(get_curve(server, result, "val_loss")) == 1
    for name in ("best.safetensors", "predictions.parquet", "events.jsonl"):
        (reservation.run_dir / name).write_bytes((run.run_dir / name).read_bytes())
    assert report_to_mlflow(reservation.run_dir) == ""
    (result,) = find_reported_runs(server, "mine")
    assert get_curve(server, result, "val_loss") == [
        (row["epoch"], row["val_loss"]) for row in run.history.epochs
    ]


def test_a_server_that_does_not_answer_is_a_warning_without_its_password(run, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    warning = report_to_mlflow(run.run_dir)
    assert warning.startswith("The run was not, or not all, reported to MLflow (")
    assert "secret" not in warning


def test_nothing_happens_where_no_server_is_named(run, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert report_to_mlflow(run.run_dir) == ""


def test_without_mlflow_it_says_what_to_install(run, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert report_to_mlflow(run.run_dir).endswith("python -m pip install mlflow")

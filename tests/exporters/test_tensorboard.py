"""Event files as TensorBoard's own reader sees them."""

import json
import socket
import sys
import zipfile
from io import BytesIO

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from finetune_core.errors import ExportError
from finetune_core.exporters.formats import export_run, find_export, zip_folder
from finetune_core.runs.record import create_run
from finetune_core.runs.store import RunStore
from tests.exporters.conftest import colours


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    return export_run(run, "tensorboard", tmp_path_factory.mktemp("events") / "out").folder


def read(folder):
    return EventAccumulator(str(folder)).Reload()


def get_curve(accumulator, tag):
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def approximate(points):
    return [(step, pytest.approx(value, rel=1e-6)) for step, value in points]


@pytest.mark.parametrize(("part", "split"), [("train", "train"), ("validation", "val")])
def test_epochs_are_written_for_both_splits(folder, run, part, split):
    found, epochs = read(folder / part), run.history.epochs
    assert set(found.Tags()["scalars"]) == {
        "epoch/loss",
        "epoch/accuracy",
        "epoch/balanced_accuracy",
        "epoch/macro_f1",
    }
    for name in ("loss", "accuracy"):
        assert get_curve(found, f"epoch/{name}") == approximate(
            [(row["epoch"], row[f"{split}_{name}"]) for row in epochs]
        )
    for name in ("balanced_accuracy", "macro_f1"):
        assert get_curve(found, f"epoch/{name}") == approximate(
            [(row["epoch"], row[f"{split}_scores"][name]) for row in epochs]
        )
    assert [event.wall_time for event in found.Scalars("epoch/loss")] == pytest.approx(
        [row["at"] for row in epochs]
    )


def test_steps_are_counted_over_the_run_and_stages_written(folder, run):
    found, history = read(folder), run.history
    numbers = range(1, len(history.epochs) * history.started["steps_per_epoch"] + 1)
    for name in ("loss", "learning_rate", "gradient_norm"):
        assert get_curve(found, f"step/{name}") == approximate(
            zip(numbers, (row[name] for row in history.steps), strict=True)
        )
    training = {stage["name"] for stage in history.started["stages"] if stage["trains"]}
    for name in ("learning_rate", "gradient_norm", "update"):
        assert {
            tag.partition("/")[2] for tag in found.Tags()["scalars"] if tag.startswith(f"{name}/")
        } == training
        values = [row["stages"]["head"][name] for row in history.measured_steps]
        assert [value for _, value in get_curve(found, f"{name}/head")] == pytest.approx(
            values, rel=1e-6
        )


def test_settings_are_there_as_text_and_as_hyperparameters_with_results(folder, run):
    found = read(folder)
    settings = json.loads(found.Tensors("config/text_summary")[0].tensor_proto.string_val[0])
    assert (settings["seed"], settings["data"]) == (4, colours().name)
    result = HParamsPluginData.FromString(
        found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    )
    hyperparameters = result.session_start_info.hparams
    assert hyperparameters["optimizer"].string_value == "sgd"
    assert hyperparameters["learning_rate"].number_value == run.config.learning_rate
    assert get_curve(found, "result/test_accuracy")[0][1] == pytest.approx(
        run.history.end["test_accuracy"]
    )


def test_files_do_not_name_this_machine_and_travel_whole(folder):
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    assert not [file for file in files if socket.gethostname() in file.name]
    assert not [file for file in files if str(colours().parent).encode() in file.read_bytes()]
    with zipfile.ZipFile(BytesIO(zip_folder(folder, "mine"))) as archive:
        assert archive.namelist() == [
            f"mine/{file.relative_to(folder).as_posix()}" for file in files
        ]


def test_a_run_that_goes_on_can_be_looked_at_and_is_out_of_date_after_its_next_event(run, tmp_path):
    reservation = create_run(run.config, tmp_path / "runs")
    store = RunStore(tmp_path / "runs")
    with pytest.raises(ExportError, match="has not begun"):
        export_run(store.get_run(reservation.run_dir.name), "tensorboard")
    lines = (run.run_dir / "events.jsonl").read_bytes().splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if b'"EpochEnded"' in line) + 1
    (reservation.run_dir / "events.jsonl").write_bytes(b"".join(lines[:first]))
    going_on = store.get_run(reservation.run_dir.name)
    assert going_on.status == "running"
    made = export_run(going_on, "tensorboard")
    assert len(read(made.folder / "validation").Scalars("epoch/loss")) == 1
    assert find_export(going_on, "tensorboard") == made.folder
    (reservation.run_dir / "events.jsonl").write_bytes(b"".join(lines))
    assert find_export(going_on, "tensorboard") is None
    reservation.lock.release()


def test_without_tensorboard_it_says_what_to_install(run, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(
        ExportError, match="which is not installed: python -m pip install tensorboard"
    ):
        export_run(run, "tensorboard", tmp_path / "out")
    assert not list(tmp_path.iterdir())

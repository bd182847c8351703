"""``import finetune_core as thaw``: each function end to end."""

import inspect
import io
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import finetune_core as thaw
import finetune_core.exporters.formats  # a package whose name no function may have
from finetune_core.errors import ConfigError, DataError, RunError
from finetune_core.runs.store import read_run
from tests.command_line import thaw_json
from tests.factories import copy_run, shared_images, tiny_config, trained_run

ROOT = Path(__file__).resolve().parent.parent
TAG = "blue <b>"
STRATEGIES = ("feature_extraction", "last_block")


@pytest.fixture(scope="module")
def images(home_of_shared_fixtures):
    return shared_images(**{"red": 30, TAG: 30})


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory):
    """Return one run of each of two strategies, in the folder ``runs`` of a home."""
    folder = tmp_path_factory.mktemp("api") / "runs"
    trained = [trained_run(tiny_config(images, strategy=one)).run_dir for one in STRATEGIES]
    return [read_run(copy_run(run_dir, folder)) for run_dir in trained]


def train_tiny(images, runs_dir, progress=None, **changes):
    config = tiny_config(images, **{"epochs": 1} | changes)
    return thaw.train(config=config, runs_dir=runs_dir, progress=progress)


def test_the_import_costs_no_torch_and_the_functions_are_listed():
    code = (
        "import sys, finetune_core as t; print(*dir(t)); print({'torch', 'numpy', 'rich'} & "
        "{*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names, heavy = done.stdout.splitlines()
    assert {*thaw.__all__} <= {*names.split()}
    assert heavy == "set()"


def test_a_function_is_no_module_whatever_was_imported_and_other_names_are_refused():
    assert all(callable(getattr(thaw, name)) for name in thaw.__all__)
    with pytest.raises(AttributeError, match="torch"):
        _ = thaw.torch


@pytest.mark.train
def test_a_config_is_trained_with_changes_and_the_run_shows_itself(runs, tmp_path):
    changes = {"seed": 1, "epochs": 1}
    run = thaw.train(config=runs[0].run_dir / "config.json", runs_dir=tmp_path, **changes)
    assert run.config == runs[0].config.model_copy(update=changes)
    assert (run.status, run.run_dir.parent) == ("finished", tmp_path)
    assert repr(run).startswith(f"<Run {run.run_id}: finished")
    assert run._repr_html_().count("<tr>") == 1 + len(run.history.epochs)


def test_settings_are_in_the_signature_and_refused_all_at_once(images, tmp_path):
    assert inspect.signature(thaw.train).parameters["learning_rate"].default == 1e-4
    assert "layer_decay: " in thaw.train.__doc__
    assert "learning_rate" not in inspect.signature(thaw.inspect).parameters
    wrong = {"epochs": 0, "learning_rate": -1, "no_such": 3}
    with pytest.raises(ConfigError) as refused:
        thaw.train(images, runs_dir=tmp_path / "none", **wrong)
    assert refused.value.problems.keys() == wrong.keys()
    assert not (tmp_path / "none").exists()
    with pytest.raises(ConfigError, match="epochs"):
        thaw.inspect(images, epochs=3)


def test_settings_are_taken_as_values_in_a_thread_which_no_signal_reaches(images, tmp_path):
    usual = tiny_config().model_dump(include={"backbone", "weights", "image_size", "precision"})
    settings = usual | {
        "strategy": "custom",
        "stage_rates": {"head": 2},
        "edits": [{"action": "exclude", "paths": ["red/000.png"]}],
        "epochs": 1,
        "runs_dir": tmp_path,
    }
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(thaw.train, images, **settings).result()
    assert (run.status, run.config.stage_rates) == ("finished", {"head": 2.0})
    assert sum(run.history.started["counts"].values()) == 59


def test_an_evaluation_is_that_of_the_command_and_escapes_names(runs):
    result = thaw.evaluate(runs[0])
    outcome = thaw_json("evaluate", runs[0].run_dir)
    found = (result.split, result.accuracy, result.calibrated.before.ece)
    assert found == ("test", outcome["accuracy"], outcome["calibration"]["ece"])
    assert result.scores.table["value"].tolist()[0] == outcome["scores"]["accuracy"]["value"]
    assert result.mistakes.empty == (result.accuracy == 1)
    assert result.to_text() in repr(result)
    html = result._repr_html_()
    assert TAG not in html
    assert "blue &lt;b&gt;" in html
    validated = thaw.evaluate(runs[0], "val", robustness=True)
    assert len(validated._repr_html_()) > len(html)
    with pytest.raises(RunError, match="test, val"):
        thaw.evaluate(runs[0], "train")


def test_flips_are_measured_once_and_agree_with_the_evaluation_without_them(runs):
    first = thaw.tta(runs[0], progress=False)
    assert [one.plain.split for one in first] == ["test", "val"]
    assert first[0].plain.accuracy == thaw.evaluate(runs[0]).accuracy
    gain = first[0].with_flips.accuracy - first[0].plain.accuracy
    assert first[0].claim.gain == pytest.approx(gain)
    file = runs[0].run_dir / "tta-flips.parquet"
    kept = file.stat().st_mtime_ns
    assert thaw.tta(str(runs[0].run_dir))[0].with_flips.accuracy == first[0].with_flips.accuracy
    assert file.stat().st_mtime_ns == kept
    with pytest.raises(ConfigError, match="flips"):
        thaw.tta(runs[0], "crops")


def test_runs_are_named_by_themselves_by_their_folder_and_by_their_id(runs, monkeypatch):
    accuracy = thaw.evaluate(runs[0]).accuracy
    assert thaw.evaluate(str(runs[0].run_dir)).accuracy == accuracy
    with pytest.raises(RunError, match="no run"):
        thaw.evaluate(runs[0].run_id)
    monkeypatch.setenv("THAW_HOME", str(runs[0].run_dir.parents[1]))
    assert thaw.evaluate(runs[0].run_id).accuracy == accuracy
    assert thaw_json("evaluate", runs[0].run_id)["accuracy"] == accuracy


def test_predictions_are_a_table_with_what_could_not_be_read(runs, images, tmp_path):
    (tmp_path / "broken.png").write_text("hello")
    table = thaw.predict(runs[1], [images / "red", tmp_path / "broken.png"])
    probabilities = [f"p({TAG})", "p(red)"]
    columns = ["file", "class", "probability", "unlike", "problem", *probabilities]
    assert table.columns.tolist() == columns
    assert len(table) == 31
    named, broken = table.iloc[:-1], table.iloc[-1]
    assert named[probabilities].sum(axis=1).tolist() == pytest.approx([1] * 30)
    assert (named["probability"] == named[probabilities].max(axis=1)).all()
    assert named["class"].isin(["red", TAG]).all()
    assert broken["problem"]
    assert broken[["class", "probability", "p(red)"]].isna().all()
    one = thaw.predict(runs[1], images / "red" / "000.png", unlike=True)
    assert one["unlike"].tolist() in ([True], [False])


def test_an_export_says_where_it_is_and_predicts(runs, images, tmp_path):
    made = thaw.export(runs[1], "safetensors", tmp_path / "out")
    assert made.folder == tmp_path / "out"
    assert str(made.folder) in repr(made)
    assert made._repr_html_().count("<p>") == len(made.to_lines())
    image = images / "red" / "000.png"
    expected = thaw.predict(runs[1], image)["p(red)"].tolist()
    assert thaw.predict(made.folder, image)["p(red)"].tolist() == pytest.approx(expected)


@pytest.mark.train
def test_a_comparison_is_that_of_the_command_and_is_written(runs, tmp_path):
    comparison = thaw.compare(runs, report=tmp_path / "report.html")
    found, printed = comparison.to_json(), thaw_json("compare", *(run.run_dir for run in runs))
    assert found == {name: value for name, value in printed.items() if name in found}
    assert str(comparison.verdict) in repr(comparison)
    assert comparison._repr_html_() in (tmp_path / "report.html").read_text()
    with pytest.raises(ConfigError, match="measure"):
        thaw.compare(runs, measure="beauty")


def test_an_average_is_a_run_that_names_those_it_is_made_of(runs, tmp_path):
    made = thaw.average(runs, "soup", runs_dir=tmp_path, progress=False)
    assert (made.status, made.config.strategy) == ("finished", "last_block")
    assert sorted(made.config.averaged.runs) == sorted(str(run.run_dir) for run in runs)
    with pytest.raises(ConfigError, match="name one"):
        thaw.average(runs, "wise", runs_dir=tmp_path)


@pytest.mark.train
def test_an_inspection_is_that_of_the_command_and_escapes_names(images, monkeypatch):
    monkeypatch.setattr("finetune_core.models.catalogue.default_image_size", lambda _: 32)
    found = thaw.inspect(images, val_fraction=0.2)
    assert found.to_json() == thaw_json("inspect", images, "--val-fraction", "0.2")
    assert "60 images in 2 classes" in repr(found)
    assert f"{len(found.findings)} finding" in repr(found)
    found = thaw.inspect(images, deep=True, val_fraction=0.2)
    html = found._repr_html_()
    assert TAG not in html
    assert "blue &lt;b&gt;" in html
    assert found.deep.probes[0].stage in html
    with pytest.raises(DataError, match="no folder"):
        thaw.inspect("/not/there")


@pytest.mark.train
def test_progress_is_printed_only_where_it_is_wanted(images, tmp_path, capfd):
    for progress in (None, False):  # nobody watches
        train_tiny(images, tmp_path, progress)
    assert capfd.readouterr() == ("", "")
    train_tiny(images, tmp_path, progress=True)
    printed = capfd.readouterr()
    assert (printed.out, "epoch 1/1" in printed.err) == ("", True)


class Interrupting(io.StringIO):
    """A progress stream that raises SIGINT when the first epoch has ended."""

    pressed = False

    def write(self, text):
        if "epoch 1/" in text and not self.pressed:
            self.pressed = True
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


@pytest.mark.train
def test_an_interrupt_stops_in_good_order_and_resume_goes_on(images, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys, "stderr", Interrupting())
    stopped = train_tiny(images, tmp_path, progress=True, epochs=3)
    assert signal.getsignal(signal.SIGINT) is before
    assert stopped.status == "stopped"
    assert 0 < len(stopped.history.epochs) < 3
    assert thaw.evaluate(stopped).images
    done = thaw.resume(stopped)
    assert (done.run_id, done.status, len(done.history.epochs)) == (stopped.run_id, "finished", 3)
    with pytest.raises(RunError, match="finished"):
        thaw.resume(done)


def test_a_run_starts_from_one_that_is_given_as_it_was_returned(runs, images, tmp_path):
    usual = {"strategy": "feature_extraction", "epochs": 1, "runs_dir": tmp_path}
    child = thaw.train(images, from_run=runs[1], **usual)
    assert child.config.from_run == str(runs[1].run_dir)
    assert child.config.image_size == runs[1].config.image_size
    assert child.started["lineage"][0]["run"] == runs[1].run_id

"""``import finetune_core as thaw``: each function end to end, on images that are learned from their colour."""

import inspect
import io
import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

import finetune_core as thaw
import finetune_core.exporters.formats  # a room that a function must not share its name with
from finetune_core.__main__ import app
from finetune_core.errors import ConfigError, DataError, RunError

ROOT = Path(__file__).resolve().parent.parent
QUICK = {"epochs": 2, "image_size": 32, "batch_size": 8, "learning_rate": 1e-3, "precision": "fp32"}
TAG = "blue <b>"


@pytest.fixture(scope="module")
def base(image_folder_once, tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    image_folder_once(folder / "images", {"red": 30, TAG: 30})
    return folder


@pytest.fixture(scope="module")
def runs(base):
    """One of each of two strategies."""
    strategies = ("feature_extraction", "last_block")
    return [
        thaw.train(base / "images", strategy=one, runs_dir=base / "runs", **QUICK)
        for one in strategies
    ]


def cli(*arguments):
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.processes
def test_the_import_costs_no_torch_and_the_functions_are_listed():
    code = "import sys, finetune_core as t; print(*dir(t)); print({'torch', 'numpy', 'rich'} & {*sys.modules}); t.train; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names, early, late = done.stdout.splitlines()
    assert {*thaw.__all__} <= {*names.split()}
    assert (early, late) == ("set()", "True")


def test_a_function_is_no_module_whatever_was_imported_and_other_names_are_refused():
    assert all(callable(getattr(thaw, name)) for name in thaw.__all__)
    with pytest.raises(AttributeError, match="torch"):
        _ = thaw.torch


def test_a_trained_run_is_on_disk_and_shows_itself(runs, base):
    first, second = runs
    assert (first.status, second.config.strategy) == ("finished", "last_block")
    assert first.run_dir.parent == base / "runs"
    assert repr(first).startswith(f"<Run {first.run_id}: finished")
    assert first._repr_html_().count("<tr>") == 1 + len(first.history.epochs)


def test_a_config_is_repeated_with_changes(runs, base, tmp_path):
    for config in (runs[0].config, runs[0].run_dir / "config.json"):
        again = thaw.train(config=config, seed=1, epochs=1, runs_dir=tmp_path)
        assert again.config == runs[0].config.model_copy(update={"seed": 1, "epochs": 1})


def test_settings_are_in_the_signature_and_refused_all_at_once(base, tmp_path):
    assert inspect.signature(thaw.train).parameters["learning_rate"].default == 1e-4
    assert "layer_decay: " in thaw.train.__doc__
    assert "learning_rate" not in inspect.signature(thaw.inspect).parameters
    with pytest.raises(ConfigError) as refused:
        thaw.train(
            base / "images", epochs=0, learning_rate=-1, no_such=3, runs_dir=tmp_path / "none"
        )
    assert refused.value.problems.keys() == {"epochs", "learning_rate", "no_such"}
    assert not (tmp_path / "none").exists()
    with pytest.raises(ConfigError, match="epochs"):
        thaw.inspect(base / "images", epochs=3)


def test_rates_of_stages_and_edits_are_taken_as_values(base, tmp_path):
    edits = [{"action": "exclude", "paths": ["red/000.png"]}]
    run = thaw.train(
        base / "images",
        strategy="custom",
        stage_rates={"head": 2},
        edits=edits,
        runs_dir=tmp_path,
        **QUICK | {"epochs": 1},
    )
    assert run.config.stage_rates == {"head": 2.0}
    assert sum(run.history.started["counts"].values()) == 59


def test_an_evaluation_is_that_of_the_command_and_escapes_names(runs):
    result = thaw.evaluate(runs[0])
    outcome = cli("evaluate", runs[0].run_dir)
    assert (result.split, result.accuracy, result.calibrated.before.ece) == (
        "test",
        outcome["accuracy"],
        outcome["calibration"]["ece"],
    )
    assert result.scores.table["value"].tolist()[0] == outcome["scores"]["accuracy"]["value"]
    assert result.mistakes.empty == (result.accuracy == 1)
    assert result.in_words() in repr(result)
    html = result._repr_html_()
    assert TAG not in html
    assert "blue &lt;b&gt;" in html
    validated = thaw.evaluate(runs[0], "val", robustness=True)
    assert len(validated._repr_html_()) > len(thaw.evaluate(runs[0])._repr_html_())
    with pytest.raises(RunError, match="test, val"):
        thaw.evaluate(runs[0], "train")


def test_flips_are_measured_once_and_agree_with_the_evaluation_without_them(runs):
    first = thaw.tta(runs[0], progress=False)
    assert [one.plain.split for one in first] == ["test", "val"]
    assert first[0].plain.accuracy == thaw.evaluate(runs[0]).accuracy
    assert first[0].claim.gain == pytest.approx(
        first[0].with_flips.accuracy - first[0].plain.accuracy
    )
    kept = (runs[0].run_dir / "tta-flips.parquet").stat().st_mtime_ns
    assert thaw.tta(str(runs[0].run_dir))[0].with_flips.accuracy == first[0].with_flips.accuracy
    assert (runs[0].run_dir / "tta-flips.parquet").stat().st_mtime_ns == kept
    with pytest.raises(ConfigError, match="flips"):
        thaw.tta(runs[0], "crops")


def test_runs_are_named_by_themselves_by_their_folder_and_by_their_id(runs, base, monkeypatch):
    accuracy = thaw.evaluate(runs[0]).accuracy
    assert thaw.evaluate(str(runs[0].run_dir)).accuracy == accuracy
    with pytest.raises(RunError, match="no run"):
        thaw.evaluate(runs[0].run_id)
    monkeypatch.setenv("THAW_HOME", str(base))
    assert thaw.evaluate(runs[0].run_id).accuracy == accuracy
    assert cli("evaluate", runs[0].run_id)["accuracy"] == accuracy


def test_predictions_are_a_table_with_what_could_not_be_read(runs, base, tmp_path):
    (tmp_path / "broken.png").write_text("hello")
    images = base / "images" / "red"
    table = thaw.predict(runs[1], [images, tmp_path / "broken.png"])
    assert table.columns.tolist() == [
        "file",
        "class",
        "probability",
        "unlike",
        "problem",
        f"p({TAG})",
        "p(red)",
    ]
    assert len(table) == 31
    named = table.iloc[:-1]
    assert named[[f"p({TAG})", "p(red)"]].sum(axis=1).tolist() == pytest.approx([1] * 30)
    assert (named["probability"] == named[[f"p({TAG})", "p(red)"]].max(axis=1)).all()
    assert (named["class"] == "red").mean() > 0.8
    assert table.iloc[-1]["problem"]
    assert table.iloc[-1][["class", "probability", "p(red)"]].isna().all()
    one = thaw.predict(runs[1], images / "000.png", unlike=True)
    assert one["unlike"].tolist() in ([True], [False])


def test_an_export_says_where_it_is_and_predicts(runs, base, tmp_path):
    made = thaw.export(runs[1], "safetensors", tmp_path / "out")
    assert made.folder == tmp_path / "out"
    assert str(made.folder) in repr(made)
    assert made._repr_html_().count("<p>") == len(made.in_words())
    image = base / "images" / "red" / "000.png"
    assert thaw.predict(made.folder, image)["p(red)"].tolist() == pytest.approx(
        thaw.predict(runs[1], image)["p(red)"].tolist()
    )


def test_a_comparison_is_that_of_the_command_and_is_written(runs, tmp_path):
    comparison = thaw.compare(runs, report=tmp_path / "report.html")
    assert comparison.to_json() == {
        name: value
        for name, value in cli("compare", *(run.run_dir for run in runs)).items()
        if name in comparison.to_json()
    }
    assert comparison.headline in repr(comparison)
    assert comparison._repr_html_() in (tmp_path / "report.html").read_text()
    with pytest.raises(ConfigError, match="measure"):
        thaw.compare(runs, measure="beauty")


@pytest.mark.train
def test_an_average_is_a_run_that_names_those_it_is_made_of(runs, base, tmp_path):
    made = thaw.average(runs, "soup", runs_dir=tmp_path, progress=False)
    assert (made.status, made.config.strategy) == ("finished", "last_block")
    assert sorted(made.config.averaged.runs) == sorted(str(run.run_dir) for run in runs)
    with pytest.raises(ConfigError, match="name one"):
        thaw.average(runs, "wise", runs_dir=tmp_path)


def test_an_inspection_is_that_of_the_command_and_escapes_names(base):
    found = thaw.inspect(base / "images", deep=True, val_fraction=0.2)
    assert found.to_json() == cli("inspect", base / "images", "--deep", "--val-fraction", "0.2")
    assert "60 images in 2 classes" in repr(found)
    assert f"{len(found.findings)} finding" in repr(found)
    html = found._repr_html_()
    assert TAG not in html
    assert "blue &lt;b&gt;" in html
    assert found.deep.probes[0].stage in html
    with pytest.raises(DataError, match="no folder"):
        thaw.inspect("/not/there")


def test_nothing_is_printed_where_nobody_watches_or_when_it_is_switched_off(base, tmp_path, capfd):
    for progress in (None, False):
        thaw.train(base / "images", runs_dir=tmp_path, progress=progress, **QUICK)
    assert capfd.readouterr() == ("", "")
    thaw.train(base / "images", runs_dir=tmp_path, progress=True, **QUICK)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "epoch 2/2" in printed.err


class Interrupting(io.StringIO):
    """Where progress goes; whoever watches presses Ctrl-C when the first epoch has ended."""

    pressed = False

    def write(self, text):
        if "epoch 1/" in text and not self.pressed:
            self.pressed = True
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def test_an_interrupt_stops_in_good_order_and_resume_goes_on(base, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys, "stderr", Interrupting())
    stopped = thaw.train(base / "images", runs_dir=tmp_path, progress=True, **QUICK | {"epochs": 3})
    assert signal.getsignal(signal.SIGINT) is before
    assert stopped.status == "stopped"
    assert 0 < len(stopped.history.epochs) < 3
    assert thaw.evaluate(stopped).images
    done = thaw.resume(stopped)
    assert (done.run_id, done.status, len(done.history.epochs)) == (stopped.run_id, "finished", 3)
    with pytest.raises(RunError, match="finished"):
        thaw.resume(done)


def test_training_works_in_a_thread_which_no_signal_reaches(base, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        assert (
            pool.submit(thaw.train, base / "images", runs_dir=tmp_path, **QUICK).result().status
            == "finished"
        )


def test_a_run_starts_from_one_that_is_given_as_it_was_returned(runs, base):
    child = thaw.train(
        base / "images",
        from_run=runs[1],
        strategy="feature_extraction",
        epochs=1,
        runs_dir=base / "later",
    )
    assert child.config.from_run == str(runs[1].run_dir)
    assert child.config.image_size == QUICK["image_size"]
    assert child.started["lineage"][0]["run"] == runs[1].run_id

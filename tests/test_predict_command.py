"""``predict`` over files, folders and archives, mostly in this process."""

import csv
import json
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from finetune_core.__main__ import app
from finetune_core.exporters.formats import export_run
from finetune_core.runs.store import read_run
from tests.factories import NASTY, image_folder


@pytest.fixture(scope="module")
def run(trained_runs, tmp_path_factory):
    return read_run(*trained_runs.copied(tmp_path_factory.mktemp("runs"), "last_block"))


@pytest.fixture
def new(tmp_path):
    """Return three images in a folder, the same in an archive, and a file that is no image."""
    folder = image_folder(tmp_path / "new", {"red": 3})
    with zipfile.ZipFile(tmp_path / "new.zip", "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    Path(tmp_path, "broken.png").write_text("hello")
    return tmp_path


def predict(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def test_folders_archives_and_files_are_named_alike(run, new):
    file = new / "new" / "red" / "000.png"
    done = predict(run.run_dir, new / "new", new / "new.zip", file, new / "broken.png", "--json")
    assert done.exit_code == 2, "one could not be read"
    result = json.loads(done.stdout)
    names = [f"red/00{number}.png" for number in range(3)]
    images = [row["image"] for row in result["predictions"]]
    packed = [f"{new}/new.zip/{name}" for name in names]
    assert images == [*(f"{new}/new/{name}" for name in names), *packed, str(file)]
    first = result["predictions"]
    for one, other in ((first[0], first[3]), (first[0], first[6])):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
    assert set(first[0]["probabilities"]) == {"red", "blue", NASTY}
    assert {row["unlike"] for row in first} == {None}
    assert [row["image"] for row in result["skipped"]] == [str(new / "broken.png")]
    assert "broken.png" in done.stderr


@pytest.mark.train
def test_a_table_is_written_with_what_is_unlike_the_training_images(run, new):
    table = new / "missing" / "predictions.csv"
    done = predict(run.run_dir, new / "new.zip", new / "broken.png", "--csv", table, "--unlike")
    assert done.exit_code == 2
    assert done.stdout == ""
    rows = list(csv.DictReader(table.open(newline="")))
    assert len(rows) == 4
    assert {row["unlike"] for row in rows[:3]} <= {"yes", "no"}
    assert rows[3]["problem"]
    again = json.loads(predict(run.run_dir, new / "new", "--json").stdout)
    # stored by the first call
    assert {row["unlike"] for row in again["predictions"]} <= {True, False}


def test_people_read_lines_and_no_encoder_is_built_where_nothing_is_compared(
    trained_runs, new, tmp_path, monkeypatch
):
    def built(_):
        raise AssertionError("an encoder")

    monkeypatch.setattr("finetune_core.commands.predict.make_encoder", built)
    (fresh,) = trained_runs.copied(tmp_path / "fresh", "last_block")
    done = predict(fresh, new / "new")
    assert (done.exit_code, done.exception) == (0, None)
    assert len(done.stdout.splitlines()) == 3
    assert f"{new}/new/red/000.png: " in done.stdout


@pytest.mark.train
def test_an_export_names_images_but_knows_no_training_images(run, new, tmp_path):
    folder = export_run(run, "safetensors", tmp_path / "exported").folder
    result = json.loads(predict(folder, new / "new", "--json").stdout)
    assert len(result["predictions"]) == 3
    done = predict(folder, new / "new", "--unlike")
    assert done.exit_code == 2
    assert "is an export" in done.stderr


@pytest.mark.train
def test_what_cannot_be_used_is_refused_in_words(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.zip").write_bytes(b"hello")
    for name, words in (("empty", "holds no image"), ("bad.zip", "was not read")):
        done = predict(run.run_dir, tmp_path / name)
        assert done.exit_code == 2
        assert words in done.stderr

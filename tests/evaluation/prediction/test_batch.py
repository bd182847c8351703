import csv
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from finetune_core.data.archives import unpack_archive
from finetune_core.errors import DataError
from finetune_core.evaluation.prediction import batch
from finetune_core.evaluation.prediction.batch import (
    ImagePrediction,
    list_images,
    make_unpack_folder,
    predict_images,
    to_csv,
)
from finetune_core.evaluation.prediction.neighbours import compute_neighbourhood, make_encoder
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.paths import data_dir
from finetune_core.runs.store import read_run
from finetune_core.work import Step
from tests.drain import drain
from tests.factories import image_folder


@pytest.fixture(scope="module")
def run(trained_runs, tmp_path_factory):
    return read_run(*trained_runs.copied(tmp_path_factory.mktemp("runs"), "last_block"))


@pytest.fixture(scope="module")
def predictor(run):
    return load_predictor(run)


@pytest.fixture
def strangers(tmp_path):
    """Write forty images in folders, one of them damaged, among files that are no images."""
    folder = image_folder(tmp_path / "new", {"b/red": 20, "a": 20})
    Path(folder, "b", "red", "003.png").write_bytes(b"hello")
    Path(folder, "notes.txt").write_text("not an image")
    Path(folder, ".hidden.png").write_bytes(b"x")
    Path(folder, "__MACOSX").mkdir()
    Path(folder, "__MACOSX", "000.png").write_bytes(b"x")
    return folder


def test_every_image_is_classified_in_order_and_damaged_ones_are_reported(predictor, strangers):
    images = list_images(strangers)
    assert [name for name, _ in images] == [f"a/{n:03d}.png" for n in range(20)] + [
        f"b/red/{n:03d}.png" for n in range(20)
    ]
    steps, predictions = drain(predict_images(predictor, images))
    assert steps == [Step(32, 40), Step(40, 40)]
    assert [one.file for one in predictions] == [name for name, _ in images]
    broken = [one for one in predictions if one.probabilities is None]
    assert [one.file for one in broken] == ["b/red/003.png"]
    assert broken[0].problem
    assert {one.unlike for one in predictions} == {None}
    readable = [one for one in predictions if one.probabilities is not None]
    found = np.stack([one.probabilities for one in readable])
    alone = predictor.predict_proba([strangers / one.file for one in readable])
    np.testing.assert_allclose(found, alone, rtol=1e-3, atol=1e-5)


@pytest.mark.train
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="compiled under Linux only")
@pytest.mark.parametrize("known", [False, pytest.param(True, marks=pytest.mark.train)])
def test_the_network_is_compiled_where_that_pays(
    run, predictor, strangers, fake_compiler, monkeypatch, known
):
    looks = make_encoder(predictor)
    given = (looks, drain(compute_neighbourhood(run, looks))[1]) if known else None
    images = list_images(strangers)
    _, eager = drain(predict_images(predictor, images, given))
    assert fake_compiler.started == 0
    fake_compiler.result = b"package"
    monkeypatch.setattr(batch, "_BATCH", 4)
    _, found = drain(predict_images(predictor, images, given))
    assert fake_compiler.started == 1
    assert fake_compiler.module is (looks.body if known else predictor.network.model)
    assert fake_compiler.used == 5  # of ten batches: five were timed
    for ours, theirs in zip(found, eager, strict=True):
        assert (ours.file, ours.unlike) == (theirs.file, theirs.unlike)
        if ours.probabilities is not None:
            np.testing.assert_allclose(
                ours.probabilities, theirs.probabilities, rtol=1e-3, atol=1e-5
            )


@pytest.mark.train
def test_with_the_training_images_known_each_is_said_to_be_like_them_or_not(
    run, predictor, strangers
):
    looks = make_encoder(predictor)
    _, near = drain(compute_neighbourhood(run, looks))
    images = list_images(Path(run.config.data))
    _, predictions = drain(predict_images(predictor, images, (looks, near)))
    assert np.mean([one.unlike for one in predictions]) < 0.2
    _, predictions = drain(predict_images(predictor, list_images(strangers), (looks, near)))
    for one in predictions:
        if one.probabilities is not None:
            assert (
                one.unlike == near.find_unlike(looks.encode_image(strangers / one.file)[0][None])[0]
            )


def test_a_folder_without_images_is_refused(tmp_path):
    Path(tmp_path, "notes.txt").write_text("x")
    with pytest.raises(DataError, match="holds no image"):
        list_images(tmp_path)


def test_the_table_reads_back_and_starts_no_formula():
    predictions = [
        ImagePrediction("=cmd|' /C calc'!A0.png", np.array([0.25, 0.75]), unlike=True),
        ImagePrediction('täst, "x"\n.png', np.array([0.9, 0.1]), unlike=False),
        ImagePrediction("gone.png", None, problem="@it is gone"),
        ImagePrediction("plain.png", np.array([0.5, 0.5])),
    ]
    text = to_csv(predictions, ("+cat", "dog")).decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    files = ["'=cmd|' /C calc'!A0.png", 'täst, "x"\n.png', "gone.png", "plain.png"]
    assert [row["file"] for row in rows] == files
    assert [row["class"] for row in rows] == ["dog", "'+cat", "", "'+cat"]
    assert [row["unlike"] for row in rows] == ["yes", "no", "", ""]
    assert [row["probability"] for row in rows] == ["0.750000", "0.900000", "", "0.500000"]
    assert rows[2]["problem"] == "'@it is gone"
    assert (rows[0]["p(+cat)"], rows[0]["p(dog)"]) == ("0.250000", "0.750000")


def test_an_archive_is_unpacked_named_and_cleared_away(predictor, strangers, tmp_path):
    packed = tmp_path / "new.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted(strangers.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(strangers))
    with make_unpack_folder() as folder:
        steps, _ = drain(unpack_archive(packed, packed.name, folder))
        assert steps[-1].done == steps[-1].total == packed.stat().st_size
        images = list_images(folder)
        _, predictions = drain(predict_images(predictor, images))
    assert not folder.exists()
    assert not [path for path in data_dir().iterdir() if path.name.startswith(".naming")]
    assert len(predictions) == 40
    assert sum(one.probabilities is None for one in predictions) == 1


def test_archives_are_not_trusted(tmp_path):
    for name, content in (("../out.png", b"x"), ("notes.txt", b"x")):
        packed = tmp_path / "bad.zip"
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr(name, content)
        with make_unpack_folder() as folder:
            with pytest.raises(DataError, match=r"bad\.zip was not read"):
                drain(unpack_archive(packed, packed.name, folder))
            assert not list(folder.iterdir())
        assert not (data_dir() / "out.png").exists()

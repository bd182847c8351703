import json
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from finetune_core.commands.evaluate import evaluate_own_images
from finetune_core.errors import RunError
from finetune_core.evaluation.single_run import robustness
from finetune_core.evaluation.single_run.corruptions import CORRUPTIONS
from finetune_core.evaluation.single_run.evaluate import evaluation
from finetune_core.evaluation.single_run.robustness import measure_robustness
from finetune_core.evaluation.single_run.robustness_files import load_robustness
from finetune_core.runs.store import read_run
from finetune_core.work import Step, finish
from tests.drain import drain
from tests.earlier_robustness import write_accuracies


@pytest.fixture(scope="module")
def run(trained_runs, tmp_path_factory):
    return read_run(*trained_runs.copied(tmp_path_factory.mktemp("runs"), "last_block"))


@pytest.fixture(scope="module")
def measured(run):
    """Measure the test images; return steps and result."""
    assert load_robustness(run, "test") is None
    return drain(measure_robustness(run, "test"))


@pytest.mark.train
def test_images_are_named_at_every_severity_and_the_result_stays_in_the_folder(run, measured):
    steps, result = measured
    plain = evaluation(run, "test")
    assert steps[-1] == Step(16 * plain.images, 16 * plain.images)
    assert steps == sorted(steps)
    clean = result.rows.iloc[0]
    assert (clean["corruption"], clean["severity"]) == ("none", 0)
    assert clean["accuracy"] == plain.accuracy
    assert (clean["low"], clean["high"]) == pytest.approx((plain.low, plain.high))
    sizes = result.rows.groupby("corruption").size().to_dict()
    assert sizes == {"none": 1} | dict.fromkeys(CORRUPTIONS, 3)
    known = load_robustness(run, "test")
    assert known.images == plain.images
    assert known.rows.equals(result.rows)
    assert load_robustness(run, "val") is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="compiled under Linux only")
@pytest.mark.train
def test_the_network_is_compiled_where_that_pays(
    trained_runs, tmp_path, fake_compiler, monkeypatch
):
    run = read_run(*trained_runs.copied(tmp_path, "last_block"))
    eager = finish(measure_robustness(run, "test"))
    assert fake_compiler.started == 0
    fake_compiler.result = b"package"
    monkeypatch.setattr(robustness, "_BATCH", 2)
    found = finish(measure_robustness(run, "test"))
    assert fake_compiler.started == 1
    assert fake_compiler.used > 0
    # noise is drawn batch by batch, the clean images are the same
    assert found.rows.iloc[0].equals(eager.rows.iloc[0])


def test_what_was_broken_off_or_is_of_another_training_does_not_count(run, measured):
    work = measure_robustness(run, "val")
    next(work)
    work.close()
    assert load_robustness(run, "val") is None
    file = run.run_dir / "predictions.parquet"
    changed = file.stat().st_mtime_ns
    os.utime(file, ns=(1, 1))
    assert load_robustness(run, "test") is None
    os.utime(file, ns=(changed, changed))
    assert load_robustness(run, "test").rows.equals(measured[1].rows)


def test_accuracies_that_an_earlier_version_kept_count_unless_they_are_damaged(run, measured):
    file = write_accuracies(run, "test").run_dir / "robustness-test.json"
    known = load_robustness(run, "test")
    assert known.rows.equals(measured[1].rows)
    assert (measured[1].predicted, known.predicted) == (True, False)
    result = json.loads(file.read_text())
    for damaged in (
        "[1]",
        json.dumps(result | {"predictions": 1}),
        json.dumps(result | {"rows": result["rows"][:4]}),
        json.dumps(result | {"rows": [{}]}),
    ):
        file.write_text(damaged)
        assert load_robustness(run, "test") is None
    file.write_text(json.dumps(result))
    # measured anew when it is asked for
    assert evaluate_own_images(run, "test", corrupt=True).robustness.predicted


def test_images_that_are_gone_are_named_as_the_reason(run, tmp_path):
    moved = replace(run, config=run.config.model_copy(update={"data": str(tmp_path)}))
    with pytest.raises(RunError, match="can be read any more"):
        next(measure_robustness(moved, "test"))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_severity_is_further_from_the_image_than_the_one_before(name):
    side = 64
    ramp = np.mgrid[0:side, 0:side].sum(0)
    image = Image.fromarray(np.uint8(np.stack([ramp, 120 - ramp // 2, (ramp * 7) % 120], axis=-1)))
    corruption = CORRUPTIONS[name]
    far = []
    for amount in corruption.severities:
        worse = corruption.apply(image, amount, np.random.default_rng(0))
        assert (worse.size, worse.mode) == (image.size, "RGB")
        far.append(np.abs(np.asarray(worse, dtype=float) - np.asarray(image)).mean())
    assert 0 < far[0] < far[1] < far[2]

"""One accuracy per run: all pages show the same number, with its split and reference points."""

import pytest

from finetune_core import paths
from finetune_core.evaluation.reference_points import reference_points
from finetune_core.evaluation.run_accuracy import run_accuracy
from finetune_core.formatting import format_percent
from finetune_core.runs.store import RunStore
from tests.factories import shared_images, tiny_config, trained_run
from tests.pages.harness import open_page, place_run, read_metrics, unescaped_text

pytestmark = pytest.mark.train


@pytest.fixture
def runs(folder):
    """Copy a fine-tuned run and a linear probe on the same images."""
    strategies = ("last_block", "linear_probe")
    return [
        place_run(trained_run(tiny_config(folder, strategy=name)), f"run-{name}")
        for name in strategies
    ]


def test_a_run_has_the_same_accuracy_on_every_page(runs):
    run = runs[0]
    accuracy = run_accuracy(run)
    sentence = reference_points(run).to_sentence()
    assert (accuracy.split, "linear probe" in sentence) == ("test", True)
    text = accuracy.to_text()
    home = unescaped_text(open_page("home"))
    assert f"**{text}** :gray[· {reference_points(run).to_text()}]" in home
    at = open_page("train", run=run.run_id)
    assert f"**Test accuracy {format_percent(accuracy.value)}**" in unescaped_text(at)
    assert sentence in unescaped_text(at)
    at = open_page("evaluate", run=run.run_id)
    points = reference_points(run).items()
    boxes = {"Test accuracy": accuracy} | points
    assert read_metrics(at) == {label: format_percent(one.value) for label, one in boxes.items()}
    assert "Linear probe" in points
    assert f" · {text} · " in at.selectbox(key="run_box").options[-1]
    at = open_page("runs")
    at.session_state["selected_runs"] = [run.run_id]
    at.run()
    rows = at.dataframe[0].value.set_index("Run")
    assert rows["Test accuracy"][run.run_id] == pytest.approx(100 * accuracy.value)
    assert f"Test accuracy {format_percent(accuracy.value)}. {sentence}" in unescaped_text(at)


def test_without_test_images_it_is_the_validation_accuracy():
    config = tiny_config(shared_images(), test_fraction=0)
    run = place_run(trained_run(config), "run-untested")
    assert RunStore(paths.runs_dir()).get_run(run.run_id)
    assert f"**{run_accuracy(run).to_text()}**" in unescaped_text(open_page("home"))
    assert "validation accuracy" in run_accuracy(run).to_text()
    rows = open_page("runs").dataframe[0].value
    assert rows["Validation accuracy"].notna().all()
    assert rows["Test accuracy"].isna().all()
    assert "Validation accuracy" in read_metrics(open_page("evaluate", run=run.run_id))

"""Tests of ensembles: their predictions, their exports, and which runs cannot be combined."""

import importlib.util
import itertools
import json
import os
import shutil

import hypothesis.strategies as some
import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays
from scipy.special import log_softmax, softmax

from finetune_core.errors import ConfigError, ExportError, FinetuneError, RunError
from finetune_core.evaluation.comparison.arms import run_titles
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.comparison.costs import disk_bytes
from finetune_core.evaluation.comparison.layer_diagnostics import measure_layers
from finetune_core.evaluation.prediction.explain import explain
from finetune_core.evaluation.prediction.neighbours import make_encoder
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.run_images import resolve_run_image
from finetune_core.exporters.formats import export_run
from finetune_core.exporters.tensors import load_export
from finetune_core.models.catalogue import backbone_info_for
from finetune_core.models.ensemble import mean_log_probabilities
from finetune_core.runs.log import format_log
from finetune_core.runs.record import create_run
from finetune_core.runs.store import read_run, summarize_run
from finetune_core.training import events
from finetune_core.training.checkpoints.files import BEST, checkpoint_path
from finetune_core.training.checkpoints.parents import make_averaged_config
from finetune_core.training.data_pipeline.preview import network_input
from finetune_core.training.evaluation import compute_logits
from finetune_core.training.predictions import load_predictions, save_predictions
from finetune_core.work import finish
from tests.factories import copy_run, shared_images, tiny_config, trained_run
from tests.training.fits import record_run

OTHER_NORMALISATION = {"mean": (0.3, 0.4, 0.5), "std": (0.2, 0.3, 0.4)}
EXACT = 2e-4  # of a logit: products are rounded otherwise by other kernels, and a cached trunk
MEMBERS = {
    "seed 0": {"head_seed": 7},
    "lora": {"strategy": "lora", "lora_from": "layer4", **OTHER_NORMALISATION},
    "probe": {"strategy": "linear_probe"},
}


@pytest.fixture(scope="module")
def made_once(home_of_shared_fixtures, tmp_path_factory):
    """Train three runs, one with images normalised otherwise, and make their ensemble.

    Returns:
        The runs, the ensemble, and its events.
    """
    made = {name: trained_run(**changes).run_dir for name, changes in MEMBERS.items()}
    config = make_averaged_config("ensemble", list(made.values()))
    made["ensemble"], seen = record_run(config, tmp_path_factory.mktemp("runs"))
    return made, seen


@pytest.fixture
def made(made_once, tmp_path):
    """Return copies of the runs that a test may spoil."""
    return {name: copy_run(folder, tmp_path / "made") for name, folder in made_once[0].items()}


def logits_in(folder):
    table = load_predictions(folder).sort_values(["split", "id"], ignore_index=True)
    return table, np.stack(table["logits"].tolist())


def make_inputs(run, network):
    """Return the images that a run has predicted, as a network gets them.

    They are ordered as in ``logits_in``.
    """
    inputs = [
        network_input(resolve_run_image(run, sample), network.info, run.config.image_size)
        for sample in logits_in(run.run_dir)[0]["id"]
    ]
    return torch.stack([one.tensor for one in inputs])


# --- what an ensemble answers


@some.composite
def answers(draw, most=4):
    shape = draw(some.tuples(some.integers(1, most), some.integers(1, 3), some.integers(2, 4)))
    return draw(arrays.arrays(np.float32, shape, elements=some.floats(-80, 80, width=32)))


@given(answers())
@settings(deadline=None, max_examples=40)
def test_an_ensemble_is_the_mean_of_the_probabilities_whatever_the_order(found):
    mean = mean_log_probabilities(found)
    wanted = softmax(found.astype(np.float64), axis=2).mean(0)
    np.testing.assert_allclose(np.exp(mean), wanted, rtol=1e-9, atol=1e-300)
    for order in itertools.permutations(range(len(found))):
        assert mean_log_probabilities(found[list(order)]).tobytes() == mean.tobytes()


@given(answers(most=1), some.integers(1, 9))
@settings(deadline=None, max_examples=40)
def test_equal_networks_are_their_own_ensemble(found, count):
    alone = log_softmax(found[0].astype(np.float64), axis=1)
    together = mean_log_probabilities(np.repeat(found, count, axis=0))
    np.testing.assert_allclose(together, alone, rtol=1e-12, atol=1e-12)


# --- it is a run


@pytest.mark.train
def test_its_predictions_are_the_mean_of_those_that_its_runs_have_left(made_once):
    made, seen = made_once
    kinds = [type(event) for event in seen if not isinstance(event, events.Progress)]
    assert kinds == [
        events.RunStarted,
        events.WeightsAveraged,
        events.CheckpointSaved,
        events.RunFinished,
    ]
    table, logits = logits_in(made["ensemble"])
    parents = [logits_in(made[name]) for name in MEMBERS]
    assert all(one["id"].equals(table["id"]) for one, _ in parents)
    wanted = np.mean([softmax(one.astype(np.float64), axis=1) for _, one in parents], axis=0)
    np.testing.assert_allclose(softmax(logits.astype(np.float64), axis=1), wanted, atol=1e-6)


def test_an_ensemble_is_evaluated_compared_and_says_what_it_is(made_once):
    made, _ = made_once
    run, parents = read_run(made["ensemble"]), [read_run(made[name]) for name in MEMBERS]
    row, (table, logits) = summarize_run(run), logits_in(run.run_dir)
    right = (logits.argmax(1) == table["label"])[table["split"] == "test"]
    assert (run.status, run.is_evaluable) == ("finished", True)
    assert (row["epochs"], row["evaluation_precision"]) == (0, "fp32")
    assert run.started["class_counts"] == parents[0].started["class_counts"]
    assert row["test_accuracy"] == pytest.approx(right.mean())
    assert row["total_parameters"] == sum(summarize_run(one)["total_parameters"] for one in parents)
    named = {one["run"] for one in row["averaged"]["parents"]}
    assert named == {one.run_id for one in parents}
    assert disk_bytes(run) > sum(map(disk_bytes, parents))
    assert run_titles([run]) == ["Ensemble of 3 runs"]
    assert "Ensemble of 3 runs" in [arm.title for arm in compare_runs([*parents, run]).arms]
    text = "\n".join(format_log(run.history.notable))
    assert "no image goes through a network" in text
    assert all(one.run_id in text for one in parents)
    reverse = make_averaged_config("ensemble", [made[name] for name in reversed(MEMBERS)])
    assert reverse == run.config


def test_it_predicts_what_it_has_predicted_without_its_runs(made, tmp_path):
    moved = read_run(shutil.move(made["ensemble"], tmp_path / "elsewhere"))
    shutil.rmtree(tmp_path / "made")
    predictor = load_predictor(moved)
    images = make_inputs(moved, predictor.network)
    found = compute_logits(predictor.network.model, images, predictor.device)
    np.testing.assert_allclose(found, logits_in(moved.run_dir)[1], atol=EXACT)


# --- what it is exported as


def onnx_answers(folder, images):
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    return session.run(["logits"], {"image": images.numpy()})[0]


def example_answers(folder, images):
    """Return the answers of the example that goes with an export and does not use Thaw."""
    spec = importlib.util.spec_from_file_location("exported_example", folder / "predict.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example.load(json.loads((folder / "model.json").read_text()))(images.numpy())


def program_answers(folder, images):
    return torch.export.load(folder / "model.pt2").module()(images).detach().numpy()


@pytest.mark.train
def test_exports_of_two_backbones_answer_what_their_ensemble_has_predicted(made_once, tmp_path):
    info = backbone_info_for(tiny_config())
    framing = {"interpolation": info.interpolation, "crop_pct": info.crop}
    other = {"backbone": "timm/test_byobnet", "weights": "none", "epochs": 1}
    other = trained_run(**other, **framing, **OTHER_NORMALISATION)
    config = make_averaged_config("ensemble", [made_once[0]["seed 0"], other.run_dir])
    run = read_run(record_run(config, tmp_path / "runs")[0])
    formats = ("onnx", "torch_export", "safetensors")
    onnx, program, tensors = (export_run(run, name, tmp_path / name) for name in formats)
    exported = load_export(tensors.folder)
    images, wanted = make_inputs(run, exported.network), logits_in(run.run_dir)[1]
    for found in (
        onnx_answers(onnx.folder, images),
        program_answers(program.folder, images),
        compute_logits(exported.network.model, images, exported.device),
        example_answers(tensors.folder, images),
    ):
        np.testing.assert_allclose(found, wanted, atol=EXACT)
    assert onnx.measured.evaluation.accuracy == summarize_run(run)["test_accuracy"]


def test_its_card_names_its_networks_and_a_script_is_refused(made_once, tmp_path):
    run = read_run(made_once[0]["ensemble"])
    exported = export_run(run, "card", tmp_path / "card")
    card = (exported.folder / "README.md").read_text().replace("\\", "")
    assert "| Strategy | Ensemble of 3 runs |" in card
    assert "The mean of the probabilities of 3 networks, which it keeps: run " in card
    with pytest.raises(ExportError, match="an ensemble trains nothing that could be repeated"):
        export_run(run, "script", tmp_path / "script")


def test_what_each_network_has_for_itself_is_refused_in_words(made_once):
    run = read_run(made_once[0]["ensemble"])
    predictor = load_predictor(run)
    image = resolve_run_image(run, logits_in(run.run_dir)[0]["id"][0])
    with pytest.raises(RunError, match="no Grad-CAM for an ensemble"):
        explain(predictor, image, [0])
    with pytest.raises(RunError, match="no features to compare"):
        make_encoder(predictor)
    with pytest.raises(RunError, match="no stages of its own"):
        finish(measure_layers([run]))


# --- which runs cannot answer together


def refusal(folders, how="ensemble"):
    with pytest.raises(ConfigError) as caught:
        make_averaged_config(how, folders)
    return caught.value.problems["averaged"]


@pytest.mark.train
def test_runs_that_cannot_answer_together_are_refused_all_at_once(made):
    first, two = made["seed 0"].name, shared_images(red=14, green=14)
    said = {
        trained_run(image_size=64, epochs=1).run_dir: (
            f"framed otherwise than those of {first} (image size, centre crop)"
        ),
        trained_run(split_seed=3, epochs=1).run_dir: (
            f"its images, their labels or their split are not those of {first}"
        ),
        trained_run(tiny_config(two, epochs=1)).run_dir: f"its classes are not those of {first}",
        made["probe"]: f"it has not predicted the same images as {first}",
        made["lora"]: "evaluate it in fp32 first",
        made["ensemble"]: "it is an ensemble itself: name its runs",
    }
    table = load_predictions(made["probe"])
    save_predictions(made["probe"], table.iloc[1:], "fp32")
    save_predictions(made["lora"], table, "bf16")
    reasons = dict(part.split(": ", 1) for part in refusal([made["seed 0"], *said]).split("; "))
    assert reasons.keys() == {folder.name for folder in said}
    for folder, words in said.items():
        assert words in reasons[folder.name]


def test_an_ensemble_takes_two_runs_and_gives_no_weights_away(made_once, tmp_path):
    made, _ = made_once
    assert "an ensemble is made of two runs or more" in refusal([made["seed 0"]])
    assert "no weights of its own" in refusal([made["ensemble"], made["seed 0"]], "soup")
    with pytest.raises(ConfigError, match="is an ensemble: start from one of its runs"):
        create_run(tiny_config(from_run=str(made["ensemble"])), tmp_path)


@pytest.mark.train
def test_nearest_neighbours_answer_with_others_but_are_exported_with_none(made_once, tmp_path):
    neighbours = trained_run(strategy="nearest_neighbours").run_dir
    config = make_averaged_config("ensemble", [neighbours, made_once[0]["seed 0"]])
    run = read_run(record_run(config, tmp_path / "runs")[0])
    assert load_predictor(run).classes == ("blue", "green", "red")
    reason = "one of its networks classifies by its nearest training images"
    with pytest.raises(ExportError, match=reason):
        export_run(run, "onnx", tmp_path / "onnx")


def test_a_member_that_is_lost_or_damaged_is_named(made):
    run = read_run(made["ensemble"])
    member = run.run_dir / "members" / "2"
    checkpoint_path(member, BEST).write_bytes(b"nothing")
    with pytest.raises(FinetuneError, match=r"best\.safetensors"):
        load_predictor(run)
    shutil.rmtree(member)
    with pytest.raises(FinetuneError, match="there is no run in"):
        load_predictor(run)


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_a_link_in_the_place_of_its_networks_is_not_followed(made):
    run = read_run(made["ensemble"])
    load_predictor(run)
    folder = run.run_dir / "members"
    folder.rename(folder.with_name("away"))
    folder.symlink_to("away")
    with pytest.raises(RunError, match="members is a link"):
        load_predictor(run)


def test_a_run_that_has_lost_its_network_makes_no_folder(made, tmp_path):
    config = make_averaged_config("ensemble", [made["seed 0"], made["probe"]])
    checkpoint_path(made["probe"], BEST).unlink()
    with pytest.raises(FinetuneError, match=r"best\.safetensors|'best' checkpoint"):
        create_run(config, tmp_path / "runs")
    assert not any((tmp_path / "runs").glob("*"))

"""Use of an idle GPU: work with a trained network takes it only if idle, and leaves it empty."""

from functools import partial

import pytest
import torch
from PIL import Image

from finetune_core.data.dataset import load_dataset
from finetune_core.evaluation.comparison.layer_diagnostics import measure_layers
from finetune_core.evaluation.prediction.batch import list_images, predict_images
from finetune_core.evaluation.prediction.neighbours import compute_neighbourhood, make_encoder
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.single_run.fp32 import evaluate_in_fp32
from finetune_core.evaluation.single_run.robustness import measure_robustness
from finetune_core.evaluation.single_run.shift import predict_shifted
from finetune_core.exporters.formats import export_run
from finetune_core.inspection.features import compute_features
from finetune_core.runs.store import read_run
from finetune_core.training.devices.turn import Turn
from finetune_core.work import finish
from tests.factories import copy_run, trained_run


@pytest.fixture
def run(tmp_path):
    original = trained_run(strategy="last_block", epochs=1)
    return read_run(copy_run(original.run_dir, tmp_path / "runs"))


def _prepare_batch(run):
    predictor = load_predictor(run)
    return partial(predict_images, predictor, list_images(run.config.data)[:4])


def _prepare_unlike(run):
    looks = make_encoder(load_predictor(run))
    near = finish(compute_neighbourhood(run, looks))
    return partial(predict_images, looks.predictor, list_images(run.config.data)[:4], (looks, near))


def _write_other_images(run):
    """Write images of the run's classes that are not its own, and return their folder."""
    folder = run.run_dir.parent / "others"
    for name in run.started["classes"]:
        (folder / name).mkdir(parents=True)
        for shade in (100, 200):
            Image.new("RGB", (40, 32), (shade, 0, shade)).save(folder / name / f"{shade}.png")
    return str(folder)


WORK = {
    "batch": _prepare_batch,
    "batch with neighbours": _prepare_unlike,
    "neighbours": lambda run: partial(
        compute_neighbourhood, run, make_encoder(load_predictor(run))
    ),
    "robustness": lambda run: partial(measure_robustness, run, "val"),
    "shift": lambda run: partial(predict_shifted, [run], _write_other_images(run)),
    "fp32": lambda run: partial(evaluate_in_fp32, run),
    "layers": lambda run: partial(measure_layers, [run]),
    "features": lambda run: partial(
        compute_features, load_dataset(run.config.data), "efficientnet_lite0", 32
    ),
}


def is_free():
    with Turn("cuda") as turn:
        return turn.acquire(at_once=True)


@pytest.mark.train
@pytest.mark.parametrize("name", WORK)
def test_it_has_the_gpu_until_it_ends_and_leaves_nothing_there(name, run, gpu, monkeypatch):
    make = WORK[name](run)
    gpu.clear()
    left = []
    monkeypatch.setattr(
        torch.cuda,
        "empty_cache",
        lambda: left.append([module() for kind, module in gpu if kind == "cuda"]),
    )
    # asked once a phase: leaving a GPU collects garbage, which takes longer than most steps
    free = {}
    finish(make(), lambda step: step.phase in free or free.setdefault(step.phase, is_free()))
    assert {kind for kind, _ in gpu} == {"cuda"}
    assert False in free.values()
    assert [module for modules in left for module in modules if module is not None] == []
    assert left
    assert is_free()


@pytest.mark.processes
def test_it_takes_the_processor_while_another_program_has_the_gpu(run, gpu, hold_device):
    works = [WORK[name](run) for name in ("batch", "layers")]
    gpu.clear()
    hold_device("cuda")
    for work in works:
        finish(work())
    assert {kind for kind, _ in gpu} <= {"cpu"}


def test_what_the_pages_hold_and_what_is_exported_is_never_on_the_gpu(run, gpu):
    assert load_predictor(run).device.kind == "cpu"
    for form in ("safetensors", "script"):
        export_run(run, form)
    assert {kind for kind, _ in gpu} == {"cpu"}

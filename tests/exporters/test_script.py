"""The training script repeats its run without Thaw and with the same metrics."""

import argparse
import csv
import io
import re
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from finetune_core.config import get_setting
from finetune_core.errors import ExportError, RunError
from finetune_core.exporters import script
from finetune_core.exporters.formats import export_run
from finetune_core.runs.store import RunStore
from finetune_core.training.devices import device
from tests.exporters.conftest import check_same, colours, parse_metrics, train_shared
from tests.factories import copy_run

TORCHVISION = {"backbone": "shufflenet_v2_x0_5", "weights": "none"}
ADAM = {"optimizer": "adam", "learning_rate": 3e-4}
CAREFUL = {"ema": 0.5, "clip_norm": 0.5, "micro_batch": 3, "weight_decay": 0.01, "epochs": 3}
STOPPING = {"patience": 1, "epochs": 5}
RATES = {"strategy": "custom", "stage_rates": {"layer4": 0.5, "head": 2.0}}
VIEWS = {"augmentation": "random_resized_crop", "views": 2, "batchnorm": "statistics"}
RECALL = {"early_stopping": "val_balanced_accuracy", "strategy": "full", "learning_rate": 0.1}
PROBE_FIRST = {"strategy": "linear_probe_then_full", "sampling": "balanced"}
MANY_SETTINGS = {
    "rates, averages and brakes": CAREFUL
    | RATES
    | VIEWS
    | {"class_weights": "balanced", "l2_sp": 0.1, "schedule": "cosine"},
    "biases, one cycle, smoothing": ADAM
    | {"strategy": "bias_only", "optimizer": "adamw", "schedule": "one_cycle", "head_seed": 9}
    | {"label_smoothing": 0.1, "augmentation": "flips", "batch_size": 10, "train_fraction": 0.6},
    "norms, by steps": ADAM
    | {"strategy": "batchnorm_only", "schedule": "step", "weight_decay": 0.01},
    "head first, mixed, balanced": TORCHVISION
    | PROBE_FIRST
    | {"mixup": 0.2, "cutmix": 1.0, "class_weights": "balanced"},
    "low rank, averaged": CAREFUL | {"strategy": "lora", "lora_rank": 4, "lora_from": "layer3"},
    "low rank, norms": {"strategy": "lora", "lora_norms": "train", "lora_alpha": 4.0},
    "frozen norms, early stop": STOPPING
    | {"batchnorm": "frozen", "early_stopping": "val_macro_f1", "backbone": "efficientnet_lite0"}
    | {"strategy": "last_two_blocks", "learning_rate": 0.01},
    "stop by recall": TORCHVISION | STOPPING | RECALL,
    "probe first": VIEWS | {"initial_head": "probe", "ema": 0.5},
    "stop by accuracy": STOPPING | {"early_stopping": "val_accuracy"},
}


@pytest.mark.processes
def test_it_gets_the_same_accuracy_where_thaw_cannot_be_imported(run, run_without_thaw, tmp_path):
    folder = export_run(run, "script", tmp_path / "script").folder
    printed = run_without_thaw(folder / "train.py", colours(), "--out", tmp_path / "model.pt")
    result, tested = parse_metrics(printed)
    check_same(result, run)
    assert tested == pytest.approx(run.history.end["test_accuracy"], abs=0.01)


@pytest.mark.train
@pytest.mark.parametrize("settings", MANY_SETTINGS.values(), ids=MANY_SETTINGS)
def test_it_repeats_every_setting(settings, repeat):
    run = train_shared(**settings)
    assert (len(run.history.epochs) < run.config.epochs) == ("early_stopping" in settings)
    repeat(run)


@pytest.mark.train
def test_a_run_in_bf16_has_its_best_epoch_evaluated_in_fp32(native_bf16, repeat, tmp_path):
    file, parts, accuracies = repeat(train_shared(precision="bf16", epochs=1))
    assert "head.forward = partial(in_fp32, head)" in file.read_text()
    model = parts["make_model"](3)
    model.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    rows = list(csv.DictReader(file.with_name("split.csv").open()))
    classes = sorted({row["label"] for row in rows})
    for split, accuracy in zip(("val", "test"), accuracies[-2:], strict=True):
        of_split = [row for row in rows if row["split"] == split]
        images = parts["Images"](colours(), of_split, classes)
        with torch.no_grad():
            answers = model.eval()(torch.stack([image for image, _ in images])).argmax(1)
        assert accuracy == f"{(answers.numpy() == images.labels).mean():.4f}"


@pytest.mark.train
@pytest.mark.parametrize("more", [CAREFUL | {"l2_sp": 0.1, "schedule": "cosine"}, {}])
def test_a_run_in_fp16_is_repeated_with_its_loss_scale(repeat, monkeypatch, more):
    monkeypatch.setattr(device, "_WITH_FP16", ("cuda", "cpu"))
    run = train_shared(**more, precision="fp16", compile="off")
    update, updates = torch.amp.GradScaler.update, []

    def record(scaler):
        update(scaler)
        updates.append(scaler.get_scale())

    monkeypatch.setattr(torch.amp.GradScaler, "update", record)
    file, *_ = repeat(run)
    assert "head.forward = partial(in_fp32, head)" in file.read_text()
    assert updates == [row["loss_scale"] for row in run.history.steps]


def test_the_split_is_the_runs_with_the_changes_made_to_the_data(run, tmp_path):
    text = (export_run(run, "script", tmp_path / "script").folder / "split.csv").read_text()
    rows = {row["path"]: row for row in csv.DictReader(io.StringIO(text))}
    assert rows["red/000.png"]["label"] == "blue"
    assert "red/001.png" not in rows
    assert rows['a "b", |c|/000.png']["label"] == 'a "b", |c|'
    splits = [row["split"] for row in rows.values()]
    counts = {split: splits.count(split) for split in ("train", "val", "test")}
    assert counts == run.history.started["counts"]


def test_a_default_run_gives_a_short_file(run, tmp_path):
    text = (export_run(run, "script", tmp_path / "script").folder / "train.py").read_text()
    assert len(text.splitlines()) <= 205
    assert "torch.backends.cudnn.allow_tf32 = False" in text
    assert not re.search("EMA|L2_SP|MICRO|BATCHNORM|augment|schedule|#:", text)


def test_images_that_have_changed_are_refused(run, tmp_path):
    folder = shutil.copytree(colours(), tmp_path / "images")
    Image.new("RGB", (40, 32)).save(folder / "red" / "003.png")
    changed = replace(run, config=run.config.model_copy(update={"data": str(folder)}))
    with pytest.raises(ExportError, match="have changed since"):
        export_run(changed, "script", tmp_path / "script")
    assert not (tmp_path / "script").exists()


@pytest.mark.train
def test_a_run_that_has_lost_its_fitted_head_has_no_script(tmp_path):
    original = train_shared(initial_head="probe", epochs=1)
    lost = RunStore(tmp_path).load_run(copy_run(original.run_dir, tmp_path))
    (lost.run_dir / "head.safetensors").unlink()
    with pytest.raises(RunError, match=r"lacks head\.safetensors"):
        export_run(lost, "script", tmp_path / "script")
    assert not (tmp_path / "script").exists()


def test_a_setting_without_a_counterpart_is_named(run, monkeypatch):
    seed = replace(get_setting("seed"), in_script="missing")
    monkeypatch.setattr(script, "all_settings", lambda: {"seed": seed})
    with pytest.raises(ExportError, match="the setting seed has no counterpart"):
        export_run(run, "script")


def test_names_cannot_break_out_of_the_docstring():
    assert script._sanitize('a"""\\\nimport os') == "aimport os"


@pytest.mark.parametrize("name", ["50% off", "%(prog)d", "%%(prog)s 100%"])
def test_a_data_set_may_be_named_like_what_argparse_fills_in(name):
    described = argparse.ArgumentParser(
        prog="train.py", description=script._sanitize(name)
    ).format_help()
    assert name.split("(")[0] in described

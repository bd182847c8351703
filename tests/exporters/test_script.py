"""The training script repeats its run, without Thaw and with the same numbers."""

import argparse
import csv
import io
import re
import runpy
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from finetune_core.config import setting_of
from finetune_core.errors import ExportError
from finetune_core.exporters import script
from finetune_core.exporters.formats import export_run
from finetune_core.training import device

SMALL = {"backbone": "shufflenet_v2_x0_5", "weights": "none"}
ADAM = {"optimizer": "adam", "learning_rate": 3e-4}
MANY_SETTINGS = {
    "rates, averages and brakes": SMALL
    | {
        "strategy": "custom",
        "stage_rates": {"stage4": 0.5, "head": 2.0},
        "schedule": "cosine",
        "ema": 0.5,
        "epochs": 3,
    }
    | {
        "class_weights": "balanced",
        "l2_sp": 0.1,
        "clip_norm": 0.5,
        "micro_batch": 3,
        "weight_decay": 0.01,
    }
    | {"augmentation": "random_resized_crop", "views": 2, "batchnorm": "statistics"},
    "biases, one cycle, smoothing": SMALL
    | ADAM
    | {
        "strategy": "bias_only",
        "optimizer": "adamw",
        "schedule": "one_cycle",
        "label_smoothing": 0.1,
        "augmentation": "flips",
    }
    | {"batch_size": 10, "train_fraction": 0.6, "head_seed": 9},
    "norms, by steps": SMALL
    | ADAM
    | {"strategy": "batchnorm_only", "schedule": "step", "weight_decay": 0.01},
    "head first, mixed, balanced": SMALL
    | {
        "strategy": "linear_probe_then_full",
        "mixup": 0.2,
        "cutmix": 1.0,
        "sampling": "balanced",
        "class_weights": "balanced",
    },
    "low rank, averaged": {
        "strategy": "lora",
        "lora_rank": 4,
        "lora_from": "block6",
        "ema": 0.5,
        "clip_norm": 0.5,
        "epochs": 3,
    }
    | {"weight_decay": 0.01, "micro_batch": 3},
    "low rank, norms": SMALL | {"strategy": "lora", "lora_norms": "train", "lora_alpha": 4.0},
    "frozen norms, early stop": {
        "batchnorm": "frozen",
        "early_stopping": "val_macro_f1",
        "patience": 1,
        "epochs": 5,
    }
    | {"strategy": "last_two_blocks", "learning_rate": 0.01},
    "stop by recall": SMALL
    | {"early_stopping": "val_balanced_accuracy", "patience": 1, "epochs": 5, "strategy": "full"},
    "stop by accuracy": SMALL | {"early_stopping": "val_accuracy", "patience": 1, "epochs": 5},
}


def metrics_in(text):
    """(training loss, validation loss, accuracy) of each epoch that a script printed, and its test accuracy."""
    epochs = re.findall(
        r"epoch \d+: loss ([\d.]+), validation loss ([\d.]+), accuracy ([\d.]+)", text
    )
    return [tuple(map(float, row)) for row in epochs], float(
        re.search(r"test accuracy ([\d.]+)", text)[1]
    )


def epochs_of(run):
    return [(row["train_loss"], row["val_loss"], row["val_accuracy"]) for row in run.history.epochs]


def same(result, run):
    assert len(result) == len(run.history.epochs)
    for found, expected in zip(result, epochs_of(run), strict=True):
        assert found == pytest.approx(expected, rel=2e-3, abs=2e-4)


@pytest.mark.processes
def test_it_gets_the_same_accuracy_where_thaw_cannot_be_imported(run, colours, elsewhere, tmp_path):
    folder = export_run(run, "script", tmp_path / "script").folder
    result, tested = metrics_in(
        elsewhere(folder / "train.py", colours, "--out", tmp_path / "model.pt")
    )
    same(result, run)
    assert tested == pytest.approx(run.history.end["test_accuracy"], abs=0.01)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            settings,
            id=name,
            marks=[pytest.mark.processes] * (name.startswith(("norms", "frozen", "stop by"))),
        )
        for name, settings in MANY_SETTINGS.items()
    ],
)
def test_it_repeats_every_setting(settings, train, colours, tmp_path, monkeypatch, capsys):
    run = train(colours, tmp_path / "runs", **settings)
    assert (len(run.history.epochs) < run.config.epochs) == ("early_stopping" in settings)
    file = export_run(run, "script").folder / "train.py"
    monkeypatch.setattr(
        sys, "argv", ["train.py", str(colours), "--out", str(tmp_path / "model.pt")]
    )
    runpy.run_path(str(file), run_name="__main__")
    output, tested = metrics_in(capsys.readouterr().out)
    same(output, run)
    assert tested == pytest.approx(run.history.end["test_accuracy"], abs=0.01)
    _is_tidy(file)


def test_a_run_in_bf16_has_its_best_epoch_evaluated_in_fp32(
    native_bf16, train, colours, tmp_path, monkeypatch, capsys
):
    run = train(colours, tmp_path / "runs", **SMALL, precision="bf16", epochs=1)
    file = export_run(run, "script").folder / "train.py"
    monkeypatch.setattr(
        sys, "argv", ["train.py", str(colours), "--out", str(tmp_path / "model.pt")]
    )
    parts = runpy.run_path(str(file), run_name="__main__")
    assert "head.forward = partial(in_fp32, head)" in file.read_text()
    text = re.findall(r"(?:validation|test) accuracy ([\d.]+)", capsys.readouterr().out)
    model = parts["make_model"](3)
    model.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    rows = list(csv.DictReader(file.with_name("split.csv").open()))
    for split, accuracy in zip(("val", "test"), text[-2:], strict=True):
        images = parts["Images"](
            colours,
            [row for row in rows if row["split"] == split],
            sorted({row["label"] for row in rows}),
        )
        with torch.no_grad():
            answers = model.eval()(torch.stack([image for image, _ in images])).argmax(1)
        assert accuracy == f"{(answers.numpy() == images.labels).mean():.4f}"


@pytest.mark.parametrize(
    "more",
    [{"ema": 0.5, "micro_batch": 3, "l2_sp": 0.1, "clip_norm": 0.5, "schedule": "cosine"}, {}],
)
def test_a_run_in_fp16_is_repeated_with_its_loss_scale(
    train, colours, tmp_path, monkeypatch, capsys, more
):
    monkeypatch.setattr(device, "_WITH_FP16", ("cuda", "cpu"))
    run = train(
        colours, tmp_path / "runs", **SMALL, **more, precision="fp16", compile="off", epochs=2
    )
    file = export_run(run, "script").folder / "train.py"
    monkeypatch.setattr(
        sys, "argv", ["train.py", str(colours), "--out", str(tmp_path / "model.pt")]
    )
    monkeypatch.setattr(
        torch.amp.GradScaler,
        "update",
        lambda scaler, update=torch.amp.GradScaler.update: seen(scaler, update),
    )
    updates = []

    def seen(scaler, update):
        update(scaler)
        updates.append(scaler.get_scale())

    runpy.run_path(str(file), run_name="__main__")
    output, tested = metrics_in(capsys.readouterr().out)
    same(output, run)
    assert "head.forward = partial(in_fp32, head)" in file.read_text()
    assert updates == [row["loss_scale"] for row in run.history.steps]
    assert tested == pytest.approx(run.history.end["test_accuracy"], abs=0.01)
    _is_tidy(file)


def _is_tidy(file):
    linted = (
        ["check", "--select", "E4,E7,E9,F,B,RUF100"],
        ["format", "--check", "--line-length", "128"],
    )
    for command in linted:
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--isolated", file],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


def test_the_split_is_the_runs_with_the_changes_made_to_the_data(run, tmp_path):
    text = (export_run(run, "script", tmp_path / "script").folder / "split.csv").read_text()
    rows = {row["path"]: row for row in csv.DictReader(io.StringIO(text))}
    assert rows["red/000.png"]["label"] == "blue"
    assert "red/001.png" not in rows
    assert rows['a "b", |c|/000.png']["label"] == 'a "b", |c|'
    counts = {
        split: sum(row["split"] == split for row in rows.values())
        for split in ("train", "val", "test")
    }
    assert counts == run.history.started["counts"]


def test_a_default_run_gives_a_short_file(run, tmp_path):
    text = (export_run(run, "script", tmp_path / "script").folder / "train.py").read_text()
    assert len(text.splitlines()) <= 205
    assert "torch.backends.cudnn.allow_tf32 = False" in text
    assert not re.search("EMA|L2_SP|MICRO|BATCHNORM|augment|schedule|#:", text)


def test_images_that_have_changed_are_refused(train, image_folder, tmp_path):
    folder = image_folder(tmp_path / "images", {"red": 12, "blue": 12})
    run = train(folder, tmp_path / "runs", **SMALL, epochs=1)
    Image.new("RGB", (40, 32)).save(folder / "red" / "003.png")
    with pytest.raises(ExportError, match="have changed since"):
        export_run(run, "script")
    assert not (run.run_dir / "export" / "script").exists()


def test_a_setting_without_a_counterpart_is_named(run, monkeypatch):
    seed = replace(setting_of("seed"), in_script="missing")
    monkeypatch.setattr(script, "all_settings", lambda: {"seed": seed})
    with pytest.raises(ExportError, match="the setting seed has no counterpart"):
        export_run(run, "script")


def test_names_cannot_break_out_of_the_docstring():
    assert script._harmless('a"""\\\nimport os') == "aimport os"


@pytest.mark.parametrize("name", ["50% off", "%(prog)d", "%%(prog)s 100%"])
def test_a_data_set_may_be_named_like_what_argparse_fills_in(name):
    described = argparse.ArgumentParser(
        prog="train.py", description=script._harmless(name)
    ).format_help()
    assert name.split("(")[0] in described

"""Finished runs made by hand, with given costs and predictions."""

import numpy as np
import pandas as pd
import pytest

from finetune_core.config import make_config
from finetune_core.runs.history import History
from finetune_core.runs.store import Run
from finetune_core.training.predictions import prediction_table, save_predictions
from tests.evaluation.simulated import draw_correct

STAGES = ("stem", "block1", "block2", "head")
CLASSES = ("cat", "dog")


@pytest.fixture
def make_run(tmp_path):
    """Return ``make_run(correct, …)``, which makes a finished run with these predictions.

    The run is right where ``correct`` is true.
    """
    made = []

    def make(
        correct,
        *,
        seconds=10.0,
        tested=True,
        names="image",
        classes=CLASSES,
        status="finished",
        trunk_rate=None,
        forecast=None,
        precision="fp32",
        device="cpu",
        device_bytes=None,
        **settings,
    ):
        correct = np.asarray(correct, bool)
        config = make_config({"data": "/pets", **settings})
        run_dir = tmp_path / f"20260101-0000{len(made):02d}-{config.strategy}-abcd"
        run_dir.mkdir()
        made.append(run_dir)
        labels = np.arange(len(correct)) % 2
        logits = np.eye(2)[np.where(correct, labels, 1 - labels)]
        ids = pd.Series([f"{names}{n:04d}.png" for n in range(len(correct))])
        tables = [
            prediction_table("v" + ids, "val", labels, logits),
            prediction_table(ids, "test", labels, logits),
        ]
        # the order of the rows says nothing
        order = np.random.default_rng(len(made)).permutation(len(ids))
        save_predictions(
            run_dir, pd.concat([table.iloc[order] for table in tables[: 1 + tested]]), precision
        )
        (run_dir / "best.safetensors").write_bytes(b"x" * 1000)
        history = History(run_dir)
        history.started = {
            "stages": [{"name": name, "trains": True} for name in STAGES],
            "trainable_parameters": 100,
            "total_parameters": 1000,
            "classes": list(classes),
            "fingerprint": config.data,
            "counts": {"train": round(200 * config.train_fraction), "val": 50},
            "cache": {
                "where": "off" if config.strategy == "full" else "memory",
                "trunk_seconds": 0.0 if config.strategy == "full" else 2.0,
                "seconds_per_row": trunk_rate,
            },
            "decode_seconds": 1.0,
            "forecast": forecast,
            "device": device,
        }
        memory = {"memory_bytes": 7, "device_bytes": device_bytes}
        history.epochs = [
            {"epoch": n, "val_accuracy": n / 4, "val_loss": 1 / n, "seconds": 2.0 * n} | memory
            for n in (1, 2)
        ]
        history.end = {"seconds": seconds, "test_accuracy": float(correct.mean())}
        return Run(run_dir, config, history, status)

    return make


@pytest.fixture
def three_strategies(make_run):
    """Make two seeds each of two equal arms, one of them cheap, and of a worse arm."""
    shares = {"feature_extraction": (0.9, 3.0), "last_block": (0.905, 20.0), "full": (0.7, 60.0)}
    return [
        make_run(draw_correct(share, seed + 10 * at), seconds=seconds, strategy=name, seed=seed)
        for at, (name, (share, seconds)) in enumerate(shares.items())
        for seed in (0, 1)
    ]

"""Events of a small run, as they are written."""

import json

import pytest

from finetune_core.training.events import CacheReport, Event, RunStarted, StepEnded


def _started(**changes) -> RunStarted:
    stage = {"parameters": 10, "trains": True, "rate": 1.0, "thaw_epoch": 1}
    usual = {
        "backbone": "resnet18",
        "weights": "pretrained",
        "weights_hash": "abc",
        "strategy": "full",
        "stages": [{"name": name, **stage} for name in ("stem", "head")],
        "trainable_parameters": 20,
        "total_parameters": 20,
        "classes": ["cat", "dog"],
        "counts": {"train": 80, "val": 20},
        "fingerprint": "f",
        "findings": [],
        "epochs": 2,
        "steps_per_epoch": 10,
        "device": "cpu",
        "device_label": "Processor",
        "precision": "fp32",
        "cache": CacheReport("off", "switched off"),
    }
    return RunStarted(**usual | changes)


def _step(epoch, step, **changes) -> StepEnded:
    usual = {"loss": 1.0, "epoch_loss": 1.0, "epoch_accuracy": 0.5, "learning_rate": 1e-3}
    usual |= {"images": 8 * ((epoch - 1) * 10 + step), "seconds": float(step)}
    return StepEnded(epoch, step, **usual | changes)


def _lines(*events: Event) -> bytes:
    return b"".join(
        json.dumps(event.to_json() | {"at": 1.7e9 + at}).encode() + b"\n"
        for at, event in enumerate(events)
    )


@pytest.fixture(scope="session")
def started():
    """Make the first event of a run of two epochs of ten steps."""
    return _started


@pytest.fixture(scope="session")
def step():
    """Make the event of a step, from (epoch, step)."""
    return _step


@pytest.fixture(scope="session")
def lines():
    """Encode events as ``events.jsonl`` does."""
    return _lines

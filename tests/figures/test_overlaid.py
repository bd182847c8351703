"""Curves of several runs in one figure: colours for runs, dashes for splits."""

import pytest

from finetune_core.figures.curves import plot_runs
from finetune_core.figures.style import RUN_COLORS


@pytest.mark.parametrize("kind", ["loss", "accuracy"])
def test_each_run_has_a_colour_and_training_is_dashed(kind):
    rows = [
        {
            "epoch": epoch,
            "train_loss": 1.0,
            "val_loss": 2.0,
            "train_accuracy": 0.1,
            "val_accuracy": 0.2,
        }
        for epoch in (1, 2, 3)
    ]
    spec = plot_runs(kind, [("long", rows), ("short", rows[:1]), ("not begun", [])]).to_dict()
    lines = spec["layer"][0]["encoding"]
    assert lines["color"]["scale"] == {
        "domain": ["long", "short", "not begun"],
        "range": list(RUN_COLORS[:3]),
    }
    dashes = dict(
        zip(
            lines["strokeDash"]["scale"]["domain"],
            lines["strokeDash"]["scale"]["range"],
            strict=True,
        )
    )
    assert dashes["Validation"] == [1, 0] != dashes["Training"]
    assert lines["x"]["scale"]["domain"] == [0, 3]
    [drawn] = spec["datasets"].values()
    assert len(drawn) == 2 * 4
    assert {row["value"] for row in drawn if row["split"] == "Validation"} == {
        rows[0][f"val_{kind}"]
    }

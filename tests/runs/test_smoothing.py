"""Smoothed loss of a run's batches."""

import numpy as np
import pytest

from finetune_core.runs.smoothing import smooth

PER_EPOCH, BATCH, EPOCHS = 10, 8, 20


def make_rows(losses):
    """Return StepEnded rows, as the training loop writes them."""
    rows = []
    for at, _ in enumerate(losses):
        epoch, step = divmod(at, PER_EPOCH)
        mean = float(np.mean(losses[epoch * PER_EPOCH : at + 1]))
        images = (at + 1) * BATCH
        rows.append(
            {
                "epoch": epoch + 1,
                "step": step + 1,
                "images": images,
                "epoch_loss": mean,
                "epoch_accuracy": mean,
            }
        )
    return rows


def curve(rows, kind="loss"):
    return smooth(rows, kind, PER_EPOCH * BATCH, PER_EPOCH, EPOCHS)


def test_it_is_the_bias_corrected_moving_average_of_the_batches():
    losses = np.random.default_rng(0).normal(1, 0.3, 200)
    keeps = np.exp(-1 / 10)  # a twentieth of 200 steps
    weights = [keeps ** np.arange(at, -1, -1) for at in range(200)]
    wanted = [np.average(losses[: at + 1], weights=weight) for at, weight in enumerate(weights)]
    assert curve(make_rows(losses)) == pytest.approx(wanted)
    assert curve(make_rows(losses), "accuracy") == pytest.approx(wanted)


def test_it_does_not_drop_where_an_epoch_ends():
    losses = np.linspace(2, 1, 200)
    rows = make_rows(losses)
    means = [row["epoch_loss"] for row in rows]
    steps = np.diff(curve(rows))
    assert np.diff(means).min() < -0.02, "the mean over the epoch so far does drop"
    assert (steps < 0).all()
    assert steps.min() > -0.01


def test_rows_that_were_thinned_out_leave_their_batches_in_the_average():
    losses = np.random.default_rng(1).normal(1, 0.3, 200)
    rows = make_rows(losses)
    thinned = [row for row in rows if row["step"] % 2 == 0]
    assert curve(thinned)[-1] == pytest.approx(curve(rows)[-1], abs=0.03)
    assert curve(thinned)[0] == pytest.approx(losses[:2].mean())


def test_one_step_and_none():
    assert curve([]) == []
    assert curve(make_rows([0.7])) == [pytest.approx(0.7)]

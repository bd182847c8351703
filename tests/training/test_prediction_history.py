"""Tests of changing predictions, through a resume and beside a damaged file."""

import numpy as np
import pytest

from finetune_core.errors import RunError
from finetune_core.training import prediction_history
from finetune_core.training.data_pipeline.batches import sample_keys
from finetune_core.training.prediction_history import (
    add_predictions,
    find_flips,
    load_prediction_history,
)

NAMES = np.array([f"class/{number}.png" for number in range(6)])
KEYS, LABELS = sample_keys(NAMES), np.array([0, 0, 1, 1, 2, 2])


def note(folder, epoch, predicted, rows=slice(None)):
    add_predictions(folder, epoch, NAMES[rows], KEYS[rows], LABELS[rows], np.array(predicted)[rows])


def test_images_that_change_are_listed_the_latest_first(tmp_path):
    for epoch, predicted in enumerate(
        [[0, 1, 1, 1, 0, 2], [0, 0, 1, 2, 0, 2], [0, 0, 1, 1, 0, 2]], start=1
    ):
        note(tmp_path, epoch, predicted)
    found = find_flips(load_prediction_history(tmp_path))
    assert [(flip.id, flip.label, flip.turns, flip.last) for flip in found] == [
        ("class/3.png", 1, (1, 2, 1), 3),
        ("class/1.png", 0, (1, 0), 2),
    ]
    assert found[0].predicted == (1, 2, 1)


def test_an_epoch_that_is_recorded_again_replaces_the_first_record(tmp_path):
    note(tmp_path, 1, [0] * 6)
    note(tmp_path, 2, [1] * 6)
    note(tmp_path, 2, [2] * 6)
    assert load_prediction_history(tmp_path).predicted == ((0,) * 6, (2,) * 6)


def test_an_image_that_is_lost_keeps_its_last_prediction(tmp_path):
    note(tmp_path, 1, [0, 1, 2, 0, 1, 2])
    note(tmp_path, 2, [1, 2, 0, 1, 2, 0], rows=slice(0, 5))
    assert load_prediction_history(tmp_path).predicted[1] == (1, 2, 0, 1, 2, 2)


def test_of_many_images_a_sample_is_kept_and_stays_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_history, "_MOST", 3)
    note(tmp_path, 1, [0] * 6)
    first = load_prediction_history(tmp_path)
    note(tmp_path, 2, [1] * 6)
    assert len(first.ids) == 3
    assert load_prediction_history(tmp_path).ids == first.ids
    assert len(find_flips(load_prediction_history(tmp_path))) == 3


def test_nothing_before_the_first_epoch_and_a_clear_word_on_damage(tmp_path):
    assert find_flips(load_prediction_history(tmp_path)) == []
    (tmp_path / "prediction_history.json").write_text('{"ids": []')
    with pytest.raises(RunError, match="damaged"):
        load_prediction_history(tmp_path)

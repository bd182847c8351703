"""Settings that follow from the number and size of the images."""

import pytest

from finetune_core.config import make_config
from finetune_core.training.hyperrule import hyperrule


@pytest.mark.parametrize(
    ("images", "epochs", "mixup"),
    [
        (1, 50, 0),
        (300, 50, 0),
        (1259, 13, 0),
        (8000, 3, 0),
        (19_999, 3, 0),
        (20_000, 16, 0.1),
        (100_000, 4, 0.1),
        (10**6, 3, 0.1),
    ],
)
def test_fewer_images_are_seen_more_often_and_only_many_are_blended(images, epochs, mixup):
    found = hyperrule(images, 300).settings
    assert (found["epochs"], found["mixup"]) == (epochs, mixup)


def test_little_images_are_shown_smaller():
    assert [hyperrule(1000, side).settings["image_size"] for side in (28, 95, 96, 2000)] == [
        128,
        128,
        224,
        224,
    ]


def test_it_can_be_trained_with_and_says_why():
    rule = hyperrule(1259, 64)
    assert make_config(rule.settings | {"data": "any"}).epochs == 13
    assert "1,259 training images are a small data set: 13 epochs" in rule.reason

"""Map of a data set: positions of images by their features."""

import threading
from functools import partial

import numpy as np
import openTSNE
import pytest

from finetune_core.inspection.atlas import lay_out
from finetune_core.work import finish
from tests.drain import drain


def draw_features(count):
    return np.random.default_rng(0).normal(size=(count, 24)).astype(np.float32)


SETS = {f"{count} images": draw_features(count) for count in (1, 2, 3, 9, 10, 11)}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "features", [*SETS.values(), np.ones((40, 24), np.float32)], ids=[*SETS, "all alike"]
)
def test_every_image_has_a_finite_place(features):
    places = finish(lay_out(features))
    assert places.shape == (len(features), 2)
    assert places.dtype == np.float32
    assert np.isfinite(places).all()


@pytest.mark.train
def test_the_map_is_the_same_again_and_keeps_neighbours_together():
    random = np.random.default_rng(0)
    corners = random.normal(size=(4, 24)) * 10
    features = (corners.repeat(50, axis=0) + random.normal(size=(200, 24))).astype(np.float32)
    steps, first = drain(lay_out(features))
    second = finish(lay_out(features))
    assert np.array_equal(first, second)
    assert all(step.phase == "map" and 0 <= step.done <= step.total for step in steps)
    near = np.linalg.norm(first[:, None] - first[None], axis=-1).argsort(axis=1)[:, 1:6]
    assert (near // 50 == np.arange(200)[:, None] // 50).mean() > 0.98


def test_a_map_that_is_broken_off_stops_its_thread(monkeypatch):
    monkeypatch.setattr("finetune_core.inspection.background._EVERY", 0.01)
    # by itself it would not end today
    monkeypatch.setattr("openTSNE.TSNE", partial(openTSNE.TSNE, n_iter=10**9))
    work = lay_out(draw_features(40))
    next(step for step in work if step.done > 0)
    thread = next(thread for thread in threading.enumerate() if thread.name.startswith("map"))
    work.close()
    thread.join(300)
    assert not thread.is_alive()

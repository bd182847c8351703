import io

import numpy as np
import pytest
from PIL import Image

from finetune_core.errors import DataError, ImageError
from finetune_core.evaluation.prediction.neighbours import (
    Neighbourhood,
    compute_neighbourhood,
    load_neighbourhood,
    make_encoder,
    neighbours_mtime,
)
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.runs.store import read_run
from tests.drain import drain
from tests.factories import NASTY


@pytest.fixture(scope="module")
def run(trained_runs, tmp_path_factory):
    return read_run(*trained_runs.copied(tmp_path_factory.mktemp("runs"), "last_block"))


@pytest.fixture(scope="module")
def looks(run):
    return make_encoder(load_predictor(run))


@pytest.fixture(scope="module")
def near(run, looks):
    assert load_neighbourhood(run, looks) is None
    assert neighbours_mtime(run) == 0
    steps, made = drain(compute_neighbourhood(run, looks))
    assert {step.phase for step in steps} <= {"index", "decode", "features"}
    assert all(0 <= step.done <= step.total for step in steps)
    return made


def list_files(run, kind):
    folder = run.run_dir.parent.parent
    return sorted(path for path in type(folder)(run.config.data, kind).glob("*.png"))


@pytest.mark.train
def test_a_training_image_is_nearest_to_itself(run, looks, near):
    count = run.history.started["counts"]["train"]
    assert len(near.ids) == len(near.labels) == len(near.features) == count
    assert near.features.shape[1] == 2, "the network's own features, and those from before training"
    np.testing.assert_allclose(np.linalg.norm(near.features, axis=2), 1, atol=1e-5)
    for row in (0, len(near.ids) // 2, len(near.ids) - 1):
        features, _ = looks.encode_image(type(run.run_dir)(run.config.data, near.ids[row]))
        order, distances = near.find_nearest(features)
        assert order[0] == row
        assert distances[0] == pytest.approx(0, abs=1e-4)
        assert len(order) == 5
        assert (np.diff(distances) >= 0).all()


@pytest.mark.train
def test_neighbours_are_of_the_images_own_class(run, looks, near):
    for kind in ("red", "blue", NASTY):
        label = run.history.started["classes"].index(kind)
        result = [
            near.find_nearest(looks.encode_image(file)[0])[0] for file in list_files(run, kind)[:10]
        ]
        assert (near.labels[np.concatenate(result)] == label).mean() > 0.9


def test_the_encoder_says_what_the_network_says(run, looks):
    some = list_files(run, "red")[:3]
    result = np.stack([looks.encode_image(file)[1] for file in some])
    np.testing.assert_allclose(result, looks.predictor.predict_proba(some), rtol=1e-4, atol=1e-6)
    with pytest.raises(ImageError):
        looks.encode_image(b"hello")


@pytest.mark.train
def test_images_unlike_any_training_image_are_separated_from_the_others(run, looks, near):
    buffer = io.BytesIO()
    board = np.kron(np.indices((4, 4)).sum(0) % 2, np.ones((16, 16)))
    Image.fromarray(np.uint8(255 * board)).save(buffer, "PNG")
    assert near.find_unlike(looks.encode_image(buffer.getvalue())[0][None]).tolist() == [True]
    every = [path for kind in ("red", "blue", NASTY) for path in list_files(run, kind)]
    known = np.stack([looks.encode_image(path)[0] for path in every])
    assert near.find_unlike(known).mean() < 0.2, (
        "the limit itself is uncertain: it rests on few images"
    )
    assert near.error == pytest.approx(2 / 19), "18 validation images cannot tell one in a hundred"


@pytest.mark.train
@pytest.mark.parametrize(("count", "parts"), [(30, 1), (500, 1), (99, 2)])
def test_no_more_are_called_unlike_in_error_than_was_set(count, parts):
    """The share is that of images like those of the validation split."""
    random = np.random.default_rng(count)

    def unit(number):
        points = random.normal(size=(number, parts, 8))
        return (points / np.linalg.norm(points, axis=2, keepdims=True)).astype(np.float32)

    shares = []
    for _ in range(60):
        train = unit(200)
        likeness = np.einsum("mpd,npd->pmn", unit(count), train)
        usual = np.sort(1 - np.sort(likeness, axis=2)[:, :, -5:].mean(2), axis=1)
        result = Neighbourhood(np.empty(0), np.empty(0), train, usual, True)
        shares.append(result.find_unlike(unit(500)).mean())
    assert result.error == pytest.approx(max(0.01, parts / (count + 1)))
    uncertain = 4 * np.std(shares) / np.sqrt(60)
    assert np.mean(shares) <= result.error + uncertain
    assert np.mean(shares) >= 0.8 * result.error - uncertain, "two parts overlap a little, no more"


def test_what_is_kept_is_what_was_computed_and_belongs_to_the_weights(run, looks, near):
    kept = load_neighbourhood(run, looks)
    assert neighbours_mtime(run) > 0
    np.testing.assert_array_equal(kept.ids, near.ids)
    np.testing.assert_array_equal(kept.labels, near.labels)
    np.testing.assert_allclose(kept.features, near.features, atol=1e-3)
    np.testing.assert_array_equal(kept.limits, near.limits)
    assert kept.unchanged
    other = make_encoder(load_predictor(run))
    parameter = next(other.predictor.network.model.parameters())
    parameter.data += 1
    assert load_neighbourhood(run, other) is None
    file = run.run_dir / "neighbours.npz"
    whole = file.read_bytes()
    for damaged in (b"", whole[:1000], b"hello"):
        file.write_bytes(damaged)
        assert load_neighbourhood(run, looks) is None
    file.write_bytes(whole)


def test_images_outside_the_readable_folders_are_refused(run, looks, tmp_path):
    with pytest.raises(DataError, match="may read"):
        drain(compute_neighbourhood(run, looks, (tmp_path,)))


def test_what_training_has_drawn_towards_a_class_is_still_recognised_by_the_pretrained_features(
    near,
):
    """Only the features from before training tell this image from a class."""
    inside = near.features[0].copy()
    assert not near.find_unlike(inside[None])[0]
    stranger = inside.copy()
    stranger[1] = -near.features[:, 1].mean(0) / np.linalg.norm(near.features[:, 1].mean(0))
    assert near.find_unlike(stranger[None])[0]
    assert near.find_nearest(stranger)[0][0] == near.find_nearest(inside)[0][0]


def test_a_frozen_network_has_no_other_features_from_before(run, trained_runs):
    looks = make_encoder(load_predictor(read_run(trained_runs.feature_extraction)))
    assert looks.start is None
    assert looks.encode_image(list_files(run, "red")[0])[0].shape[0] == 1

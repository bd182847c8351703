"""Linear models on made-up features; ``test_deep.py`` tests them on real images."""

import warnings

import numpy as np
import pytest

from finetune_core.inspection import learned
from finetune_core.inspection.learned import (
    class_predictions,
    find_label_errors,
    find_nearest_of_class,
    find_outliers,
    fit_probe,
    label_agreement,
    predict_out_of_fold,
    two_sample_auc,
)


def draw_blobs(counts, dimensions=3, seed=0, apart=8.0):
    """Return (features, labels): ``counts`` images per class, each class around its own corner."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    features = random.normal(size=(len(labels), dimensions))
    features[np.arange(len(labels)), labels % dimensions] += apart
    return features.astype(np.float32), labels


def find_suspects(features, labels, sets=None):
    probabilities, kept = predict_out_of_fold(
        features, labels, np.arange(len(labels)) if sets is None else np.asarray(sets)
    )
    found, alike = find_label_errors(probabilities, labels, kept)
    return found.tolist(), alike.tolist()


def test_every_image_is_predicted_correctly_where_classes_are_far_apart():
    features, labels = draw_blobs([30, 20, 10])
    probabilities, kept = predict_out_of_fold(features, labels, np.arange(60))
    assert kept.tolist() == [0, 1, 2]
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(60))
    assert (probabilities.argmax(axis=1) == labels).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_swapped_labels_are_found_with_the_class_that_they_look_like(seed):
    features, labels = draw_blobs([200, 200, 200], seed=seed)
    swapped = np.random.default_rng(seed).choice(600, 30, replace=False)
    given = labels.copy()
    given[swapped] = (labels[swapped] + 1) % 3
    found, alike = find_suspects(features, given)
    assert len(set(found) & set(swapped.tolist())) >= 0.7 * 30
    assert set(found) <= set(swapped.tolist())
    assert alike == labels[found].tolist()


def test_clean_labels_are_left_alone():
    assert find_suspects(*draw_blobs([40, 40, 40])) == ([], [])


def test_two_classes_are_enough():
    features, labels = draw_blobs([30, 30])
    labels[3] = 1
    assert find_suspects(features, labels) == ([3], [0])


def test_near_duplicates_with_the_same_wrong_label_do_not_vouch_for_each_other():
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], 60)
    features = random.normal(size=(120, 4))
    features[:, 0] += np.where(labels == 0, -4, 4)
    # of an unusual image of the first class
    copies = np.array([-6, 6, 0, 0]) + random.normal(size=(8, 4)) * 0.02
    features, labels = (
        np.concatenate([features, copies]).astype(np.float32),
        np.concatenate([labels, [1] * 8]),
    )
    copied = set(range(120, 128))
    assert copied <= set(find_suspects(features, labels, [*range(120), *[120] * 8])[0])
    assert not copied & set(find_suspects(features, labels)[0])  # taken for eight images, they do


def test_classes_with_fewer_than_five_images_get_no_predictions():
    features, labels = draw_blobs([30, 4, 30])
    labels[0] = 2
    probabilities, kept = predict_out_of_fold(features, labels, np.arange(64))
    assert kept.tolist() == [0, 2]
    assert np.isnan(probabilities[30:34]).all()
    assert not np.isnan(probabilities[:30]).any()
    assert find_suspects(features, labels) == ([0], [0])


NOTHING_TO_PREDICT = {
    "one class": ([30], range(30)),
    "one of two": ([30, 4], range(34)),
    "none large enough": ([4, 4, 4], range(12)),
    "one image": ([1], [0]),
    "one set": ([6, 6], [0] * 12),
    "two sets": ([6, 6], [0] * 6 + [1] * 6),
    "three sets": ([6, 6], [0, 1, 2] * 4),
    "a class of copies": ([20, 6], [*range(20), *[20] * 6]),
}


@pytest.mark.parametrize(("counts", "sets"), NOTHING_TO_PREDICT.values(), ids=NOTHING_TO_PREDICT)
def test_where_nothing_can_be_predicted_nothing_is_found(counts, sets):
    assert find_suspects(*draw_blobs(counts), [*sets]) == ([], [])


@pytest.mark.filterwarnings("ignore:May not flag all label issues")
def test_a_class_of_near_duplicates_alone_gets_no_predictions_and_the_others_do():
    features, labels = draw_blobs([30, 30, 8])
    labels[0] = 1
    assert find_suspects(features, labels, [*range(60), *[60] * 8]) == ([0], [0])


def test_features_that_tell_nothing_are_no_problem():
    labels = np.repeat([0, 1], 20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert find_suspects(np.ones((40, 6), np.float32), labels) == ([], [])


def test_agreement_is_the_share_of_predicted_labels_that_are_likeliest():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [np.nan, np.nan]])
    assert label_agreement(
        probabilities, np.array([4, 7, 7, 4]), np.array([4, 7])
    ) == pytest.approx(2 / 3)
    assert np.isnan(label_agreement(np.empty((3, 0)), np.array([0, 1, 2]), np.array([], dtype=int)))


def test_the_surest_suspects_come_first():
    given = np.repeat([3, 7, 9], 10)
    probabilities = np.full((30, 3), 0.05)
    probabilities[np.arange(30), np.repeat([0, 1, 2], 10)] = 0.9
    probabilities[4] = [0.08, 0.02, 0.90]
    probabilities[12] = [0.97, 0.01, 0.02]
    probabilities[29] = [0.03, 0.93, 0.04]
    found, alike = find_label_errors(probabilities, given, np.array([3, 7, 9]))
    assert found.tolist() == [12, 29, 4]
    assert alike.tolist() == [3, 7, 9]


def test_alike_samples_are_not_separated():
    random = np.random.default_rng(0)
    for _ in range(3):
        auc, error = two_sample_auc(
            random.normal(size=(150, 16)), random.normal(size=(50, 16)), np.arange(200)
        )
        assert abs(auc - 0.5) < 4 * error
        assert error == pytest.approx(np.sqrt(201 / (12 * 150 * 50)))


def test_samples_that_differ_are_separated():
    random = np.random.default_rng(0)
    auc, _ = two_sample_auc(
        random.normal(size=(150, 16)), random.normal(size=(50, 16)) + 1.5, np.arange(200)
    )
    assert auc > 0.95


def test_near_duplicates_do_not_tell_the_samples_apart():
    random = np.random.default_rng(0)
    scenes = random.normal(size=(40, 64)) * 3
    many = scenes.repeat(8, axis=0) + random.normal(size=(320, 64)) * 0.01
    sets = np.arange(40).repeat(8)
    honest, _ = two_sample_auc(many[:240], many[240:], sets)
    fooled, _ = two_sample_auc(many[:240], many[240:], np.arange(320))
    assert fooled > 0.95
    assert honest < 0.7


@pytest.mark.parametrize("sets", [[0] * 42, [*range(30), *[30] * 12], [0] * 30 + [1] * 12])
def test_what_is_only_near_duplicates_cannot_be_compared(sets):
    random = np.random.default_rng(0)
    auc, error = two_sample_auc(
        random.normal(size=(30, 8)), random.normal(size=(12, 8)), np.array(sets)
    )
    assert np.isnan(auc)
    assert error > 0


def draw_ordinary(count=200, dimensions=32, seed=0):
    """Return features that are never negative, like those of images."""
    return np.random.default_rng(seed).gamma(3.0, size=(count, dimensions))


def test_planted_outliers_are_found_the_farthest_first():
    features = draw_ordinary()
    features[17, 0] += 60
    features[101, 1] += 30
    found, scores = find_outliers([features], np.arange(200))
    assert found.tolist() == [17, 101]
    assert scores[0] > scores[1] > 5


def test_a_feature_that_hardly_ever_responds_makes_no_outliers():
    features = draw_ordinary()
    features[:, :8] = 0
    features[range(0, 200, 10), np.arange(20) % 8] = 1.0  # each in a feature of its own, and little
    assert len(find_outliers([features], np.arange(200))[0]) == 0


def test_what_is_odd_in_one_stage_alone_is_no_outlier():
    odd, others = draw_ordinary(), [draw_ordinary(seed=seed) for seed in (1, 2, 3)]
    odd[17, 0] += 30
    assert find_outliers([odd], np.arange(200))[0].tolist() == [17]
    assert len(find_outliers([odd, *others], np.arange(200))[0]) == 0


def test_copies_of_an_outlier_do_not_hide_it():
    features = draw_ordinary()
    features[50:60] = features[50]
    features[50:60, 3] += 60
    sets = np.arange(200)
    sets[50:60] = 50
    assert find_outliers([features], sets)[0].tolist() == [50]
    # taken for ten images, they are no strays
    assert len(find_outliers([features], np.arange(200))[0]) == 0


@pytest.mark.parametrize("draw", ["gamma", "normal", "uniform"])
def test_even_sets_have_no_outliers(draw):
    for seed in range(4):
        random = np.random.default_rng(seed)
        features = (
            random.gamma(3.0, size=(200, 32))
            if draw == "gamma"
            else getattr(random, draw)(size=(200, 32))
        )
        assert len(find_outliers([features], np.arange(200))[0]) == 0


@pytest.mark.parametrize("count", [0, 1, 2, 5, 20])
def test_tiny_sets_have_no_outliers(count):
    found, scores = find_outliers([draw_ordinary(count)], np.arange(count))
    assert len(found) == len(scores) == 0


def test_equal_features_have_no_outliers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert len(find_outliers([np.ones((40, 8))], np.arange(40))[0]) == 0
        assert len(find_outliers([np.zeros((40, 8))], np.arange(40))[0]) == 0


def test_a_probe_learns_from_training_images_and_is_evaluated_on_validation_images():
    features, labels = draw_blobs([30, 30])
    train, val = np.arange(0, 60, 2), np.arange(1, 60, 2)
    perfect = fit_probe("layer1", features, labels, np.arange(60), train, val)
    assert (perfect.stage, perfect.accuracy) == ("layer1", 1.0)
    assert perfect.error == pytest.approx(1 / 30**1.5)  # not 0, which would claim certainty
    wrong = np.where(np.isin(np.arange(60), val), 1 - labels, labels)
    assert fit_probe("layer1", features, wrong, np.arange(60), train, val).accuracy == 0


def test_the_error_of_a_probe_is_the_binomial_one():
    random = np.random.default_rng(0)
    guessing = fit_probe(
        "stem",
        random.normal(size=(300, 8)),
        random.integers(0, 2, 300),
        np.arange(300),
        np.arange(200),
        np.arange(200, 300),
    )
    assert guessing.error == pytest.approx(
        np.sqrt(guessing.accuracy * (1 - guessing.accuracy) / 100)
    )


def test_near_duplicates_count_once_in_the_error_of_a_probe():
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(300, 8)), random.integers(0, 2, 300)
    train, val = np.arange(200), np.arange(200, 300)
    alone = fit_probe("stem", features, labels, np.arange(300), train, val)
    copies = np.concatenate([train, val.repeat(4)])
    copied = fit_probe(
        "stem", features[copies], labels[copies], copies, train, np.arange(200, len(copies))
    )
    assert copied.accuracy == alone.accuracy
    assert copied.error == pytest.approx(alone.error, rel=0.02)


def test_a_class_that_was_not_trained_counts_as_wrong():
    features, labels = draw_blobs([30, 30, 10])
    assert (
        fit_probe(
            "stem", features, labels, np.arange(70), np.arange(60), np.arange(50, 70)
        ).accuracy
        == 0.5
    )


@pytest.mark.parametrize(
    ("suspects", "classes", "beside"),
    [([4, 5], [0, 1], (0, 1)), ([5], [1], (2, 3)), ([2, 4], [0, 0], (1, 5))],
)
def test_suspect_is_shown_beside_the_nearest_sound_image_of_the_other_class(
    suspects, classes, beside
):
    features = np.array([[0, 0], [1, 0], [9, 0], [10, 0], [0.5, 0], [9.5, 5]], np.float32)
    labels = np.array([0, 0, 1, 1, 1, 0])
    found = find_nearest_of_class(features, labels, np.array(suspects), np.array(classes))
    assert found.tolist()[0] in beside


def test_suspects_are_shown_beside_another_suspect_where_a_class_has_no_others():
    features, labels = draw_blobs([4, 2])
    assert find_nearest_of_class(
        features, labels, np.array([0, 4, 5]), np.array([1, 0, 0])
    ).tolist()[0] in (4, 5)


def test_very_many_images_are_thinned_for_the_fit_and_all_predicted(monkeypatch):
    monkeypatch.setattr(learned, "_MOST_FITTED", 40)
    features, labels = draw_blobs([100, 100])
    probabilities, _ = predict_out_of_fold(features, labels, np.arange(200))
    assert (probabilities.argmax(axis=1) == labels).all()


def test_each_image_has_a_predicted_class_and_two_confidences():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [np.nan, np.nan], [0.3, 0.7]])
    found = class_predictions(probabilities, np.array([4, 7, 5, 7]), np.array([4, 7]))
    assert found.index.tolist() == [0, 1, 3]
    assert found["predicted"].tolist() == [4, 4, 7]
    assert found["confidence"].tolist() == [0.9, 0.8, 0.7]
    assert found["label_confidence"].tolist() == [0.9, 0.2, 0.7]


@pytest.mark.parametrize("kept", [[], [3]])
def test_without_two_classes_nothing_is_predicted(kept):
    labels = np.array([3, 3, 5])
    assert class_predictions(
        np.full((3, len(kept)), np.nan), labels, np.array(kept, dtype=int)
    ).empty

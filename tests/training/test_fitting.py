"""Heads that are fitted in one go: what a run without epochs does, and that its head is scikit-learn's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import StandardScaler, normalize

from finetune_core.data.dataset import load_dataset
from finetune_core.data.rowcache import CACHE
from finetune_core.data.splits import TRAIN
from finetune_core.errors import ConfigError, DataError, ExportError, RunError, TrainingError
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.exporters.formats import export_run
from finetune_core.models.network import build_network
from finetune_core.runs.record import create_run, execute, reopen_run
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import read_run, summary
from finetune_core.training import events, fitting, networks
from finetune_core.training.checkpoints import BEST, checkpoint_path, load_tensors, save_checkpoint
from finetune_core.training.exact_layers import exact_head, without_head
from finetune_core.training.folds import stratified_folds
from finetune_core.training.logistic import (
    GRID,
    Scale,
    fitted,
    held_out_right,
    linear_probe,
    objective,
)
from finetune_core.training.lr_finder import find_rate
from finetune_core.training.nearest import NEIGHBOURS, TEMPERATURE, NearestNeighbours
from finetune_core.training.networks import best_network
from finetune_core.training.predictions import load_predictions
from finetune_core.training.prototypes import class_means, prototypes
from finetune_core.training.strategies import STRATEGIES
from finetune_core.work import finish


@pytest.fixture
def fitted_run(colour_config, tmp_path):
    """Trains a run of such a strategy; returns its folder and its events."""

    def train(**settings):
        reservation = create_run(colour_config(**settings), tmp_path / "runs")
        return reservation.run_dir, list(execute(reservation))

    return train


def clouds(images=300, features=40, classes=4, spread=0.5):
    """Correlated features of overlapping classes, float32, and labels."""
    random = np.random.default_rng(0)
    labels = random.integers(classes, size=images)
    values = random.normal(size=(classes, features))[labels] * spread + random.normal(
        size=(images, features)
    )
    mixed = values @ random.normal(size=(features, features)) + 3
    return torch.from_numpy(mixed.astype(np.float32)), torch.from_numpy(labels)


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("c", [1e-4, 1e-2, 1.0, 10.0])
def test_a_fit_is_scikit_learns_logistic_regression_at_the_same_penalty(classes, c):
    features, labels = clouds(classes=classes)
    scaled = StandardScaler().fit_transform(features.double().numpy())
    theirs = LogisticRegression(C=c, max_iter=5000, tol=1e-10).fit(scaled, labels.numpy())
    standardised = torch.from_numpy(scaled)
    ours = finish(fitted(standardised, labels, classes, c, tolerance=1e-13))
    logits = ours.logits(standardised)
    np.testing.assert_allclose(
        logits.softmax(1).numpy(), theirs.predict_proba(scaled), atol=1e-4, rtol=0
    )
    weight, bias = ours.weight.numpy(), ours.bias.numpy()
    if classes == 2:  # scikit-learn keeps one weight vector, that of the second class
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    np.testing.assert_allclose(weight, theirs.coef_, atol=2e-4, rtol=1e-3)
    np.testing.assert_allclose(bias, theirs.intercept_, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_default_tolerance_reaches_scikit_learns_objective(classes):
    features, labels = clouds(classes=classes)
    scaled = StandardScaler().fit_transform(features.numpy())
    theirs = LogisticRegression(C=0.1, max_iter=5000, tol=1e-8).fit(scaled, labels.numpy())
    standardised = Scale.of(features).applied(features)
    ours = finish(fitted(standardised, labels, classes, 0.1))
    shares = ours.logits(standardised).softmax(1).numpy()
    np.testing.assert_allclose(shares, theirs.predict_proba(scaled), atol=0.01)
    assert (shares.argmax(1) == theirs.predict(scaled)).mean() > 0.99


def test_a_fit_that_begins_at_another_penaltys_goes_on_to_its_own():
    features, labels = clouds(images=2000, features=600, classes=200, spread=0.1)
    standardised = Scale.of(features).applied(features)
    first = finish(fitted(standardised, labels, 200, 3.0, tolerance=1e-4))
    second = finish(fitted(standardised, labels, 200, 10.0, first, tolerance=1e-4))
    assert objective(second, standardised, labels, 10.0) < 0.9 * objective(
        first, standardised, labels, 10.0
    )


def test_standardisation_is_folded_into_the_head():
    features, labels = clouds()
    features[:, 3] = 7.0  # a feature that never varies
    scale = Scale.of(features)
    head = finish(fitted(scale.applied(features), labels, 4, 0.1))
    torch.testing.assert_close(
        scale.folded_into(head).logits(features),
        head.logits(scale.applied(features)),
        atol=1e-3,
        rtol=1e-3,
    )


@pytest.mark.parametrize(("classes", "spread"), [(2, 0.2), (4, 0.3)])
def test_the_penalty_is_the_one_that_scikit_learn_scores_best_on_the_same_folds(classes, spread):
    features, labels = clouds(classes=classes, spread=spread)
    _, choice = finish(linear_probe(features, labels, np.arange(300), classes, seed=0))
    losses = {}
    for c in GRID:
        right = 0.0
        for fit, out in stratified_folds(labels.numpy(), np.arange(300), 0):
            scaler = StandardScaler().fit(features[fit])
            model = LogisticRegression(C=c, max_iter=5000).fit(
                scaler.transform(features[fit]), labels[fit]
            )
            shares = model.predict_proba(scaler.transform(features[out]))
            right -= np.log(shares[np.arange(len(out)), labels[out].numpy()]).sum()
        losses[c] = right / 300
    tried = {one["value"]: one["loss"] for one in choice.candidates}
    assert choice.value == min(losses, key=losses.get)
    assert len(tried) > 3
    assert list(tried.values()) == pytest.approx([losses[c] for c in tried], rel=2e-3)


@pytest.mark.parametrize("classes", [2, 4])
def test_images_are_held_out_with_the_penalty_that_the_other_folds_choose(classes):
    features, labels = clouds(classes=classes, spread=0.3)
    right = finish(held_out_right(features, labels, np.arange(300), classes, seed=0))
    parts = stratified_folds(labels.numpy(), np.arange(300), 0)
    losses, theirs = np.zeros((len(GRID), 300)), np.zeros((len(GRID), 300), dtype=bool)
    for fit, out in parts:
        scaler, given = StandardScaler().fit(features[fit]), labels[out].numpy()
        for at, c in enumerate(GRID):
            model = LogisticRegression(C=c, max_iter=5000).fit(
                scaler.transform(features[fit]), labels[fit]
            )
            shares = model.predict_proba(scaler.transform(features[out]))
            losses[at, out] = -np.log(shares[np.arange(len(out)), given])
            theirs[at, out] = shares.argmax(axis=1) == given
    wanted = np.zeros(300, dtype=bool)
    for _, out in parts:
        others = np.setdiff1d(np.arange(300), out)
        wanted[out] = theirs[losses[:, others].mean(axis=1).argmin(), out]
    assert 0.3 < right.mean() < 0.95
    assert (right == wanted).mean() > 0.98


@pytest.mark.parametrize("mislabelled", [2, 4, 6])
def test_losses_that_chance_makes_worse_do_not_end_the_search_for_a_penalty(mislabelled):
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], 22)
    shown = np.where(
        np.isin(np.arange(44), random.permutation(44)[:mislabelled]), 1 - labels, labels
    )
    clear = 20 * shown[:, None] + random.normal(0, 1, (44, 1))
    right = finish(
        held_out_right(
            torch.tensor(clear, dtype=torch.float32), torch.tensor(labels), np.arange(44), 2, 0
        )
    )
    assert right.sum() == 44 - mislabelled


def test_what_has_no_pattern_is_held_out_by_chance_and_a_copy_would_give_it_away():
    random = np.random.default_rng(0)
    features = torch.tensor(random.normal(size=(90, 200)), dtype=torch.float32).repeat(2, 1)
    labels = torch.tensor(np.arange(90) % 3).repeat(2)
    apart = finish(held_out_right(features, labels, np.tile(np.arange(90), 2), 3, seed=0))
    assert apart.mean() < 0.5
    assert finish(held_out_right(features, labels, np.arange(180), 3, seed=0)).mean() > 0.8


def test_too_few_images_to_hold_any_out_are_refused():
    features, _ = clouds(images=4)
    with pytest.raises(DataError, match="too few training images"):
        finish(held_out_right(features, torch.arange(4), np.arange(4), 4, seed=0))


def test_near_duplicates_are_never_on_both_sides_of_a_fold():
    sets = np.repeat(np.arange(40), 3)
    folds = stratified_folds(np.repeat(np.arange(4), 30), sets)
    assert len(folds) == 5
    assert all(not set(sets[fit]) & set(sets[out]) for fit, out in folds)


@pytest.mark.parametrize(("images", "folds"), [(1, 0), (2, 2), (3, 3), (9, 5)])
def test_few_images_per_class_make_few_folds(images, folds):
    labels = np.repeat(np.arange(5), images)
    assert len(stratified_folds(labels, np.arange(len(labels)), fewest=2)) == folds


def test_one_image_per_class_is_fitted_without_a_choice():
    features, _ = clouds(images=4)
    head, choice = finish(linear_probe(features, torch.arange(4), np.arange(4), 4, seed=0))
    assert (choice.candidates, choice.folds) == ((), 0)
    assert head.logits(features).argmax(1).tolist() == [0, 1, 2, 3]


def test_a_run_without_epochs_is_a_run(fitted_run):
    folder, seen = fitted_run(strategy="linear_probe")
    kinds = [type(event) for event in seen if not isinstance(event, events.Progress)]
    assert kinds == [
        events.RunStarted,
        events.HeadFitted,
        events.CheckpointSaved,
        events.RunFinished,
    ]
    phases = {event.phase for event in seen if isinstance(event, events.Progress)}
    assert {"decode", "trunk", "choose", "fit"} <= phases
    run = read_run(folder)
    assert (run.status, run.judged, run.history.epochs) == ("finished", True, [])
    row = summary(run)
    assert (row["epochs"], row["best_epoch"]) == (0, None)
    assert min(row["val_accuracy"], row["test_accuracy"]) > 0.8
    assert row["frozen_tensors"] > 100
    assert set(load_predictions(folder)["split"]) == {"val", "test"}


def test_the_choice_sees_training_images_only(fitted_run, monkeypatch):
    given = []
    real = fitting.linear_probe
    monkeypatch.setattr(fitting, "linear_probe", lambda *asked: given.append(asked) or real(*asked))
    folder, seen = fitted_run(strategy="linear_probe")
    table = load_dataset(read_run(folder).config.data).table
    training = table[table["split"] == TRAIN]
    ((features, labels, sets, classes, _),) = given
    assert labels.tolist() == training["label"].tolist()
    assert (len(features), len(sets), classes) == (len(training), len(training), 3)
    told = next(event for event in seen if isinstance(event, events.HeadFitted))
    assert (told.images, told.chosen_on) == (len(training), len(training))


def test_the_head_in_the_checkpoint_predicts_what_the_fit_predicted(fitted_run, monkeypatch):
    made = []
    real = fitting.linear_probe

    def kept(features, *others):
        head, choice = yield from real(features, *others)
        made.append((features, head))
        return head, choice

    monkeypatch.setattr(fitting, "linear_probe", kept)
    folder, _ = fitted_run(strategy="linear_probe")
    ((features, head),) = made
    network, info = best_network(read_run(folder).config, folder)
    assert info.epoch == 0
    torch.testing.assert_close(
        network.model.get_submodule(network.heads[0])(features),
        head.logits(features),
        atol=1e-5,
        rtol=1e-5,
    )
    assert load_predictor(read_run(folder)).classes == ("blue", "green", "red")


def test_the_head_is_the_same_to_the_bit_whatever_is_in_the_cache(fitted_run):
    def head(**settings):
        folder, seen = fitted_run(strategy="linear_probe", **settings)
        started = next(event for event in seen if isinstance(event, events.RunStarted))
        return load_tensors(folder, BEST)[0], started.cache

    usual = {"precision": "fp32"}
    CACHE.clear()
    cold, _ = head(**usual)
    warm, report = head(**usual)
    assert report.found == report.rows
    uncached, report = head(**usual, cache="off", batch_size=64)
    assert report.where == "off"
    CACHE.clear()
    head(**usual, train_fraction=0.3)
    after_a_part, report = head(**usual)
    assert 0 < report.found < report.rows
    CACHE.clear()
    list(
        fitted_run(**usual, strategy="feature_extraction", epochs=1, augmentation="flips", views=1)
    )
    after_views, report = head(**usual)
    assert 0 < report.found < report.rows
    for other in (warm, uncached, after_a_part, after_views):
        assert all(torch.equal(other[name], tensor) for name, tensor in cold.items())


def test_what_steers_steps_changes_nothing(fitted_run):
    chosen = []
    for settings in (
        {},
        {"augmentation": "flips", "mixup": 0.2, "epochs": 1, "learning_rate": 0.5, "batch_size": 7},
    ):
        folder, seen = fitted_run(strategy="linear_probe", **settings)
        assert (
            next(event for event in seen if isinstance(event, events.RunStarted)).cache.where
            != "off"
        )
        network, _ = best_network(read_run(folder).config, folder)
        chosen.append(network.model.get_submodule(network.heads[0]).weight)
    torch.testing.assert_close(*chosen)


@pytest.mark.parametrize("strategy", [name for name, one in STRATEGIES.items() if one.fits])
def test_it_is_fitted_to_the_fp32_features_that_it_is_evaluated_on(
    fitted_run, native_bf16, strategy
):
    folders = [
        fitted_run(strategy=strategy, precision=precision)[0] for precision in ("fp32", "bf16")
    ]
    rows = [summary(read_run(folder)) for folder in folders]
    assert [row["precision"] for row in rows] == ["fp32", "fp32"]
    assert [row["evaluation_precision"] for row in rows] == ["fp32", "fp32"]
    exact, asked_for_bf16 = (load_tensors(folder, BEST)[0] for folder in folders)
    assert all(torch.equal(asked_for_bf16[name], tensor) for name, tensor in exact.items())


def test_it_stops_between_fits_and_starts_again(colour_config, tmp_path):
    reservation = create_run(colour_config(strategy="linear_probe"), tmp_path / "runs")
    seen = []
    for event in execute(reservation):
        seen.append(event)
        if isinstance(event, events.Progress) and event.phase == "choose":
            request_stop(reservation.run_dir)
    assert isinstance(seen[-1], events.RunStopped)
    assert not any(isinstance(event, events.HeadFitted) for event in seen)
    run = read_run(reservation.run_dir)
    assert (run.status, run.judged) == ("stopped", False)
    assert isinstance([*execute(reopen_run(reservation.run_dir))][-1], events.RunFinished)
    assert read_run(reservation.run_dir).judged


def test_a_head_that_is_left_out_stays_left_out_within_exact_head():
    network = build_network("resnet18", "none", 3, 0)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), without_head(network):
        for _ in range(2):
            with exact_head(network):
                assert network.model(images).shape == (2, 512)
    with torch.no_grad():
        assert network.model(images).shape == (2, 3)


def test_prototypes_are_scikit_learns_nearest_centroids_and_a_linear_head():
    features, labels = clouds(spread=0.4)
    head, choice = finish(prototypes(features, labels, np.arange(300), 4, seed=0))
    unit = normalize(features.numpy())
    means = normalize(NearestCentroid().fit(unit, labels).centroids_)
    theirs = NearestCentroid().fit(means, np.arange(4)).predict(unit)
    assert (head.logits(features).argmax(1).numpy() == theirs).all()
    assert choice.value == min(choice.candidates, key=lambda one: one["loss"])["value"]
    assert len({one["loss"] for one in choice.candidates}) == len(choice.candidates)


def test_prototypes_do_not_depend_on_how_many_images_the_other_classes_have():
    features, labels = clouds(spread=0.4)
    more = torch.cat([torch.arange(300), (labels == 0).nonzero().flatten().repeat(20)])
    plain, weighted = (
        class_means(features[rows], labels[rows], 4) for rows in (torch.arange(300), more)
    )
    alike = plain.logits(features).argmax(1) == weighted.logits(features).argmax(1)
    assert alike.all()


def test_a_class_without_training_images_is_never_predicted():
    features, labels = clouds()
    head, _ = finish(prototypes(features, labels, np.arange(300), 6, seed=0))
    assert set(head.logits(features).argmax(1).tolist()) <= {0, 1, 2, 3}
    assert head.logits(features).isfinite().all()


def test_nearest_neighbours_are_scikit_learns():
    features, labels = clouds(images=400, spread=0.4)
    mine = NearestNeighbours(features[:300], labels[:300], 4)
    theirs = KNeighborsClassifier(
        20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    theirs.fit(features[:300].numpy(), labels[:300].numpy())
    wanted = theirs.predict_proba(features[300:].numpy())
    np.testing.assert_allclose(mine(features[300:]).exp().numpy(), wanted, atol=1e-4)
    assert (mine(features[300:]).argmax(1).numpy() == wanted.argmax(1)).all()


def test_no_training_image_votes_for_itself():
    features, labels = clouds(images=100)
    alone = NearestNeighbours(features[1:], labels[1:], 4)(features[:1])
    torch.testing.assert_close(
        NearestNeighbours(features, labels, 4).without_themselves(part=30)[:1], alone
    )


def test_the_help_of_nearest_neighbours_states_how_they_vote():
    assert f"k = {NEIGHBOURS} " in STRATEGIES["nearest_neighbours"].help
    assert f"temperature of {TEMPERATURE}." in STRATEGIES["nearest_neighbours"].help


@pytest.mark.parametrize("strategy", ["prototypes", "nearest_neighbours"])
def test_their_runs_finish_and_predict(fitted_run, strategy):
    folder, seen = fitted_run(strategy=strategy)
    assert isinstance(seen[-1], events.RunFinished)
    run = read_run(folder)
    network, info = best_network(run.config, folder)
    head = network.model.get_submodule(network.heads[0])
    assert (
        (info.neighbours > 0)
        == (strategy == "nearest_neighbours")
        == isinstance(head, NearestNeighbours)
    )
    table = load_predictions(folder)
    images = torch.zeros(2, 3, 32, 32)
    assert network.model(images).shape == (2, 3)
    assert (np.stack(table["logits"].tolist()).argmax(1) == table["label"]).mean() > 0.8
    row = summary(run)
    told = sum(one["parameters"] for one in run.history.started["stages"])
    own = sum(one.numel() for one in network.model.parameters())
    assert row["total_parameters"] == told == own
    assert row["trainable_parameters"] == sum(one.numel() for one in head.parameters())
    assert (row["trainable_parameters"] == 0) == (strategy == "nearest_neighbours")


def test_nearest_neighbours_say_that_they_cannot_be_exported(fitted_run):
    folder, _ = fitted_run(strategy="nearest_neighbours")
    with pytest.raises(ExportError, match="cannot be exported as a plain network"):
        export_run(read_run(folder), "onnx")
    assert "card" in str(export_run(read_run(folder), "card").folder)


@pytest.mark.parametrize("times", [2, 1_000_000])
def test_a_checkpoint_that_claims_more_neighbours_than_it_has_room_for_is_damaged(
    fitted_run, times, monkeypatch
):
    folder, _ = fitted_run(strategy="nearest_neighbours")
    tensors, info = load_tensors(folder, BEST)
    room = checkpoint_path(folder, BEST).stat().st_size
    claimed = times * (room // tensors["classifier.features"][0].nbytes)
    save_checkpoint(folder, BEST, tensors, replace(info, neighbours=claimed))
    monkeypatch.setattr(networks, "with_empty_neighbours", None)  # no memory is taken for them
    with pytest.raises(RunError, match="damaged"):
        best_network(read_run(folder).config, folder)


def test_memory_that_runs_out_in_a_fit_is_an_error_with_advice(fitted_run, monkeypatch):
    monkeypatch.setattr(fitting, "linear_probe", lambda *_: iter([torch.empty(2**50)]))
    with pytest.raises(
        TrainingError, match=r"not enough memory to fit a head .* Train on a part of them"
    ):
        fitted_run(strategy="linear_probe")


def test_the_memory_of_a_fit_counts_the_features_and_their_standardised_copy(fitted_run):
    _, few = fitted_run(strategy="linear_probe", train_fraction=0.5)
    _, all_of_them = fitted_run(strategy="linear_probe")
    one, other = (
        next(event for event in found if isinstance(event, events.HeadFitted))
        for found in (few, all_of_them)
    )
    assert other.images > one.images
    assert other.memory_bytes - one.memory_bytes >= 2 * 4 * other.features * (
        other.images - one.images
    )


@pytest.mark.parametrize("strategy", ["linear_probe", "prototypes"])
@pytest.mark.parametrize("form", ["safetensors", "onnx"])
def test_a_fitted_linear_head_is_exported_like_any_other(fitted_run, strategy, form):
    folder, _ = fitted_run(strategy=strategy)
    assert export_run(read_run(folder), form).files


def test_a_script_says_that_it_cannot_repeat_a_fit(fitted_run):
    folder, _ = fitted_run(strategy="prototypes")
    with pytest.raises(ExportError, match="strategy: its head was fitted without epochs"):
        export_run(read_run(folder), "script")
    card = export_run(read_run(folder), "card").folder / "README.md"
    assert "scale" in card.read_text()
    assert "batches of" not in card.read_text()


def test_there_is_no_learning_rate_to_find(colour_config):
    with pytest.raises(ConfigError, match="no learning rate to find"):
        finish(find_rate(colour_config(strategy="linear_probe")))

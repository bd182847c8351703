"""Tests of heads fitted in one go: they equal scikit-learn's, and their runs are runs."""

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
from finetune_core.exporters.formats import export_run
from finetune_core.exporters.tensors import load_export
from finetune_core.models.nearest import NEIGHBOURS, TEMPERATURE, NearestNeighbours
from finetune_core.models.network import build_network
from finetune_core.runs.record import create_run, execute, reopen_run
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import read_run, summarize_run
from finetune_core.training import events
from finetune_core.training.checkpoints import networks
from finetune_core.training.checkpoints.files import (
    BEST,
    checkpoint_path,
    load_tensors,
    save_checkpoint,
)
from finetune_core.training.checkpoints.networks import load_best_network
from finetune_core.training.forecast.lr_finder import find_rate
from finetune_core.training.heads import probe_memo
from finetune_core.training.heads.folds import stratified_folds
from finetune_core.training.heads.logistic import (
    GRID,
    Scale,
    cross_validate_probe,
    fit_logistic,
    linear_probe,
    objective,
)
from finetune_core.training.heads.prototypes import class_means, fit_prototypes
from finetune_core.training.predictions import load_predictions
from finetune_core.training.step.exact_layers import bypass_head, use_exact_head
from finetune_core.training.strategies.catalogue import STRATEGIES
from finetune_core.work import finish
from tests.factories import copy_run, tiny_config, trained_run
from tests.training.fits import only, record_run


def clouds(images=300, features=40, classes=4, spread=0.5):
    """Return correlated features of overlapping classes, float32, and labels."""
    random = np.random.default_rng(0)
    labels = random.integers(classes, size=images)
    values = random.normal(size=(classes, features))[labels] * spread + random.normal(
        size=(images, features)
    )
    mixed = values @ random.normal(size=(features, features)) + 3
    return torch.from_numpy(mixed.astype(np.float32)), torch.from_numpy(labels)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("c", [1e-4, 1e-2, 1.0])
def test_a_fit_is_scikit_learns_logistic_regression_at_the_same_penalty(classes, c):
    features, labels = clouds(classes=classes)
    scaled = StandardScaler().fit_transform(features.double().numpy())
    theirs = LogisticRegression(C=c, max_iter=5000, tol=1e-10).fit(scaled, labels.numpy())
    standardised = torch.from_numpy(scaled)
    ours = finish(fit_logistic(standardised, labels, classes, c, tolerance=1e-13))
    logits = ours.logits(standardised)
    np.testing.assert_allclose(
        logits.softmax(1).numpy(), theirs.predict_proba(scaled), atol=1e-4, rtol=0
    )
    weight, bias = ours.weight.numpy(), ours.bias.numpy()
    if classes == 2:  # scikit-learn keeps one weight vector, that of the second class
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    np.testing.assert_allclose(weight, theirs.coef_, atol=2e-4, rtol=1e-3)
    np.testing.assert_allclose(bias, theirs.intercept_, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("classes", [2, 5])
def test_the_default_tolerance_reaches_scikit_learns_objective(classes):
    features, labels = clouds(classes=classes)
    tensor = Scale.fit(features).transform(features)
    scaled = tensor.numpy()
    theirs = LogisticRegression(C=0.1, max_iter=5000, tol=1e-8).fit(scaled, labels.numpy())
    ours = finish(fit_logistic(tensor, labels, classes, 0.1))
    shares = ours.logits(tensor).softmax(1).numpy()
    np.testing.assert_allclose(shares, theirs.predict_proba(scaled), atol=0.01)
    assert (shares.argmax(1) == theirs.predict(scaled)).mean() > 0.99


def test_a_fit_that_begins_at_another_penaltys_goes_on_to_its_own():
    features, labels = clouds(images=1000, features=300, classes=100, spread=0.1)
    scaled = Scale.fit(features).transform(features)
    first = finish(fit_logistic(scaled, labels, 100, 3.0, tolerance=1e-4))
    second = finish(fit_logistic(scaled, labels, 100, 10.0, first, tolerance=1e-4))
    assert objective(second, scaled, labels, 10.0) < 0.9 * objective(first, scaled, labels, 10.0)


def test_features_that_hardly_vary_do_not_drown_the_others():
    random = np.random.default_rng(0)
    labels = np.arange(160) % 4
    telling = np.eye(4)[labels] + random.normal(0, 0.3, (160, 4))
    # Zero but for a few images, as the last features of a network with rectified units are.
    idle = random.normal(0, 0.02, (160, 1200)) * (random.random((160, 1200)) < 0.02)
    features = torch.from_numpy(np.hstack([telling, idle]).astype(np.float32))
    given = torch.from_numpy(labels)
    head, _ = finish(linear_probe(features[:80], given[:80], np.arange(80), 4, seed=0))
    assert (head.logits(features[80:]).argmax(1) == given[80:]).float().mean() > 0.85


def test_the_scale_is_folded_into_the_head():
    features, labels = clouds()
    features[:, 3] = 7.0  # a feature that never varies
    scale = Scale.fit(features)
    head = finish(fit_logistic(scale.transform(features), labels, 4, 0.1))
    torch.testing.assert_close(
        scale.fold_into(head).logits(features),
        head.logits(scale.transform(features)),
        atol=1e-3,
        rtol=1e-3,
    )


def cross_validate(features, labels):
    """Return scikit-learn's loss of each held-out image, and whether it is right, per penalty."""
    count = len(labels)
    losses, right = np.zeros((len(GRID), count)), np.zeros((len(GRID), count), dtype=bool)
    for fit, out in stratified_folds(labels.numpy(), np.arange(count), 0):
        scale, given = Scale.fit(features[fit]), labels[out].numpy()
        for at, c in enumerate(GRID):
            model = LogisticRegression(C=c, max_iter=5000)
            model.fit(scale.transform(features[fit]), labels[fit])
            shares = model.predict_proba(scale.transform(features[out]))
            losses[at, out] = -np.log(shares[np.arange(len(out)), given])
            right[at, out] = shares.argmax(axis=1) == given
    return losses, right


@pytest.mark.train
@pytest.mark.parametrize("classes", [2, 4])
def test_penalties_are_chosen_as_scikit_learn_scores_them_on_the_same_folds(classes):
    features, labels = clouds(classes=classes, spread=0.1 * classes**0.8)
    losses, rights = cross_validate(features, labels)
    mean = dict(zip(GRID, losses.mean(axis=1), strict=True))
    _, choice = finish(linear_probe(features, labels, np.arange(300), classes, seed=0))
    tried = {one["value"]: one["loss"] for one in choice.candidates}
    assert choice.value == min(mean, key=mean.get)
    assert len(tried) > 3
    assert list(tried.values()) == pytest.approx([mean[c] for c in tried], rel=2e-3)
    # Images are held out with the penalty that the other folds choose.
    wanted = np.zeros(300, dtype=bool)
    for _, out in stratified_folds(labels.numpy(), np.arange(300), 0):
        others = np.setdiff1d(np.arange(300), out)
        wanted[out] = rights[losses[:, others].mean(axis=1).argmin(), out]
    right = finish(cross_validate_probe(features, labels, np.arange(300), classes, seed=0))
    assert 0.3 < right.mean() < 0.95
    assert (right == wanted).mean() > 0.98


@pytest.mark.train
def test_losses_that_chance_makes_worse_do_not_end_the_search_for_a_penalty():
    mislabelled = 4
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], 22)
    shown = np.where(
        np.isin(np.arange(44), random.permutation(44)[:mislabelled]), 1 - labels, labels
    )
    clear = 20 * shown[:, None] + random.normal(0, 1, (44, 1))
    right = finish(
        cross_validate_probe(
            torch.tensor(clear, dtype=torch.float32), torch.tensor(labels), np.arange(44), 2, 0
        )
    )
    assert right.sum() == 44 - mislabelled


@pytest.mark.train
def test_what_has_no_pattern_is_held_out_by_chance_and_a_copy_would_give_it_away():
    random = np.random.default_rng(0)
    features = torch.tensor(random.normal(size=(42, 50)), dtype=torch.float32).repeat(2, 1)
    labels = torch.tensor(np.arange(42) % 3).repeat(2)
    apart = finish(cross_validate_probe(features, labels, np.tile(np.arange(42), 2), 3, seed=0))
    assert apart.mean() < 0.5
    assert finish(cross_validate_probe(features, labels, np.arange(84), 3, seed=0)).mean() > 0.8


def test_too_few_images_to_hold_any_out_are_refused():
    features, _ = clouds(images=4)
    with pytest.raises(DataError, match="too few training images"):
        finish(cross_validate_probe(features, torch.arange(4), np.arange(4), 4, seed=0))


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


def fitted_run(strategy="linear_probe", **settings):
    return trained_run(strategy=strategy, **settings)


def head_of(run):
    return load_best_network(run.config, run.run_dir)[0].head_layers[0]


@pytest.mark.train
def test_a_run_without_epochs_is_a_run(tmp_path, monkeypatch):
    given, real = [], probe_memo.linear_probe

    def note(*asked):
        head, choice = yield from real(*asked)
        given.append((*asked, head))
        return head, choice

    monkeypatch.setattr(probe_memo, "linear_probe", note)
    folder, seen = record_run(tiny_config(strategy="linear_probe"), tmp_path)
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
    assert (run.status, run.is_evaluable, run.history.epochs) == ("finished", True, [])
    row = summarize_run(run)
    assert (row["epochs"], row["best_epoch"]) == (0, None)
    assert min(row["val_accuracy"], row["test_accuracy"]) > 0.8
    assert set(load_predictions(folder)["split"]) == {"val", "test"}
    # The choice sees training images only, and the checkpoint holds what was fitted.
    ((features, labels, sets, classes, _, head),) = given
    table = load_dataset(run.config.data).table
    training = table[table["split"] == TRAIN]
    assert labels.tolist() == training["label"].tolist()
    assert (len(features), len(sets), classes) == (len(training), len(training), 3)
    (told,) = only(events.HeadFitted, seen)
    assert (told.images, told.chosen_on) == (len(training), len(training))
    assert told.memory_bytes >= 2 * features.nbytes  # the features, and a scaled copy
    _, info = load_best_network(run.config, folder)
    assert info.epoch == 0
    torch.testing.assert_close(head_of(run)(features), head.logits(features), atol=1e-5, rtol=1e-5)


@pytest.mark.train
def test_the_head_is_the_same_to_the_bit_whatever_is_in_the_cache(tmp_path):
    def head(**settings):
        config = tiny_config(strategy="prototypes", **settings)
        folder, seen = record_run(config, tmp_path)
        return load_tensors(folder, BEST)[0], only(events.RunStarted, seen)[0].cache

    CACHE.clear()
    cold, _ = head()
    warm, report = head()
    assert report.found == report.rows
    uncached, report = head(cache="off", batch_size=64)
    assert report.where == "off"
    CACHE.clear()
    head(train_fraction=0.3)
    after_a_part, report = head()
    assert 0 < report.found < report.rows
    CACHE.clear()
    views = {"augmentation": "flips", "views": 1}
    record_run(tiny_config(strategy="feature_extraction", epochs=1, **views), tmp_path)
    after_views, report = head()
    assert 0 < report.found < report.rows
    steering = {"mixup": 0.2, "epochs": 1, "learning_rate": 0.5, "batch_size": 7}
    steered, report = head(augmentation="flips", **steering)
    assert report.where != "off"
    for other in (warm, uncached, after_a_part, after_views, steered):
        assert all(torch.equal(other[name], tensor) for name, tensor in cold.items())


@pytest.mark.train
@pytest.mark.parametrize("strategy", [name for name, one in STRATEGIES.items() if one.fits])
def test_heads_are_fitted_to_the_fp32_features_that_they_are_evaluated_on(
    native_bf16, strategy, tmp_path
):
    config = tiny_config(strategy=strategy, precision="bf16")
    run = read_run(record_run(config, tmp_path)[0])
    row, exact = summarize_run(run), fitted_run(strategy)
    assert (row["precision"], row["evaluation_precision"]) == ("fp32", "fp32")
    asked_for_bf16 = load_tensors(run.run_dir, BEST)[0]
    for name, tensor in load_tensors(exact.run_dir, BEST)[0].items():
        assert torch.equal(asked_for_bf16[name], tensor)


@pytest.mark.train
def test_a_fit_stops_between_fits_and_starts_again(tmp_path):
    reservation = create_run(tiny_config(strategy="linear_probe"), tmp_path / "runs")
    seen = []
    for event in execute(reservation):
        seen.append(event)
        if isinstance(event, events.Progress) and event.phase == "choose":
            request_stop(reservation.run_dir)
    assert isinstance(seen[-1], events.RunStopped)
    assert not only(events.HeadFitted, seen)
    run = read_run(reservation.run_dir)
    assert (run.status, run.is_evaluable) == ("stopped", False)
    assert isinstance([*execute(reopen_run(reservation.run_dir))][-1], events.RunFinished)
    assert read_run(reservation.run_dir).is_evaluable


def test_a_head_that_is_left_out_stays_left_out_within_exact_head():
    network = build_network("timm/test_resnet", "none", 3, 0)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), bypass_head(network):
        for _ in range(2):
            with use_exact_head(network):
                assert network.model(images).shape == (2, 96)
    with torch.no_grad():
        assert network.model(images).shape == (2, 3)


def test_prototypes_are_scikit_learns_nearest_centroids_and_a_linear_head():
    features, labels = clouds(spread=0.4)
    head, choice = finish(fit_prototypes(features, labels, np.arange(300), 4, seed=0))
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
    head, _ = finish(fit_prototypes(features, labels, np.arange(300), 6, seed=0))
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
        NearestNeighbours(features, labels, 4).leave_one_out_logits(chunk_size=30)[:1], alone
    )


def test_the_help_of_nearest_neighbours_states_how_they_vote():
    assert f"k = {NEIGHBOURS} " in STRATEGIES["nearest_neighbours"].help
    assert f"temperature of {TEMPERATURE}." in STRATEGIES["nearest_neighbours"].help


@pytest.mark.parametrize("strategy", ["prototypes", "nearest_neighbours"])
def test_runs_of_class_means_and_neighbours_finish_and_predict(strategy):
    run = fitted_run(strategy)
    network, info = load_best_network(run.config, run.run_dir)
    (head,) = network.head_layers
    stores_images = strategy == "nearest_neighbours"
    assert (info.neighbours > 0) == isinstance(head, NearestNeighbours) == stores_images
    table = load_predictions(run.run_dir)
    assert network.model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert (np.stack(table["logits"].tolist()).argmax(1) == table["label"]).mean() > 0.8
    row = summarize_run(run)
    told = sum(one["parameters"] for one in run.history.started["stages"])
    own = sum(one.numel() for one in network.model.parameters())
    assert row["total_parameters"] == told == own
    assert row["trainable_parameters"] == sum(one.numel() for one in head.parameters())
    assert (row["trainable_parameters"] == 0) == stores_images


@pytest.mark.parametrize("times", [2, 1_000_000])
def test_a_checkpoint_that_claims_more_neighbours_than_it_has_room_for_is_damaged(
    times, monkeypatch, tmp_path
):
    run = read_run(copy_run(fitted_run("nearest_neighbours").run_dir, tmp_path))
    tensors, info = load_tensors(run.run_dir, BEST)
    room = checkpoint_path(run.run_dir, BEST).stat().st_size
    claimed = times * (room // tensors["fc.features"][0].nbytes)
    save_checkpoint(run.run_dir, BEST, tensors, replace(info, neighbours=claimed))
    monkeypatch.setattr(networks, "add_empty_neighbours", None)  # no memory is taken for them
    with pytest.raises(RunError, match="damaged"):
        load_best_network(run.config, run.run_dir)


def test_memory_that_runs_out_in_a_fit_is_an_error_with_advice(monkeypatch, tmp_path):
    monkeypatch.setattr(probe_memo, "linear_probe", lambda *_: iter([torch.empty(2**50)]))
    advice = r"not enough memory to fit a head .* Train on a part of them"
    with pytest.raises(TrainingError, match=advice):
        record_run(tiny_config(strategy="linear_probe"), tmp_path)


@pytest.mark.train
def test_a_fitted_linear_head_is_exported_and_stored_images_and_scripts_are_not(tmp_path):
    for strategy in ("linear_probe", "prototypes"):
        exported = export_run(fitted_run(strategy), "safetensors", tmp_path / strategy)
        head = load_export(exported.folder).network.head_layers[0]
        assert torch.equal(head.weight, head_of(fitted_run(strategy)).weight)
    card = (exported.folder / "README.md").read_text()
    assert "scale" in card
    assert "batches of" not in card
    with pytest.raises(ExportError, match="strategy: its head was fitted without epochs"):
        export_run(fitted_run("prototypes"), "script", tmp_path / "script")
    neighbours = fitted_run("nearest_neighbours")
    with pytest.raises(ExportError, match="cannot be exported as a plain network"):
        export_run(neighbours, "onnx", tmp_path / "onnx")
    assert export_run(neighbours, "card", tmp_path / "card").files


def test_there_is_no_learning_rate_to_find():
    with pytest.raises(ConfigError, match="no learning rate to find"):
        finish(find_rate(tiny_config(strategy="linear_probe")))

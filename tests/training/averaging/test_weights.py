"""Tests of averaged weights: the averages, which runs can be averaged, and the resulting run."""

import copy
import itertools
import json
import shutil

import hypothesis.strategies as some
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from finetune_core.data.splits import TEST, VAL
from finetune_core.errors import ConfigError, TrainingError
from finetune_core.evaluation.comparison.arms import run_titles
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.single_run.shift import predict_shifted
from finetune_core.evaluation.single_run.shift_files import load_shifted_predictions, load_shifts
from finetune_core.exporters.formats import export_run
from finetune_core.exporters.tensors import load_export
from finetune_core.runs.log import describe_average, format_log
from finetune_core.runs.record import create_run, execute, reopen_run
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import read_run, summarize_run
from finetune_core.training import events
from finetune_core.training.averaging import weights as averaging
from finetune_core.training.averaging.batchnorm import find_moving_norms, recompute_statistics
from finetune_core.training.averaging.shifted_images import read_shifted_images
from finetune_core.training.averaging.weights import (
    COEFFICIENTS,
    average_states,
    interpolate_states,
)
from finetune_core.training.checkpoints.files import BEST, checkpoint_path, load_checkpoint
from finetune_core.training.checkpoints.networks import load_best_network
from finetune_core.training.checkpoints.parents import make_averaged_config
from finetune_core.training.heads.fitting import fit_probe
from finetune_core.training.lost import LostImages
from finetune_core.training.predictions import load_predictions
from finetune_core.training.prepare import prepare
from finetune_core.work import finish
from tests.factories import copy_run, image_folder, shared_images, tiny_config, trained_run
from tests.shifted import darken_images
from tests.training.fits import record_run

FLIPPED = {"head_seed": 7, "augmentation": "flips"}


@pytest.fixture(scope="session")
def seeds_once(home_of_shared_fixtures):
    """Return the folders of three runs that differ in order and augmentation only."""
    return [trained_run(**FLIPPED, seed=seed).run_dir for seed in range(3)]


@pytest.fixture
def seeds(seeds_once, tmp_path):
    return [copy_run(folder, tmp_path / "parents") for folder in seeds_once]


@pytest.fixture(scope="module")
def averages_once(seeds_once, tmp_path_factory):
    """Return the folder and the events of an averaged run, by how it averages."""
    runs = tmp_path_factory.mktemp("averages")
    wanted = {"soup": seeds_once, "greedy_soup": seeds_once, "wise": seeds_once[:1]}
    return {
        how: record_run(make_averaged_config(how, folders), runs) for how, folders in wanted.items()
    }


def best(folder):
    return load_checkpoint(folder, BEST)[0]


def accuracies(table):
    """Return the accuracy of each split."""
    right = np.stack(table["logits"].tolist()).argmax(1) == table["label"]
    return right.groupby(table["split"]).mean().to_dict()


# --- what an average is

NUMBERS = some.floats(-(2.0**100), 2.0**100, width=32)


@some.composite
def networks(draw, most=4):
    shape = draw(arrays.array_shapes(max_dims=2, max_side=4))
    count = draw(some.integers(1, most))
    return [
        torch.from_numpy(draw(arrays.arrays(np.float32, shape, elements=NUMBERS)))
        for _ in range(count)
    ]


@given(networks())
@settings(deadline=None, max_examples=40)
def test_the_mean_is_the_mean_whatever_the_order_of_the_networks(found):
    states = [{"weight": tensor} for tensor in found]
    mean = average_states(states)["weight"]
    for order in itertools.permutations(states):
        assert average_states(list(order))["weight"].numpy().tobytes() == mean.numpy().tobytes()
    wanted = np.mean([tensor.numpy().astype(np.longdouble) for tensor in found], axis=0)
    spread = 1e-7 * max(float(tensor.abs().max()) for tensor in found) + 1e-44
    np.testing.assert_allclose(mean, wanted.astype(np.float64), rtol=1e-6, atol=spread)


@given(networks(most=1), some.integers(1, 9), some.floats(0, 1))
@settings(deadline=None, max_examples=40)
def test_averages_of_equal_networks_are_equal_and_the_ends_are_the_ends(found, count, coefficient):
    state, other = {"w": found[0], "num_batches_tracked": torch.tensor(5)}, {"w": found[0] + 1}
    mean = average_states([state] * count)
    assert mean["w"].numpy().tobytes() == found[0].numpy().tobytes()
    assert mean["num_batches_tracked"] == 5
    del state["num_batches_tracked"]
    torch.testing.assert_close(
        interpolate_states(state, state, coefficient)["w"], found[0], rtol=2e-7, atol=0
    )
    assert torch.equal(interpolate_states(state, other, 0.0)["w"], state["w"])
    assert torch.equal(interpolate_states(state, other, 1.0)["w"], other["w"])


# --- a soup is a run


def test_a_soup_is_the_mean_of_what_its_runs_may_change(seeds_once, averages_once):
    folder, seen = averages_once["soup"]
    kinds = [type(event) for event in seen if not isinstance(event, events.Progress)]
    assert kinds == [
        events.RunStarted,
        events.WeightsAveraged,
        events.CheckpointSaved,
        events.RunFinished,
    ]
    states, made = [best(one) for one in seeds_once], best(folder)
    assert made.keys() == states[0].keys()
    network, _ = load_best_network(read_run(folder).config, folder)
    norms = {name for stage in network.stages for name in stage.buffers}
    weights = made.keys() - norms
    assert any(not torch.equal(states[0][name], states[1][name]) for name in weights)
    for name in weights:
        mean = torch.stack([state[name] for state in states]).mean(0)
        torch.testing.assert_close(made[name], mean, rtol=1e-6, atol=1e-8)


def test_a_soup_is_evaluated_compared_and_says_what_it_is(seeds_once, averages_once):
    folder, _ = averages_once["soup"]
    run, parents = read_run(folder), [read_run(one) for one in seeds_once]
    row = summarize_run(run)
    assert (run.status, run.is_evaluable, row["epochs"], row["best_epoch"]) == (
        "finished",
        True,
        0,
        None,
    )
    assert row["frozen_tensors"] == parents[0].history.end["frozen_tensors"] > 50
    assert row["averaged"]["how"] == "soup"
    assert row["averaged"]["batchnorm_layers"] > 0
    assert {one["run"]: one["accuracy"] for one in row["averaged"]["parents"]} == {
        one.run_id: pytest.approx(one.history.end["val_accuracy"]) for one in parents
    }
    assert run_titles([run]) == ["Soup of 3 runs: Last block"]
    comparison = compare_runs([*parents, run])
    assert [arm.title for arm in comparison.arms] == ["Last block", "Soup of 3 runs: Last block"]
    text = "\n".join(format_log(run.history.notable))
    assert "weights of layer4, head are averaged, without epochs" in text
    assert all(one.run_id in text for one in parents)
    assert text.count("Averaging weights") == 1


def test_its_numbers_are_those_of_its_table_of_predictions(averages_once):
    for folder, _ in averages_once.values():
        row = summarize_run(read_run(folder))
        assert accuracies(load_predictions(folder)) == {
            TEST: pytest.approx(row["test_accuracy"]),
            VAL: pytest.approx(row["val_accuracy"]),
        }


@pytest.mark.train
def test_in_whatever_order_the_runs_are_named_the_soup_is_the_same(
    seeds_once, averages_once, tmp_path
):
    for how in ("soup", "greedy_soup"):
        config = make_averaged_config(how, list(reversed(seeds_once)))
        assert config == read_run(averages_once[how][0]).config
    again = best(record_run(config, tmp_path / "runs")[0])
    for name, tensor in best(averages_once["greedy_soup"][0]).items():
        # recomputed on images: products are rounded as memory happens to lie
        if "running" in name:
            torch.testing.assert_close(again[name], tensor, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(again[name], tensor)


def test_a_soup_is_exported_with_its_weights_and_needs_its_runs_no_more(averages_once, tmp_path):
    run = read_run(copy_run(averages_once["soup"][0], tmp_path / "elsewhere"))
    made = export_run(run, "safetensors", tmp_path / "export")
    assert made.measured.evaluation.accuracy == summarize_run(run)["test_accuracy"]
    state = load_export(made.folder).network.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in best(run.run_dir).items())
    described = json.loads((made.folder / "model.json").read_text())
    assert str(tmp_path) not in json.dumps(described)
    card = (made.folder / "README.md").read_text().replace("\\", "")
    assert "Soup of 3 runs: Last block: averaged layer4, head; frozen" in card
    assert "The mean of the weights of 3 runs: run " in card


@pytest.mark.train
def test_a_soup_predicts_without_the_runs_that_it_was_made_of(seeds, tmp_path):
    folder, _ = record_run(make_averaged_config("soup", seeds), tmp_path / "runs")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = load_predictor(read_run(folder)).network.model(images)
    shutil.rmtree(tmp_path / "parents")
    moved = read_run(shutil.move(folder, tmp_path / "elsewhere"))
    assert torch.equal(load_predictor(moved).network.model(images), expected)


@pytest.mark.train
def test_a_run_can_start_from_a_soup_and_a_soup_be_made_of_runs_that_did(averages_once, tmp_path):
    soup = averages_once["soup"][0]
    changes = {"from_run": str(soup), "head_seed": 7, "epochs": 1}
    children = [
        record_run(tiny_config(**changes, seed=seed), tmp_path / "runs")[0] for seed in range(2)
    ]
    folder, _ = record_run(make_averaged_config("soup", children), tmp_path / "runs")
    run = read_run(folder)
    assert run.started["lineage"][0]["run"] == soup.name
    assert checkpoint_path(folder, "start").is_file()
    assert load_predictor(run).classes == ("blue", "green", "red")


@pytest.mark.train
def test_an_average_is_stopped_and_starts_again(seeds_once, tmp_path):
    reservation = create_run(make_averaged_config("greedy_soup", seeds_once), tmp_path / "runs")
    for event in execute(reservation):
        averages = isinstance(event, events.Progress) and event.phase == "average"
        if averages and 0 < event.done < event.total:
            request_stop(reservation.run_dir)
    assert read_run(reservation.run_dir).status == "stopped"
    assert not read_run(reservation.run_dir).is_evaluable
    seen = list(execute(reopen_run(reservation.run_dir)))
    assert isinstance(seen[-1], events.RunFinished)
    assert len(read_run(reservation.run_dir).history.averaged["ingredients"]) == 3


# --- greedy selection


def test_a_greedy_soup_keeps_what_does_not_lower_the_validation_accuracy(seeds_once, averages_once):
    told = summarize_run(read_run(averages_once["greedy_soup"][0]))
    tried = told["averaged"]["ingredients"]
    alone = {folder.name: read_run(folder).history.end["val_accuracy"] for folder in seeds_once}
    ordered = sorted(seeds_once, key=lambda folder: (-alone[folder.name], str(folder)))
    assert [one["run"] for one in tried] == [folder.name for folder in ordered]
    assert tried[0]["accuracy"] == pytest.approx(alone[tried[0]["run"]])
    highest = tried[0]["accuracy"]
    for one in tried[1:]:
        assert one["kept"] == (one["accuracy"] >= highest)
        highest = one["accuracy"] if one["kept"] else highest
    assert told["val_accuracy"] == pytest.approx(highest)


@pytest.mark.train
def test_a_network_that_would_spoil_the_soup_is_left_out(tmp_path):
    """The head of one network answers the opposite of what it learned."""
    good = [
        trained_run(backbone="efficientnet_lite0", epochs=3, **FLIPPED, seed=seed).run_dir
        for seed in range(2)
    ]
    spoilt = copy_run(good[1], tmp_path / "parents")
    path = checkpoint_path(spoilt, BEST)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = {
        name: -40 * tensor if name.startswith("classifier.") else tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata)
    folder, seen = record_run(
        make_averaged_config("greedy_soup", [good[0], spoilt]), tmp_path / "runs"
    )
    told = next(event for event in seen if isinstance(event, events.WeightsAveraged))
    assert {one["run"]: one["kept"] for one in told.ingredients} == {
        good[0].name: True,
        spoilt.name: False,
    }
    assert "soup: 1 of them" in describe_average(read_run(folder).history.averaged)


# --- BatchNorm


def prepare_job(config):
    """Prepare a run whose cache holds no augmented versions, as a run of averaged weights."""
    return finish(prepare(config.model_copy(update={"augmentation": "none"})))


@pytest.mark.parametrize("strategy", ["full", "last_block"])
def test_statistics_are_those_of_update_bn(strategy):
    job = prepare_job(tiny_config(strategy=strategy))
    theirs = copy.deepcopy(job.forward)  # the network, or the tail after the frozen stages
    before = {name: buffer.clone() for name, buffer in job.network.model.named_buffers()}
    layers = finish(recompute_statistics(job, LostImages(job)))
    batches = [inputs for _, inputs in job.plain_training_inputs()]
    torch.optim.swa_utils.update_bn(batches, theirs)
    places = {id(module): path for path, module in job.network.model.named_modules()}
    moving = {places[id(norm)]: norm for norm in find_moving_norms(job)}
    assert len(moving) == layers > 0
    for path, norm in moving.items():
        reference = theirs.get_submodule(path)
        torch.testing.assert_close(norm.running_mean, reference.running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var, reference.running_var, rtol=1e-5, atol=1e-6)
        assert norm.num_batches_tracked == len(batches)
        assert not torch.equal(norm.running_var, before[f"{path}.running_var"])
        assert norm.momentum is not None
        assert not norm.training
    for name, buffer in job.network.model.named_buffers():
        assert name.rpartition(".")[0] in moving or torch.equal(buffer, before[name])


def test_cached_and_uncached_statistics_are_equal():
    found = []
    for cache in ("auto", "off"):
        job = prepare_job(tiny_config(cache=cache))
        finish(recompute_statistics(job, LostImages(job)))
        found.append([norm.running_var for norm in find_moving_norms(job)])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_frozen_statistics_are_not_computed():
    job = prepare_job(tiny_config(batchnorm="frozen"))
    assert find_moving_norms(job) == []
    assert finish(recompute_statistics(job, LostImages(job))) == 0


# --- WiSE-FT


@pytest.mark.train
def test_wise_runs_from_the_linear_probe_to_the_fine_tuned_network(seeds_once, averages_once):
    run, parent = read_run(averages_once["wise"][0]), read_run(seeds_once[0])
    told = summarize_run(run)
    curve = told["averaged"]["curve"]
    assert [point["coefficient"] for point in curve] == list(COEFFICIENTS)
    assert curve[-1]["accuracy"] == pytest.approx(parent.history.end["val_accuracy"])
    assert curve[-1]["loss"] == pytest.approx(parent.history.end["val_loss"], rel=1e-4)
    highest = max(point["accuracy"] for point in curve)
    first = next(point for point in curve if point["accuracy"] == highest)
    coefficient = told["averaged"]["coefficient"]
    assert coefficient == first["coefficient"]
    assert told["val_accuracy"] == pytest.approx(highest)
    assert told["val_loss"] == pytest.approx(first["loss"], rel=1e-4)
    probe = prepare_job(run.config)
    finish(fit_probe(probe, LostImages(probe), probe.config.seed))
    start, end = probe.network.model.state_dict(), best(seeds_once[0])
    for name, tensor in best(run.run_dir).items():
        # a probe of separable classes ends elsewhere each time
        if tensor.is_floating_point() and not name.startswith("fc."):
            wanted = start[name] + coefficient * (end[name] - start[name])
            torch.testing.assert_close(tensor, wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture
def shifted_parent(seeds, tmp_path):
    """Return a run that has predicted darkened images of its own test split, and their folder."""
    table = load_predictions(seeds[0])
    samples = table.loc[table["split"] == TEST, "id"]
    dark = darken_images(samples, shared_images(), tmp_path / "dark")
    finish(predict_shifted([read_run(seeds[0])], str(dark)))
    return seeds[0], dark


@pytest.mark.train
def test_the_curve_is_drawn_on_shifted_images_and_nothing_is_chosen_by_them(
    shifted_parent, averages_once, tmp_path
):
    parent, dark = shifted_parent
    folder, _ = record_run(make_averaged_config("wise", [parent]), tmp_path / "runs")
    told, plain = (
        summarize_run(read_run(one))["averaged"] for one in (folder, averages_once["wise"][0])
    )
    [shifted] = told["shifted"]
    [known] = load_shifts(read_run(parent))[0]
    table = load_shifted_predictions(parent, known.fingerprint, 3)
    right = np.stack(table["logits"].tolist()).argmax(1) == table["label"]
    assert (shifted["data"], shifted["images"], shifted["problem"]) == (str(dark), len(table), "")
    assert [point["coefficient"] for point in shifted["curve"]] == list(COEFFICIENTS)
    assert shifted["curve"][-1]["accuracy"] == pytest.approx(right.mean())
    assert told["coefficient"] == plain["coefficient"]
    assert told["curve"] == [pytest.approx(point, rel=1e-3, abs=1e-4) for point in plain["curve"]]
    assert f"On {len(table)} images of dark, by which nothing was chosen" in describe_average(
        read_run(folder).history.averaged
    )


@pytest.mark.train
def test_with_and_without_a_cache_the_shifted_curve_is_the_same(shifted_parent):
    parent, _ = shifted_parent
    found = []
    for cache in ("auto", "off"):
        job = prepare_job(read_run(parent).config.model_copy(update={"cache": cache}))
        [images] = finish(read_shifted_images(job, parent))
        found.append(images.evaluate(job))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.train
def test_shifted_images_that_are_gone_or_may_not_be_read_are_said(
    shifted_parent, tmp_path, monkeypatch
):
    monkeypatch.setattr(averaging, "COEFFICIENTS", (1.0,))
    parent, dark = shifted_parent
    reservation = create_run(make_averaged_config("wise", [parent]), tmp_path / "runs")
    list(execute(reservation, roots=(shared_images(),)))
    [kept_out] = read_run(reservation.run_dir).history.averaged["shifted"]
    shutil.rmtree(dark)
    folder, _ = record_run(make_averaged_config("wise", [parent]), tmp_path / "runs")
    done = read_run(folder).history.averaged
    [gone] = done["shifted"]
    for one in (kept_out, gone):
        assert (one["images"], one["curve"]) == (0, [])
        assert one["problem"]
    assert "dark could not be predicted" in describe_average(done)


LORA = {"strategy": "lora", "lora_from": "layer4", "lora_norms": "train", **FLIPPED}


@pytest.mark.train
def test_between_a_lora_run_and_its_start_lie_weights_of_its_rank(tmp_path, monkeypatch):
    monkeypatch.setattr(averaging, "COEFFICIENTS", (0.4,))
    lora = {"strategy": "lora", "lora_from": "layer4", "lora_norms": "train"}
    parent = trained_run(**lora, **FLIPPED)
    run = read_run(record_run(make_averaged_config("wise", [parent.run_dir]), tmp_path / "runs")[0])
    assert (run.status, summarize_run(run)["averaged"]["coefficient"]) == ("finished", 0.4)
    network = load_best_network(run.config, run.run_dir)[0]
    start, now = network.pretrained.state_dict(), network.model.state_dict()
    tuned = load_best_network(parent.config, parent.run_dir)[0].model.state_dict()
    moved = 0
    for name, tensor in now.items():
        if tensor.is_floating_point() and not name.startswith("fc."):
            wanted = 0.6 * start[name] + 0.4 * tuned[name]
            torch.testing.assert_close(tensor, wanted, rtol=1e-4, atol=1e-6)
            moved += not torch.equal(start[name], tuned[name])
    assert moved > 4
    factors = {name for name in load_file(checkpoint_path(run.run_dir, BEST)) if ".lora_" in name}
    assert factors == {name for name in best(parent.run_dir) if ".lora_" in name} != set()
    made = export_run(run, "safetensors", tmp_path / "export")
    assert made.measured.evaluation.accuracy == summarize_run(run)["test_accuracy"]
    loaded = load_export(made.folder).network.model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in now.items())


# --- refusals


def refusal(how, folders):
    with pytest.raises(ConfigError) as caught:
        make_averaged_config(how, folders)
    return caught.value.problems["averaged"]


def edit_run(run_dir, runs_dir, **changes):
    """Return a copy of a run with other settings."""
    folder = copy_run(run_dir, runs_dir / str(len(list(runs_dir.glob("*")))))
    folder = folder.rename(
        folder.with_name(f"{folder.name}-{'-'.join(map(str, changes.values()))}")
    )
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.train
def test_runs_that_cannot_be_averaged_are_refused_all_at_once(seeds_once, tmp_path):
    start = seeds_once[0]
    first, two = start.name, shared_images(red=14, green=14)
    vit = {"backbone": "timm/test_vit2", "weights": "none", "image_size": 64}
    said = {
        trained_run(**vit, epochs=1, **FLIPPED).run_dir: "its backbone is",
        trained_run(from_run=str(start), epochs=1, **FLIPPED).run_dir: (
            f"it started from other weights than {first}"
        ),
        trained_run(split_seed=3, epochs=1).run_dir: (
            f"its images, their labels or their split are not those of {first}"
        ),
        trained_run(tiny_config(two, epochs=1)).run_dir: f"its classes are not those of {first}",
        edit_run(start, tmp_path, head_seed=8): (
            f"its head began with other weights than that of {first} (seed 8, not 7)"
        ),
        edit_run(start, tmp_path, head_seed=None, seed=3): "(seed 3, not 7)",
        edit_run(start, tmp_path, image_size=64): (
            f"its images are prepared otherwise than those of {first}: image size"
        ),
        edit_run(start, tmp_path, train_fraction=0.5): (
            f"it trained on 50.0 % of the training images, not on the 100.0 % of {first}"
        ),
        edit_run(start, tmp_path, strategy="linear_probe"): "its head was fitted without epochs",
        edit_run(start, tmp_path, strategy="lora"): "it keeps low-rank factors",
    }
    reasons = dict(
        part.split(": ", 1) for part in refusal("soup", [*seeds_once, *said]).split("; ")
    )
    assert reasons.keys() == {folder.name for folder in said}
    for folder, words in said.items():
        assert words in reasons[folder.name]


def test_seeds_that_drew_other_shares_of_the_images_make_no_soup(seeds_once, tmp_path):
    """An ensemble says how many images it has seen. A soup has the settings of one run."""
    shares = [edit_run(folder, tmp_path, train_fraction=0.5) for folder in seeds_once[:2]]
    drew = "its seed 1 drew other 50.0 % of the training images (--train-fraction) than seed 0"
    for how in ("soup", "greedy_soup"):
        assert drew in refusal(how, shares)
    assert make_averaged_config("wise", shares[:1]).train_fraction == 0.5
    assert make_averaged_config("ensemble", shares).averaged.how == "ensemble"


def test_damaged_runs_links_and_what_is_no_run_are_refused(seeds, tmp_path):
    checkpoint_path(seeds[1], BEST).write_bytes(b"nothing")
    (tmp_path / "link").symlink_to(seeds[2])
    said = refusal("soup", [seeds[0], seeds[1], tmp_path / "link", tmp_path / "nowhere"])
    assert "best.safetensors" in said
    assert "is a link, which is not followed" in said
    assert "there is no run in" in said
    checkpoint_path(seeds[1], BEST).unlink()
    assert "has no 'best' checkpoint" in refusal("soup", seeds)


def test_numbers_and_kinds_of_runs_that_cannot_be_averaged_are_refused(seeds_once, tmp_path):
    assert "each named once" in refusal("soup", [seeds_once[0], seeds_once[0]])
    assert "two runs or more" in refusal("soup", seeds_once[:1])
    assert "name one" in refusal("wise", seeds_once)
    scratch = edit_run(seeds_once[0], tmp_path, weights="none")
    assert "random weights" in refusal("wise", [scratch])
    with pytest.raises(
        ConfigError, match="how: must be one of soup, greedy_soup, wise, ensemble, not 'stew'"
    ):
        make_averaged_config("stew", seeds_once)
    soup = {"how": "soup", "runs": [str(one) for one in seeds_once]}
    with pytest.raises(ConfigError, match="linear_probe trains none"):
        tiny_config(strategy="linear_probe", averaged=soup)


@pytest.mark.train
def test_strategies_are_averaged_where_one_freezes_what_the_other_does(seeds_once, tmp_path):
    deeper = trained_run(strategy="full", seed=5, epochs=1, **FLIPPED).run_dir
    config = make_averaged_config("soup", [*seeds_once, deeper])
    assert (config.strategy, config.averaged.runs[0]) == ("full", str(deeper))
    soup = best(record_run(config, tmp_path / "runs")[0])
    start = load_best_network(read_run(seeds_once[0]).config, seeds_once[0])[0].model.state_dict()
    name = "layer1.0.conv1.weight"
    wanted = (3 * start[name] + best(deeper)[name]) / 4
    torch.testing.assert_close(soup[name], wanted, rtol=1e-5, atol=1e-7)
    other = trained_run(strategy="first_block", epochs=1, **FLIPPED).run_dir
    assert "the other way round" in refusal("soup", [seeds_once[0], other])


@pytest.mark.train
def test_images_that_have_changed_since_end_the_run_in_words(tmp_path):
    images = image_folder(tmp_path / "colours", {"red": 8, "blue": 8})
    parents = [
        record_run(tiny_config(images, epochs=1, head_seed=7, seed=seed), tmp_path / "others")[0]
        for seed in range(2)
    ]
    config = make_averaged_config("soup", parents)
    (images / "red" / "000.png").unlink()
    with pytest.raises(TrainingError, match="have changed since"):
        record_run(config, tmp_path / "runs")


def test_a_run_that_is_gone_when_it_is_its_turn_is_named(seeds, tmp_path):
    reservation = create_run(make_averaged_config("soup", seeds), tmp_path / "runs")
    shutil.rmtree(seeds[2])
    with pytest.raises(ConfigError, match=f"{seeds[2].name}: there is no run in"):
        list(execute(reservation))
    assert read_run(reservation.run_dir).status == "failed"


def test_numbers_that_are_not_finite_end_the_run(seeds, tmp_path):
    path = checkpoint_path(seeds[1], BEST)
    content = bytearray(path.read_bytes())
    content[-4:] = b"\x00\x00\xc0\x7f"  # NaN
    path.write_bytes(content)
    with pytest.raises(Exception, match="not finite"):
        record_run(make_averaged_config("soup", seeds), tmp_path / "runs")

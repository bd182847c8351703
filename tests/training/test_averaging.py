"""Runs whose weights are averaged: what an average is, whose runs can be, and that one is a run like any other."""

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

from finetune_core.config import make_config
from finetune_core.data.splits import TEST, VAL
from finetune_core.errors import ConfigError, TrainingError
from finetune_core.evaluation.comparison.arms import run_titles
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.single_run.shift import predict_shifted
from finetune_core.evaluation.single_run.shift_files import known_shifts, shifted_predictions
from finetune_core.exporters.formats import export_run
from finetune_core.exporters.tensors import load_export
from finetune_core.runs.log import averaged_in_words, log_lines
from finetune_core.runs.record import create_run, execute, reopen_run
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import read_run, summary
from finetune_core.training import averaging, events
from finetune_core.training.averaging import COEFFICIENTS, mean_of, mixed
from finetune_core.training.batchnorm import moving_norms, recompute_statistics
from finetune_core.training.checkpoints import BEST, checkpoint_path, load_checkpoint
from finetune_core.training.fitting import fit_probe
from finetune_core.training.lost import LostImages
from finetune_core.training.networks import best_network
from finetune_core.training.parents import averaged_config
from finetune_core.training.predictions import load_predictions
from finetune_core.training.prepare import prepare
from finetune_core.training.shifted_images import shifted_images
from finetune_core.work import finish
from tests.drain import drained
from tests.shifted import darkened

QUICK = {
    "epochs": 2,
    "batch_size": 8,
    "image_size": 32,
    "learning_rate": 1e-3,
    "precision": "fp32",
    "augmentation": "flips",
}


def config_of(data, **changes):
    return make_config(QUICK | {"data": str(data), "head_seed": 7} | changes)


def ran(config, runs):
    reservation = create_run(config, runs)
    return reservation.run_dir, list(execute(reservation))


@pytest.fixture(scope="module")
def data(image_folder_once, tmp_path_factory):
    return image_folder_once(
        tmp_path_factory.mktemp("data") / "colours", dict.fromkeys(("blue", "green", "red"), 20)
    )


@pytest.fixture(scope="module")
def seeds_once(home_of_shared_fixtures, data, tmp_path_factory):
    """The folders of three runs that differ in order and augmentation only."""
    runs = tmp_path_factory.mktemp("seeds")
    return [ran(config_of(data, seed=seed), runs)[0] for seed in range(3)]


@pytest.fixture
def seeds(seeds_once, tmp_path):
    return [shutil.copytree(folder, tmp_path / "parents" / folder.name) for folder in seeds_once]


@pytest.fixture(scope="module")
def averages_once(seeds_once, tmp_path_factory):
    """How -> the folder of such a run, and its events."""
    runs = tmp_path_factory.mktemp("averages")
    wanted = {"soup": seeds_once, "greedy_soup": seeds_once, "wise": seeds_once[:1]}
    return {how: ran(averaged_config(how, folders), runs) for how, folders in wanted.items()}


def best(folder):
    return load_checkpoint(folder, BEST)[0]


# --- what an average is

NUMBERS = some.floats(-(2.0**100), 2.0**100, width=32)


@some.composite
def networks(draw, most=5):
    shape = draw(arrays.array_shapes(max_dims=2, max_side=4))
    count = draw(some.integers(1, most))
    return [
        torch.from_numpy(draw(arrays.arrays(np.float32, shape, elements=NUMBERS)))
        for _ in range(count)
    ]


def bits(tensor):
    return tensor.numpy().tobytes()


@given(networks(most=1), some.integers(1, 9))
def test_the_mean_of_equal_networks_is_equal_bit_for_bit(found, count):
    state = {"weight": found[0], "num_batches_tracked": torch.tensor(5)}
    mean = mean_of([state] * count)
    assert bits(mean["weight"]) == bits(found[0])
    assert mean["num_batches_tracked"] == 5


@given(networks())
@settings(max_examples=60)
def test_the_order_of_the_networks_changes_no_bit(found):
    states = [{"weight": tensor} for tensor in found]
    wanted = bits(mean_of(states)["weight"])
    assert {bits(mean_of(list(order))["weight"]) for order in itertools.permutations(states)} == {
        wanted
    }


@given(networks())
def test_it_is_the_mean(found):
    wanted = np.mean([tensor.numpy().astype(np.longdouble) for tensor in found], axis=0)
    spread = max(float(tensor.abs().max()) for tensor in found)
    np.testing.assert_allclose(
        mean_of([{"w": t} for t in found])["w"],
        wanted.astype(np.float64),
        rtol=1e-6,
        atol=1e-7 * spread + 1e-44,
    )


@given(networks(most=1), some.floats(0, 1))
def test_between_equal_networks_lies_that_network_and_the_ends_are_the_ends(found, coefficient):
    state, other = {"w": found[0]}, {"w": found[0] + 1}
    torch.testing.assert_close(mixed(state, state, coefficient)["w"], found[0], rtol=2e-7, atol=0)
    assert torch.equal(mixed(state, other, 0.0)["w"], state["w"])
    assert torch.equal(mixed(state, other, 1.0)["w"], other["w"])


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
    network, _ = best_network(read_run(folder).config, folder)
    norms = {name for stage in network.stages for name in stage.buffers}
    assert any(
        not torch.equal(states[0][name], states[1][name]) for name in made if name not in norms
    )
    for name, tensor in made.items():
        if name not in norms:
            torch.testing.assert_close(
                tensor, torch.stack([state[name] for state in states]).mean(0), rtol=1e-6, atol=1e-8
            )


def test_it_is_evaluated_compared_and_says_what_it_is(seeds_once, averages_once):
    folder, _ = averages_once["soup"]
    run, parents = read_run(folder), [read_run(one) for one in seeds_once]
    row = summary(run)
    assert (run.status, run.judged, row["epochs"], row["best_epoch"]) == ("finished", True, 0, None)
    assert row["frozen_tensors"] == parents[0].history.end["frozen_tensors"] > 100
    assert row["averaged"]["how"] == "soup"
    assert row["averaged"]["batchnorm_layers"] > 0
    assert {one["run"]: one["accuracy"] for one in row["averaged"]["parents"]} == {
        one.run_id: pytest.approx(one.history.end["val_accuracy"]) for one in parents
    }
    assert set(load_predictions(folder)["split"]) == {VAL, TEST}
    assert run_titles([run]) == ["Soup of 3 runs: Last block"]
    comparison = compare_runs([*parents, run])
    assert [arm.title for arm in comparison.arms] == ["Last block", "Soup of 3 runs: Last block"]
    text = "\n".join(log_lines(run.history.notable))
    assert "weights of block7, head are averaged, without epochs" in text
    assert all(one.run_id in text for one in parents)
    assert text.count("Averaging weights") == 1


def test_its_numbers_are_those_of_its_table_of_predictions(averages_once):
    for folder, _ in averages_once.values():
        table, row = load_predictions(folder), summary(read_run(folder))
        right = np.array(
            [
                logits.argmax() == label
                for logits, label in zip(table["logits"], table["label"], strict=True)
            ]
        )
        assert row["test_accuracy"] == pytest.approx(right[table["split"] == TEST].mean())
        assert row["val_accuracy"] == pytest.approx(right[table["split"] == VAL].mean())


def test_in_whatever_order_the_runs_are_named_the_soup_is_the_same(
    seeds_once, averages_once, tmp_path
):
    for how in ("soup", "greedy_soup"):
        config = averaged_config(how, list(reversed(seeds_once)))
        assert config == read_run(averages_once[how][0]).config
        again = best(ran(config, tmp_path / "runs")[0])
        for name, tensor in best(averages_once[how][0]).items():
            # recomputed on images: products are rounded as memory happens to lie
            if "running" in name:
                torch.testing.assert_close(again[name], tensor, rtol=1e-4, atol=1e-5)
            else:
                assert torch.equal(again[name], tensor)


def test_it_needs_its_runs_no_more(seeds, tmp_path):
    folder, _ = ran(averaged_config("soup", seeds), tmp_path / "runs")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = load_predictor(read_run(folder)).network.model(images)
    shutil.rmtree(tmp_path / "parents")
    moved = read_run(shutil.move(folder, tmp_path / "elsewhere"))
    assert torch.equal(load_predictor(moved).network.model(images), expected)


@pytest.mark.parametrize("format", ["safetensors", "onnx"])
def test_what_is_exported_answers_as_its_predictions_say(averages_once, tmp_path, format):
    run = read_run(averages_once["soup"][0])
    made = export_run(run, format, tmp_path / "export")
    assert made.measured.evaluation.accuracy == summary(run)["test_accuracy"]
    if format == "safetensors":
        network = load_export(made.folder).network
        assert all(
            torch.equal(network.model.state_dict()[name], tensor)
            for name, tensor in best(run.run_dir).items()
        )
    described = json.loads((made.folder / "model.json").read_text())
    assert str(run.run_dir.parent.parent) not in json.dumps(described)
    card = (made.folder / "README.md").read_text().replace("\\", "")
    assert "Soup of 3 runs: Last block: averaged block7, head; frozen" in card
    assert "The mean of the weights of 3 runs: run " in card


def test_a_run_can_start_from_a_soup_and_a_soup_be_made_of_runs_that_did(
    seeds_once, averages_once, data, tmp_path
):
    soup = averages_once["soup"][0]
    children = [
        ran(config_of(data, from_run=str(soup), seed=seed, epochs=1), tmp_path / "runs")[0]
        for seed in range(2)
    ]
    folder, _ = ran(averaged_config("soup", children), tmp_path / "runs")
    run = read_run(folder)
    assert run.started["lineage"][0]["run"] == soup.name
    assert checkpoint_path(folder, "start").is_file()
    assert load_predictor(run).classes == ("blue", "green", "red")


def test_it_is_stopped_and_starts_again(seeds, tmp_path):
    reservation = create_run(averaged_config("greedy_soup", seeds), tmp_path / "runs")
    for event in execute(reservation):
        if (
            isinstance(event, events.Progress)
            and event.phase == "average"
            and 0 < event.done < event.total
        ):
            request_stop(reservation.run_dir)
    assert read_run(reservation.run_dir).status == "stopped"
    assert not read_run(reservation.run_dir).judged
    seen = list(execute(reopen_run(reservation.run_dir)))
    assert isinstance(seen[-1], events.RunFinished)
    assert len(read_run(reservation.run_dir).history.averaged["ingredients"]) == 3


# --- greedy selection


def test_a_greedy_soup_keeps_what_does_not_lower_the_validation_accuracy(seeds_once, averages_once):
    told = summary(read_run(averages_once["greedy_soup"][0]))
    tried = told["averaged"]["ingredients"]
    accuracies = {
        folder.name: read_run(folder).history.end["val_accuracy"] for folder in seeds_once
    }
    assert [one["run"] for one in tried] == sorted(
        accuracies, key=lambda name: (-accuracies[name], name)
    )
    assert tried[0]["accuracy"] == pytest.approx(accuracies[tried[0]["run"]])
    highest = tried[0]["accuracy"]
    for one in tried[1:]:
        assert one["kept"] == (one["accuracy"] >= highest)
        highest = one["accuracy"] if one["kept"] else highest
    assert told["val_accuracy"] == pytest.approx(highest)


def test_a_network_that_would_spoil_the_soup_is_left_out(seeds, tmp_path):
    """One whose head answers the opposite of what it learned."""
    spoilt = checkpoint_path(seeds[1], BEST)
    with safe_open(spoilt, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(spoilt)
    tensors = {
        name: -40 * tensor if name.startswith("classifier.") else tensor
        for name, tensor in tensors.items()
    }
    save_file(tensors, spoilt, metadata)
    folder, seen = ran(averaged_config("greedy_soup", seeds), tmp_path / "runs")
    told = next(event for event in seen if isinstance(event, events.WeightsAveraged))
    left_out = [one["run"] for one in told.ingredients if not one["kept"]]
    assert seeds[1].name in left_out
    kept = [one["run"] for one in told.ingredients if one["kept"]]
    assert f"soup: {len(kept)} of them" in averaged_in_words(read_run(folder).history.averaged)


# --- BatchNorm


@pytest.fixture
def job_of():
    """A config -> its job, whose cache holds no augmented versions in the place of the images, as that of averaged weights."""

    def make(config):
        return drained(prepare(config.model_copy(update={"augmentation": "none"})))[1]

    return make


@pytest.mark.parametrize("strategy", ["full", "last_block"])
def test_statistics_are_those_of_update_bn(data, job_of, strategy):
    job = job_of(config_of(data, strategy=strategy))
    theirs = copy.deepcopy(job.forward)  # the network, or the tail after the frozen stages
    before = {name: buffer.clone() for name, buffer in job.network.model.named_buffers()}
    layers = drained(recompute_statistics(job, LostImages(job)))[1]
    batches = [inputs for _, inputs in job.plain_training_inputs()]
    torch.optim.swa_utils.update_bn(batches, theirs)
    places = {id(module): path for path, module in job.network.model.named_modules()}
    moving = {places[id(norm)]: norm for norm in moving_norms(job)}
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


def test_cached_and_uncached_statistics_are_equal(data, job_of):
    found = []
    for cache in ("auto", "off"):
        job = job_of(config_of(data, strategy="last_block", cache=cache))
        drained(recompute_statistics(job, LostImages(job)))
        found.append([norm.running_var for norm in moving_norms(job)])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_frozen_statistics_are_not_computed(data, job_of):
    job = job_of(config_of(data, batchnorm="frozen"))
    assert moving_norms(job) == []
    assert drained(recompute_statistics(job, LostImages(job))) == ([], 0)


# --- WiSE-FT


def test_wise_runs_from_the_linear_probe_to_the_fine_tuned_network(
    seeds_once, averages_once, job_of
):
    folder, _ = averages_once["wise"]
    told = summary(read_run(folder))
    curve = told["averaged"]["curve"]
    assert [point["coefficient"] for point in curve] == list(COEFFICIENTS)
    parent = read_run(seeds_once[0])
    assert curve[-1]["accuracy"] == pytest.approx(parent.history.end["val_accuracy"])
    assert curve[-1]["loss"] == pytest.approx(parent.history.end["val_loss"], rel=1e-4)
    highest = max(point["accuracy"] for point in curve)
    first = next(point for point in curve if point["accuracy"] == highest)
    assert told["averaged"]["coefficient"] == first["coefficient"]
    assert told["val_accuracy"] == pytest.approx(highest)
    assert told["val_loss"] == pytest.approx(first["loss"], rel=1e-4)
    probe = job_of(read_run(folder).config)
    drained(fit_probe(probe, LostImages(probe)))
    start, end = probe.network.model.state_dict(), best(seeds_once[0])
    for name, tensor in best(folder).items():
        # a probe of separable classes ends elsewhere each time
        if tensor.is_floating_point() and not name.startswith("classifier"):
            wanted = start[name] + first["coefficient"] * (end[name] - start[name])
            torch.testing.assert_close(tensor, wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture
def shifted_parent(seeds, data, tmp_path):
    """(a run that has predicted darkened images of its own test split, their folder)"""
    table = load_predictions(seeds[0])
    dark = darkened(table.loc[table["split"] == TEST, "id"], data, tmp_path / "dark")
    finish(predict_shifted([read_run(seeds[0])], str(dark)))
    return seeds[0], dark


def test_the_curve_is_drawn_on_shifted_images_and_nothing_is_chosen_by_them(
    shifted_parent, averages_once, tmp_path
):
    parent, dark = shifted_parent
    folder, _ = ran(averaged_config("wise", [parent]), tmp_path / "runs")
    told, plain = (summary(read_run(one))["averaged"] for one in (folder, averages_once["wise"][0]))
    [shifted] = told["shifted"]
    [known] = known_shifts(read_run(parent))[0]
    table = shifted_predictions(parent, known.fingerprint, 3)
    right = np.array(
        [
            logits.argmax() == label
            for logits, label in zip(table["logits"], table["label"], strict=True)
        ]
    )
    assert (shifted["data"], shifted["images"], shifted["problem"]) == (str(dark), len(table), "")
    assert [point["coefficient"] for point in shifted["curve"]] == list(COEFFICIENTS)
    assert shifted["curve"][-1]["accuracy"] == pytest.approx(right.mean())
    assert (told["coefficient"], told["curve"]) == (
        plain["coefficient"],
        [pytest.approx(point, rel=1e-3, abs=1e-4) for point in plain["curve"]],
    )
    assert f"On {len(table)} images of dark, by which nothing was chosen" in averaged_in_words(
        read_run(folder).history.averaged
    )


def test_with_and_without_a_cache_the_shifted_curve_is_the_same(shifted_parent, job_of):
    parent, _ = shifted_parent
    found = []
    for cache in ("auto", "off"):
        job = job_of(read_run(parent).config.model_copy(update={"cache": cache}))
        [images] = drained(shifted_images(job, parent))[1]
        found.append(images.judged(job))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_shifted_images_that_are_gone_or_may_not_be_read_are_said(shifted_parent, data, tmp_path):
    parent, dark = shifted_parent
    reservation = create_run(averaged_config("wise", [parent]), tmp_path / "runs")
    list(execute(reservation, roots=(data.parent,)))
    [kept_out] = read_run(reservation.run_dir).history.averaged["shifted"]
    shutil.rmtree(dark)
    folder, _ = ran(averaged_config("wise", [parent]), tmp_path / "runs")
    done = read_run(folder).history.averaged
    [gone] = done["shifted"]
    for one in (kept_out, gone):
        assert (one["images"], one["curve"]) == (0, [])
        assert one["problem"]
    assert "dark could not be predicted" in averaged_in_words(done)


@pytest.fixture(scope="module")
def lora_once(home_of_shared_fixtures, data, tmp_path_factory):
    """The folder of a LoRA run."""
    config = config_of(data, strategy="lora", lora_from="block6", lora_norms="train")
    return ran(config, tmp_path_factory.mktemp("lora"))[0]


def test_between_a_lora_run_and_its_start_lie_weights_of_its_rank(lora_once, tmp_path, monkeypatch):
    monkeypatch.setattr(averaging, "COEFFICIENTS", (0.4,))
    folder, _ = ran(averaged_config("wise", [lora_once]), tmp_path / "runs")
    parent, run = read_run(lora_once), read_run(folder)
    assert (run.status, summary(run)["averaged"]["coefficient"]) == ("finished", 0.4)
    network = best_network(run.config, folder)[0]
    start, now = network.pretrained.state_dict(), network.model.state_dict()
    tuned = best_network(parent.config, lora_once)[0].model.state_dict()
    moved = 0
    for name, tensor in now.items():
        if tensor.is_floating_point() and not name.startswith("classifier"):
            wanted = 0.6 * start[name] + 0.4 * tuned[name]
            torch.testing.assert_close(tensor, wanted, rtol=1e-4, atol=1e-6)
            moved += not torch.equal(start[name], tuned[name])
    assert moved > 10
    kept = load_file(checkpoint_path(folder, BEST))
    factors = {name: tensor for name, tensor in kept.items() if ".lora_" in name}
    assert factors.keys() == {name for name in best(lora_once) if ".lora_" in name}


def test_wise_of_a_lora_run_is_a_run_like_any_other(lora_once, tmp_path):
    folder, _ = ran(averaged_config("wise", [lora_once]), tmp_path / "runs")
    run, parent = read_run(folder), read_run(lora_once)
    curve = summary(run)["averaged"]["curve"]
    assert curve[-1]["accuracy"] == pytest.approx(parent.history.end["val_accuracy"])
    assert curve[-1]["loss"] == pytest.approx(parent.history.end["val_loss"], rel=1e-4)
    assert summary(run)["val_accuracy"] == pytest.approx(max(one["accuracy"] for one in curve))
    for format in ("safetensors", "onnx"):
        made = export_run(run, format, tmp_path / format)
        assert made.measured.evaluation.accuracy == summary(run)["test_accuracy"]
    loaded, network = (
        load_export(tmp_path / "safetensors").network,
        best_network(run.config, folder)[0],
    )
    for name, tensor in network.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)


def test_what_wise_cannot_be_made_of_is_refused(data, seeds, tmp_path):
    scratch, _ = ran(config_of(data, strategy="from_scratch", epochs=1), tmp_path / "runs")
    assert "random weights" in refusal("wise", [scratch])
    assert "name one" in refusal("wise", seeds)


# --- refusals


def refusal(how, folders):
    with pytest.raises(ConfigError) as caught:
        averaged_config(how, folders)
    return caught.value.problems["averaged"]


def test_runs_that_cannot_be_averaged_are_refused_all_at_once(data, seeds, image_folder, tmp_path):
    runs = tmp_path / "others"
    first = seeds[0].name
    others = {
        "backbone": (
            config_of(data, backbone="timm/test_vit2", weights="none", image_size=64, epochs=1),
            "its backbone is",
        ),
        "head": (
            config_of(data, head_seed=8, epochs=1),
            f"its head began with other weights than that of {first} (seed 8, not 7)",
        ),
        "seed": (config_of(data, head_seed=None, seed=3, epochs=1), "(seed 3, not 7)"),
        "size": (
            config_of(data, image_size=64, epochs=1),
            f"its images are prepared otherwise than those of {first}: image size",
        ),
        "start": (
            config_of(data, from_run=str(seeds[0]), epochs=1),
            f"it started from other weights than {first}",
        ),
        "split": (
            config_of(data, split_seed=3, epochs=1),
            f"its images, their labels or their split are not those of {first}",
        ),
        "share": (
            config_of(data, train_fraction=0.5, epochs=1),
            f"it trained on 50.0 % of the training images, not on the 100.0 % of {first}",
        ),
        "fitted": (config_of(data, strategy="linear_probe"), "its head was fitted without epochs"),
        "lora": (
            config_of(data, strategy="lora", lora_from="block7", epochs=1),
            "it keeps low-rank factors",
        ),
    }
    others["classes"] = (
        config_of(image_folder(tmp_path / "two", {"red": 14, "green": 14}), epochs=1),
        f"its classes are not those of {first}",
    )
    folders = {ran(config, runs)[0]: words for config, words in others.values()}
    said = refusal("soup", [*seeds, *folders])
    parts = dict(part.split(": ", 1) for part in said.split("; "))
    assert parts.keys() == {folder.name for folder in folders}
    for folder, words in folders.items():
        assert words in parts[folder.name]


def test_seeds_that_drew_other_shares_of_the_images_make_no_soup(data, tmp_path):
    """An ensemble of them says how many images it has seen; a soup has the settings of one of them."""
    shares = [
        ran(config_of(data, seed=seed, train_fraction=0.5, epochs=1), tmp_path)[0]
        for seed in (0, 1)
    ]
    drew = "its seed 1 drew other 50.0 % of the training images (--train-fraction) than seed 0"
    for how in ("soup", "greedy_soup"):
        assert drew in refusal(how, shares)
    assert averaged_config("wise", shares[:1]).train_fraction == 0.5
    assert averaged_config("ensemble", shares).averaged.how == "ensemble"


def test_damaged_runs_links_and_what_is_no_run_are_refused(seeds, tmp_path):
    checkpoint_path(seeds[1], BEST).write_bytes(b"nothing")
    (tmp_path / "link").symlink_to(seeds[2])
    said = refusal("soup", [seeds[0], seeds[1], tmp_path / "link", tmp_path / "nowhere"])
    assert "best.safetensors" in said
    assert "is a link, which is not followed" in said
    assert "there is no run in" in said
    checkpoint_path(seeds[1], BEST).unlink()
    assert "has no 'best' checkpoint" in refusal("soup", seeds)


def test_one_run_twice_is_no_soup(seeds):
    assert "each named once" in refusal("soup", [seeds[0], seeds[0]])
    assert "two runs or more" in refusal("soup", seeds[:1])
    with pytest.raises(
        ConfigError, match="how: must be one of soup, greedy_soup, wise, ensemble, not 'stew'"
    ):
        averaged_config("stew", seeds)


def test_strategies_are_averaged_where_one_freezes_what_the_other_does(data, seeds, tmp_path):
    deeper, _ = ran(config_of(data, strategy="full", seed=5, epochs=1), tmp_path / "others")
    config = averaged_config("soup", [*seeds, deeper])
    assert (config.strategy, config.averaged.runs[0]) == ("full", str(deeper))
    folder, _ = ran(config, tmp_path / "runs")
    names = ["blocks.0.0.conv_pw.weight", "conv_stem.weight"]
    name = next(name for name in names if name in best(folder))
    start, tuned = read_run(seeds[0]), best(deeper)[name]
    before = best_network(start.config, seeds[0])[0].model.state_dict()[name]
    torch.testing.assert_close(best(folder)[name], (3 * before + tuned) / 4, rtol=1e-5, atol=1e-7)


def test_strategies_of_which_each_trains_what_the_other_freezes_are_refused(data, seeds, tmp_path):
    first, _ = ran(config_of(data, strategy="first_block", epochs=1), tmp_path / "others")
    assert "the other way round" in refusal("soup", [seeds[0], first])


def test_images_that_have_changed_since_end_the_run_in_words(seeds, data, tmp_path):
    moved = shutil.copytree(data, tmp_path / "colours")
    parents = [
        ran(config_of(moved, seed=seed, epochs=1), tmp_path / "others")[0] for seed in range(2)
    ]
    config = averaged_config("soup", parents)
    (moved / "red" / "000.png").unlink()
    with pytest.raises(TrainingError, match="have changed since"):
        ran(config, tmp_path / "runs")


def test_a_run_that_is_gone_when_it_is_its_turn_is_named(seeds, tmp_path):
    reservation = create_run(averaged_config("soup", seeds), tmp_path / "runs")
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
        ran(averaged_config("soup", seeds), tmp_path / "runs")


def test_a_config_that_averages_what_nothing_trained_is_refused(data, seeds):
    with pytest.raises(ConfigError, match="linear_probe trains none"):
        config_of(
            data,
            strategy="linear_probe",
            averaged={"how": "soup", "runs": [str(one) for one in seeds]},
        )

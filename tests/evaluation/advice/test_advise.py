"""Advice on small data sets: real packaged networks, one of timm with random weights, and networks that fail."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from finetune_core.config import make_config
from finetune_core.data import pixels
from finetune_core.data.dataset import load_dataset
from finetune_core.data.splits import TRAIN
from finetune_core.errors import ConfigError, DataError
from finetune_core.evaluation.advice import probes
from finetune_core.evaluation.advice.advise import advise, comparison_of
from finetune_core.evaluation.advice.probes import TIMED, training_sample
from finetune_core.evaluation.advice.proposal import Proposal
from finetune_core.models.network import network_stages
from finetune_core.training import device_turn, logistic, timing
from finetune_core.training.device import choose_device
from finetune_core.training.speed_book import SpeedBook
from finetune_core.work import Step, finish
from tests.drain import drained

LITES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(device_turn, "choose_device", lambda *_: choose_device("cpu", "fp32"))
    monkeypatch.setattr(timing, "_SECONDS", 0.0)
    monkeypatch.setattr(logistic, "GRID", logistic.GRID[::4])


@pytest.fixture
def untimed(monkeypatch):
    """Every strategy takes a minute; timing each of them takes longer than the rest of a test."""

    def timed(_config, _dataset, stages):
        yield Step(0, 1, "timing")
        return (60.0,) * len(stages), dict.fromkeys(TIMED, 60.0)

    monkeypatch.setattr(probes, "_timed", timed)


def striped(root, images=24):
    """Two classes that differ in the direction of their stripes, not in their colours."""
    random = np.random.default_rng(0)
    for name in ("across", "down"):
        (root / name).mkdir(parents=True)
        for number in range(images):
            wave = 90 * np.sin(np.arange(32) * random.uniform(0.8, 1.6) + random.uniform(0, 6))
            grid = wave[:, None] if name == "across" else wave[None, :]
            noise = random.normal(0, 40, (32, 32, 3))
            Image.fromarray(np.uint8(np.clip(128 + grid[..., None] + noise, 0, 255))).save(
                root / name / f"{number:03d}.png"
            )
    return root


@pytest.fixture
def folder(tmp_path):
    return striped(tmp_path / "stripes")


def settings(folder, **changed):
    return make_config(
        {"data": str(folder), "image_size": 32, "epochs": 2, "batch_size": 8, "precision": "fp32"}
        | changed
    )


def advised(folder, *backbones, images=200, **options):
    """(steps, advice)."""
    return drained(
        advise(
            load_dataset(folder), settings(folder), backbones, images, own_sizes=False, **options
        )
    )


@pytest.mark.train
def test_three_pretrained_networks_are_probed_at_every_stage_and_ranked(folder):
    steps, advice = advised(folder, *LITES)
    assert advice.failed == ()
    assert {(one.backbone, one.stage) for one in advice.candidates} == {
        (name, stage.name) for name in LITES for stage in network_stages(name)[:-1]
    }
    training = load_dataset(folder).split_counts[TRAIN]
    assert advice.images == training
    for one in advice.candidates:
        assert one.images == training
        assert 0 <= one.ci_low < one.accuracy <= one.ci_high <= 1 or one.accuracy == 1.0
        assert one.seconds > 0
    assert all(a.accuracy >= b.accuracy for a, b in pairwise(advice.candidates))
    assert advice.candidates[0].accuracy > 0.8
    assert [set(one.forecasts) for one in advice.networks] == [set(TIMED)] * 3
    assert all(
        one.forecasts["full"] > one.forecasts["feature_extraction"] for one in advice.networks
    )
    assert len({one.backbone for one in advice.suggested}) == 2
    phases = [step.phase for step in steps if step.subject == "efficientnet_lite1 (2 of 3)"]
    assert list(dict.fromkeys(phases)) == ["features", "probe", "timing"]
    # decoded once for all
    assert {step.phase for step in steps} == {"decode", "features", "probe", "timing"}


def test_validation_and_test_images_are_never_touched(folder, monkeypatch):
    read = []
    for module in (pixels, timing):
        real = module.read_square
        monkeypatch.setattr(
            module,
            "read_square",
            lambda path, *rest, real=real: read.append(path) or real(path, *rest),
        )
    _, advice = advised(folder, LITES[0])
    table = load_dataset(folder).table
    training = table[table["split"] == TRAIN]
    assert {path.relative_to(folder).as_posix() for path in read} == set(training["id"])
    assert set(advice.networks[0].ids) == set(training["id"])


def test_a_probe_never_sees_the_image_that_it_is_asked_about(folder, untimed):
    table = load_dataset(folder).table
    # nothing left that could be learned, but a thousand features to learn it by heart with
    for path in folder.rglob("*.png"):
        noise = np.random.default_rng(int(path.stem) + 100 * (path.parent.name == "down")).integers(
            0, 255, (32, 32, 3)
        )
        Image.fromarray(np.uint8(noise)).save(path)
    assert len(table) > 40
    _, advice = advised(folder, LITES[0])
    assert np.mean([one.accuracy for one in advice.candidates]) < 0.75
    assert all(one.ci_low < 0.75 for one in advice.candidates)


def test_the_sample_is_stratified_seeded_and_no_larger_than_asked_for(image_folder, tmp_path):
    dataset = load_dataset(image_folder(tmp_path / "images", {"red": 60, "blue": 30, "green": 12}))
    some, again, other = (training_sample(dataset, 30, seed).table for seed in (0, 0, 1))
    assert set(some["split"]) == {TRAIN}
    assert some["id"].tolist() == again["id"].tolist() != other["id"].tolist()
    whole = dataset.table[dataset.table["split"] == TRAIN]["class"].value_counts()
    counts = some["class"].value_counts()
    assert all(abs(counts[name] - 30 * whole[name] / whole.sum()) <= 1 for name in whole.index)
    assert len(some) <= 30
    assert len(training_sample(dataset, 20, 0).table) <= 20
    assert len(training_sample(dataset, 5_000, 0).table) == whole.sum()


def test_only_so_many_images_are_probed(folder, untimed):
    _, advice = advised(folder, LITES[0], images=20)
    assert advice.images == 20
    assert {one.images for one in advice.candidates} == {20}


def test_a_network_that_fails_is_named_with_its_reason_and_ends_no_other(
    folder, untimed, monkeypatch, tmp_path
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def refused(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("urllib.request.urlopen", refused)
    _, advice = advised(folder, "resnet18", "nonsense", LITES[0])
    reasons = {one.backbone: one.reason for one in advice.failed}
    assert "could not be downloaded" in reasons["resnet18"]
    assert "there is no backbone 'nonsense'" in reasons["nonsense"]
    assert set(reasons) == {"resnet18", "nonsense"}
    assert {one.backbone for one in advice.candidates} == {LITES[0]}
    assert [one.backbone for one in advice.suggested] == [LITES[0]]


def test_a_size_that_one_network_cannot_take_ends_no_other_and_downloads_nothing(
    folder, untimed, monkeypatch
):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("downloaded"))
    _, advice = advised(folder, "vit_b_16", LITES[0])
    (failed,) = advice.failed
    assert failed.reason == "vit_b_16 cannot take images of 32 × 32 pixels; 224 works"
    assert {one.backbone for one in advice.candidates} == {LITES[0]}


def test_each_network_gets_images_of_its_own_size_unless_one_is_named(folder, untimed):
    base = settings(folder)
    sizes = [
        finish(advise(load_dataset(folder), base, [LITES[0]], 20, own_sizes=own))
        .networks[0]
        .image_size
        for own in (False, True)
    ]
    assert sizes == [32, 224]


def test_what_was_timed_is_not_timed_again(folder, monkeypatch):
    advised(folder, LITES[0])
    before = SpeedBook().speed(settings(folder))
    monkeypatch.setattr(timing, "_measure", lambda *_: pytest.fail("timed again"))
    _, advice = advised(folder, LITES[0])
    assert before is not None
    assert advice.candidates[0].seconds > 0


def test_it_waits_for_its_turn_on_the_device_and_stops_meanwhile(folder, device_held):
    _process, _line = device_held("cpu")
    work = advise(load_dataset(folder), settings(folder), [LITES[0]], 40, own_sizes=False)
    assert next(step for step in work if step.phase == "device").subject == LITES[0]
    work.close()
    assert SpeedBook().speed(settings(folder)) is None


@pytest.mark.parametrize(
    ("images", "budget", "field"),
    [(19, 30, "images"), (5_001, 30, "images"), (100, 0, "budget"), (100, np.inf, "budget")],
)
def test_numbers_out_of_bounds_are_refused(folder, images, budget, field):
    with pytest.raises(ConfigError) as refused:
        advised(folder, LITES[0], images=images, budget=budget)
    assert list(refused.value.problems) == [field]


def test_nothing_to_probe_is_refused(folder, image_folder, tmp_path):
    with pytest.raises(ConfigError, match="name at least one"):
        advised(folder)
    with pytest.raises(DataError, match="only one class"):
        advised(image_folder(tmp_path / "one", {"red": 20}), LITES[0])


def test_the_proposals_become_one_comparison_with_their_linear_probes(folder, untimed):
    base = settings(
        folder,
        strategy="full",
        from_run="/runs/earlier",
        interpolation="bicubic",
        learning_rate=3e-4,
    )
    advice = finish(advise(load_dataset(folder), base, LITES[:2], 40, own_sizes=False))
    configs = comparison_of(advice.suggested, base, [0, 1])
    assert {(one.backbone, one.strategy, one.seed) for one in configs} == {
        (name, strategy, seed)
        for name in LITES[:2]
        for strategy in ("last_block", "linear_probe")
        for seed in (0, 1)
    }
    changed = {
        (one.starts_from, one.learning_rate, one.image_size, one.interpolation) for one in configs
    }
    assert changed == {("pretrained", 3e-4, 32, "auto")}


@pytest.mark.parametrize(
    "own",
    [
        {"strategy": "linear_probe", "features_from": "layer2"},
        {"strategy": "custom", "cut": "layer2"},
        {"strategy": "custom", "stage_rates": {"layer2": 1.0, "head": 1.0}},
    ],
)
def test_settings_of_a_strategy_do_not_stand_against_another_network(folder, untimed, own):
    base = settings(folder, backbone="resnet18", **own)
    advice = finish(advise(load_dataset(folder), base, LITES[:1], 40, own_sizes=False))
    assert advice.failed == ()
    configs = comparison_of(advice.suggested, base, [0])
    assert {(one.strategy, one.cut, one.stage_rates, one.features_from) for one in configs} == {
        (strategy, None, None, None) for strategy in ("last_block", "linear_probe")
    }


def test_a_network_whose_head_is_a_convolution_is_compared_with_its_linear_probe_too(folder):
    suggested = Proposal("squeezenet1_1", 64, "last_block", "probe", "The best probe.", None)
    configs = comparison_of([suggested], settings(folder), [0])
    assert {one.strategy for one in configs} == {"last_block", "linear_probe"}

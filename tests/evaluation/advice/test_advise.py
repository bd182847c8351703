"""Advice on small data sets: tiny networks, a pretrained one, and networks that fail."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from finetune_core.data import pixels
from finetune_core.data.dataset import load_dataset
from finetune_core.data.splits import TRAIN
from finetune_core.errors import ConfigError, DataError
from finetune_core.evaluation.advice import probes
from finetune_core.evaluation.advice.advise import advise, make_comparison_configs
from finetune_core.evaluation.advice.probes import TIMED, sample_training_images
from finetune_core.evaluation.advice.proposal import Proposal
from finetune_core.models.network import network_stages
from finetune_core.training.devices import turn as device_turn
from finetune_core.training.devices.device import choose_device
from finetune_core.training.devices.speed_book import SpeedBook
from finetune_core.training.forecast import timing
from finetune_core.training.heads import logistic
from finetune_core.work import Step, finish
from tests.drain import drain
from tests.factories import shared_images, tiny_config, tiny_folder

PRETRAINED = "efficientnet_lite0"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(device_turn, "choose_device", lambda *_: choose_device("cpu", "fp32"))
    monkeypatch.setattr(timing, "_SECONDS", 0.0)
    monkeypatch.setattr(logistic, "GRID", logistic.GRID[len(logistic.GRID) // 2 :][:1])


@pytest.fixture
def untimed(monkeypatch):
    """Replace timing, which takes longer than the rest of a test, by one minute per strategy."""

    def timed(_config, _dataset, stages):
        yield Step(0, 1, "timing")
        return (60.0,) * len(stages), dict.fromkeys(TIMED, 60.0)

    monkeypatch.setattr(probes, "_forecast_training", timed)


def write_stripes(root, images=24):
    """Write two classes that differ in the direction of their stripes, not in their colours."""
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
def folder():
    return shared_images(red=24, blue=24)


def settings(folder, **changed):
    return tiny_config(folder, batch_size=8, **changed)


def advise_on(folder, *backbones, images=200, base=None, **options):
    """Return (steps, advice)."""
    base = base or settings(folder)
    work = advise(load_dataset(folder), base, backbones, images, own_sizes=False, **options)
    return drain(work)


@pytest.mark.train
def test_networks_are_probed_at_every_stage_and_ranked(tmp_path):
    folder = write_stripes(tmp_path / "stripes")
    names = (PRETRAINED, tiny_folder(), tiny_folder("test_vit"))
    steps, advice = advise_on(folder, *names)
    assert advice.failed == ()
    assert {(one.backbone, one.stage) for one in advice.candidates} == {
        (name, stage.name) for name in names for stage in network_stages(name)[:-1]
    }
    assert {advice.images} == {one.images for one in advice.candidates}
    assert advice.images == load_dataset(folder).split_counts[TRAIN]
    for one in advice.candidates:
        assert 0 <= one.ci_low < one.accuracy <= one.ci_high <= 1 or one.accuracy == 1.0
        assert one.seconds > 0
    assert all(a.accuracy >= b.accuracy for a, b in pairwise(advice.candidates))
    best = next(one for one in advice.candidates if one.backbone == PRETRAINED)
    assert best.accuracy > 0.8
    assert [set(one.forecasts) for one in advice.networks] == [set(TIMED)] * 3
    forecasts = advice.networks[0].forecasts
    assert forecasts["full"] > forecasts["feature_extraction"]
    assert len({one.backbone for one in advice.suggested}) == 2
    phases = dict.fromkeys(step.phase for step in steps if "(2 of 3)" in (step.subject or ""))
    assert [*phases][-3:] == ["features", "probe", "timing"]
    assert {step.phase for step in steps} == {"decode", "features", "probe", "timing"}


@pytest.mark.train
def test_validation_and_test_images_are_never_touched_and_timing_is_kept(folder, monkeypatch):
    read = []
    for module in (pixels, timing):
        real = module.read_square
        monkeypatch.setattr(
            module,
            "read_square",
            lambda path, *rest, real=real: read.append(path) or real(path, *rest),
        )
    network = tiny_folder()
    _, advice = advise_on(folder, network)
    table = load_dataset(folder).table
    training = table[table["split"] == TRAIN]
    assert {path.relative_to(folder).as_posix() for path in read} == set(training["id"])
    assert set(advice.networks[0].ids) == set(training["id"])
    timed = settings(folder, backbone=network)
    assert SpeedBook().get_speed(timed) is not None
    monkeypatch.setattr(timing, "_measure", lambda *_: pytest.fail("timed again"))
    assert advise_on(folder, network)[1].candidates[0].seconds > 0


@pytest.mark.train
def test_a_probe_never_sees_the_image_that_it_is_asked_about(tmp_path, untimed):
    """Noise has nothing to learn, but there are enough features to memorise it."""
    random = np.random.default_rng(0)
    for number in range(48):
        target = tmp_path / "noise" / ("across", "down")[number % 2] / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(target)
    _, advice = advise_on(tmp_path / "noise", tiny_folder())
    assert np.mean([one.accuracy for one in advice.candidates]) < 0.75
    assert all(one.ci_low < 0.75 for one in advice.candidates)


def test_the_sample_is_stratified_seeded_and_no_larger_than_asked_for():
    dataset = load_dataset(shared_images(red=60, blue=30, green=12))
    some, again, other = (sample_training_images(dataset, 30, seed).table for seed in (0, 0, 1))
    assert set(some["split"]) == {TRAIN}
    assert some["id"].tolist() == again["id"].tolist() != other["id"].tolist()
    whole = dataset.table[dataset.table["split"] == TRAIN]["class"].value_counts()
    counts = some["class"].value_counts()
    assert all(abs(counts[name] - 30 * whole[name] / whole.sum()) <= 1 for name in whole.index)
    assert len(some) <= 30
    assert len(sample_training_images(dataset, 20, 0).table) <= 20
    assert len(sample_training_images(dataset, 5_000, 0).table) == whole.sum()


@pytest.mark.train
def test_networks_that_fail_are_named_with_their_reasons_and_end_no_other(
    folder, untimed, monkeypatch, tmp_path
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def refuse(request, *_, **__):
        assert "vit_b_16" not in str(request)
        raise OSError("no route")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    network = tiny_folder()
    _, advice = advise_on(folder, "resnet18", "nonsense", "vit_b_16", network, images=20)
    reasons = {one.backbone: one.reason for one in advice.failed}
    assert set(reasons) == {"resnet18", "nonsense", "vit_b_16"}
    assert "could not be downloaded" in reasons["resnet18"]
    assert "there is no backbone 'nonsense'" in reasons["nonsense"]
    assert reasons["vit_b_16"] == "vit_b_16 cannot take images of 32 × 32 pixels; 224 works"
    assert {one.backbone for one in advice.candidates} == {network}
    assert [one.backbone for one in advice.suggested] == [network]
    # no more images than asked for
    assert (advice.images, {one.images for one in advice.candidates}) == (20, {20})


@pytest.mark.train
def test_each_network_gets_images_of_its_own_size_unless_one_is_named(folder, untimed):
    base, dataset = settings(folder), load_dataset(folder)
    works = [advise(dataset, base, [tiny_folder()], 20, own_sizes=own) for own in (False, True)]
    assert [finish(work).networks[0].image_size for work in works] == [32, 160]


@pytest.mark.processes
def test_it_waits_for_its_turn_on_the_device_and_stops_meanwhile(folder, hold_device):
    hold_device("cpu")
    work = advise(load_dataset(folder), settings(folder), [tiny_folder()], 40, own_sizes=False)
    assert next(step for step in work if step.phase == "device").subject == tiny_folder()
    work.close()
    assert SpeedBook().get_speed(settings(folder, backbone=tiny_folder())) is None


@pytest.mark.parametrize(
    ("images", "budget", "field"),
    [(19, 30, "images"), (5_001, 30, "images"), (100, 0, "budget"), (100, np.inf, "budget")],
)
def test_numbers_out_of_bounds_are_refused(folder, images, budget, field):
    with pytest.raises(ConfigError) as refused:
        advise_on(folder, tiny_folder(), images=images, budget=budget)
    assert list(refused.value.problems) == [field]


def test_nothing_to_probe_is_refused(folder):
    with pytest.raises(ConfigError, match="name at least one"):
        advise_on(folder)
    with pytest.raises(DataError, match="only one class"):
        advise_on(shared_images(red=20), tiny_folder())


def suggest(*names):
    return [Proposal(name, 32, "last_block", "probe", "The best probe.", None) for name in names]


def test_the_proposals_become_one_comparison_with_their_linear_probes(folder):
    names = (PRETRAINED, "resnet18")
    changed = {"strategy": "full", "interpolation": "bicubic", "learning_rate": 3e-4}
    base = settings(folder, from_run="/runs/earlier", **changed)
    configs = make_comparison_configs(suggest(*names), base, [0, 1])
    assert {(one.backbone, one.strategy, one.seed) for one in configs} == {
        (name, strategy, seed)
        for name in names
        for strategy, seed in (("last_block", 0), ("last_block", 1), ("linear_probe", 0))
    }
    found = {
        (one.initial_weights, one.learning_rate, one.image_size, one.interpolation)
        for one in configs
    }
    assert found == {("pretrained", 3e-4, 32, "auto")}


@pytest.mark.train
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
    _, advice = advise_on(folder, tiny_folder("test_vit"), base=base, images=20)
    assert advice.failed == ()
    configs = make_comparison_configs(advice.suggested, base, [0])
    assert {(one.strategy, one.cut, one.stage_rates, one.features_from) for one in configs} == {
        (strategy, None, None, None) for strategy in ("last_block", "linear_probe")
    }


def test_a_network_whose_head_is_a_convolution_is_compared_with_its_linear_probe_too(folder):
    configs = make_comparison_configs(
        suggest("squeezenet1_1"), settings(folder, image_size=64), [0]
    )
    assert {one.strategy for one in configs} == {"last_block", "linear_probe"}

"""Batches of which the last ranks get no image: they train what one rank does, whatever holds the images."""

import functools
from itertools import count

import numpy as np
import pytest

from finetune_core.config import make_config
from finetune_core.training import events
from finetune_core.training.loop import StopRequested, fit
from finetune_core.training.ranks import Ranks
from finetune_core.training.strategies import STRATEGIES
from tests.training.equal import check_equal
from tests.training.rank_program import Task, trained_together

IMAGES = {"red": 7, "blue": 5, "green": 4}
TRAINING = 11  # of these images
NOTHING_KEPT = {"THAW_CACHE_MEMORY_GB": "0", "THAW_CACHE_DISK_GB": "0"}
# With SGD: Adam takes a whole step along a gradient that is nothing but rounding.
USUAL = {
    "backbone": "timm/test_vit",
    "weights": "none",
    "image_size": 32,
    "optimizer": "sgd",
    "learning_rate": 1e-2,
    "precision": "fp32",
    "epochs": 1,
    "batch_size": 4,
}
MORE_SETTINGS = {
    "custom": {"cut": "block3"},
    "full": {"ema": 0.9, "class_weights": "balanced", "clip_norm": 0.5},
    "first_block": {"mixup": 0.4, "cutmix": 1.0},
    "last_block": {"augmentation": "random_resized_crop", "views": 2},
    "bias_only": {"augmentation": "random_resized_crop"},
    "gradual_unfreezing": {"epochs": 9},
    "linear_probe_then_full": {"epochs": 2},
    "discriminative": {"sampling": "balanced", "augmentation": "flips"},
}
STORAGE = {
    "cached": {},
    "uncached": {"cache": "off"},
    "decoded anew": {"cache": "off", "environment": NOTHING_KEPT},
    "on the device": {"room": 2**30},
    "pixels on the device": {"cache": "off", "room": 2**30},
}
WITH_STEPS = [name for name, strategy in STRATEGIES.items() if not strategy.fits]


def cases():
    """Name -> (settings, storage) of every run that is compared with one rank's."""
    found = {
        f"{strategy}, {storage}": ({"strategy": strategy}, how)
        for strategy in WITH_STEPS
        for storage, how in STORAGE.items()
    }
    for size in (1, 2, 3):
        for strategy in ("last_block", "full", "lora"):
            for storage in ("cached", "uncached", "decoded anew"):
                name = f"{strategy}, {storage}, batches of {size}"
                found[name] = ({"strategy": strategy, "batch_size": size}, STORAGE[storage])
    return found


CASES = cases()
_STORAGES = list(STORAGE)
SAMPLE = [
    *(f"{name}, {_STORAGES[place % len(STORAGE)]}" for place, name in enumerate(WITH_STEPS)),
    *(name for name in CASES if name.startswith("full") and "batches" in name),
]
WORLDS = (2, 3)


@pytest.fixture(scope="module")
def data(image_folder_once, tmp_path_factory):
    return str(image_folder_once(tmp_path_factory.mktemp("images"), IMAGES))


@pytest.fixture(scope="module")
def task_of(data, tmp_path_factory):
    """Makes a task, in a run directory of its own, from settings and how rows are stored."""
    numbers = count()

    def make(settings, how):
        base = tmp_path_factory.mktemp(f"run-{next(numbers)}")
        more = MORE_SETTINGS.get(settings["strategy"], {})
        how = dict(how)
        cache = {"cache": how.pop("cache")} if "cache" in how else {}
        return Task(make_config({"data": data} | USUAL | more | settings | cache), base, **how)

    return make


@pytest.fixture(scope="module")
def together(task_of, tmp_path_factory):
    """Trains cases on ranks, all of them at once; returns name -> (task, events)."""

    @functools.cache
    def train(ranks, names):
        tasks = {name: task_of(*CASES[name]) for name in names}
        found = trained_together(ranks, tmp_path_factory.mktemp("home"), tasks)
        return {name: (task, found[name]) for name, task in tasks.items()}

    return train


@pytest.fixture(scope="module")
def alone(task_of):
    """Trains on one rank, once for equal settings."""
    found = {}

    def train(settings):
        key = tuple(sorted(settings.items()))
        if key not in found:
            task = task_of(settings, {})
            found[key] = task.folder, list(fit(task.config, task.folder))
        return found[key]

    return train


def of_kind(kind, found):
    return [event for event in found if isinstance(event, kind)]


def check_one_rank(ranks, name, runs, alone):
    """Check that ranks have trained what one rank does: the same images, weights, predictions."""
    task, found = runs[name]
    folder, expected = alone(CASES[name][0])
    assert of_kind(events.RunStarted, found)[0].ranks == ranks
    assert [event.images for event in of_kind(events.StepEnded, found)] == [
        event.images for event in of_kind(events.StepEnded, expected)
    ]
    check_equal(task.folder, folder)


@pytest.mark.processes
@pytest.mark.parametrize("ranks", WORLDS)
@pytest.mark.parametrize("name", SAMPLE)
def test_ranks_without_an_image_train_what_one_rank_does(ranks, name, together, alone):
    check_one_rank(ranks, name, together(ranks, tuple(SAMPLE)), alone)


@pytest.mark.exhaustive
@pytest.mark.parametrize("ranks", WORLDS)
@pytest.mark.parametrize("name", CASES)
def test_in_every_case_ranks_without_an_image_train_what_one_rank_does(
    ranks, name, together, alone
):
    check_one_rank(ranks, name, together(ranks, tuple(CASES)), alone)


@pytest.mark.processes
def test_a_run_goes_on_with_a_batch_of_which_the_second_rank_has_nothing(
    task_of, alone, tmp_path_factory
):
    tasks = {}
    for strategy in ("feature_extraction", "full", "lora"):
        for storage in ("cached", "uncached", "decoded anew"):
            task = task_of({"strategy": strategy}, STORAGE[storage])
            stream = fit(task.config, task.folder)
            next(
                event for event in stream if isinstance(event, events.StepEnded) and event.step == 2
            )
            assert isinstance(stream.throw(StopRequested()), events.RunStopped)
            tasks[f"{strategy}, {storage}"] = Task(
                task.config, task.folder, resume=True, environment=task.environment
            )
    found = trained_together(2, tmp_path_factory.mktemp("home"), tasks)
    for name, task in tasks.items():
        assert of_kind(events.RunResumed, found[name]) == [events.RunResumed(1, 2)]
        check_equal(task.folder, alone({"strategy": name.split(",")[0]})[0])


@pytest.mark.processes
def test_batchnorm_trains_where_a_rank_has_no_image(task_of, tmp_path_factory):
    settings = {"strategy": "full", "backbone": "timm/test_resnet"}
    tasks = {name: task_of(settings, STORAGE[name]) for name in ("uncached", "decoded anew")}
    found = trained_together(3, tmp_path_factory.mktemp("home"), tasks)
    for name in tasks:
        assert of_kind(events.RunStarted, found[name])[0].batchnorm == "per_rank"
        assert isinstance(found[name][-1], events.RunFinished)
        assert np.isfinite([event.loss for event in of_kind(events.StepEnded, found[name])]).all()


def test_the_batches_leave_ranks_with_none_one_and_two_images():
    sizes = {size for batch in (1, 2, 3, 4) for size in (batch, TRAINING % batch) if size}
    for world in WORLDS:
        shares = {
            len(range(size)[Ranks(rank, world).share(size)])
            for size in sizes
            for rank in range(world)
        }
        assert {0, 1, 2} <= shares

"""Tests that several ranks train as one does: to rounding, with the same images and events."""

import functools
import os
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from finetune_core.data.threads import count_usable_cores
from finetune_core.errors import ConfigError
from finetune_core.runs.lines import EventLines
from finetune_core.runs.record import EVENTS_FILE
from finetune_core.training import events
from finetune_core.training.devices.ranks import (
    ALONE,
    RankLost,
    Ranks,
    max_devices,
    read_torchrun_ranks,
    rendezvous_file,
    select_device,
)
from finetune_core.training.loop import StopRequested, fit
from finetune_core.training.predictions import load_predictions
from finetune_core.training.prepare import check_devices
from finetune_core.training.strategies.catalogue import STRATEGIES
from tests.factories import image_folder, shared_images, tiny_config, trained_run
from tests.training.equal import check_equal
from tests.training.rank_program import GONE, Task, train_together

# Adam takes a whole step along a gradient that is nothing but rounding, as that of an attention's
# key bias.
SGD = {"optimizer": "sgd", "learning_rate": 1e-2}
# BatchNorm trains on the statistics of each rank: what is to be equal trains none.
LAYERNORM = {"backbone": "timm/test_vit", "weights": "none"} | SGD
FULL = LAYERNORM | {"strategy": "full"}
BALANCED = {"class_weights": "balanced"}
AUGMENTED = {"augmentation": "random_resized_crop", "views": 2}
# Batches of 10, 10 and 11 images, which two ranks cannot halve.
ON_TWO = {
    "feature extraction, Adam": {"strategy": "feature_extraction"},
    "BatchNorm frozen": SGD | {"strategy": "last_block", "batchnorm": "frozen"},
    "norms, AdamW": LAYERNORM
    | {"strategy": "batchnorm_only", "optimizer": "adamw", "learning_rate": 1e-3},
    "gradual": LAYERNORM | {"strategy": "gradual_unfreezing", "epochs": 9},
    "full": FULL,
    "mixed": FULL | BALANCED | {"mixup": 0.4, "cutmix": 1.0},
    "probe first": LAYERNORM | AUGMENTED | {"initial_head": "probe"},
    "balanced, augmented": LAYERNORM | AUGMENTED | {"sampling": "balanced"},
    "a part at a time": FULL | {"micro_batch": 3, "label_smoothing": 0.1, "l2_sp": 0.01},
}
# Batches of 4, 4 and 3 images, and smaller ones, of which the last of three ranks gets none.
STRATEGY_SETTINGS = {
    "custom": {"cut": "block3"},
    "full": BALANCED | {"ema": 0.9, "clip_norm": 0.5},
    "first_block": {"mixup": 0.4, "cutmix": 1.0},
    "last_block": AUGMENTED,
    "bias_only": {"augmentation": "random_resized_crop"},
    "gradual_unfreezing": {"epochs": 9},
    "linear_probe_then_full": {"epochs": 2},
    "discriminative": {"sampling": "balanced", "augmentation": "flips"},
}
NOTHING_KEPT = {"THAW_CACHE_MEMORY_GB": "0", "THAW_CACHE_DISK_GB": "0"}
STORAGE = {
    "cached": {},
    "uncached": {"cache": "off"},
    "decoded anew": {"cache": "off", "environment": NOTHING_KEPT},
    "on the device": {"room": 2**30},
    "pixels on the device": {"cache": "off", "room": 2**30},
}
WITH_STEPS = [name for name, strategy in STRATEGIES.items() if not strategy.fits]
CASES = {name: (2, name) for name in ON_TWO} | {
    f"{strategy}, {storage}, batches of {size}, {ranks} ranks": (ranks, strategy, storage, size)
    for strategy in WITH_STEPS
    for storage in STORAGE
    for size in (4, 3, 2, 1)
    for ranks in (2, 3)
    if size == 4 or strategy in ("last_block", "full", "lora")
}
JOURNEY = ["full"]
SAMPLE = [
    *(name for name in ON_TWO if name not in JOURNEY),
    "feature_extraction, cached, batches of 4, 3 ranks",
    "last_two_blocks, uncached, batches of 4, 3 ranks",
    "discriminative, decoded anew, batches of 4, 3 ranks",
    "bias_only, on the device, batches of 4, 3 ranks",
    "linear_probe_then_full, pixels on the device, batches of 4, 3 ranks",
    "last_block, decoded anew, batches of 3, 3 ranks",
    "lora, uncached, batches of 2, 3 ranks",
    "full, cached, batches of 1, 3 ranks",
]
EVERYTHING_ELSE = [name for name in CASES if name not in (*JOURNEY, *SAMPLE)]


def marks_of(name):
    if name in EVERYTHING_ELSE:
        return pytest.mark.exhaustive
    return [pytest.mark.processes] + [pytest.mark.journey] * (name in JOURNEY)


def small_config(**settings):
    """Return a config on 31 training images."""
    return tiny_config(shared_images(red=20, blue=13, green=12), batch_size=10, **settings)


def few_config(strategy, batch_size=4, **settings):
    """Return a config on 11 training images."""
    more = {"epochs": 1} | STRATEGY_SETTINGS.get(strategy, {}) | settings
    data = shared_images(red=7, blue=5, green=4)
    return tiny_config(data, **LAYERNORM | more, strategy=strategy, batch_size=batch_size)


def make_config(name, **settings):
    """Return the config of a case, without how its rows are stored."""
    if name in ON_TWO:
        return small_config(**ON_TWO[name])
    _, strategy, _, size = CASES[name]
    return few_config(strategy, size, **settings)


@pytest.fixture(scope="module")
def new_task(tmp_path_factory):
    """Make a task with a run directory of its own."""

    def make(config, **how):
        return Task(config, tmp_path_factory.mktemp("run"), **how)

    return make


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return lambda ranks, tasks: train_together(ranks, tmp_path_factory.mktemp("home"), tasks)


@pytest.fixture(scope="module")
def together(new_task, train):
    """Return a function that trains the cases of a group on as many ranks.

    It takes (group, ranks) and returns (task, events) by name.
    """

    def make(name):
        how = {} if name in ON_TWO else dict(STORAGE[CASES[name][2]])
        cache = {"cache": how.pop("cache")} if "cache" in how else {}
        return new_task(make_config(name, **cache), **how)

    @functools.cache
    def train_group(names, ranks):
        tasks = {name: make(name) for name in names if CASES[name][0] == ranks}
        found = train(ranks, tasks)
        return {name: (task, found[name]) for name, task in tasks.items()}

    return train_group


def of_kind(kind, found):
    return [event for event in found if isinstance(event, kind)]


EXACT = {
    "StepEnded": ("epoch", "step", "images", "epoch_accuracy", "learning_rate"),
    "EpochEnded": ("epoch", "train_accuracy", "val_accuracy", "val_scores"),
    "RunFinished": ("best_epoch", "test_accuracy"),
}
ROUNDED = {"StepEnded": ("loss", "gradient_norm"), "EpochEnded": ("train_loss", "val_loss")}


def values(rows, kind, field):
    return [row[field] for row in rows if row["event"] == kind]


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in CASES])
def test_ranks_train_what_one_rank_does(name, together):
    group = next(names for names in (JOURNEY, SAMPLE, EVERYTHING_ELSE) if name in names)
    task, found = together(tuple(group), CASES[name][0])[name]
    alone = trained_run(make_config(name)).run_dir
    check_equal(task.folder, alone)
    ours = [event.to_json() for event in found]
    theirs = EventLines(alone / EVENTS_FILE).read_new()
    for kind, fields in EXACT.items():
        for field in fields:
            assert values(ours, kind, field) == values(theirs, kind, field), field
    for kind, fields in ROUNDED.items():
        for field in fields:
            expected = pytest.approx(values(theirs, kind, field), abs=1e-4)
            assert values(ours, kind, field) == expected, field
    started = of_kind(events.RunStarted, found)[0]
    assert (started.ranks, started.batchnorm) == (CASES[name][0], "")


def test_every_strategy_with_steps_is_tried_on_ranks_without_an_image():
    assert {case[1] for name, case in CASES.items() if name not in ON_TWO} == set(WITH_STEPS)
    sizes = {size for batch in (1, 2, 3, 4) for size in (batch, 11 % batch) if size}
    for world in (2, 3):
        shares = {
            len(range(size)[Ranks(rank, world).batch_slice(size)])
            for size in sizes
            for rank in range(world)
        }
        assert {0, 1, 2} <= shares


@pytest.fixture(scope="module")
def disturbed(new_task, train):
    """Return, by name, the tasks of runs that two ranks resumed or paused."""
    config = small_config(**FULL, ema=0.9)
    tasks = {
        "resumed": new_task(config, resume=True),
        "paused": new_task(config, pause_after=5),
    }
    stop_after(4, tasks["resumed"])
    assert train(2, tasks)["paused"][-1].paused
    return tasks


def stop_after(steps, task):
    """Train so many steps of a task's run on one rank, and stop it."""
    stream, done = fit(task.config, task.folder), 0
    for event in stream:
        done += isinstance(event, events.StepEnded)
        if done == steps:
            assert isinstance(stream.throw(StopRequested()), events.RunStopped)
            break


def check_whole(task):
    """Check that a disturbed run equals an undisturbed one."""
    check_equal(task.folder, trained_run(task.config).run_dir)


@pytest.mark.processes
def test_a_run_of_one_goes_on_with_two(disturbed):
    check_whole(disturbed["resumed"])


@pytest.mark.processes
def test_a_run_of_two_that_was_paused_goes_on_alone(disturbed):
    task = disturbed["paused"]
    assert events.RunResumed(2, 2) in list(fit(task.config, task.folder, resume=True))
    check_whole(task)


@pytest.mark.processes
def test_a_run_of_two_of_which_one_was_killed_goes_on_alone_or_with_three(
    new_task, train, tmp_path
):
    task = new_task(small_config(**FULL, ema=0.9), killed_at=5)
    first, second = train(2, {"killed": task})["killed"]
    assert "Another process of the run has ended" in first
    assert second == GONE
    three = Task(task.config, Path(shutil.copytree(task.folder, tmp_path / "run")), resume=True)
    assert events.RunResumed(2, 0) in list(fit(task.config, task.folder, resume=True))
    assert events.RunResumed(2, 0) in train(3, {"three": three})["three"]
    check_whole(task)
    check_whole(three)


@pytest.mark.processes
def test_a_run_goes_on_with_a_batch_of_which_the_second_rank_has_nothing(new_task, train):
    tasks = {}
    for strategy, storage in (("feature_extraction", "cached"), ("lora", "decoded anew")):
        how = {"environment": NOTHING_KEPT} if storage == "decoded anew" else {}
        tasks[strategy] = new_task(few_config(strategy), resume=True, **how)
        stop_after(2, tasks[strategy])
    found = train(2, tasks)
    for name, task in tasks.items():
        assert of_kind(events.RunResumed, found[name]) == [events.RunResumed(1, 2)]
        check_whole(task)


@pytest.mark.processes
def test_batchnorm_trains_on_the_statistics_of_each_rank_with_images(new_task, train):
    config = tiny_config(shared_images(red=7, blue=5, green=4), strategy="full", batch_size=4)
    tasks = {
        storage: new_task(config, environment=STORAGE[storage].get("environment", {}))
        for storage in ("uncached", "decoded anew")
    }
    found = train(3, tasks)
    for name, task in tasks.items():
        assert of_kind(events.RunStarted, found[name])[0].batchnorm == "per_rank"
        assert isinstance(found[name][-1], events.RunFinished)
        assert np.isfinite([event.loss for event in of_kind(events.StepEnded, found[name])]).all()
        assert load_predictions(task.folder)["id"].is_unique


@pytest.fixture(scope="module")
def troubled(new_task, train, tmp_path_factory):
    """Return tasks and reports, by name, of runs of two ranks in which something goes wrong."""
    folder = tmp_path_factory.mktemp("vanishing")
    data = image_folder(folder, {"red": 14, "blue": 14, "green": 14})
    reading = tiny_config(data, **FULL, batch_size=10, skip_limit=0.2, cache="off", epochs=3)
    gone = tuple(sorted(data.rglob("*.png"))[::20])
    tasks = {
        "little memory": new_task(small_config(**FULL), memory=2, environment=NOTHING_KEPT),
        "lost": new_task(reading, gone=gone, environment=NOTHING_KEPT),
        "diverging": new_task(small_config(**FULL), not_finite=True),
    }
    return tasks, train(2, tasks)


@pytest.mark.processes
def test_where_one_rank_is_short_of_memory_all_take_smaller_parts(troubled):
    tasks, found = troubled
    check_whole(tasks["little memory"])
    short = of_kind(events.MemoryShort, found["little memory"])
    assert [event.micro_batch for event in short] == [2]
    assert {event.micro_batch for event in of_kind(events.StepEnded, found["little memory"])} == {2}


@pytest.mark.processes
def test_an_image_that_is_lost_is_named_once_whichever_rank_misses_it(troubled):
    tasks, found = troubled
    lost = of_kind(events.ImagesLost, found["lost"])
    assert lost[-1].count == len(tasks["lost"].gone) == 3
    assert sorted(lost[-1].examples) == sorted(set(lost[-1].examples))
    assert isinstance(found["lost"][-1], events.RunFinished)
    steps = of_kind(events.StepEnded, found["lost"])
    assert all(before.images <= after.images for before, after in pairwise(steps))


@pytest.mark.processes
def test_a_loss_that_is_not_finite_on_one_rank_ends_all_with_the_reason(troubled):
    _, found = troubled
    assert len(found["diverging"]) == 2
    assert all("not finite" in reason for reason in found["diverging"])


@pytest.mark.processes
def test_a_rank_without_memory_for_the_sum_ends_all_at_once(new_task, train):
    task = new_task(small_config(**FULL), sum_without_memory=True)
    first, second = train(2, {"run": task})["run"]
    assert "Another process of the run has ended" in first
    assert "gloo" in first  # the reason
    assert "not enough memory for the optimizer's step" in second


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 16, 33])
def test_shares_are_the_batch_in_its_order_and_nobody_has_a_single_image_of_several(world, count):
    shares = [np.arange(count)[Ranks(rank, world).batch_slice(count)] for rank in range(world)]
    assert np.concatenate(shares).tolist() == list(range(count))
    sizes = [len(share) for share in shares]
    assert count < 2 or 1 not in sizes
    busy = [size for size in sizes if size]
    assert not busy or max(busy) - min(busy) <= 1


@pytest.mark.parametrize("machines", [[1], [2], [3], [1, 1], [2, 1], [1, 3], [9, 9]])
def test_ranks_compute_whole_batches_and_each_row_once(machines):
    rows = np.arange(100, 175)
    places = [(local, size) for size in machines for local in range(size)]
    ranks = [Ranks(rank, len(places), *place) for rank, place in enumerate(places)]
    for shares in (
        [one.rank_rows(rows, 10) for one in ranks],
        [one.machine_rows(rows, 10) for one in ranks if one.local_rank == 0],
        [one.local_rows(rows, 10) for one in ranks[: machines[0]]],
    ):
        assert sorted(np.concatenate(shares).tolist()) == rows.tolist()
        firsts = {int(share[start]) for share in shares for start in range(0, len(share), 10)}
        assert firsts == set(range(100, 175, 10))


def test_a_process_that_torchrun_has_not_started_is_alone(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")  # of another launcher
    assert read_torchrun_ranks() is ALONE
    assert ALONE.all_gather("word") == ["word"]


@pytest.mark.parametrize(
    ("named", "visible"),
    [
        ("-1", []),
        ("NoDevFiles", []),
        ("0,1,-1,2", ["0", "1"]),
        ("1, 0", ["1", "0"]),
        ("0,,1", ["0"]),
        (",0", []),
        ("1,1", []),
        ("GPU-8932f937,MIG-41b1,x,0", ["GPU-8932f937", "MIG-41b1"]),
    ],
)
def test_gpus_are_those_that_cuda_shows(named, visible, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert max_devices() == (len(visible) or count_usable_cores())
    if visible:
        select_device(len(visible) - 1, len(visible))
        assert os.environ["CUDA_VISIBLE_DEVICES"] == visible[-1]


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset"), True),
        (dist.DistNetworkError("The client socket has failed to connect"), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:1] std::bad_alloc"), False),
        (RuntimeError("Invalid function argument"), False),
    ],
)
def test_only_errors_of_a_connection_mean_that_a_rank_is_lost(error, lost, monkeypatch):
    def fail(*_):
        raise error

    ranks = Ranks(0, 2, 0, 2)
    monkeypatch.setattr(dist, "all_gather_object", fail)
    with pytest.raises(RankLost if lost else RuntimeError) as caught:
        ranks.all_gather("word")
    assert str(error) in str(caught.value)
    assert isinstance(caught.value, RankLost) == lost
    assert ranks.is_broken


def test_what_has_no_steps_is_not_distributed():
    with pytest.raises(ConfigError, match="no steps"):
        check_devices(tiny_config(strategy="linear_probe"), 2)
    check_devices(tiny_config(strategy="linear_probe"), 1)
    check_devices(tiny_config(strategy="feature_extraction"), 2)


def test_the_meeting_point_of_a_killed_process_is_swept_where_it_has_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / ".thaw-ranks-0123abcd"
    (left / "new").mkdir(parents=True)
    (left / "lock").touch()
    os.utime(left, (0, 0))
    with rendezvous_file() as place:
        place.touch()
        assert not left.exists()
        (own,) = tmp_path.iterdir()
        assert own.name.startswith(".thaw-ranks-")
    assert not list(tmp_path.iterdir())

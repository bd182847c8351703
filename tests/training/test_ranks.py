"""Two ranks train what one does: to rounding, on the same images, with the same events, and the same table in the end."""

import functools
import operator
import os
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from finetune_core.config import make_config
from finetune_core.data.threads import usable_cores
from finetune_core.errors import ConfigError
from finetune_core.training import events
from finetune_core.training.loop import StopRequested, fit
from finetune_core.training.predictions import load_predictions
from finetune_core.training.prepare import check_devices
from finetune_core.training.ranks import (
    ALONE,
    RankLost,
    Ranks,
    launched,
    meeting_point,
    most_devices,
    see_one_device,
)
from finetune_core.training.strategies import STRATEGIES
from tests.training.equal import check_equal
from tests.training.rank_program import GONE, Task, trained_together

# With SGD: Adam takes a whole step along a gradient that is nothing but rounding, as that of an attention's key bias.
LAYERNORM = {
    "backbone": "timm/test_vit",
    "weights": "none",
    "image_size": 32,
    "optimizer": "sgd",
    "learning_rate": 1e-2,
}
SETTINGS = {
    "feature extraction, Adam": {"strategy": "feature_extraction"},
    "last block, BatchNorm frozen": {
        "strategy": "last_block",
        "batchnorm": "frozen",
        "optimizer": "sgd",
        "learning_rate": 1e-2,
    },
    # Adam would make whole steps of gradients that are nothing but rounding.
    "biases": {"strategy": "bias_only", "optimizer": "sgd", "learning_rate": 1e-2},
    "norms, AdamW": {
        **LAYERNORM,
        "strategy": "batchnorm_only",
        "optimizer": "adamw",
        "learning_rate": 1e-3,
    },
    "last two blocks": {**LAYERNORM, "strategy": "last_two_blocks"},
    "gradual": {**LAYERNORM, "strategy": "gradual_unfreezing", "epochs": 9},
    "full": {**LAYERNORM, "strategy": "full"},
    "discriminative": {**LAYERNORM, "strategy": "discriminative"},
    "linear then full": {**LAYERNORM, "strategy": "linear_probe_then_full"},
    "first block": {**LAYERNORM, "strategy": "first_block"},
    "from scratch": {**LAYERNORM, "strategy": "from_scratch"},
    "custom": {**LAYERNORM, "strategy": "custom", "cut": "block3"},
    "low rank": {**LAYERNORM, "strategy": "lora"},
    "clipped, averaged, weighted": {
        **LAYERNORM,
        "strategy": "full",
        "clip_norm": 0.5,
        "ema": 0.9,
        "class_weights": "balanced",
    },
    "mixed": {
        **LAYERNORM,
        "strategy": "full",
        "mixup": 0.4,
        "cutmix": 1.0,
        "class_weights": "balanced",
    },
    "balanced, augmented": {
        **LAYERNORM,
        "augmentation": "random_resized_crop",
        "views": 2,
        "sampling": "balanced",
    },
    "a part at a time": {
        **LAYERNORM,
        "strategy": "full",
        "micro_batch": 3,
        "label_smoothing": 0.1,
        "l2_sp": 0.01,
    },
}


@pytest.fixture(scope="module")
def make(image_folder_once, tmp_path_factory):
    """Makes configs on 31 training images: batches of 10, 10 and 11, which two ranks cannot halve."""
    data = image_folder_once(
        tmp_path_factory.mktemp("images"), {"red": 20, "blue": 13, "green": 12}
    )
    usual = {
        "data": str(data),
        "epochs": 3,
        "batch_size": 10,
        "image_size": 32,
        "learning_rate": 1e-3,
        "precision": "fp32",
    }
    return lambda *settings, **more: make_config(
        functools.reduce(operator.or_, (usual, *settings, more))
    )


@pytest.fixture(scope="module")
def together(make, tmp_path_factory):
    """Name -> (events, folder) of a run on two ranks."""
    base = tmp_path_factory.mktemp("together")
    tasks = {name: Task(make(settings), base / name) for name, settings in SETTINGS.items()}
    for task in tasks.values():
        task.folder.mkdir()
    found = trained_together(2, tmp_path_factory.mktemp("home"), tasks)
    return {name: (found[name], task.folder) for name, task in tasks.items()}


def of_kind(kind, found):
    return [event for event in found if isinstance(event, kind)]


@pytest.mark.processes
@pytest.mark.parametrize("name", SETTINGS)
def test_two_ranks_are_one(name, make, together, tmp_path):
    alone = list(fit(make(SETTINGS[name]), tmp_path))
    found, folder = together[name]
    check_equal(folder, tmp_path)
    for kind, exact, rounded in (
        (
            events.StepEnded,
            ("epoch", "step", "images", "epoch_accuracy", "learning_rate"),
            ("loss", "gradient_norm"),
        ),
        (
            events.EpochEnded,
            ("epoch", "train_accuracy", "val_accuracy", "val_scores"),
            ("train_loss", "val_loss"),
        ),
    ):
        mine, theirs = of_kind(kind, found), of_kind(kind, alone)
        for field in exact:
            assert [getattr(event, field) for event in mine] == [
                getattr(event, field) for event in theirs
            ]
        for field in rounded:
            assert [getattr(event, field) for event in mine] == pytest.approx(
                [getattr(event, field) for event in theirs], abs=1e-4
            )
    started, end = of_kind(events.RunStarted, found)[0], found[-1]
    assert (started.ranks, started.batchnorm) == (2, "")
    assert (end.best_epoch, end.test_accuracy) == (alone[-1].best_epoch, alone[-1].test_accuracy)


@pytest.fixture(scope="module")
def disturbed(make, tmp_path_factory):
    """(config, folder), below which is, by name, a run that two ranks resumed, or paused."""
    base = tmp_path_factory.mktemp("disturbed")
    config = make(LAYERNORM, strategy="full", ema=0.9)
    for name in ("whole", "resumed by two", "paused by two"):
        (base / name).mkdir()
    list(fit(config, base / "whole"))
    stream, steps = fit(config, base / "resumed by two"), 0
    for event in stream:
        steps += isinstance(event, events.StepEnded)
        if steps == 4:
            assert isinstance(stream.throw(StopRequested()), events.RunStopped)
            break
    tasks = {
        "resumed by two": Task(config, base / "resumed by two", resume=True),
        "paused by two": Task(config, base / "paused by two", pause_after=5),
    }
    found = trained_together(2, tmp_path_factory.mktemp("home"), tasks)
    assert found["paused by two"][-1].paused
    return config, base


@pytest.mark.processes
def test_a_run_of_one_goes_on_with_two(disturbed):
    _, base = disturbed
    check_equal(base / "resumed by two", base / "whole")


@pytest.mark.processes
def test_a_run_of_two_that_was_paused_goes_on_alone(disturbed):
    config, base = disturbed
    resumed = list(fit(config, base / "paused by two", resume=True))
    assert events.RunResumed(2, 2) in resumed
    check_equal(base / "paused by two", base / "whole")


@pytest.mark.processes
def test_a_run_of_two_of_which_one_was_killed_goes_on_alone_or_with_three(
    disturbed, tmp_path_factory
):
    config, base = disturbed
    (base / "killed").mkdir()
    killed = {"killed": Task(config, base / "killed", killed_at=5)}
    first, second = trained_together(2, tmp_path_factory.mktemp("home"), killed)["killed"]
    assert "Another process of the run has ended" in first
    assert second == GONE
    shutil.copytree(base / "killed", base / "resumed by three")
    assert events.RunResumed(2, 0) in list(fit(config, base / "killed", resume=True))
    tasks = {"resumed by three": Task(config, base / "resumed by three", resume=True)}
    assert (
        events.RunResumed(2, 0)
        in trained_together(3, tmp_path_factory.mktemp("home"), tasks)["resumed by three"]
    )
    for name in ("killed", "resumed by three"):
        check_equal(base / name, base / "whole")


@pytest.fixture(scope="module")
def troubled(image_folder_once, make, tmp_path_factory):
    """What two ranks report, by name, of runs in which something goes wrong."""
    base = tmp_path_factory.mktemp("troubled")
    data = image_folder_once(base / "vanishing", {"red": 14, "blue": 14, "green": 14})
    reading = make(data=str(data), strategy="full", batchnorm="frozen", skip_limit=0.2, cache="off")
    tasks = {
        "little memory": Task(make(LAYERNORM, strategy="full"), base / "little memory", memory=2),
        "training BatchNorm": Task(
            make(strategy="last_block", epochs=1), base / "training BatchNorm"
        ),
        "lost": Task(reading, base / "lost", gone=tuple(sorted(Path(data).rglob("*.png"))[::20])),
        "diverging": Task(make(LAYERNORM, strategy="full"), base / "diverging", not_finite=True),
    }
    for task in tasks.values():
        task.folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THAW_CACHE_MEMORY_GB", "0")
        patch.setenv("THAW_CACHE_DISK_GB", "0")
        return trained_together(2, tmp_path_factory.mktemp("home"), tasks), tasks


@pytest.mark.processes
def test_where_one_rank_is_short_of_memory_all_take_smaller_parts(troubled, tmp_path):
    found, tasks = troubled
    task = tasks["little memory"]
    list(fit(task.config, tmp_path))
    check_equal(task.folder, tmp_path)
    short = of_kind(events.MemoryShort, found["little memory"])
    assert [event.micro_batch for event in short] == [2]
    assert {event.micro_batch for event in of_kind(events.StepEnded, found["little memory"])} == {2}


@pytest.mark.processes
def test_an_image_that_is_lost_is_named_once_whichever_rank_misses_it(troubled):
    found, tasks = troubled
    lost = of_kind(events.ImagesLost, found["lost"])
    assert lost[-1].count == len(tasks["lost"].gone) == 3
    assert sorted(lost[-1].examples) == sorted(set(lost[-1].examples))
    assert isinstance(found["lost"][-1], events.RunFinished)
    steps = of_kind(events.StepEnded, found["lost"])
    assert all(before.images <= after.images for before, after in pairwise(steps))


@pytest.mark.processes
def test_a_loss_that_is_not_finite_on_one_rank_ends_all_with_the_reason(troubled):
    found, _ = troubled
    assert len(found["diverging"]) == 2
    assert all("not finite" in reason for reason in found["diverging"])


@pytest.mark.processes
def test_a_rank_without_memory_for_the_sum_ends_all_at_once(make, tmp_path):
    (tmp_path / "run").mkdir()
    task = Task(make(LAYERNORM, strategy="full"), tmp_path / "run", sum_without_memory=True)
    first, second = trained_together(2, tmp_path, {"run": task})["run"]
    assert "Another process of the run has ended" in first
    assert "gloo" in first  # the reason
    assert "not enough memory for the optimizer's step" in second


@pytest.mark.processes
def test_a_run_says_whose_statistics_batchnorm_trains_on(troubled):
    found, tasks = troubled
    assert of_kind(events.RunStarted, found["training BatchNorm"])[0].batchnorm == "per_rank"
    assert load_predictions(tasks["training BatchNorm"].folder)["id"].is_unique


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 16, 33])
def test_shares_are_the_batch_in_its_order_and_nobody_has_a_single_image_of_several(world, count):
    shares = [np.arange(count)[Ranks(rank, world).share(count)] for rank in range(world)]
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
        [one.rank_share(rows, 10) for one in ranks],
        [one.machine_share(rows, 10) for one in ranks if one.local_rank == 0],
        [one.local_share(rows, 10) for one in ranks[: machines[0]]],
    ):
        assert sorted(np.concatenate(shares).tolist()) == rows.tolist()
        firsts = {int(share[start]) for share in shares for start in range(0, len(share), 10)}
        assert firsts == set(range(100, 175, 10))


def test_every_strategy_with_steps_is_tried_on_two_ranks(make):
    tried = {make(settings).strategy for settings in SETTINGS.values()}
    assert tried == {name for name, strategy in STRATEGIES.items() if not strategy.fits}


def test_a_process_that_torchrun_has_not_started_is_alone(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")  # of another launcher
    assert launched() is ALONE
    assert ALONE.meet("word") == ["word"]


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
    assert most_devices() == (len(visible) or usable_cores())
    if visible:
        see_one_device(len(visible) - 1, len(visible))
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
        ranks.meet("word")
    assert str(error) in str(caught.value)
    assert isinstance(caught.value, RankLost) == lost
    assert ranks.broke_off


def test_what_has_no_steps_is_not_distributed(make):
    with pytest.raises(ConfigError, match="no steps"):
        check_devices(make(strategy="linear_probe"), 2)
    check_devices(make(strategy="linear_probe"), 1)
    check_devices(make(strategy="feature_extraction"), 2)


def test_the_meeting_point_of_a_killed_process_is_swept_where_it_has_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / ".thaw-ranks-0123abcd"
    (left / "new").mkdir(parents=True)
    (left / "lock").touch()
    os.utime(left, (0, 0))
    with meeting_point() as place:
        place.touch()
        assert not left.exists()
        (own,) = tmp_path.iterdir()
        assert own.name.startswith(".thaw-ranks-")
    assert not list(tmp_path.iterdir())

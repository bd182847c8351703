"""Tests that a training step waits for nothing that a GPU computes.

They need no GPU: they run on torch's ``meta`` device, which has no values to read, and count on a
processor that is treated like a GPU.
"""

import math
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib import import_module

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from finetune_core.errors import TrainingError
from finetune_core.models.catalogue import PACKAGED
from finetune_core.randomness import make_generator
from finetune_core.runs.lines import EventLines
from finetune_core.runs.record import EVENTS_FILE, create_run, execute, reopen_run
from finetune_core.runs.stop_request import request_stop
from finetune_core.training import events, loop
from finetune_core.training.data_pipeline.training_images import TrainingImages
from finetune_core.training.devices.device import Device
from finetune_core.training.loop import fit
from finetune_core.training.lost import LostImages
from finetune_core.training.prepare import prepare
from finetune_core.training.step import compute
from finetune_core.training.step.running_metrics import RunningMetrics
from finetune_core.training.strategies.catalogue import STRATEGIES
from finetune_core.training.training_state import TrainingState
from tests.drain import drain
from tests.factories import tiny_config

aten = torch.ops.aten
EVERYTHING = {
    "l2_sp": 0.1,
    "ema": 0.9,
    "clip_norm": 0.5,
    "class_weights": "balanced",
    "label_smoothing": 0.1,
    "micro_batch": 6,
    "weight_decay": 0.01,
}


class OnlyThere(TorchDispatchMode):
    """Mode that refuses operations on tensors of both ``meta`` and the processor, except copies."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kinds = {
            one.device.type for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)
        }
        assert kinds != {"meta", "cpu"}, f"{func} on both"
        return func(*args, **(kwargs or {}))


class Waits(TorchDispatchMode):
    """Mode that counts operations that wait for a GPU, or whose result size only the GPU knows."""

    waiting = (
        aten._local_scalar_dense,
        aten.is_nonzero,
        aten.equal,
        aten.nonzero,
        aten.masked_select,
        aten._unique2,
    )

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        masked = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
            one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        )
        moved = func.overloadpacket is aten._to_copy and kwargs.get("device") not in (
            None,
            args[0].device,
        )
        if func.overloadpacket in self.waiting or masked or moved:
            self.seen[func] += 1
        return func(*args, **kwargs)


@pytest.fixture
def config():
    return partial(tiny_config, batch_size=10, epochs=9)


@pytest.fixture
def meta_trains(monkeypatch):
    """Let ``meta`` train.

    torch has no generator for it, allows fused optimizers on real devices only, and has no shape
    function for SGD's.
    """
    monkeypatch.setattr(compute, "make_generator", lambda seed, kind="cpu": make_generator(seed))
    monkeypatch.setattr(
        import_module("torch.optim.optimizer"),
        "_get_fused_kernels_supported_devices",
        lambda: ["meta", "cpu"],
    )
    library = torch.library.Library("aten", "IMPL", "Meta")
    library.impl("_fused_sgd_", lambda *arguments, **settings: None)
    yield
    library._destroy()


@pytest.fixture
def unread(monkeypatch):
    """Read no step back before its epoch ends.

    Returns:
        The lists of steps that were to be read.
    """
    read, read_back = [], loop.read_back

    def noted(steps, ranks):
        if steps:
            read.append(list(steps))
        return read_back(steps, ranks)

    monkeypatch.setattr(loop, "seconds_between_reads", lambda device: math.inf)
    monkeypatch.setattr(loop, "read_back", noted)
    return read


def last_epoch(job, folder):
    """Return the trainer and the events of the last epoch's steps, when all stages have thawed."""
    state = TrainingState(RunningMetrics.zeros(len(job.dataset.classes)), epoch=job.config.epochs)
    trainer = loop._make_trainer(job, folder, LostImages(job))
    return trainer, loop._train_epoch(trainer, state)


def on_meta(job, precision):
    device = Device("meta", "no device", precision)
    device.move_module(job.network.model)
    source = (
        replace(job.source, device=device) if isinstance(job.source, TrainingImages) else job.source
    )
    return replace(job, device=device, source=source)


def steps_on_meta(settings, folder, monkeypatch, precision="fp32"):
    """Return an epoch's steps on ``meta``, which are there to be read at its end."""
    job = on_meta(drain(prepare(settings))[1], precision)
    waiting = []
    monkeypatch.setattr(loop, "seconds_between_reads", lambda device: math.inf)
    monkeypatch.setattr(loop, "read_back", lambda steps, ranks: waiting.extend(steps) or iter(()))
    trainer, training = last_epoch(job, folder)
    with OnlyThere():
        assert list(training) == []
    assert len(waiting) == len(job.training_batches(settings.epochs))
    assert any(step.measured for step in waiting)
    assert {kept.device.type for kept in trainer.average.tensors.values()} == {"meta"}
    return waiting


KINDS = ("feature_extraction", "gradual_unfreezing", "full", "lora")


@pytest.mark.train
@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(name, marks=[pytest.mark.exhaustive] * (name not in KINDS))
        for name, strategy in STRATEGIES.items()
        if not strategy.fits
    ],
)
def test_every_strategy_trains_where_nothing_can_be_read(
    config, tmp_path, monkeypatch, meta_trains, strategy
):
    own = {"custom": {"stage_rates": {"layer2": 1.0, "head": 1.0}}, "lora": {"l2_sp": 0.0}}.get(
        strategy, {}
    )
    settings = config(
        strategy=strategy,
        augmentation="random_resized_crop",
        mixup=0.2,
        cutmix=1.0,
        **(EVERYTHING | own),
    )
    for step in steps_on_meta(settings, tmp_path, monkeypatch):
        with pytest.raises(RuntimeError, match="meta"):
            step.numbers.tolist()


@pytest.mark.train
@pytest.mark.parametrize(
    ("optimizer", "precision"), [("adam", "fp32"), ("adamw", "fp16"), ("sgd", "fp16")]
)
def test_every_optimizer_dropout_and_the_loss_scale_train_where_nothing_can_be_read(
    config, tmp_path, monkeypatch, meta_trains, optimizer, precision
):
    # which knows no meta device
    monkeypatch.setattr(Device, "autocast", lambda self: nullcontext())
    network = {"backbone": "squeezenet1_1", "weights": "none", "image_size": 64, "strategy": "full"}
    steps_on_meta(
        config(optimizer=optimizer, **network, **EVERYTHING), tmp_path, monkeypatch, precision
    )


def test_meta_refuses_what_would_wait_and_what_was_left_on_the_processor():
    value = torch.ones(3, device="meta")
    for wait in (
        lambda: value.sum().item(),
        lambda: bool(value.sum()),
        value.cpu,
        value.tolist,
        lambda: value[value > 0],
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wait()
    with OnlyThere(), pytest.raises(AssertionError, match="on both"):
        value.add_(torch.ones(3))  # which torch itself lets pass


@pytest.mark.parametrize(
    ("optimizer", "precision", "strategy"),
    [
        ("adam", "fp16", "feature_extraction"),
        ("adamw", "fp32", "last_two_blocks"),
        ("sgd", "fp32", "last_block"),
    ],
)
def test_nothing_is_waited_for_between_two_reads(
    config, tmp_path, unread, optimizer, precision, strategy
):
    settings = config(strategy=strategy, optimizer=optimizer, **EVERYTHING)
    waits = Waits()
    job = drain(prepare(settings))[1]
    _, training = last_epoch(
        replace(job, device=replace(job.device, precision=precision)), tmp_path
    )
    with waits:
        first = next(training)  # the first event comes once all steps of the epoch are done
    (steps,) = unread
    assert len(steps) == 3
    assert isinstance(first, events.StepEnded)
    assert not waits.seen


def test_the_counter_counts():
    value, waits = torch.ones(3), Waits()
    with waits:
        value.sum().item()
        assert value.sum() > 0
        value[value > 0]
        value[torch.tensor([0])] + 1
        value.nonzero()
        value.to("meta")
    assert waits.seen == {
        aten._local_scalar_dense.default: 2,
        aten.index.Tensor: 1,
        aten.nonzero.default: 1,
        aten._to_copy.default: 1,
    }


TRAINING = (events.StepEnded, events.EpochEnded, events.CheckpointSaved, events.RunFinished)


def summarize_run(stream):
    """Return the steps and epochs of a run, without times, and the error that ended them."""
    found, end = [], ""
    try:
        for event in stream:
            if isinstance(event, TRAINING):
                row = event.to_json()
                found.append(
                    {key: row[key] for key in row if "seconds" not in key and key != "memory_bytes"}
                )
    except TrainingError as error:
        end = str(error)
    return found, end


def read_one_by_one_and_together(settings, folder, request):
    each, together = folder / "each", folder / "together"
    each.mkdir()
    together.mkdir()
    first = summarize_run(fit(settings, each))
    reads = request.getfixturevalue("unread")
    assert summarize_run(fit(settings, together)) == first
    return first, reads


@pytest.mark.train
def test_steps_that_are_read_together_are_those_that_are_read_one_by_one(
    config, tmp_path, marks, request
):
    (found, _), reads = read_one_by_one_and_together(
        config(epochs=2, **EVERYTHING), tmp_path, request
    )
    assert [len(steps) for steps in reads] == [3, 3]
    assert found[-1]["event"] == "RunFinished"
    assert marks(tmp_path / "together") == marks(tmp_path / "each")


@pytest.mark.train
def test_a_stop_among_steps_that_were_read_together_comes_after_them(
    config, tmp_path, marks, unread
):
    settings = config(epochs=3)
    (tmp_path / "whole").mkdir()
    list(fit(settings, tmp_path / "whole"))
    reservation = create_run(settings, tmp_path / "runs")
    for event in execute(reservation):
        if isinstance(event, events.StepEnded) and (event.epoch, event.step) == (2, 1):
            request_stop(reservation.run_dir)
    assert event == events.RunStopped(2, 1, event.seconds)
    list(execute(reopen_run(reservation.run_dir)))
    rows = [
        row
        for row in EventLines(reservation.run_dir / EVENTS_FILE).read_new()
        if row["event"] == "StepEnded"
    ]
    assert [(row["epoch"], row["step"]) for row in rows] == [
        (epoch, step) for epoch in (1, 2, 3) for step in (1, 2, 3)
    ]
    assert marks(reservation.run_dir) == marks(tmp_path / "whole")


@pytest.mark.train
def test_a_run_that_diverges_unread_ends_at_the_same_step_and_keeps_what_it_had(
    config, tmp_path, marks, request, monkeypatch
):
    monkeypatch.setattr(
        loop,
        "learning_rate_factor",
        lambda config, position, steps: 1e30 if position == steps + 1 else 1.0,
    )
    # when a step as large diverges depends on the network
    settings = config(batch_size=4, backbone=PACKAGED)
    (found, end), reads = read_one_by_one_and_together(settings, tmp_path, request)
    assert "not finite at step 3 of epoch 2 (learning rate 0.001)" in end
    steps = [row["step"] for row in found if row["event"] == "StepEnded"]
    assert steps == [*range(1, 9), 1, 2]
    assert [len(steps) for steps in reads] == [8, 8], "no step was made in vain"
    assert marks(tmp_path / "together") == marks(tmp_path / "each")


def test_steps_that_are_read_together_took_equally_long(config, tmp_path, unread):
    found = fit(config(epochs=1), tmp_path)
    seconds = [event.seconds for event in found if isinstance(event, events.StepEnded)]
    assert seconds[1] - seconds[0] == pytest.approx(seconds[2] - seconds[1], abs=0.01)
    assert 0 < seconds[0] < seconds[1]

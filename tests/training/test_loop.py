import itertools
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from finetune_core.config import make_config
from finetune_core.errors import TrainingError
from finetune_core.models.network import build_network, network_stages
from finetune_core.training import events
from finetune_core.training.checkpoints import load_checkpoint
from finetune_core.training.loop import StopRequested, fit
from finetune_core.training.predictions import load_predictions
from finetune_core.training.schedules import learning_rate_factor
from finetune_core.training.stage_plan import plan

# No BatchNorm to rescue it.
DIVERGING = {
    "backbone": "squeezenet1_1",
    "weights": "none",
    "image_size": 64,
    "strategy": "full",
    "optimizer": "sgd",
    "learning_rate": 10,
    "epochs": 30,
}


@pytest.fixture
def config(colour_config):
    return partial(colour_config, batch_size=8, epochs=2)


def run(config, folder):
    folder.mkdir(exist_ok=True)
    return list(fit(config, folder))


def of(kind, found):
    return [event for event in found if isinstance(event, kind)]


@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": "feature_extraction"},
        {"strategy": "last_block"},
        {"strategy": "last_two_blocks"},
        {"strategy": "full"},
        {"strategy": "custom", "cut": "block5"},
        {"strategy": "custom", "stage_rates": {"block2": 1.0, "head": 1.0}},
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values()),
)
def test_frozen_means_frozen_bit_for_bit(config, tmp_path, settings):
    settings = config(**settings)
    found = run(settings, tmp_path / "run")
    network = build_network(settings.backbone, "pretrained", 3, settings.seed)
    before = network.model.state_dict()
    after = {name: tensor.clone() for name, tensor in before.items()} | load_checkpoint(
        tmp_path / "run", "last"
    )[0]
    strategy = plan(settings, network.stages)
    for stage, one in zip(network.stages, strategy, strict=True):
        changed = [
            n
            for n in (*stage.parameters, *stage.buffers)
            if n in before and not torch.equal(before[n], after[n])
        ]
        if one.frozen:
            assert changed == []
        else:
            assert changed, f"{stage.name} trains, but nothing in it changed"
    frozen = sum(
        len(s.parameters) + len(s.buffers)
        for s, one in zip(network.stages, strategy, strict=True)
        if one.frozen
    )
    assert of(events.RunFinished, found)[0].frozen_tensors == frozen


def test_trunk_statistics_do_not_drift_in_the_live_model(config, tmp_path):
    """The checkpoint leaves the trunk out, so the audit inside the run is what looks at the live tensors: break it."""
    from finetune_core.training import loop

    settings = config(strategy="feature_extraction", epochs=1, cache="off")
    original = loop.apply

    def careless(strategy, stages, model, epoch):
        original(strategy, stages, model, epoch)
        model.train()  # the classic tutorial's mistake

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "apply", careless)
        with pytest.raises(AssertionError, match="frozen tensors have changed"):
            run(settings, tmp_path / "run")


def test_the_same_seed_gives_identical_weights_and_another_does_not(config, tmp_path):
    settings = config(augmentation="random_resized_crop", strategy="last_two_blocks")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(settings.model_copy(update={"seed": seed}), tmp_path / name)
    a, b, c = (load_file(tmp_path / name / "last.safetensors") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_events_tell_the_story_in_order(config, tmp_path):
    found = run(config(), tmp_path / "run")
    kinds = [kind for kind, _ in itertools.groupby(type(event).__name__ for event in found)]
    result = [kind for kind in kinds if kind != "Progress"]
    assert result[0] == "RunStarted"
    assert result[1:4] == ["StepEnded", "EpochEnded", "CheckpointSaved"]
    assert result[-1] == "RunFinished"
    started, finished = found[[type(e).__name__ for e in found].index("RunStarted")], found[-1]
    assert len(of(events.StepEnded, found)) == 2 * started.steps_per_epoch
    assert started.counts == {"train": 30, "val": 6, "test": 6}
    assert started.numerics == {"tf32": False, "cudnn_benchmark": False}
    assert finished.best_epoch in (1, 2)
    assert (
        of(events.EpochEnded, found)[finished.best_epoch - 1].val_accuracy == finished.val_accuracy
    )


def test_it_learns_colours(config, tmp_path):
    finished = run(config(epochs=6, strategy="last_block"), tmp_path / "run")[-1]
    assert finished.val_accuracy >= 0.8


def test_predictions_are_those_of_the_best_epoch(config, tmp_path):
    settings = config(epochs=4, learning_rate=3e-3)
    found = run(settings, tmp_path / "run")
    table = load_predictions(tmp_path / "run")
    assert set(table["split"]) == {"val", "test"}
    val = table[table["split"] == "val"]
    accuracy = (np.stack(val["logits"].to_numpy()).argmax(1) == val["label"]).mean()
    assert accuracy == found[-1].val_accuracy
    assert load_checkpoint(tmp_path / "run", "best")[1].epoch == found[-1].best_epoch


def test_stop_ends_in_good_order_and_keeps_the_best_epoch(config, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    stream = fit(config(epochs=50), folder)
    for event in stream:
        if isinstance(event, events.StepEnded) and event.epoch == 2:
            break
    last = stream.throw(StopRequested())
    assert isinstance(last, events.RunStopped)
    assert (last.epoch, last.best_epoch) == (2, 1)
    assert list(stream) == []
    assert set(load_predictions(folder)["split"]) == {"val"}


def test_stop_before_the_first_step_leaves_nothing(config, tmp_path):
    stream = fit(config(), tmp_path)
    next(stream)
    assert stream.throw(StopRequested()) == events.RunStopped(0, 0, pytest.approx(0, abs=30))


def test_a_loss_that_is_no_number_stops_the_run_in_words(config, tmp_path):
    with pytest.raises(TrainingError, match=r"learning rate 10.*ten times lower"):
        run(config(**DIVERGING), tmp_path / "run")


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_every_optimizer_and_schedule_trains(config, tmp_path, optimizer, schedule):
    settings = config(
        optimizer=optimizer, schedule=schedule, strategy="feature_extraction", weight_decay=0.01
    )
    assert isinstance(run(settings, tmp_path / "run")[-1], events.RunFinished)


def test_cosine_warms_up_and_comes_down():
    config = make_config({"data": "x", "schedule": "cosine", "epochs": 10, "warmup_epochs": 1})
    factors = [learning_rate_factor(config, step, 20) for step in range(200)]
    assert factors[0] < 0.1
    assert factors[:20] == sorted(factors[:20])
    assert factors[20] == 1.0
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert factors[-1] < 0.001


def test_bf16_trains_too(native_bf16, config, tmp_path):
    assert isinstance(
        run(config(precision="bf16", epochs=1), tmp_path / "run")[-1], events.RunFinished
    )


def test_random_weights_are_said_and_seeded(config, tmp_path):
    started = of(events.RunStarted, run(config(weights="none", epochs=1), tmp_path / "run"))[0]
    assert started.weights == "none"
    assert started.weights_hash == build_network("efficientnet_lite0", "none", 3, 0).weights_hash


def test_damaged_images_are_named_and_left_out(config, tmp_path):
    settings = config(epochs=1)
    victim = sorted((tmp_path / "images" / "red").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:1500])
    found = run(settings, tmp_path / "run")
    skipped = of(events.ImagesSkipped, found)[0]
    assert skipped.count == 1
    assert victim.name in skipped.examples[0]
    assert sum(of(events.RunStarted, found)[0].counts.values()) == 41


def test_dropout_networks_repeat_too(config, tmp_path):
    settings = config(
        backbone="squeezenet1_1", weights="none", image_size=64, strategy="full", epochs=1
    )
    assert "Dropout" in str(build_network("squeezenet1_1", "none", 3, 0).model)
    for name in "ab":
        run(settings, tmp_path / name)
    a, b = (load_file(tmp_path / name / "last.safetensors") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_events_are_plain_scalars(config, tmp_path):
    def plain(value):
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(inner) for key, inner in value.items())
        if isinstance(value, list):
            return all(plain(inner) for inner in value)
        return value is None or type(value) in (str, int, float, bool)

    assert all(plain(event.to_json()) for event in run(config(epochs=1), tmp_path / "run"))


def test_stage_names_of_the_packaged_backbone_used_above_exist():
    assert {"block2", "block5", "head"} <= {
        stage.name for stage in network_stages("efficientnet_lite0", 3)
    }


def test_stopped_at_the_end_of_an_epoch_its_results_are_there(config, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    stream = fit(config(epochs=50), folder)
    while not isinstance(next(stream), events.EpochEnded):
        pass
    assert stream.throw(StopRequested()).best_epoch == 1
    assert load_checkpoint(folder, "best")[1].epoch == 1
    assert len(load_predictions(folder)) == 6


def test_validation_that_is_no_number_is_said_in_words(config, tmp_path, monkeypatch):
    from finetune_core.training import evaluation

    nothing = lambda model, inputs, device, size: (torch.full((len(inputs), 3), torch.nan), size)  # noqa: E731
    monkeypatch.setattr(evaluation, "logits_in_parts", nothing)
    with pytest.raises(TrainingError, match="after epoch 1"):
        run(config(), tmp_path / "run")
    assert not (tmp_path / "run" / "predictions.parquet").exists()


def test_batchnorm_on_a_single_image_is_refused_in_words(config, tmp_path):
    with pytest.raises(TrainingError, match="batch size of 2"):
        run(config(batch_size=1, strategy="last_block"), tmp_path / "run")


def test_other_threads_using_torchs_randomness_change_nothing(config, tmp_path):
    """A page that builds a network while a run with dropout goes on."""
    settings = config(
        backbone="squeezenet1_1", weights="none", image_size=64, strategy="full", epochs=1
    )
    run(settings, tmp_path / "alone")
    folder = tmp_path / "disturbed"
    folder.mkdir()
    for event in fit(settings, folder):
        if isinstance(event, events.StepEnded):
            torch.rand(3)
            build_network("squeezenet1_1", "none", 3, event.step)
    a, b = (load_file(tmp_path / name / "last.safetensors") for name in ("alone", "disturbed"))
    assert all(torch.equal(a[name], b[name]) for name in a)

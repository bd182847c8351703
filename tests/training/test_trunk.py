import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.data.rowcache import CACHE
from finetune_core.models.partition import CannotSplit
from finetune_core.training import events, trunk
from finetune_core.training.loop import fit
from finetune_core.training.predictions import load_predictions
from tests.timm_kinds import ONE_OF_EACH, SIDE


@pytest.fixture
def config(image_folder, tmp_path):
    folder = image_folder(tmp_path / "images", {"red": 12, "blue": 12, "green": 12})

    def make(**settings):
        usual = {
            "data": str(folder),
            "image_size": 32,
            "batch_size": 8,
            "epochs": 3,
            "learning_rate": 1e-3,
            "precision": "fp32",
            "optimizer": "sgd",
        }
        return make_config(usual | settings)

    return make


def run(config, folder):
    folder.mkdir()
    found = list(fit(config, folder))
    return asdict(
        next(event for event in found if isinstance(event, events.RunStarted)).cache
    ), found


def same_results(a, b):
    """Weights to 1e-5 relative (1e-6 an element where they are sums that nearly cancel), predictions identical.

    Of runs with SGD: batches of other sizes are added up in another order, and Adam makes whole steps of a gradient that is nothing
    but such rounding.
    """
    ours, theirs = load_file(a / "last.safetensors"), load_file(b / "last.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        expected = theirs[name].double()
        allowed = 1e-5 * expected.norm() + 1e-6 * expected.numel() ** 0.5
        assert (tensor.double() - expected).norm() <= allowed, name
    ours, theirs = load_predictions(a), load_predictions(b)
    assert ours["id"].tolist() == theirs["id"].tolist()
    assert [row.argmax() for row in ours["logits"]] == [row.argmax() for row in theirs["logits"]]


LARGE = [("densenet121", 64), ("swin_t", 64), ("convnext_tiny", 64), ("vit_b_16", 224)]
NETWORKS = [
    ("resnet18", 64),
    ("efficientnet_lite0", 64),
    *(pytest.param(*one, marks=pytest.mark.train) for one in LARGE),
]


@pytest.mark.parametrize("backbone", ONE_OF_EACH)
def test_cached_equals_uncached_for_each_kind_of_network_of_timm(image_folder, tmp_path, backbone):
    # BatchNorm behind 1 x 1 pixels sees one number per image: over a batch of two or three, rounding decides what it makes of them.
    folder = image_folder(tmp_path / "images", {"red": 12, "blue": 12})
    settings = {
        "data": str(folder),
        "backbone": backbone,
        "weights": "none",
        "image_size": SIDE,
        "batch_size": 8,
        "epochs": 2,
    }
    config = make_config(
        settings | {"precision": "fp32", "optimizer": "sgd", "learning_rate": 1e-3}
    )
    cached, _ = run(config, tmp_path / "cached")
    uncached, _ = run(config.model_copy(update={"cache": "off"}), tmp_path / "uncached")
    assert (cached["where"], uncached["where"]) == ("memory", "off")
    same_results(tmp_path / "cached", tmp_path / "uncached")


@pytest.mark.parametrize(("backbone", "size"), NETWORKS)
@pytest.mark.parametrize(
    "augmentation",
    [{}, {"augmentation": "random_resized_crop", "views": 2}],
    ids=["plain", "views"],
)
def test_cached_equals_uncached(image_folder, tmp_path, backbone, size, augmentation):
    folder = image_folder(tmp_path / "images", {"red": 5, "blue": 5})
    settings = {
        "data": str(folder),
        "backbone": backbone,
        "weights": "none",
        "image_size": size,
        "batch_size": 4,
        "epochs": 2,
    }
    config = make_config(
        settings | {"precision": "fp32", "optimizer": "sgd", "learning_rate": 1e-3} | augmentation
    )
    cached, _ = run(config, tmp_path / "cached")
    uncached, _ = run(config.model_copy(update={"cache": "off"}), tmp_path / "uncached")
    assert cached["where"] == "memory"
    assert uncached["where"] == "off"
    same_results(tmp_path / "cached", tmp_path / "uncached")


def test_a_second_run_computes_no_trunk_and_decodes_nothing(config, tmp_path):
    first, _ = run(config(), tmp_path / "first")
    second, found = run(config(seed=5), tmp_path / "second")
    assert (first["found"], first["rows"]) == (0, 36)
    assert (second["found"], second["rows"]) == (36, 36)
    assert second["trunk_seconds"] == 0
    assert not [
        event
        for event in found
        if isinstance(event, events.Progress) and event.phase in ("decode", "trunk")
    ]


def test_a_deeper_cut_starts_from_the_nearest_shallower_one(config, tmp_path, monkeypatch):
    run(config(strategy="last_two_blocks"), tmp_path / "shallow")
    starts = []
    original = trunk.Segments.part

    def spied(self, start, end):
        starts.append((start, end))
        return original(self, start, end)

    monkeypatch.setattr(trunk.Segments, "part", spied)
    _, found = run(config(strategy="feature_extraction"), tmp_path / "deep")
    assert (6, 8) in starts
    assert not [
        event for event in found if isinstance(event, events.Progress) and event.phase == "decode"
    ]
    monkeypatch.undo()
    CACHE.clear()
    run(config(strategy="feature_extraction"), tmp_path / "alone")
    same_results(tmp_path / "deep", tmp_path / "alone")


def test_activations_that_another_session_drives_out_before_they_are_used_are_computed_again(
    config, image_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("THAW_CACHE_MEMORY_GB", "1")
    run(config(strategy="last_two_blocks"), tmp_path / "shallow")
    # they have to be decoded, which takes its time
    image_folder(tmp_path / "images", {"yellow": 5})
    (tmp_path / "deep").mkdir()
    phases = []
    for event in fit(config(strategy="feature_extraction"), tmp_path / "deep"):
        if isinstance(event, events.Progress) and event.phase not in phases:
            phases.append(event.phase)
            if event.phase == "decode":
                assert CACHE.place_for(10**9, "another session's") == "memory"
    assert event.best_epoch
    assert phases[:3] == ["index", "decode", "trunk"]


@pytest.mark.train
def test_activations_that_another_session_drives_out_while_they_are_used_stay_readable(
    config, image_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("THAW_CACHE_MEMORY_GB", "1")
    run(config(strategy="last_block"), tmp_path / "nearest")
    image_folder(tmp_path / "images", {"yellow": 5})
    run(config(strategy="last_two_blocks"), tmp_path / "shallower")
    (tmp_path / "deep").mkdir()
    evicted = False
    for event in fit(config(strategy="feature_extraction"), tmp_path / "deep"):
        if isinstance(event, events.Progress) and event.phase == "trunk" and not evicted:
            CACHE.place_for(10**9, "another session's")
            evicted = True
        if isinstance(event, events.RunStarted):
            cache = event.cache
    assert (cache.rows, cache.where) == (41, "memory")


def test_images_that_were_added_are_the_only_ones_computed(config, image_folder, tmp_path):
    run(config(), tmp_path / "before")
    image_folder(tmp_path / "images", {"yellow": 5})
    emitted, _ = run(config(), tmp_path / "after")
    assert (emitted["found"], emitted["rows"]) == (36, 41)


def test_another_version_of_a_library_is_another_table(config, tmp_path, monkeypatch):
    run(config(), tmp_path / "before")
    monkeypatch.setattr(trunk, "_VERSIONS", (*trunk._VERSIONS[:-1], "another"))
    emitted, _ = run(config(), tmp_path / "after")
    assert (emitted["found"], emitted["rows"]) == (0, 36)
    assert len(trunk._VERSIONS) == 4


def test_a_changed_image_is_computed_again(config, tmp_path):
    run(config(), tmp_path / "before")
    victim = next((tmp_path / "images" / "red").iterdir())
    other = next((tmp_path / "images" / "blue").iterdir())
    victim.write_bytes(other.read_bytes()[:-12] + b"more" + other.read_bytes()[-12:])
    emitted, _ = run(config(), tmp_path / "after")
    assert emitted["found"] == 35


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"strategy": "full"}, "nothing is frozen"),
        ({"cache": "off"}, "switched off"),
        ({"augmentation": "flips", "views": 0}, "afresh"),
    ],
)
def test_a_run_without_the_cache_says_why(config, tmp_path, settings, words):
    emitted, _ = run(config(epochs=1, **settings), tmp_path / "run")
    assert emitted["where"] == "off"
    assert words in emitted["reason"]


def test_views_are_chosen_by_the_epochs_and_written_on_the_run(config, tmp_path):
    emitted, _ = run(config(augmentation="flips", epochs=6), tmp_path / "run")
    assert emitted["views"] == 2
    assert emitted["rows"] == 24 * 2 + 12


def test_without_room_the_run_goes_on_and_says_so(config, tmp_path, monkeypatch):
    run(config(), tmp_path / "roomy")
    CACHE.clear()
    monkeypatch.setenv("THAW_CACHE_MEMORY_GB", "0")
    monkeypatch.setenv("THAW_CACHE_DISK_GB", "0")
    emitted, _ = run(config(), tmp_path / "tight")
    assert "neither into memory nor onto the disk" in emitted["reason"]
    same_results(tmp_path / "roomy", tmp_path / "tight")


def test_on_disk_the_results_are_the_same(config, tmp_path, monkeypatch):
    run(config(), tmp_path / "memory")
    CACHE.clear()
    monkeypatch.setenv("THAW_CACHE_MEMORY_GB", "0")
    emitted, _ = run(config(), tmp_path / "disk")
    assert emitted["where"] == "disk"
    same_results(tmp_path / "memory", tmp_path / "disk")


def test_a_network_that_cannot_be_cut_trains_uncached_and_says_why(config, tmp_path, monkeypatch):
    def refuse(_network):
        raise CannotSplit("its structure cannot be traced (TraceError)")

    monkeypatch.setattr("finetune_core.training.prepare.split_network", refuse)
    emitted, _ = run(config(epochs=1), tmp_path / "run")
    assert emitted["reason"] == "its structure cannot be traced (TraceError)"


def test_a_damaged_image_is_left_out_of_the_cache_too(config, tmp_path):
    victim = sorted((tmp_path / "images" / "red").iterdir())[0]
    settings = config(epochs=1)
    victim.write_bytes(victim.read_bytes()[:1500])
    emitted, found = run(settings, tmp_path / "run")
    assert emitted["rows"] == 35
    assert [event.count for event in found if isinstance(event, events.ImagesSkipped)] == [1]


@pytest.mark.train
def test_bf16_learns_as_fp32_does(native_bf16, tmp_path):
    """The losses of every epoch on 200 digits, to a tenth: accuracies of so few images would differ by single ones."""
    from finetune_core.data.sample import digits_folder

    for label in range(10):
        (tmp_path / "digits" / str(label)).mkdir(parents=True)
        for file in sorted((digits_folder() / str(label)).iterdir())[:20]:
            shutil.copy(file, tmp_path / "digits" / str(label))
    settings = {
        "data": str(tmp_path / "digits"),
        "image_size": 48,
        "epochs": 3,
        "learning_rate": 1e-3,
    }
    losses = []
    for precision in ("fp32", "bf16"):
        _, found = run(
            make_config(settings | {"precision": precision, "val_fraction": 0.3}),
            tmp_path / precision,
        )
        ended = [event for event in found if isinstance(event, events.EpochEnded)]
        losses.append([(event.train_loss, event.val_loss) for event in ended])
    exact, fast = np.array(losses)
    assert exact[-1].max() < 0.5 * exact[0].max(), "nothing was learned, so nothing is compared"
    assert fast == pytest.approx(exact, rel=0.1)


def test_repeats_of_the_same_image_under_other_names_are_no_problem(config, tmp_path):
    red = sorted((tmp_path / "images" / "red").iterdir())
    settings = config(epochs=1)
    (tmp_path / "images" / "red" / "copy.png").write_bytes(red[0].read_bytes())
    emitted, _ = run(settings, tmp_path / "run")
    assert emitted["rows"] == 37
    assert emitted["bytes"] == 37 * 192 * 4  # block6: 192 channels of 1 × 1, float32
    assert torch.isfinite(
        load_file(tmp_path / "run" / "last.safetensors")["classifier.weight"]
    ).all()


def test_a_damaged_image_does_not_cost_the_others_their_shallower_cut(config, tmp_path):
    settings = config(strategy="last_two_blocks", epochs=1)
    victim = sorted((tmp_path / "images" / "red").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:1500])
    run(settings, tmp_path / "shallow")
    emitted, found = run(config(strategy="last_block", epochs=1), tmp_path / "deep")
    assert [event.decoded for event in found if isinstance(event, events.RunStarted)] == [0]
    assert emitted["rows"] == 35


def test_rows_that_new_ones_drive_out_of_a_tight_disk_are_not_read(
    config, image_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("THAW_CACHE_MEMORY_GB", "0")
    # BatchNorm on maps of one pixel and five images would multiply roundings a hundredfold.
    settings = {"epochs": 1, "image_size": 64}
    first, _ = run(config(**settings), tmp_path / "first")
    assert first["where"] == "disk"
    image_folder(tmp_path / "images", {"yellow": 12})
    room = sum(file.stat().st_size for file in paths.rows_dir().glob("*.rows"))
    monkeypatch.setenv("THAW_CACHE_DISK_GB", str(0.9 * room / 1e9))
    CACHE.clear()
    emitted, _ = run(config(**settings), tmp_path / "tight")
    CACHE.clear()
    run(config(**settings, cache="off"), tmp_path / "uncached")
    same_results(tmp_path / "tight", tmp_path / "uncached")
    assert emitted["where"] == "disk"
    kept = sum(file.stat().st_size for file in paths.rows_dir().glob("*.rows"))
    assert 0 < kept <= 0.9 * room, "the old rows have made room for the new ones"

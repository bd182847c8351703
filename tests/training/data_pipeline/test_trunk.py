"""Tests that the cache of frozen stages changes no result and computes no row twice.

It also gives way to other programs.
"""

from dataclasses import asdict

import numpy as np
import pytest
from safetensors.torch import load_file

from finetune_core import paths
from finetune_core.data.rowcache import CACHE
from finetune_core.models.partition import SplitError
from finetune_core.training import events
from finetune_core.training.data_pipeline import trunk
from finetune_core.training.loop import fit
from finetune_core.training.predictions import load_predictions
from tests.factories import image_folder, shared_images, tiny_config
from tests.timm_kinds import KINDS, SIDE
from tests.training.fits import fit_all, only

COLOURS = {"red": 12, "blue": 12, "green": 12}


@pytest.fixture
def images(tmp_path):
    """Return 36 images that a test may change."""
    return image_folder(tmp_path / "images", COLOURS)


def config(images=None, **settings):
    usual = {"batch_size": 8, "optimizer": "sgd", "epochs": 1}
    return tiny_config(images or shared_images(**COLOURS), **usual | settings)


def run(config, folder):
    """Train and return the cache's report and all events."""
    found = fit_all(config, folder)
    return asdict(only(events.RunStarted, found)[0].cache), found


def phases(found):
    return {event.phase for event in only(events.Progress, found)}


def same_results(a, b):
    """Check that weights agree to 1e-5 (1e-6 where sums nearly cancel), and predictions exactly.

    The runs have SGD: batches of other sizes are added up in another order, and Adam takes whole
    steps along a gradient that is only such rounding.
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


VIEWS = {"augmentation": "random_resized_crop", "views": 2}


SAMPLE = ("two heads", "mobile CNN", "ViT with registers")  # of the kinds of networks
NETWORKS = [
    pytest.param("timm/test_resnet", 32, VIEWS, 8, id="tiny"),
    pytest.param("resnet18", 64, {}, 4, marks=pytest.mark.train),
    pytest.param("efficientnet_lite0", 64, VIEWS, 4, marks=pytest.mark.train),
    *(
        pytest.param(*one, 4, marks=pytest.mark.exhaustive)
        for one in (
            ("resnet18", 64, VIEWS),
            ("densenet121", 64, {}),
            ("swin_t", 64, VIEWS),
            ("convnext_tiny", 64, {}),
            ("vit_b_16", 224, {}),
        )
    ),
    # BatchNorm behind 1 x 1 pixels sees one number per image: in a batch of two, rounding decides.
    *(
        pytest.param(
            name,
            SIDE,
            {},
            8,
            id=kind,
            marks=getattr(pytest.mark, "train" if kind in SAMPLE else "exhaustive"),
        )
        for kind, name in KINDS.items()
    ),
]


@pytest.mark.train
@pytest.mark.parametrize(("backbone", "size", "augmentation", "batch_size"), NETWORKS)
def test_cached_equals_uncached(tmp_path, backbone, size, augmentation, batch_size):
    usual = {"backbone": backbone, "weights": "none", "image_size": size, "epochs": 2}
    usual |= {"images": shared_images(red=12, blue=12), "batch_size": batch_size} | augmentation
    cached, _ = run(config(**usual), tmp_path / "cached")
    uncached, _ = run(config(**usual, cache="off"), tmp_path / "uncached")
    assert (cached["where"], uncached["where"]) == ("memory", "off")
    same_results(tmp_path / "cached", tmp_path / "uncached")


@pytest.mark.train
def test_a_second_run_computes_no_trunk_and_decodes_nothing(tmp_path):
    first, _ = run(config(), tmp_path / "first")
    second, found = run(config(seed=5), tmp_path / "second")
    assert (first["found"], first["rows"]) == (0, 36)
    assert (second["found"], second["rows"]) == (36, 36)
    assert second["trunk_seconds"] == 0
    assert not phases(found) & {"decode", "trunk"}


@pytest.mark.train
def test_a_deeper_cut_starts_from_the_nearest_shallower_one(tmp_path, monkeypatch):
    run(config(strategy="last_two_blocks"), tmp_path / "shallow")
    starts = []
    original = trunk.Segments.part

    def spied(self, start, end):
        starts.append((start, end))
        return original(self, start, end)

    monkeypatch.setattr(trunk.Segments, "part", spied)
    _, found = run(config(strategy="feature_extraction"), tmp_path / "deep")
    assert (3, 5) in starts
    assert "decode" not in phases(found)
    monkeypatch.undo()
    CACHE.clear()
    run(config(strategy="feature_extraction"), tmp_path / "alone")
    same_results(tmp_path / "deep", tmp_path / "alone")


@pytest.mark.train
def test_activations_that_are_driven_out_before_they_are_used_are_computed_again(
    images, tmp_path, monkeypatch
):
    monkeypatch.setenv("THAW_CACHE_MEMORY_GB", "1")
    run(config(images, strategy="last_two_blocks"), tmp_path / "shallow")
    # they have to be decoded, which takes its time
    image_folder(images, {"yellow": 5})
    (tmp_path / "deep").mkdir()
    phases = []
    for event in fit(config(images, strategy="feature_extraction"), tmp_path / "deep"):
        if isinstance(event, events.Progress) and event.phase not in phases:
            phases.append(event.phase)
            if event.phase == "decode":
                assert CACHE.make_room(10**9, "another session's") == "memory"
    assert event.best_epoch
    assert phases[:3] == ["index", "decode", "trunk"]


@pytest.mark.train
def test_activations_that_are_driven_out_while_they_are_used_stay_readable(
    images, tmp_path, monkeypatch
):
    monkeypatch.setenv("THAW_CACHE_MEMORY_GB", "1")
    run(config(images, strategy="last_block"), tmp_path / "nearest")
    image_folder(images, {"yellow": 5})
    run(config(images, strategy="last_two_blocks"), tmp_path / "shallower")
    (tmp_path / "deep").mkdir()
    evicted = False
    for event in fit(config(images, strategy="feature_extraction"), tmp_path / "deep"):
        if isinstance(event, events.Progress) and event.phase == "trunk" and not evicted:
            CACHE.make_room(10**9, "another session's")
            evicted = True
        if isinstance(event, events.RunStarted):
            cache = event.cache
    assert (cache.rows, cache.where) == (41, "memory")


@pytest.mark.train
def test_only_images_that_are_new_or_changed_are_computed(images, tmp_path, monkeypatch):
    def found():
        emitted, _ = run(config(images), tmp_path / str(len(list(tmp_path.iterdir()))))
        assert emitted["bytes"] == emitted["rows"] * 192 * 2 * 2 * 4  # layer3 in float32
        return emitted["found"], emitted["rows"]

    assert found() == (0, 36)
    image_folder(images, {"yellow": 5})
    assert found() == (36, 41)
    victim, other = (next((images / colour).iterdir()) for colour in ("red", "blue"))
    victim.write_bytes(other.read_bytes()[:-12] + b"more" + other.read_bytes()[-12:])
    assert found() == (40, 41)
    (images / "red" / "copy.png").write_bytes(victim.read_bytes())  # the same under another name
    assert found()[1] == 42
    monkeypatch.setattr(trunk, "_VERSIONS", (*trunk._VERSIONS[:-1], "another"))
    assert found() == (0, 42)
    assert len(trunk._VERSIONS) == 4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"strategy": "full"}, "nothing is frozen"),
        ({"cache": "off"}, "switched off"),
        ({"augmentation": "flips", "views": 0}, "afresh"),
    ],
)
def test_a_run_without_the_cache_says_why(tmp_path, settings, words):
    emitted, _ = run(config(**settings), tmp_path / "run")
    assert emitted["where"] == "off"
    assert words in emitted["reason"]


@pytest.mark.train
def test_views_are_chosen_by_the_epochs_and_written_on_the_run(tmp_path):
    emitted, _ = run(config(augmentation="flips", epochs=6), tmp_path / "run")
    assert emitted["views"] == 2
    assert emitted["rows"] == 24 * 2 + 12


@pytest.mark.train
def test_on_disk_or_without_any_room_the_results_are_the_same(tmp_path, monkeypatch):
    run(config(), tmp_path / "memory")
    CACHE.clear()
    monkeypatch.setenv("THAW_CACHE_MEMORY_GB", "0")
    with monkeypatch.context() as tight:
        tight.setenv("THAW_CACHE_DISK_GB", "0")
        emitted, _ = run(config(), tmp_path / "uncached")
    assert "neither into memory nor onto the disk" in emitted["reason"]
    emitted, _ = run(config(), tmp_path / "disk")
    assert emitted["where"] == "disk"
    for other in ("disk", "uncached"):
        same_results(tmp_path / "memory", tmp_path / other)


def test_a_network_that_cannot_be_cut_trains_uncached_and_says_why(tmp_path, monkeypatch):
    def refuse(_network):
        raise SplitError("its structure cannot be traced (TraceError)")

    monkeypatch.setattr("finetune_core.training.prepare.split_network", refuse)
    emitted, _ = run(config(), tmp_path / "run")
    assert emitted["reason"] == "its structure cannot be traced (TraceError)"


@pytest.mark.train
def test_a_damaged_image_does_not_cost_the_others_their_shallower_cut(images, tmp_path):
    settings = config(images, strategy="last_two_blocks")
    victim = sorted((images / "red").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:1500])
    run(settings, tmp_path / "shallow")
    emitted, found = run(config(images, strategy="last_block"), tmp_path / "deep")
    assert [event.decoded for event in found if isinstance(event, events.RunStarted)] == [0]
    assert emitted["rows"] == 35


@pytest.mark.train
def test_rows_that_new_ones_drive_out_of_a_tight_disk_are_not_read(images, tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_CACHE_MEMORY_GB", "0")
    # BatchNorm on maps of one pixel and five images would multiply roundings a hundredfold.
    settings = {"image_size": 64}
    first, _ = run(config(images, **settings), tmp_path / "first")
    assert first["where"] == "disk"
    image_folder(images, {"yellow": 12})
    room = sum(file.stat().st_size for file in paths.rows_dir().glob("*.rows"))
    monkeypatch.setenv("THAW_CACHE_DISK_GB", str(0.9 * room / 1e9))
    CACHE.clear()
    emitted, _ = run(config(images, **settings), tmp_path / "tight")
    CACHE.clear()
    run(config(images, **settings, cache="off"), tmp_path / "uncached")
    same_results(tmp_path / "tight", tmp_path / "uncached")
    assert emitted["where"] == "disk"
    kept = sum(file.stat().st_size for file in paths.rows_dir().glob("*.rows"))
    assert 0 < kept <= 0.9 * room, "the old rows have made room for the new ones"


@pytest.mark.train
def test_bf16_learns_as_fp32_does(native_bf16, tmp_path):
    """Losses are compared: accuracies of so few images would differ by single ones."""
    settings = {"strategy": "last_two_blocks", "epochs": 6, "learning_rate": 3e-3}
    losses = []
    for precision in ("fp32", "bf16"):
        made = tiny_config(**settings, precision=precision, batch_size=10, val_fraction=0.3)
        ended = only(events.EpochEnded, fit_all(made, tmp_path / precision))
        losses.append([(event.train_loss, event.val_loss) for event in ended])
    exact, fast = np.array(losses)
    assert exact[-1].max() < 0.5 * exact[0].max(), "nothing was learned, so nothing is compared"
    assert fast == pytest.approx(exact, rel=0.1, abs=0.05)

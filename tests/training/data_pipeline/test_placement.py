"""Tests of the place of a run's rows, and of what travels to a device that computes.

The devices are torch's ``meta`` and a processor that is treated like a GPU.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from finetune_core.data.decode import Resize
from finetune_core.data.pixels import Pixels
from finetune_core.data.rowcache import CACHE, RowCache
from finetune_core.models.catalogue import backbone_info
from finetune_core.training import events, prepare
from finetune_core.training.data_pipeline.batches import sample_keys
from finetune_core.training.data_pipeline.feeding import load_batches
from finetune_core.training.data_pipeline.placement import measure_row_budget, place_lookups
from finetune_core.training.data_pipeline.training_images import TrainingImages, validation_feed
from finetune_core.training.data_pipeline.trunk import CachedTrunk
from finetune_core.training.devices.device import Device
from finetune_core.training.loop import fit
from finetune_core.work import finish
from tests.drain import drain
from tests.factories import tiny_config
from tests.training.pretended import GPU

CPU, META = Device("cpu", "CPU", "fp32"), Device("meta", "nothing but shapes", "fp32")
SIDE, SIZE = 37, 32
KEYS = sample_keys(str(number) for number in range(20))


class Travelled(TorchDispatchMode):
    """Mode that notes the bytes of each tensor that goes from the processor to ``meta``.

    Waiting for a value on that device is an error.
    """

    def __init__(self):
        super().__init__()
        self.bytes = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        sources = [
            one
            for one in arguments
            if torch.is_tensor(one) and one.device.type == "cpu" and one.ndim
        ]
        if sources and torch.is_tensor(result) and result.device.type == "meta":
            self.bytes += [one.nbytes for one in sources]
        return result


@pytest.fixture
def lookup(tmp_path):
    """Return a lookup of 20 squares in three blocks, one of which nobody asks for."""
    cache, rows = RowCache(lambda: tmp_path / "rows"), squares()
    for start, end in ((0, 8), (8, 11), (11, 20)):
        finish(cache.fill("t", KEYS[start:end], iter([(np.arange(end - start), rows[start:end])])))
    return cache.get_table("t").lookup(KEYS)


def squares():
    return torch.randint(
        0, 256, (20, SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def images(lookup, device, config):
    return TrainingImages(
        Pixels([], Resize(SIDE), lookup, {}, 0), device, config, backbone_info("resnet18"), KEYS
    )


def test_rows_on_a_device_are_those_that_were_asked_for(lookup):
    asked = np.array([17, 3, 9, 3])
    held = lookup.copy_to(torch.device("cpu"), asked)
    assert len(held.blocks) == 1
    assert held.blocks[0].keys.tolist() == KEYS[[3, 9, 17]].tolist()
    assert torch.equal(held.batch(asked), lookup.batch(asked))
    assert held.blocks[0].bytes == lookup.count_bytes(asked) == 3 * SIDE * SIDE * 3
    with pytest.raises(KeyError):
        held.batch(np.array([4]))


def test_equal_images_under_several_names_are_held_once(tmp_path):
    cache = RowCache(lambda: tmp_path)
    finish(cache.fill("t", KEYS[:2], iter([(np.arange(2), squares()[:2])])))
    lookup = cache.get_table("t").lookup(KEYS[[0, 1, 0]])
    held = lookup.copy_to(torch.device("meta"), np.arange(3))
    assert len(held.blocks[0].rows) == 2


@pytest.mark.parametrize(
    ("room", "where"),
    [
        (0, ["cpu", "cpu"]),
        (7, ["cpu", "cpu"]),
        (19, ["cpu", "meta"]),
        (20, ["meta", "cpu"]),
        (28, ["meta", "meta"]),
    ],
)
def test_lookups_are_placed_on_the_device_as_long_as_there_is_room(lookup, room, where):
    row = SIDE * SIDE * 3
    both = [lookup, lookup.copy_to(torch.device("cpu"), np.arange(8))]
    found = place_lookups(both, np.arange(20), torch.device("meta"), room * row)
    assert [one.blocks[0].rows.device.type for one in found] == where
    # what the second one lacks, it still lacks
    assert [one.places[:, 0].min() for one in found] == [0, -1]


def test_a_device_without_room_for_them_after_all_leaves_rows_where_they_are(lookup, monkeypatch):
    def full(*_arguments, **_named):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(torch, "empty", full)
    assert place_lookups([lookup], np.arange(20), torch.device("meta"), 10**9) == [lookup]


def test_only_a_gpu_with_memory_of_its_own_is_given_rows_and_half_of_what_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (6_000, 16_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 3_000)  # 1,000 of them in use
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 1_000)
    assert measure_row_budget(Device("cuda", "", "fp32")) == 4_000
    assert measure_row_budget(Device("mps", "", "fp32")) == measure_row_budget(CPU) == 0


@pytest.mark.parametrize("version", [None, 1])
@pytest.mark.parametrize("kind", ["none", "flips", "random_resized_crop"])
def test_of_rows_on_the_device_next_to_nothing_travels_and_nobody_waits(lookup, kind, version):
    config = tiny_config(augmentation=kind, image_size=SIZE)
    source = images(lookup, META, config)
    held = source.with_lookups(
        place_lookups(source.lookups, np.arange(20), META.torch_device, 10**9)
    )
    with Travelled() as travelled:
        rows, loaded = held.load_readable(np.array([2, 9, 15]), version)
        found = held.finish(loaded, rows, version)
    assert (found.device.type, found.dtype, found.shape) == (
        "meta",
        torch.float32,
        (3, 3, SIZE, SIZE),
    )
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert 0 < sum(travelled.bytes) <= 200, (
        "row numbers, boxes, flips, and the backbone's mean and deviation"
    )


def test_what_does_not_fit_travels_as_bytes_to_be_finished_there(lookup):
    source = images(lookup, META, tiny_config(augmentation="random_resized_crop", image_size=SIZE))
    with Travelled() as travelled:
        for rows, loaded in load_batches(
            lambda rows: source.load_readable(rows, 0), [np.arange(5), np.arange(5, 10)], META
        ):
            assert (loaded.device.type, loaded.dtype) == ("meta", torch.uint8)
            assert source.finish(loaded, rows, 0).shape == (5, 3, SIZE, SIZE)
    square = SIDE * SIDE * 3
    assert [one for one in travelled.bytes if one > 1000] == [5 * square, 5 * square]


def test_images_that_are_analyzed_travel_as_bytes_too_and_are_the_same_everywhere(lookup):
    pixels, info, rows = (
        Pixels([], Resize(SIDE), lookup, {}, 0),
        backbone_info("resnet18"),
        np.array([3, 17, 4]),
    )
    made = [validation_feed(pixels, info, SIZE, device) for device in (CPU, GPU)]
    here, there = (feed.finish(feed.load(rows), rows) for feed in made)
    assert torch.equal(here, there)
    with Travelled() as travelled:
        feed = validation_feed(pixels, info, SIZE, META)
        ((_, loaded),) = load_batches(lambda rows: (rows, feed.load(rows)), [rows], META)
        assert feed.finish(loaded, rows).shape == (3, 3, SIZE, SIZE)
    assert [one for one in travelled.bytes if one > 1000] == [3 * SIDE * SIDE * 3]


def test_activations_on_the_device_are_indexed_there(lookup):
    trunk = CachedTrunk(torch.nn.Identity(), lookup, (lookup, lookup))
    held = trunk.with_lookups(place_lookups(trunk.lookups, np.arange(20), META.torch_device, 10**9))
    for version in (None, 0, 1):
        with Travelled() as travelled:
            rows, loaded = held.load_readable(np.array([2, 9, 15]), version)
        assert held.finish(loaded, rows, version).device.type == "meta"
        assert travelled.bytes == [3 * 8]


def test_labels_on_the_device_are_indexed_there():
    _, job = drain(prepare.prepare(tiny_config(batch_size=8)))
    rows = job.training_batches(1)[0]
    assert job.get_targets(rows).tolist() == job.labels[rows].tolist()
    there = replace(job, device=META)
    there.get_targets(rows)
    with Travelled() as travelled:
        assert there.get_targets(rows).shape == rows.shape
    assert travelled.bytes == [rows.nbytes]


@pytest.mark.parametrize("kind", ["none", "flips", "random_resized_crop"])
@pytest.mark.parametrize("room", [0, 10**9])
def test_what_is_finished_on_the_device_is_what_a_processor_makes(lookup, kind, room):
    config = tiny_config(augmentation=kind, image_size=SIZE)
    batches = [np.array([4, 19, 7]), np.array([8, 0])]

    def made(device):
        source = images(lookup, device, config)
        source = source.with_lookups(
            place_lookups(
                source.lookups, np.arange(20), device.torch_device, room if device is GPU else 0
            )
        )
        for version in (None, 0, 3):
            for rows, loaded in load_batches(
                lambda rows, version=version: source.load_readable(rows, version), batches, device
            ):
                yield source.finish(loaded, rows, version)

    for ours, theirs in zip(made(GPU), made(CPU), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()


@pytest.mark.train
@pytest.mark.parametrize(
    ("settings", "room"),
    [
        pytest.param({}, 10**9, marks=pytest.mark.exhaustive),
        ({"augmentation": "random_resized_crop", "views": 2}, 20_000),  # one of three tables
        ({"cache": "off", "augmentation": "flips"}, 10**9),
        pytest.param({"strategy": "full"}, 0, marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_is_the_same_wherever_its_rows_live(tmp_path, marks, monkeypatch, settings, room):
    config = tiny_config(epochs=2, batch_size=8, **settings)
    for folder, device, allowed in (("here", CPU, 0), ("there", GPU, room)):
        monkeypatch.setattr(prepare, "choose_device", lambda *_, device=device: device)
        monkeypatch.setattr(prepare, "measure_row_budget", lambda _, allowed=allowed: allowed)
        CACHE.clear()
        (tmp_path / folder).mkdir()
        assert isinstance(list(fit(config, tmp_path / folder))[-1], events.RunFinished)
    assert marks(tmp_path / "here") == marks(tmp_path / "there")

"""Tests of batches: their order, their augmentation, and making them ahead of time."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from finetune_core.training.data_pipeline.batches import (
    augment,
    center_crop,
    draw_uniform,
    make_balanced_batches,
    make_epoch_batches,
    normalize,
    prefetch,
    sample_keys,
    split_batches,
    take_subset,
)

quick = settings(deadline=None, derandomize=True, database=None, max_examples=80)
KEYS = sample_keys([f"class/{number}.png" for number in range(20_000)])


@pytest.fixture
def two_threads():
    """Compute with two threads, as on two cores, wherever the test runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def pictures(count, side=32):
    return torch.randint(
        0,
        256,
        (count, 3, side, side),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )


def test_keys_are_one_a_name_and_the_same_on_every_machine():
    assert len(set(KEYS.tolist())) == len(KEYS)
    # BLAKE2b, 8 bytes, little-endian
    assert sample_keys(["a.png"]).tolist() == [6266261796961190882]
    single = [sample_keys([name])[0] for name in "ab"]
    assert sample_keys(["a", "b"]).tolist() == single
    assert sample_keys(["a"]).dtype == np.dtype("<u8")
    assert len(sample_keys([])) == 0
    assert len(sample_keys(["caf\udce9.png"])) == 1  # no Unicode


def test_uniform_looks_uniform():
    drawn = draw_uniform(KEYS, seed=0, epoch=3, draw=1)
    assert drawn.dtype == np.float64
    assert 0 <= drawn.min() < 0.001
    assert 0.999 < drawn.max() < 1
    assert kstest(drawn, "uniform").pvalue > 0.001
    assert chisquare(np.histogram(drawn, 50, (0, 1))[0]).pvalue > 0.001


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}, {"draw": 1}])
def test_another_seed_epoch_or_draw_is_independent(other):
    first = draw_uniform(KEYS, seed=0, epoch=0, draw=0)
    second = draw_uniform(KEYS, **({"seed": 0, "epoch": 0, "draw": 0} | other))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    table, _, _ = np.histogram2d(first, second, 8, ((0, 1), (0, 1)))
    assert chisquare(table.ravel()).pvalue > 0.001


def test_seed_epoch_and_draw_do_not_stand_for_each_other():
    drawn = {
        tuple(draw_uniform(KEYS[:3], *parts))
        for parts in [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0), (2**31 - 1, 0, 0)]
    }
    assert len(drawn) == 5


def test_neighbouring_draws_of_one_image_are_uniform_too():
    drawn = np.array([draw_uniform(KEYS[:1], 0, epoch, 1)[0] for epoch in range(2000)])
    assert kstest(drawn, "uniform").pvalue > 0.001


@quick
@given(st.integers(0, 70), st.integers(1, 20), st.integers(0, 2**31 - 1), st.integers(0, 1000))
def test_an_epoch_sees_every_image_once(count, batch_size, seed, epoch):
    indices = np.arange(count) * 2 + 1
    batches = make_epoch_batches(indices, KEYS, batch_size, seed, epoch)
    assert sorted(int(i) for batch in batches for i in batch) == indices.tolist()
    assert all(len(batch) == batch_size for batch in batches[:-1]) or count % batch_size == 1
    if batch_size > 1 and count > 1:
        assert all(2 <= len(batch) <= batch_size + 1 for batch in batches)


def test_the_order_depends_on_images_epoch_and_seed_and_not_on_how_they_were_listed():
    def order(seed, epoch, indices=range(100)):
        return np.concatenate(make_epoch_batches(np.array(indices), KEYS, 8, seed, epoch)).tolist()

    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6
    assert order(0, 0) == order(0, 0, range(99, -1, -1))
    assert order(0, 0, range(1, 100, 2)) == [index for index in order(0, 0) if index % 2]


def test_a_last_batch_of_one_joins_the_one_before():
    for count, size, wanted in (
        (9, 4, [4, 5]),
        (10, 4, [4, 4, 2]),
        (8, 4, [4, 4]),
        (1, 4, [1]),
        (3, 1, [1, 1, 1]),
        (0, 4, []),
    ):
        batches = make_epoch_batches(np.arange(count), KEYS, size, 0, 0)
        assert [len(batch) for batch in batches] == wanted


@pytest.mark.parametrize("ahead", [1, 5])
def test_prefetched_makes_every_batch_once_and_in_order(ahead):
    made = []

    def make(indices):
        made.append(indices.tolist())
        return int(indices.sum())

    batches = split_batches(np.arange(7), 3)
    got = [(indices.tolist(), batch) for indices, batch in prefetch(make, batches, ahead)]
    assert got == [([0, 1, 2], 3), ([3, 4, 5], 12), ([6], 6)]
    assert made == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(prefetch(make, [])) == []


@pytest.mark.parametrize("ahead", [1, 2])
def test_prefetched_makes_the_next_batches_while_this_one_is_used_and_no_others(ahead):
    begun, last = [], threading.Event()

    def make(indices):
        begun.append(int(indices[0]))
        if indices[0] == ahead:
            last.set()

    using = prefetch(make, split_batches(np.arange(5), 1), ahead)
    next(using)
    assert last.wait(300)
    using.close()
    assert begun == list(range(ahead + 1))


def test_prefetched_passes_errors_on():
    def fail(indices):
        raise ValueError("cannot read")

    with pytest.raises(ValueError, match="cannot read"):
        list(prefetch(fail, split_batches(np.arange(3), 2)))


@pytest.mark.parametrize("kind", ["none", "flips", "random_resized_crop"])
def test_augmentation_depends_on_the_image_and_the_epoch_not_on_its_company(kind):
    images, keys = pictures(6), KEYS[:6]
    together = augment(images, kind, keys, 0, 2, 24)
    assert together.shape == (6, 3, 24, 24)
    assert together.dtype == torch.uint8
    for index in range(6):
        alone = augment(images[[index]], kind, keys[[index]], 0, 2, 24)
        assert torch.equal(alone[0], together[index])
    backwards = augment(images.flip(0), kind, keys[::-1], 0, 2, 24)
    assert torch.equal(backwards.flip(0), together)


@pytest.mark.parametrize("kind", ["flips", "random_resized_crop"])
def test_augmentation_differs_by_epoch_and_by_seed(kind):
    images, keys = pictures(8), KEYS[:8]
    seen = [
        augment(images, kind, keys, seed, epoch, 24) for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert torch.equal(seen[0], augment(images, kind, keys, 0, 0, 24))
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("kind", ["none", "flips", "random_resized_crop"])
def test_a_share_without_images_is_augmented_and_normalised_like_any_other(kind):
    nothing = torch.empty(0, 3, 37, 37, dtype=torch.uint8)
    seen = augment(nothing, kind, np.empty(0, np.uint64), seed=0, epoch=1, size=32)
    assert (seen.dtype, seen.shape) == (torch.uint8, (0, 3, 32, 32))
    assert normalize(seen, [0.5] * 3, [0.5] * 3).shape == (0, 3, 32, 32)


def test_no_augmentation_is_the_centre_crop():
    images = pictures(3, 32)
    assert torch.equal(augment(images, "none", KEYS[:3], 0, 0, 24), images[..., 4:28, 4:28])
    assert torch.equal(center_crop(images, 24), images[..., 4:28, 4:28])


def test_flips_mirror_about_half_the_images_and_change_nothing_else():
    images, keys = pictures(200, 10), KEYS[:200]
    plain, seen = center_crop(images, 8), augment(images, "flips", keys, 0, 0, 8)
    as_is = (seen == plain).flatten(1).all(1)
    mirrored = (seen == plain.flip(-1)).flatten(1).all(1)
    assert (as_is | mirrored).all()
    assert 70 < mirrored.sum() < 130


def test_crops_stay_inside_and_keep_half_the_area():
    side = 100
    ramp = torch.arange(side, dtype=torch.uint8)
    images = torch.stack(
        [ramp.expand(side, side), ramp[:, None].expand(side, side), torch.zeros(side, side).byte()]
    )
    seen = augment(
        images.expand(200, 3, side, side), "random_resized_crop", KEYS[:200], 0, 0, side
    ).float()
    width = seen[:, 0].amax((1, 2)) - seen[:, 0].amin((1, 2)) + 1
    height = seen[:, 1].amax((1, 2)) - seen[:, 1].amin((1, 2)) + 1
    area = width * height / side**2
    assert area.min() > 0.45
    assert area.max() <= 1
    assert area.std() > 0.05
    assert ((width / height).log().abs() <= np.log(4 / 3) + 0.05).all()
    assert seen[:, 0].amin((1, 2)).unique().numel() > 10  # not always from the left edge


def test_normalised_is_pixels_less_mean_over_deviation():
    images, mean, std = pictures(2, 8), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    got = normalize(images, mean, std)
    expected = (images.numpy() / 255 - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(images, pictures(2, 8))  # left alone


LABELS = np.repeat([0, 1, 2], [100, 10, 3])


def test_a_larger_share_holds_a_smaller_one_and_keeps_the_shares_of_the_classes():
    every = np.arange(len(LABELS))
    kept = {
        share: take_subset(every, LABELS, KEYS, share, seed=1) for share in (0.1, 0.3, 0.5, 1.0)
    }
    for smaller, larger in zip([0.1, 0.3, 0.5], [0.3, 0.5, 1.0], strict=True):
        assert set(kept[smaller]) < set(kept[larger])
    assert np.bincount(LABELS[kept[0.3]]).tolist() == [30, 3, 1]
    assert np.bincount(LABELS[kept[0.1]]).tolist() == [10, 1, 1]  # no class is lost
    assert (np.diff(kept[0.5]) > 0).all()
    assert not np.array_equal(take_subset(every, LABELS, KEYS, 0.3, seed=2), kept[0.3])


def test_balanced_epochs_hold_as_many_of_each_class_and_every_image_as_often():
    every = np.arange(len(LABELS))
    seen = np.zeros(len(LABELS), dtype=int)
    for epoch in range(60):
        epoch_rows = np.concatenate(
            make_balanced_batches(every, LABELS, KEYS, 16, seed=0, epoch=epoch)
        )
        assert len(epoch_rows) == len(every)
        assert np.ptp(np.bincount(LABELS[epoch_rows])) <= 1
        seen += np.bincount(epoch_rows, minlength=len(every))
    for small in (1, 2):  # of small classes, every image comes within one of as often in each epoch
        assert np.ptp(seen[small == LABELS]) <= 60
    large = seen[LABELS == 0]
    assert large.min() > 0
    assert abs(large.mean() - 60 * 38 / 100) < 0.5


def test_balanced_batches_mix_the_classes():
    batches = make_balanced_batches(np.arange(len(LABELS)), LABELS, KEYS, 32, seed=0, epoch=0)
    assert all(len(np.unique(LABELS[batch])) == 3 for batch in batches)
    again = make_balanced_batches(np.arange(len(LABELS)), LABELS, KEYS, 32, seed=0, epoch=0)
    assert all(np.array_equal(one, other) for one, other in zip(batches, again, strict=True))


def test_a_batch_is_made_without_helper_threads_and_other_threads_keep_theirs(two_threads):
    def make(_rows):
        with ThreadPoolExecutor(1) as other:
            return torch.get_num_threads(), other.submit(torch.get_num_threads).result()

    for _, (batch, other) in prefetch(make, split_batches(np.arange(3), 1)):
        assert (batch, other, torch.get_num_threads()) == (1, 2, 2)


@pytest.mark.train
def test_threads_that_start_while_others_make_batches_have_all_their_helpers(two_threads):
    over, found = threading.Event(), Counter()

    def start_threads():
        while not over.is_set():
            new = threading.Thread(target=lambda: found.update([torch.get_num_threads()]))
            new.start()
            new.join()

    with ThreadPoolExecutor(1) as beside:
        running = beside.submit(start_threads)
        for _ in range(50):
            for _ in prefetch(len, split_batches(np.arange(2), 1)):
                pass
        over.set()
        running.result()
    assert set(found) == {2}

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_core.data.splits import TEST, TRAIN, VAL, assign_splits, extract_groups

quick = settings(deadline=None, derandomize=True, database=None, max_examples=30)
COUNTS = st.lists(st.integers(1, 40), min_size=1, max_size=5)
FRACTIONS = st.tuples(st.floats(0.01, 0.35), st.floats(0, 0.35))


def images(counts):
    rows = [
        (f"class{label}/{number}.png", label)
        for label, count in enumerate(counts)
        for number in range(count)
    ]
    return pd.Series([sample for sample, _ in rows]), pd.Series([label for _, label in rows])


def count_by_split(counts, val, test, seed=0):
    ids, labels = images(counts)
    return pd.crosstab(labels, assign_splits(ids, labels, val, test, seed)).reindex(
        columns=[TRAIN, VAL, TEST], fill_value=0
    )


@pytest.mark.parametrize(
    ("counts", "shares", "expected"),
    [
        ([100, 20], (0.2, 0.1), [[70, 20, 10], [14, 4, 2]]),
        ([50, 5], (0.2, 0.0), [[40, 10, 0], [4, 1, 0]]),
        # training images come first
        ([1], (0.15, 0.15), [[1, 0, 0]]),
        ([2], (0.15, 0.15), [[2, 0, 0]]),
        ([3], (0.15, 0.15), [[2, 1, 0]]),
        ([4], (0.15, 0.15), [[2, 1, 1]]),
        ([5], (0.15, 0.15), [[3, 1, 1]]),
        ([4], (0.4, 0.4), [[1, 2, 1]]),
    ],
)
def test_shares_hold_within_every_class_and_each_trains(counts, shares, expected):
    assert count_by_split(counts, *shares).to_numpy().tolist() == expected


def test_a_split_is_known_for_good():
    ids, labels = images([6])
    assert assign_splits(ids, labels, 0.2, 0.2, 0).tolist() == [
        "train",
        "val",
        "test",
        "train",
        "train",
        "train",
    ]


@pytest.mark.fuzz
@quick
@given(COUNTS, FRACTIONS, st.integers(0, 2**31 - 1))
def test_every_image_has_a_split_and_every_class_trains(counts, fractions, seed):
    table = count_by_split(counts, *fractions, seed)
    assert table.sum(axis=1).tolist() == counts
    assert (table[TRAIN] >= 1).all()
    assert ((table[VAL] >= 1) == (table.sum(axis=1) >= 3)).all()


@pytest.mark.fuzz
@quick
@given(COUNTS, FRACTIONS, st.integers(0, 2**31 - 1), st.randoms(use_true_random=False))
def test_a_split_does_not_depend_on_the_order_of_the_images(counts, fractions, seed, random):
    ids, labels = images(counts)
    order = list(range(len(ids)))
    random.shuffle(order)
    split = pd.Series(assign_splits(ids, labels, *fractions, seed), index=ids)
    shuffled = pd.Series(
        assign_splits(
            ids.iloc[order].reset_index(drop=True),
            labels.iloc[order].reset_index(drop=True),
            *fractions,
            seed,
        ),
        index=ids.iloc[order],
    )
    assert split.to_dict() == shuffled.to_dict()


def test_another_class_does_not_change_the_split_of_the_first():
    ids, labels = images([20])
    more_ids, more_labels = images([20, 15])
    alone = assign_splits(ids, labels, 0.2, 0.2, 3)
    together = assign_splits(more_ids, more_labels, 0.2, 0.2, 3)
    assert together[:20].tolist() == alone.tolist()


def assign(ids, labels, *, val=0.2, test=0.1, seed=0, **settings):
    """Return {id: split}."""
    ids, labels = pd.Series(ids, dtype="str"), pd.Series(labels)
    return dict(zip(ids, assign_splits(ids, labels, val, test, seed, **settings), strict=True))


def make_numbered_ids(first, last, name="x"):
    return [f"{name}/{number:04d}.png" for number in range(first, last)]


def shares(split):
    counts = pd.Series(split).value_counts(normalize=True)
    return [round(float(counts.get(name, 0)), 2) for name in (TRAIN, VAL, TEST)]


@pytest.mark.parametrize("first", [0, 500])
def test_images_that_are_added_move_no_others_and_the_shares_hold(first):
    """New names sort before or after the old ones; a second batch is like the first."""
    ids = make_numbered_ids(200, 300)
    split = assign(ids, ["x"] * 100)
    for batch in (make_numbered_ids(first, first + 60), make_numbered_ids(first + 60, first + 200)):
        ids = [*ids, *batch]
        after = assign(ids, ["x"] * len(ids), known=split)
        assert split.items() <= after.items()
        assert shares(after) == [0.7, 0.2, 0.1]
        assert {after[name] for name in batch} == {TRAIN, VAL, TEST}
        split = after


def test_a_class_that_is_added_leaves_the_others_as_they_are():
    ids, more = make_numbered_ids(0, 50), make_numbered_ids(0, 50, "y")
    split = assign(ids, ["x"] * 50)
    after = assign([*ids, *more], ["x"] * 50 + ["y"] * 50, known=split)
    assert split.items() <= after.items()
    assert shares({name: after[name] for name in more}) == [0.7, 0.2, 0.1]


def test_a_class_that_was_too_small_validates_once_there_are_more():
    split = assign(make_numbered_ids(0, 2), ["x"] * 2)
    assert set(split.values()) == {TRAIN}
    after = assign(make_numbered_ids(0, 3), ["x"] * 3, known=split)
    assert after["x/0002.png"] == VAL


def test_images_that_went_do_no_harm():
    split = assign(make_numbered_ids(0, 50), ["x"] * 50)
    after = assign(make_numbered_ids(10, 50), ["x"] * 40, known=split)
    assert after.items() <= split.items()


def test_known_splits_may_come_as_a_column_with_gaps():
    ids = make_numbered_ids(0, 50)
    split = pd.Series(assign(ids, ["x"] * 50))
    after = assign(ids, ["x"] * 50, known=split.where(np.arange(50) < 40))
    assert all(after[name] == split[name] for name in ids[:40])
    assert not pd.Series(after).isna().any()


@pytest.mark.parametrize("other", [{"seed": 1}, {"val": 0.3}, {"test": 0.2}])
def test_another_seed_or_share_is_another_split(other):
    ids = make_numbered_ids(0, 100)
    assert assign(ids, ["x"] * 100) == assign(ids, ["x"] * 100)
    assert assign(ids, ["x"] * 100) != assign(ids, ["x"] * 100, **other)


def test_new_image_of_a_unit_goes_where_the_unit_is():
    ids = [*make_numbered_ids(0, 30), "x/new.png"]
    split = assign(ids[:30], ["x"] * 30, units=np.arange(30))
    for number in range(0, 30, 3):
        units = np.array([*range(30), number])
        after = assign(ids, ["x"] * 31, units=units, known=split)
        assert after["x/new.png"] == split[ids[number]]


def test_a_new_image_joins_the_most_where_its_unit_lies_on_both_sides():
    known = {"x/0000.png": TRAIN, "x/0001.png": VAL, "x/0002.png": VAL, "x/0003.png": TRAIN}
    after = assign(make_numbered_ids(0, 5), ["x"] * 5, units=np.array([0, 0, 0, 1, 0]), known=known)
    assert after == known | {"x/0004.png": VAL}


def test_a_unit_in_two_classes_counts_for_the_one_of_most_of_its_images():
    labels = ["x"] * 10 + ["y"] * 10
    units = np.array([*range(10), 9, 9, *range(10, 18)])  # one of x together with two of y
    ids = [*make_numbered_ids(0, 10), *make_numbered_ids(0, 10, "y")]
    split = assign(ids, labels, units=units)
    assert split["x/0009.png"] == split["y/0000.png"] == split["y/0001.png"]


@pytest.mark.parametrize("sizes", [[30, 30], [100, 3], [1, 60, 60], [2, 1]])
def test_a_class_of_few_large_groups_trains_and_validates(sizes):
    units = np.repeat(np.arange(len(sizes)), sizes)
    for seed in range(3):
        split = assign(
            make_numbered_ids(0, len(units)),
            ["x"] * len(units),
            units=units,
            seed=seed,
            val=0.15,
            test=0.15,
        )
        assert {TRAIN, VAL} <= set(split.values())


def test_shares_hold_for_groups_of_many_sizes():
    random = np.random.default_rng(0)
    units = np.repeat(np.arange(200), random.integers(1, 12, 200))
    split = assign(make_numbered_ids(0, len(units)), ["x"] * len(units), units=units)
    assert shares(split) == pytest.approx([0.7, 0.2, 0.1], abs=0.01)


# sizes of units, a class each
UNITS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=4)


@pytest.mark.fuzz
@quick
@given(UNITS, FRACTIONS, st.integers(0, 2**31 - 1))
def test_no_unit_straddles_and_whatever_can_train_and_validate_does(sizes, fractions, seed):
    ids, labels = images([sum(of_class) for of_class in sizes])
    units = np.repeat(
        np.arange(sum(map(len, sizes))), [size for of_class in sizes for size in of_class]
    )
    split = pd.Series(assign_splits(ids, labels, *fractions, seed, units))
    assert (split.groupby(units).nunique() == 1).all()
    for label, of_class in enumerate(sizes):
        there = set(split[labels == label])
        assert TRAIN in there
        if len(of_class) >= 2 and sum(of_class) >= 3:
            assert VAL in there
    if fractions[1] == 0:
        assert TEST not in set(split)


@pytest.mark.fuzz
@quick
@given(st.data(), FRACTIONS, st.integers(0, 1000))
def test_known_images_keep_their_split_whatever_comes(data, fractions, seed):
    count = data.draw(st.integers(1, 40))
    ids = pd.Series(make_numbered_ids(0, count))
    labels = pd.Series(data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)))
    # across classes, too
    units = np.array(data.draw(st.lists(st.integers(0, 12), min_size=count, max_size=count)))
    then = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    before = (
        assign(
            ids[then],
            labels[then],
            val=fractions[0],
            test=fractions[1],
            seed=seed,
            units=units[then],
        )
        if then.any()
        else {}
    )
    after = assign(
        ids, labels, val=fractions[0], test=fractions[1], seed=seed, units=units, known=before
    )
    assert before.items() <= after.items()
    assert (ids.map(after).groupby(units).nunique() == 1).all()
    assert (
        assign(
            ids, labels, val=fractions[0], test=fractions[1], seed=seed, units=units, known=after
        )
        == after
    )


@pytest.mark.parametrize(
    ("pattern", "name", "group"),
    [
        ("{group}_*", "cats/patient7_02.png", "patient7"),
        ("{group}_*", "cats/patient7_left_02.png", "patient7"),
        ("{group}_*", "patient7_02.png", "patient7"),
        ("{group}_*", "cats/patient7.png", ""),
        ("{group}_*", "cats/_7.png", ""),
        ("scan-{group}-*", "cats/scan-12-3.png", "12"),
        ("scan-{group}-*", "cats/photo-12-3.png", ""),
        ("*_{group}.png", "cats/a_b_7.png", "7"),
        ("{group}.png", "cats/naïve 🦦.png", "naïve 🦦"),
        ("{group}.png", "cats/apng", ""),
        ("*/{group}/*", "cats/patient7/02.png", "patient7"),
        ("*/{group}/*", "cats/02.png", ""),
        ("*/{group}/*", "train/cats/patient7/02.png", ""),
        ("*/*/{group}/*", "train/cats/patient7/02.png", "patient7"),
        ("*/{group}_*", "cats/patient7_02.png", "patient7"),
        ("{group}[1]*", "cats/a[1]b.png", "a"),
        ("{group}[1]*", "cats/a1b.png", ""),
    ],
)
def test_groups_from_names(pattern, name, group):
    assert extract_groups(pd.Series([name], dtype="str"), pattern).tolist() == [group]

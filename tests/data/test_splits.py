import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_core.data.splits import TEST, TRAIN, VAL, assign_splits

quick = settings(deadline=None, derandomize=True, database=None, max_examples=100)
COUNTS = st.lists(st.integers(1, 40), min_size=1, max_size=5)
FRACTIONS = st.tuples(st.floats(0.01, 0.35), st.floats(0, 0.35))


def images(counts):
    rows = [(f"class{label}/{number}.png", label) for label, count in enumerate(counts) for number in range(count)]
    return pd.Series([sample for sample, _ in rows]), pd.Series([label for _, label in rows])


def counted(counts, val, test, seed=0):
    ids, labels = images(counts)
    return pd.crosstab(labels, assign_splits(ids, labels, val, test, seed)).reindex(columns=[TRAIN, VAL, TEST], fill_value=0)


def test_shares_hold_within_every_class():
    assert counted([100, 20], 0.2, 0.1).to_numpy().tolist() == [[70, 20, 10], [14, 4, 2]]


def test_no_test_share_asked_for_gives_no_test_images():
    assert counted([50, 5], 0.2, 0.0)[TEST].sum() == 0


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [1, 0, 0]), (2, [2, 0, 0]), (3, [2, 1, 0]), (4, [2, 1, 1]), (5, [3, 1, 1])]
)
def test_small_classes_keep_training_images_first(count, expected):
    assert counted([count], 0.15, 0.15).to_numpy().tolist() == [expected]


def test_a_split_is_known_for_good():
    ids, labels = images([6])
    assert assign_splits(ids, labels, 0.2, 0.2, 0).tolist() == ["train", "val", "test", "train", "train", "train"]


@quick
@given(COUNTS, FRACTIONS, st.integers(0, 2**31 - 1))
def test_every_image_has_a_split_and_every_class_trains(counts, fractions, seed):
    table = counted(counts, *fractions, seed)
    assert table.sum(axis=1).tolist() == counts
    assert (table[TRAIN] >= 1).all()
    assert ((table[VAL] >= 1) == (table.sum(axis=1) >= 3)).all()


@quick
@given(COUNTS, FRACTIONS, st.integers(0, 2**31 - 1), st.randoms(use_true_random=False))
def test_a_split_does_not_depend_on_the_order_of_the_images(counts, fractions, seed, random):
    ids, labels = images(counts)
    order = list(range(len(ids)))
    random.shuffle(order)
    split = pd.Series(assign_splits(ids, labels, *fractions, seed), index=ids)
    shuffled = pd.Series(
        assign_splits(ids.iloc[order].reset_index(drop=True), labels.iloc[order].reset_index(drop=True), *fractions, seed),
        index=ids.iloc[order],
    )
    assert split.to_dict() == shuffled.to_dict()


def test_another_class_does_not_change_the_split_of_the_first():
    ids, labels = images([20])
    more_ids, more_labels = images([20, 15])
    alone = assign_splits(ids, labels, 0.2, 0.2, 3)
    together = assign_splits(more_ids, more_labels, 0.2, 0.2, 3)
    assert together[:20].tolist() == alone.tolist()


def test_another_seed_gives_another_split():
    ids, labels = images([60])
    assert assign_splits(ids, labels, 0.2, 0.2, 0).tolist() == assign_splits(ids, labels, 0.2, 0.2, 0).tolist()
    assert assign_splits(ids, labels, 0.2, 0.2, 0).tolist() != assign_splits(ids, labels, 0.2, 0.2, 1).tolist()


@pytest.mark.parametrize(("count", "val", "test"), [(4, 0.4, 0.4), (10, 0.46, 0.46)])
def test_large_shares_still_leave_a_training_image(count, val, test):
    assert counted([count], val, test)[TRAIN].item() >= 1

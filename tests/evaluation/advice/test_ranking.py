"""Ranking and proposals, from probes with made-up answers."""

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from finetune_core.evaluation.advice.probes import NetworkProbes
from finetune_core.evaluation.advice.proposal import propose_networks
from finetune_core.evaluation.advice.ranking import best_stages, rank_candidates
from finetune_core.evaluation.comparison.paired import mcnemar_p
from finetune_core.evaluation.intervals import accuracy_interval

IMAGES = 400


def make_probes(
    name, *accuracies, seconds=60.0, top1=None, images=IMAGES, after=None, last_block=True, copies=1
):
    """Return probes with these accuracies, each right on images of its own choice."""
    random = np.random.default_rng(len(name) + sum(map(ord, name)))
    right = np.zeros((len(accuracies), images), dtype=bool)
    for row, accuracy in zip(right, accuracies, strict=True):
        row[random.permutation(images)[: round(accuracy * images)]] = True
    return NetworkProbes(
        name,
        32,
        top1,
        np.array([f"{number:04d}.png" for number in range(images * copies)], dtype=object),
        np.arange(images).repeat(copies),
        tuple(f"block{number}" for number in range(len(accuracies))),
        right.repeat(copies, axis=1),
        after or tuple(10.0 for _ in accuracies),
        {"last_block": seconds} if last_block else {},
    )


def test_the_most_accurate_comes_first_with_its_interval_and_its_forecast():
    first, *others = rank_candidates(
        [make_probes("a", 0.5, 0.7), make_probes("b", 0.6, 0.9, after=(30.0, 20.0))]
    )
    assert (first.backbone, first.stage) == ("b", "block1")
    assert (first.images, first.seconds) == (IMAGES, 20.0)
    accuracy, low, high = accuracy_interval(360, IMAGES)
    assert (first.accuracy, first.groups) == (accuracy, IMAGES)
    assert low - 0.02 < first.ci_low < low < high < first.ci_high < high + 0.02
    assert (first.behind, first.p, first.like_best) == (0.0, 1.0, True)
    order = [(one.backbone, one.stage) for one in others]
    assert order == [("a", "block1"), ("b", "block0"), ("a", "block0")]
    assert [one.behind for one in others] == pytest.approx([0.2, 0.3, 0.4])
    assert not any(one.like_best for one in others)


def test_p_is_mcnemars_corrected_over_all_pairs():
    networks = [make_probes("a", 0.7, 0.72), make_probes("b", 0.76)]
    right = np.concatenate([one.right for one in networks])
    pairs = [(0, 1), (0, 2), (1, 2)]
    plain = [float(mcnemar_p(right[a][None], right[b][None])[0, 0]) for a, b in pairs]
    corrected = dict(zip(pairs, multipletests(plain, method="holm")[1], strict=True))
    found = {(one.backbone, one.stage): one.p for one in rank_candidates(networks)}
    assert found["a", "block0"] == pytest.approx(corrected[0, 2])
    assert found["a", "block1"] == pytest.approx(corrected[1, 2])


def test_copies_of_the_images_make_nothing_more_certain():
    plain = rank_candidates([make_probes("a", 0.90), make_probes("b", 0.82)])
    copied = rank_candidates([make_probes("a", 0.90, copies=4), make_probes("b", 0.82, copies=4)])
    assert plain[1].like_best == copied[1].like_best
    for one, other in zip(plain, copied, strict=True):
        assert (other.images, other.groups) == (4 * one.images, one.images)
        assert other.p == pytest.approx(one.p)
        assert other.accuracy == pytest.approx(one.accuracy)
        assert (other.ci_low, other.ci_high) == pytest.approx((one.ci_low, one.ci_high), abs=2e-3)


def test_a_small_difference_is_not_distinguishable_from_the_best():
    best, second, third = rank_candidates(
        [make_probes("a", 0.90), make_probes("b", 0.89), make_probes("c", 0.6)]
    )
    assert (best.backbone, second.backbone, third.backbone) == ("a", "b", "c")
    assert (best.like_best, second.like_best, third.like_best) == (True, True, False)


def test_the_more_candidates_the_more_it_takes_to_be_distinguished():
    best, worse = np.arange(IMAGES) < 330, np.arange(IMAGES) < 323  # 7 against 0 images: p 0.016

    def of(*stages):
        names = tuple(map(str, range(len(stages))))
        images, seconds = np.arange(IMAGES), (1.0,) * len(stages)
        ids, answers = images.astype(str), np.stack(stages)
        return NetworkProbes("a", 32, None, ids, images, names, answers, seconds, {})

    assert not rank_candidates([of(best, worse)])[1].like_best
    assert all(one.like_best for one in rank_candidates([of(best, worse, best, best)]))


def test_equally_accurate_ones_are_ordered_by_time():
    same = make_probes("a", 0.8, 0.8, after=(90.0, 30.0))
    found = rank_candidates([same, make_probes("b", 0.8, after=(None,))])
    assert [one.seconds for one in found] == [30.0, 90.0, None]


def test_networks_are_compared_on_the_images_that_all_could_read():
    whole, part = make_probes("a", 0.8), make_probes("b", 0.8, images=300)
    found = rank_candidates([whole, part])
    assert {one.images for one in found} == {300}
    assert next(one for one in found if one.backbone == "a").accuracy == whole.right[0, :300].mean()
    assert rank_candidates([]) == ()


def propose(networks, budget=120.0):
    return propose_networks(rank_candidates(networks), networks, budget)


def test_the_best_probe_and_the_best_published_accuracy_within_the_budget():
    networks = [
        make_probes("a", 0.9, top1=70.0),
        make_probes("b", 0.5, top1=80.0),
        make_probes("c", 0.6, top1=85.0, seconds=600.0),
    ]
    first, second = propose(networks)
    assert (first.backbone, first.by) == ("a", "probe")
    assert (first.strategy, first.seconds) == ("last_block", 60.0)
    assert "90.0 % of the held-out images" in first.reason
    assert (second.backbone, second.by) == ("b", "published")
    assert "80.0 %" in second.reason
    assert "the budget of 2 min" in second.reason
    assert propose(networks, 1000.0)[1].backbone == "c"


def test_where_both_are_the_same_network_the_next_one_is_taken_and_said():
    networks = [
        make_probes("a", 0.9, top1=85.0),
        make_probes("b", 0.5, top1=70.0),
        make_probes("c", 0.4, top1=80.0),
    ]
    first, second = propose(networks)
    assert (first.backbone, second.backbone) == ("a", "c")
    assert "a has the best published ImageNet accuracy, too (85.0 %)" in second.reason
    assert "80.0 %" in second.reason


def test_where_no_accuracy_is_published_that_is_said_and_the_next_best_probe_taken():
    first, second = propose([make_probes("a", 0.6), make_probes("b", 0.9), make_probes("c", 0.7)])
    assert (first.backbone, second.backbone, second.by) == ("b", "c", "probe")
    assert "None of these networks has a published ImageNet accuracy" in second.reason
    only = propose([make_probes("a", 0.6), make_probes("b", 0.9, top1=80.0)])[1]
    assert (only.backbone, only.by) == ("a", "probe")
    assert "No other network here has" in only.reason


def test_what_is_alike_or_above_the_budget_is_said_of_the_best_probe():
    networks = [
        make_probes("a", 0.9, seconds=600.0),
        make_probes("b", 0.89, seconds=600.0),
        make_probes("c", 0.89),
        make_probes("d", 0.5),
    ]
    first, second = propose(networks)
    assert "Not distinguishable from b and c." in first.reason
    assert "10 min 0 s, is above the budget of 2 min" in first.reason
    assert second.backbone == "c"


def test_one_network_or_none_makes_fewer_proposals():
    best = make_probes("a", 0.9)
    for others, names in (
        ([], ["a"]),
        ([make_probes("b", 0.8, seconds=600.0)], ["a"]),
        ([make_probes("b", 0.8, last_block=False)], ["a", "b"]),
    ):
        assert [one.backbone for one in propose([best, *others])] == names
    assert propose_networks((), (), 60.0) == ()


def test_of_each_network_the_best_stage_leads():
    found = best_stages(
        rank_candidates([make_probes("a", 0.5, 0.8, 0.7), make_probes("b", 0.9, 0.2)])
    )
    assert [(one.backbone, one.stage) for one in found] == [("b", "block0"), ("a", "block1")]

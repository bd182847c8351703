"""Stages that the linear probes suggest to train."""

import numpy as np
import pytest

from finetune_core.config import make_config
from finetune_core.inspection.learned import Probe
from finetune_core.inspection.suggestion import find_strategy, suggest_cut
from finetune_core.models.network import network_stages
from finetune_core.training.strategies.stage_plan import cut_index, plan_strategy

LITE = "efficientnet_lite0"


def stage_names(backbone=LITE):
    return [stage.name for stage in network_stages(backbone)]


def suggest(accuracies, error=0.01, backbone=LITE):
    names = stage_names(backbone)
    probes = [Probe(name, share, error) for name, share in zip(names, accuracies, strict=False)]
    return suggest_cut(probes, names)


@pytest.mark.parametrize(
    ("accuracies", "strategy", "cut"),
    [
        ([0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.85], "last_block", "block7"),
        ([0.3, 0.4, 0.5, 0.6, 0.7, 0.9, 0.8, 0.7], "last_two_blocks", "block6"),
        ([0.3, 0.4, 0.9, 0.8, 0.7, 0.7, 0.7, 0.7], "custom", "block3"),
        ([0.9, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4], "custom", "block1"),
        # within one standard error of the best
        ([0.3, 0.4, 0.9, 0.895, 0.885, 0.8, 0.8, 0.8], "custom", "block4"),
        ([0.3, 0.4, 0.5, 0.6, 0.7, 0.807, 0.82, 0.77], "last_block", "block7"),
    ],
)
def test_training_starts_behind_the_deepest_stage_that_is_as_good_as_any(accuracies, strategy, cut):
    assert suggest(accuracies).cut == cut
    assert find_strategy(cut, LITE) == strategy


@pytest.mark.parametrize(
    "accuracies",
    [
        [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.98],
        [0.3, 0.4, 0.9, 0.9, 0.9, 0.9, 0.9, 0.895],
        [1.0] * 8,
        [0.1] * 8,
        [],
    ],
    ids=["rising", "plateau", "all", "none", "no probes"],
)
def test_probes_that_cannot_tell_the_stages_apart_suggest_none(accuracies):
    assert suggest(accuracies).cut is None


def test_without_a_suggestion_the_comparison_that_would_tell_is_named():
    reason = suggest([0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9]).reason
    assert "those of block7, the last one (90.0 % ± 1.0 points)" in reason
    assert "Compare the linear probe with the last block." in reason


def test_the_reason_names_the_stage_and_its_accuracy():
    reason = suggest([0.3, 0.4, 0.91, 0.8, 0.7, 0.7, 0.7, 0.72]).reason
    assert "features of block2 classifies 91.0 % ± 1.0 points" in reason
    assert "72.0 % at the end" in reason
    assert "train from block3 on" in reason


@pytest.mark.parametrize("backbone", [LITE, pytest.param("vit_b_16", marks=pytest.mark.exhaustive)])
def test_every_suggestion_can_be_trained(backbone):
    stages, names = network_stages(backbone), stage_names(backbone)
    last = len(names) - 1
    for first in range(1, last):
        accuracies = np.where(np.arange(last) < first, 0.9, 0.6)
        suggestion = suggest(accuracies, backbone=backbone)
        name = find_strategy(suggestion.cut, backbone)
        cut = {"cut": suggestion.cut} if name == "custom" else {}
        settings = {"data": "any", "backbone": backbone, "strategy": name}
        strategy = plan_strategy(make_config(settings | cut), stages)
        assert names[cut_index(strategy)] == suggestion.cut == names[first]
        assert not strategy[-1].frozen

"""From an ordering to the configs of its runs: nothing is read, written or trained here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.orderings.protocol import Arm, Block, Ordering, Setup
from finetune_core.config import RunConfig, make_config

_USUAL_RATE = float(RunConfig.model_fields["learning_rate"].default)


def arm_configs(
    ordering: Ordering,
    setup: Setup,
    data: Path,
    stages: Sequence[str],
    seeds: int,
    source: Path | None = None,
) -> dict[str, list[list[RunConfig]]]:
    """Of every arm that trains, the runs of each seed.

    Args:
        data: the folder that the arms train on.
        stages: names of the backbone's, input to head.
        source: the run that they go on from, where the ordering has an adaptation.

    Raises:
        ConfigError: when one of them cannot be used.
    """
    shared = _shared(setup, data) | ({"from_run": str(source)} if source else {})
    return {
        name: [
            [
                make_config(shared | _of_arm(arm, setup, stages) | _seeds(arm, seed, at))
                for at in range(arm.runs)
            ]
            for seed in range(seeds)
        ]
        for name, arm in ordering.arms.items()
        if not arm.of
    }


def source_config(ordering: Ordering, setup: Setup, data: Path) -> RunConfig:
    """Of the run that all arms go on from: everything trains.

    Raises:
        ConfigError: when it cannot be used.
    """
    own = ordering.adaptation.source_settings if ordering.adaptation else {}
    return make_config(_shared(setup, data) | {"strategy": "full", "seed": 0} | own)


def block_rates(stages: Sequence[str], block: Block) -> dict[str, float]:
    """Which stages train with a block: the stem and the first stage after it, the one in the middle, or the last; and the head."""
    body, head = stages[:-1], stages[-1]
    chosen = {"first": body[:2], "middle": [body[len(body) // 2]], "last": body[-1:]}[block]
    return dict.fromkeys([*chosen, head], 1.0)


def _shared(setup: Setup, data: Path) -> dict[str, Any]:
    return {"data": str(data), "backbone": setup.backbone} | setup.settings


def _of_arm(arm: Arm, setup: Setup, stages: Sequence[str]) -> dict[str, Any]:
    trains = (
        {"strategy": "custom", "stage_rates": block_rates(stages, arm.block)}
        if arm.block
        else {"strategy": arm.strategy}
    )
    rate = float(setup.settings.get("learning_rate", _USUAL_RATE)) * arm.rate
    return trains | {"learning_rate": rate} | arm.settings


def _seeds(arm: Arm, seed: int, at: int) -> dict[str, Any]:
    return {"seed": seed} if arm.runs == 1 else {"seed": seed * arm.runs + at, "head_seed": seed}

"""Run configs of an ordering. Nothing is read, written or trained here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.orderings.protocol import Arm, Block, Ordering, Setup
from finetune_core.config import RunConfig, make_config

_USUAL_RATE = float(RunConfig.model_fields["learning_rate"].default)


def make_arm_configs(
    ordering: Ordering,
    setup: Setup,
    data: Path,
    stages: Sequence[str],
    seeds: int,
    source: Path | None = None,
) -> dict[str, list[list[RunConfig]]]:
    """Return the configs of every arm that trains, by seed.

    Args:
        ordering: the ordering.
        setup: where it is tested.
        data: the folder that the arms train on.
        stages: names of the backbone's stages, input to head.
        seeds: number of seeds.
        source: the run that the arms start from, if the ordering has an adaptation.

    Raises:
        ConfigError: if a config is invalid.
    """
    shared = _make_shared_settings(setup, data) | ({"from_run": str(source)} if source else {})
    return {
        name: [
            [
                make_config(
                    shared | _make_arm_settings(arm, setup, stages) | _make_seeds(arm, seed, index)
                )
                for index in range(arm.runs)
            ]
            for seed in range(seeds)
        ]
        for name, arm in ordering.arms.items()
        if not arm.of
    }


def make_source_config(ordering: Ordering, setup: Setup, data: Path) -> RunConfig:
    """Return the config of the run that all arms start from, which is trained in full.

    Raises:
        ConfigError: if the config is invalid.
    """
    settings = ordering.adaptation.source_settings if ordering.adaptation else {}
    return make_config(
        _make_shared_settings(setup, data) | {"strategy": "full", "seed": 0} | settings
    )


def make_block_rates(stages: Sequence[str], block: Block) -> dict[str, float]:
    """Return the rates of the stages that train with a block, which always include the head.

    The first block is the stem and the stage after it, the middle block the stage in the middle,
    and the last block the last stage before the head.
    """
    body, head = stages[:-1], stages[-1]
    selected = {"first": body[:2], "middle": [body[len(body) // 2]], "last": body[-1:]}[block]
    return dict.fromkeys([*selected, head], 1.0)


def _make_shared_settings(setup: Setup, data: Path) -> dict[str, Any]:
    return {"data": str(data), "backbone": setup.backbone} | setup.settings


def _make_arm_settings(arm: Arm, setup: Setup, stages: Sequence[str]) -> dict[str, Any]:
    trains = (
        {"strategy": "custom", "stage_rates": make_block_rates(stages, arm.block)}
        if arm.block
        else {"strategy": arm.strategy}
    )
    rate = float(setup.settings.get("learning_rate", _USUAL_RATE)) * arm.rate
    return trains | {"learning_rate": rate} | arm.settings


def _make_seeds(arm: Arm, seed: int, index: int) -> dict[str, Any]:
    return {"seed": seed} if arm.runs == 1 else {"seed": seed * arm.runs + index, "head_seed": seed}

"""Training of a run on several devices of one machine, as tasks of Ray.

Each rank is a task in a bundle of the run's placement group. Another task, which takes no resources
itself, waits for them. If a rank dies, this task ends, too. Ray tries it again, and all ranks start
again from the last checkpoint, on another machine if necessary.
"""

import os
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from finetune_core.training.devices.ranks import rendezvous_file

Row = dict[str, Any]

_STATUS = 4


class _RankDied(Exception):
    """Raised if a rank has died. Ray tries this task again once its process has ended."""


def train_together(run: Row, task: str, share: dict[str, float]) -> Row:
    """Train a run with one rank per bundle of this task's placement group.

    All bundles are on this machine.

    Args:
        run: a RemoteRun, as plain values.
        task: as for ``remote.train_and_report``.
        share: resources of each rank.

    Returns:
        As ``remote.train_and_report``.
    """
    group = get_current_placement_group()
    assert group
    world = group.bundle_count
    try:
        with rendezvous_file() as place:
            return _wait_for_outcome(
                [
                    _make_rank_task(group, rank, share).remote(run, task, rank, world, str(place))
                    for rank in range(world)
                ]
            )
    except _RankDied:
        os._exit(_STATUS)


def _make_rank_task(group: PlacementGroup, rank: int, share: dict[str, float]) -> Any:
    place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
    # One process per rank, which runs nothing else afterwards: torch.distributed and CUDA are set
    # up once per process.
    return ray.remote(max_calls=1)(_train_rank).options(
        **share, max_retries=0, scheduling_strategy=place
    )


def _train_rank(run: Row, task: str, rank: int, world: int, place: str) -> Row:
    from finetune_core.runs.executors.remote import run_from_row, train_and_report
    from finetune_core.training.devices.ranks import Ranks

    return train_and_report(run_from_row(run), task, Ranks(rank, world, rank, world, Path(place)))


def _wait_for_outcome(ranks: "list[ray.ObjectRef]") -> Row:
    """Wait for all ranks, and return the outcome of rank 0.

    Raises:
        _RankDied: if a process, or its machine, has died.
    """
    waiting = list(ranks)
    while waiting:
        [ended], waiting = ray.wait(waiting)
        try:
            ray.get(ended)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError:
            raise _RankDied from None
    found: Row = ray.get(ranks[0])
    return found

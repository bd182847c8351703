"""A run that several devices of one machine train, as tasks of Ray: each is a rank, in a bundle of the run's placement group.

Another task sees them through, and takes no resources itself. Where a rank is gone it ends, too, and Ray, which tries it again, has all of
them begin anew: from the last checkpoint, on another machine if need be.
"""

import os
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from finetune_core.training.ranks import meeting_point

Row = dict[str, Any]

_STATUS = 4


class _RankGone(Exception):
    """Ray tries this task again once its process has ended."""


def train_together(run: Row, task: str, share: dict[str, float]) -> Row:
    """As ``remote.outcome``, by one rank in each bundle of this task's placement group, which are all on this machine.

    Args:
        run: a RemoteRun, as plain values.
        share: resources of each rank.
    """
    group = get_current_placement_group()
    assert group
    world = group.bundle_count
    try:
        with meeting_point() as place:
            return _first_outcome(
                [
                    _rank_task(group, rank, share).remote(run, task, rank, world, str(place))
                    for rank in range(world)
                ]
            )
    except _RankGone:
        os._exit(_STATUS)


def _rank_task(group: PlacementGroup, rank: int, share: dict[str, float]) -> Any:
    place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
    # A process each, which does nothing else afterwards: torch.distributed and CUDA are set up once in one.
    return ray.remote(max_calls=1)(_rank).options(**share, max_retries=0, scheduling_strategy=place)


def _rank(run: Row, task: str, rank: int, world: int, place: str) -> Row:
    from finetune_core.runs.remote import outcome, remote_run
    from finetune_core.training.ranks import Ranks

    return outcome(remote_run(run), task, Ranks(rank, world, rank, world, Path(place)))


def _first_outcome(ranks: "list[ray.ObjectRef]") -> Row:
    """The first rank's, once all have ended.

    Raises:
        _RankGone: when a process or the machine of one is.
    """
    waiting = list(ranks)
    while waiting:
        [ended], waiting = ray.wait(waiting)
        try:
            ray.get(ended)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError:
            raise _RankGone from None
    found: Row = ray.get(ranks[0])
    return found

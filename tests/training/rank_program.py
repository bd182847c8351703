"""Ranks in processes of their own, one thread each, which train one run after the other: what torchrun would start, started faster."""

import math
import multiprocessing
import os
import socket
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from finetune_core.config import RunConfig
from tests.deadline import in_time

_HERE = "127.0.0.1"


@dataclass(frozen=True)
class Task:
    """A run to train.

    Attributes:
        stop_after: ask it to stop after so many steps; this ends the ranks, too.
        gone: files that vanish when the first epoch has ended.
        memory: images for which the second rank has memory at a time; 0: as many as it gets.
        not_finite: whether the second rank's loss is not.
    """

    config: RunConfig
    folder: Path
    resume: bool = False
    stop_after: int = 0
    gone: tuple[Path, ...] = ()
    memory: int = 0
    not_finite: bool = False


def trained_together(world, home, tasks):
    """Train runs on that many ranks.

    Args:
        home: the ranks' THAW_HOME.
        tasks: by name, one after the other.

    Returns:
        What the first rank's ``fit`` yields, by name; for a run that fails, which ends the ranks, each rank's error in words.
    """
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind((_HERE, 0))
        port = free.getsockname()[1]
    ends = [context.Pipe(duplex=False) for _ in range(world)]
    processes = [
        context.Process(target=_take_part, args=(rank, world, port, str(home), tasks, line), daemon=True)
        for rank, (_, line) in enumerate(ends)
    ]
    try:
        for process, (_, line) in zip(processes, ends, strict=True):
            process.start()
            line.close()
        found = {name: _heard(ends, name) for name in tasks}
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()
    return found


def _heard(ends, name):
    with in_time(f"ranks that train {name}"):
        answers = [end.recv() for end, _ in ends]
    assert not (bugs := [bug for _, _, bug in answers if bug]), "\n".join(bugs)
    return answers[0][0] if answers[0][1] is None else [error for _, error, _ in answers]


def _take_part(rank, world, port, home, tasks, line):
    os.environ |= {
        "THAW_HOME": home,
        "TORCHELASTIC_RUN_ID": "tests",
        "MASTER_ADDR": _HERE,
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "OMP_NUM_THREADS": "1",
    }
    import torch

    from finetune_core.errors import TrainingError
    from finetune_core.training.ranks import LeaderEnded, launched

    torch.set_num_threads(1)
    ranks = launched()
    with suppress(LeaderEnded, TrainingError), ranks.joined():
        for task in tasks.values():
            try:
                line.send((_trained(task, ranks), None, ""))
            except LeaderEnded:  # what the first rank has to say of it counts
                line.send(([], None, ""))
                raise
            except TrainingError as error:
                line.send(([], str(error), ""))
                raise
            except BaseException:
                line.send(([], None, traceback.format_exc()))
                raise


def _trained(task, ranks):
    from finetune_core.training import compute
    from finetune_core.training.events import EpochEnded, StepEnded
    from finetune_core.training.loop import StopRequested, fit

    usual = compute.cross_entropy

    def troubled(output, *arguments, **options):
        if task.memory and len(output) > task.memory:
            raise MemoryError
        return usual(output, *arguments, **options) * (math.nan if task.not_finite else 1)

    if ranks.rank == 1:
        compute.cross_entropy = troubled
    stream, events, steps = fit(task.config, task.folder, resume=task.resume, ranks=ranks), [], 0
    for event in stream:
        events.append(event)
        steps += isinstance(event, StepEnded)
        if isinstance(event, EpochEnded) and event.epoch == 1 and ranks.leads:
            for file in task.gone:
                file.unlink()
        if ranks.leads and task.stop_after and steps == task.stop_after:
            return [*events, stream.throw(StopRequested())]
    compute.cross_entropy = usual
    return events

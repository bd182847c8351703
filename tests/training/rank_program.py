"""Ranks in forked processes that train run after run.

Each process has one thread unless told otherwise. It gets its rank as a process of torchrun does,
and starts without importing torch anew.
"""

import math
import os
import signal
import traceback
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from finetune_core.config import RunConfig
from tests.deadline import in_time
from tests.forked import forkserver
from tests.ports import HERE, free_port


@dataclass(frozen=True)
class Machine:
    """Ranks with a cache folder of their own, and their environment variables."""

    ranks: int = 1
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A run to train, and what is to go wrong in it.

    Attributes:
        pause_after: Pause the run after this many steps. This ends the ranks, too.
        gone: Files that vanish when the first epoch has ended.
        memory: Number of images that the second rank has memory for. 0 for no limit.
        not_finite: Whether the second rank's loss is not finite.
        sum_without_memory: Whether the second rank's memory runs out when gradients are summed.
            This ends the ranks.
        killed_at: The step before which the second rank is killed. This ends the ranks, too.
        round_bytes: Size of the rounds in which machines exchange rows. 0 for the usual size.
        killed_in: The round of such an exchange in which the second rank is killed.
        stop_in: A phase in which the run is asked to stop. This ends the ranks, too.
        environment: Variables that are set while the run trains.
        room: Bytes of cached rows that every rank's device has memory for. None for what the device
            reports.
    """

    config: RunConfig
    folder: Path
    resume: bool = False
    pause_after: int = 0
    gone: tuple[Path, ...] = ()
    memory: int = 0
    not_finite: bool = False
    sum_without_memory: bool = False
    killed_at: int = 0
    round_bytes: int = 0
    killed_in: int = 0
    stop_in: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    room: int | None = None


@dataclass(frozen=True)
class Answer:
    """The result of a task on one rank.

    Attributes:
        events: Events of its ``fit``.
        computed: Rows of the images that went through frozen stages on this rank, pass by pass.
        sent: Bytes sent to each other rank, one entry per exchange.
        error: Message of the error that ended the run. ``GONE`` for a rank that is killed.
        bug: Traceback of an error that no test expects.
    """

    events: list = field(default_factory=list)
    computed: list[int] = field(default_factory=list)
    sent: list[dict[int, int]] = field(default_factory=list)
    error: str | None = None
    bug: str = ""


GONE = "gone"


def train_together(world, home, tasks):
    """Train runs on that many ranks of one machine.

    Args:
        home: The ranks' THAW_HOME.
        tasks: Tasks by name, which are trained one after the other.

    Returns:
        Events of rank 0 by name. For a run that fails, which ends the ranks: the error of each
        rank.
    """
    answers = train_on([Machine(world)], home, tasks)
    return {
        name: first.events if first.error is None else [one.error for one in (first, *others)]
        for name, (first, *others) in answers.items()
    }


def train_on(machines, home, tasks):
    """Train runs on the ranks of several machines, whose caches are ``cache-NUMBER`` in ``home``.

    Args:
        home: As for ``train_together``.
        tasks: As for ``train_together``.

    Returns:
        The ``Answer`` of each rank, by name.
    """
    context = forkserver()
    environments = list(make_environments(machines, home))
    ends = [context.Pipe(duplex=False) for _ in environments]
    processes = [
        context.Process(target=_take_part, args=(environment, tasks, line), daemon=True)
        for environment, (_, line) in zip(environments, ends, strict=True)
    ]
    try:
        for process, (_, line) in zip(processes, ends, strict=True):
            process.start()
            line.close()
        found = {name: _hear(ends, name) for name in tasks}
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()
    return found


def make_environments(machines, home):
    """Yield the environment variables of each rank."""
    ranks = [
        (number, local) for number, machine in enumerate(machines) for local in range(machine.ranks)
    ]
    port = free_port()
    for rank, (number, local) in enumerate(ranks):
        yield {
            "THAW_HOME": str(home),
            "THAW_CACHE_DIR": str(home / f"cache-{number}"),
            "TORCHELASTIC_RUN_ID": "tests",
            "MASTER_ADDR": HERE,
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "LOCAL_RANK": str(local),
            "WORLD_SIZE": str(len(ranks)),
            "LOCAL_WORLD_SIZE": str(machines[number].ranks),
            "OMP_NUM_THREADS": "1",
        } | machines[number].environment


def _hear(ends, name):
    with in_time(f"ranks that train {name}"):
        answers = [_answer(end) for end, _ in ends]
    assert not (bugs := [answer.bug for answer in answers if answer.bug]), "\n".join(bugs)
    return answers


def _answer(end):
    try:
        return end.recv()
    except EOFError:
        return Answer(error=GONE)


def _take_part(environment, tasks, line):
    os.environ |= environment
    import torch

    from finetune_core.errors import TrainingError
    from finetune_core.training.devices.ranks import MainProcessEnded, read_torchrun_ranks

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    ranks = read_torchrun_ranks()
    with suppress(MainProcessEnded, TrainingError), ranks.connect():
        for task in tasks.values():
            try:
                line.send(_train(task, ranks))
            except MainProcessEnded:  # what the first rank has to say of it counts
                line.send(Answer())
                raise
            except TrainingError as error:
                line.send(Answer(error=str(error)))
                raise
            except BaseException:
                line.send(Answer(bug=traceback.format_exc()))
                raise


def _train(task, ranks):
    from finetune_core.training.events import EpochEnded, Progress, StepEnded
    from finetune_core.training.loop import StopRequested, fit

    with _set_up(task), _inject_failure(task, ranks), _record_answer(task, ranks) as answer:
        stream, steps = fit(task.config, task.folder, resume=task.resume, ranks=ranks), 0
        for event in stream:
            answer.events.append(event)
            steps += isinstance(event, StepEnded)
            if isinstance(event, EpochEnded) and event.epoch == 1 and ranks.is_main_process:
                for file in task.gone:
                    file.unlink()
            pausing = bool(task.pause_after) and steps == task.pause_after
            if ranks.is_main_process and (
                pausing or (isinstance(event, Progress) and event.phase == task.stop_in)
            ):
                answer.events.append(stream.throw(StopRequested(pause=pausing)))
                break
    return answer


@contextmanager
def _set_up(task):
    """Set the environment variables of a task, and the memory for its rows."""
    from finetune_core.training import prepare

    with pytest.MonkeyPatch.context() as patch:
        for name, value in task.environment.items():
            patch.setenv(name, value)
        if task.room is not None:
            patch.setattr(prepare, "measure_row_budget", lambda device: task.room)
        yield


@contextmanager
def _inject_failure(task, ranks):
    """Make the second rank fail as the task says."""
    from finetune_core.training.step import compute

    usual, steps = compute.cross_entropy, 0

    def troubled(output, *arguments, **options):
        nonlocal steps
        steps += 1
        if steps == task.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if task.memory and len(output) > task.memory:
            raise MemoryError
        return usual(output, *arguments, **options) * (math.nan if task.not_finite else 1)

    with pytest.MonkeyPatch.context() as patch:
        if ranks.rank == 1:
            patch.setattr(compute, "cross_entropy", troubled)
        if ranks.rank == 1 and task.sum_without_memory:
            patch.setattr(compute, "_all_reduce", _without_memory)
        yield


def _without_memory(*_):
    raise MemoryError


@contextmanager
def _record_answer(task, ranks):
    """Yield an answer that records what the rank computes and sends."""
    from finetune_core.training.data_pipeline import gather, trunk
    from finetune_core.training.devices.ranks import Ranks

    answer, outputs, exchange = Answer(), trunk.stream_outputs, Ranks.exchange

    def computing(forward, device, rows, feed, **options):
        answer.computed.extend(rows.tolist())
        return outputs(forward, device, rows, feed, **options)

    def sending(self, sent, expected):
        answer.sent.append(
            {rank: tensor.numel() * tensor.element_size() for rank, tensor in sent.items()}
        )
        if ranks.rank == 1 and len(answer.sent) == task.killed_in:
            os.kill(os.getpid(), signal.SIGKILL)
        exchange(self, sent, expected)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trunk, "stream_outputs", computing)
        patch.setattr(Ranks, "exchange", sending)
        if task.round_bytes:
            patch.setattr(gather, "AT_ONCE", task.round_bytes)
        yield answer

"""Ranks in forked processes, of one thread each unless asked otherwise, that train run after run.

They are told of each other as torchrun tells its processes, and start without importing torch anew.
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
    """A run to train.

    Attributes:
        pause_after: ask it to pause after so many steps; this ends the ranks, too.
        gone: files that vanish when the first epoch has ended.
        memory: images for which the second rank has memory at a time; 0: as many as it gets.
        not_finite: whether the second rank's loss is not.
        sum_without_memory: whether the second rank's memory runs out when gradients are summed.
            This ends the ranks.
        killed_at: the step before which the second rank is killed; this ends the ranks, too.
        round_bytes: in how large rounds machines exchange rows; 0: as usual.
        killed_in: the round of such an exchange in which the second rank is killed.
        stop_in: a phase in which the run is asked to stop; this ends the ranks, too.
        environment: variables that are set while the run trains.
        room: bytes of cached rows that every rank's device has room for; None: as many as it says.
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
        events: what its ``fit`` yielded.
        computed: rows of the images that went through frozen stages here, pass by pass.
        sent: other rank -> bytes sent to that rank, one entry per exchange.
        error: message of the error that ended the run; ``GONE`` of a rank that is killed.
        bug: traceback of an error that no test expects.
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
        home: the ranks' THAW_HOME.
        tasks: name -> ``Task``, which are trained one after the other.

    Returns:
        name -> events of rank 0; of a run that fails, which ends the ranks, the error of each rank.
    """
    answers = train_on([Machine(world)], home, tasks)
    return {
        name: first.events if first.error is None else [one.error for one in (first, *others)]
        for name, (first, *others) in answers.items()
    }


def train_on(machines, home, tasks):
    """Train runs on the ranks of several machines, whose caches are ``cache-NUMBER`` in ``home``.

    Args:
        home: as for ``train_together``.
        tasks: as for ``train_together``.

    Returns:
        name -> the ``Answer`` of each rank.
    """
    context = forkserver()
    environments = list(environments_of(machines, home))
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


def environments_of(machines, home):
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
    from finetune_core.training.ranks import LeaderEnded, launched

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    ranks = launched()
    with suppress(LeaderEnded, TrainingError), ranks.joined():
        for task in tasks.values():
            try:
                line.send(_train(task, ranks))
            except LeaderEnded:  # what the first rank has to say of it counts
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

    with _set_up(task), _trouble(task, ranks), _watching(task, ranks) as answer:
        stream, steps = fit(task.config, task.folder, resume=task.resume, ranks=ranks), 0
        for event in stream:
            answer.events.append(event)
            steps += isinstance(event, StepEnded)
            if isinstance(event, EpochEnded) and event.epoch == 1 and ranks.leads:
                for file in task.gone:
                    file.unlink()
            pausing = bool(task.pause_after) and steps == task.pause_after
            if ranks.leads and (
                pausing or (isinstance(event, Progress) and event.phase == task.stop_in)
            ):
                answer.events.append(stream.throw(StopRequested(pause=pausing)))
                break
    return answer


@contextmanager
def _set_up(task):
    """Set the environment variables and the room for rows of a task."""
    from finetune_core.training import prepare

    with pytest.MonkeyPatch.context() as patch:
        for name, value in task.environment.items():
            patch.setenv(name, value)
        if task.room is not None:
            patch.setattr(prepare, "bytes_for_rows", lambda device: task.room)
        yield


@contextmanager
def _trouble(task, ranks):
    """Let go wrong on the second rank what the task says."""
    from finetune_core.training import compute

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
def _watching(task, ranks):
    """Yield the answer, which notes what the rank computes and sends."""
    from finetune_core.training import gather, trunk
    from finetune_core.training.ranks import Ranks

    answer, outputs, exchange = Answer(), trunk.outputs, Ranks.exchange

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
        patch.setattr(trunk, "outputs", computing)
        patch.setattr(Ranks, "exchange", sending)
        if task.round_bytes:
            patch.setattr(gather, "AT_ONCE", task.round_bytes)
        yield answer

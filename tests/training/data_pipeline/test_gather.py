"""Tests of several machines that compute the frozen output once and cache all its rows."""

import shutil

import numpy as np
import pytest
import torch

from finetune_core.data.rowcache import RowCache
from finetune_core.training import events
from tests.factories import shared_images, tiny_config, trained_run
from tests.training.equal import check_equal
from tests.training.rank_program import GONE, Machine, Task, train_on

pytestmark = pytest.mark.processes
ON_DISK = Machine(environment={"THAW_CACHE_MEMORY_GB": "0"})  # where the test can read it
IN_MEMORY = Machine(environment={"THAW_CACHE_DISK_GB": "0"})
COUNTS = {"red": 50, "blue": 40, "green": 38}
IMAGES = sum(COUNTS.values())  # batches of 32, 32, 32 and 32
ROUND = 50_000  # bytes: several rounds for every one of these tables
LAYERNORM = {"backbone": "timm/test_vit", "weights": "none", "strategy": "last_two_blocks"}
SGD = {"optimizer": "sgd", "learning_rate": 1e-2}
AUGMENTED = {"augmentation": "flips", "views": 2}


def gather_config(**changes):
    usual = LAYERNORM | SGD | {"batch_size": 32, "epochs": 1}
    return tiny_config(shared_images(**COUNTS), **usual | changes)


@pytest.fixture(scope="module")
def new_task(tmp_path_factory):
    """Make a task with a run directory of its own, from its settings and what else goes wrong."""

    def make(settings=(), **how):
        config = gather_config(**dict(settings))
        return Task(config, tmp_path_factory.mktemp("run"), round_bytes=ROUND, **how)

    return make


@pytest.fixture(scope="module")
def alone(new_task, tmp_path_factory):
    """Return cache and tasks of a single rank."""
    home, tasks = (
        tmp_path_factory.mktemp("alone"),
        {"plain": new_task(), "augmented": new_task(AUGMENTED)},
    )
    train_on([ON_DISK], home, tasks)
    return home / "cache-0", tasks


@pytest.fixture(scope="module")
def two(new_task, tmp_path_factory):
    """Return home, tasks and answers of two machines with a rank each and empty caches."""
    home = tmp_path_factory.mktemp("two")
    tasks = {
        "plain": new_task(),
        "augmented": new_task(AUGMENTED),
        "again": new_task(),
        "stopped": new_task({"strategy": "last_block", "image_size": 48}, stop_in="gather"),
    }
    return home, tasks, train_on([ON_DISK, ON_DISK], home, tasks)


def tables(cache):
    """Return a machine's cached activations: rows by key, by name."""
    found = {}
    (rows,) = cache.glob("thaw-rows*")
    for name in {file.name.rsplit("-", 1)[0] for file in rows.glob("thaw-trunk-*.rows")}:
        table = RowCache(lambda: rows).get_table(name.removeprefix("thaw-"))
        keys = np.unique(np.concatenate([block.keys for block in table.blocks]))
        found[name] = dict(
            zip(keys.tolist(), table.lookup(keys).batch(np.arange(len(keys))), strict=True)
        )
    return found


def table_sizes(cache):
    return {len(rows) for rows in tables(cache).values()}


def started(answer):
    return next(event for event in answer.events if isinstance(event, events.RunStarted))


def test_each_image_is_decoded_and_computed_by_one_machine_in_whole_batches(two):
    answers = two[2]["plain"]
    computed = [answer.computed for answer in answers]
    assert sorted(row for rows in computed for row in rows) == list(range(IMAGES))
    assert [len(rows) for rows in computed] == [IMAGES // 2, IMAGES // 2]
    firsts = {rows[start] for rows in computed for start in range(0, len(rows), 32)}
    assert firsts == set(range(0, IMAGES, 32))
    assert [started(answer).decoded for answer in answers] == [IMAGES // 2, IMAGES // 2]


def test_all_machines_have_the_rows_of_one_rank_to_the_bit(two, alone):
    wanted = tables(alone[0])
    assert max(map(len, wanted.values())) == IMAGES
    for machine in ("cache-0", "cache-1"):
        found = tables(two[0] / machine)
        for name, rows in wanted.items():
            assert found[name].keys() == rows.keys()
            assert all(torch.equal(row, found[name][key]) for key, row in rows.items())


@pytest.mark.parametrize("name", ["plain", "augmented", "again"])
def test_the_run_is_that_of_one_rank(name, two, alone):
    _, tasks, answers = two
    check_equal(tasks[name].folder, alone[1]["plain" if name == "again" else name].folder)
    assert started(answers[name][0]).cache.where == "disk"


def test_rows_are_exchanged_in_rounds_that_stay_below_the_bound(two):
    for answer, other in zip(two[2]["plain"], (1, 0), strict=True):
        assert len(answer.sent) > 2
        assert {rank for sent in answer.sent for rank in sent} == {other}
        assert 0 < max(sent.get(other, 0) for sent in answer.sent) <= ROUND


def test_what_all_machines_have_is_neither_computed_nor_sent(two):
    for answer in two[2]["again"]:
        assert (answer.computed, answer.sent) == ([], [])
        assert started(answer).cache.found == IMAGES


def test_a_run_that_is_stopped_while_machines_exchange_stops_on_all(two):
    first, second = two[2]["stopped"]
    assert isinstance(first.events[-1], events.RunStopped)
    assert (first.error, second.error, second.events) == (None, None, [])


def test_machines_that_share_a_cache_send_nothing(new_task, tmp_path):
    """THAW_HOME may be on the network, and THAW_CACHE_DIR unset."""
    common = Machine(environment=ON_DISK.environment | {"THAW_CACHE_DIR": str(tmp_path / "common")})
    answers = train_on([common, common], tmp_path, {"plain": new_task()})["plain"]
    assert sorted(row for answer in answers for row in answer.computed) == list(range(IMAGES))
    assert not any(answer.sent for answer in answers)
    assert table_sizes(tmp_path / "common") == {IMAGES}


def test_what_another_machine_has_is_sent_and_only_the_rest_computed(alone, new_task, tmp_path):
    some = {"half": new_task({"train_fraction": 0.5})}
    ((answer,),) = train_on([ON_DISK], tmp_path / "half", some).values()
    known = answer.computed
    shutil.copytree(tmp_path / "half" / "cache-0", tmp_path / "cache-1")
    tasks = {"plain": new_task()}
    first, second = train_on([IN_MEMORY, ON_DISK], tmp_path, tasks)["plain"]
    assert sorted([*first.computed, *second.computed, *known]) == list(range(IMAGES))
    assert first.computed
    check_equal(tasks["plain"].folder, alone[1]["plain"].folder)
    assert table_sizes(tmp_path / "cache-1") == {IMAGES}
    assert (started(first).cache.where, started(first).cache.found) == ("memory", len(known))
    assert sum(sent.get(0, 0) for sent in second.sent) > sum(sent.get(1, 0) for sent in first.sent)


def test_machines_share_by_rank_and_end_where_a_rank_is_killed(alone, new_task, tmp_path):
    tasks = {"plain": new_task(), "killed": new_task({"strategy": "last_block"}, killed_in=2)}
    answers = train_on([ON_DISK, Machine(2, ON_DISK.environment)], tmp_path, tasks)
    assert [len(answer.computed) for answer in answers["plain"]] == [64, 32, 32]
    assert [any(answer.sent) for answer in answers["plain"]] == [True, True, False]
    check_equal(tasks["plain"].folder, alone[1]["plain"].folder)
    first, second, third = (answer.error for answer in answers["killed"])
    assert second == GONE
    for error in (first, third):
        assert "Another process of the run has ended" in error
        assert "gloo" in error  # the reason
        assert "GLHF" not in error  # gloo's advice


def test_a_machine_without_room_for_what_it_is_sent_has_all_train_uncached(tmp_path):
    """One machine has memory for the 32 rows of 8 KiB that it computes, not for the other 96."""
    config = tiny_config(
        shared_images(**COUNTS),
        strategy="custom",
        cut="layer2",
        batchnorm="frozen",
        batch_size=32,
        epochs=1,
        **SGD,
    )
    (tmp_path / "run").mkdir()
    task = Task(config, tmp_path / "run", round_bytes=ROUND)
    tight = Machine(environment=ON_DISK.environment | {"THAW_CACHE_DISK_GB": "0.0005"})
    answers = train_on([Machine(2, ON_DISK.environment), tight], tmp_path, {"run": task})["run"]
    assert [len(answer.computed) for answer in answers] == [64, 32, 32]
    for answer in answers:
        assert started(answer).cache.where == "off"
        assert "neither into memory nor onto the disk" in started(answer).cache.reason
    check_equal(task.folder, trained_run(config).run_dir)

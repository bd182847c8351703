"""Several machines compute the frozen stages' output once for all of them: each has its own cache, and the same rows in the end."""

import shutil

import numpy as np
import pytest
import torch

from finetune_core.config import make_config
from finetune_core.data.rowcache import RowCache
from finetune_core.training import events
from finetune_core.training.loop import fit
from tests.training.equal import check_equal
from tests.training.rank_program import GONE, Machine, Task, trained_on

pytestmark = pytest.mark.processes
ON_DISK = Machine(environment={"THAW_CACHE_MEMORY_GB": "0"})  # where the test can read it
IN_MEMORY = Machine(environment={"THAW_CACHE_DISK_GB": "0"})
COUNTS = {"red": 50, "blue": 40, "green": 38}
IMAGES = sum(COUNTS.values())  # batches of 32, 32, 32 and 32
ROUND = 50_000  # bytes: several rounds for every one of these tables


@pytest.fixture(scope="module")
def make(image_folder_once, tmp_path_factory):
    data = image_folder_once(tmp_path_factory.mktemp("images"), COUNTS)
    usual = {
        "data": str(data),
        "backbone": "timm/test_vit",
        "weights": "none",
        "strategy": "last_two_blocks",
        "optimizer": "sgd",
        "learning_rate": 1e-2,
        "image_size": 32,
        "batch_size": 32,
        "epochs": 1,
        "precision": "fp32",
    }
    return lambda **settings: make_config(usual | settings)


@pytest.fixture(scope="module")
def tasks(make, tmp_path_factory):
    """Makes tasks, each with a folder."""

    def made(*, round_bytes=ROUND, **settings):
        options = {
            name: settings.pop(name) for name in ("killed_in", "stop_in") if name in settings
        }
        return Task(
            make(**settings), tmp_path_factory.mktemp("run"), round_bytes=round_bytes, **options
        )

    return made


@pytest.fixture(scope="module")
def alone(tasks, tmp_path_factory):
    """(home, tasks) of one rank; its cache is ``cache-0``."""
    home, found = (
        tmp_path_factory.mktemp("alone"),
        {"plain": tasks(), "augmented": tasks(augmentation="flips", views=2)},
    )
    trained_on([ON_DISK], home, found)
    return home, found


@pytest.fixture(scope="module")
def two(alone, tasks, tmp_path_factory):
    """(home, tasks, answers) of two machines with a rank each, whose caches are cold at first."""
    home = tmp_path_factory.mktemp("two")
    found = {
        "plain": tasks(),
        "augmented": tasks(augmentation="flips", views=2),
        "again": tasks(),
        "stopped": tasks(strategy="last_block", image_size=48, stop_in="gather"),
    }
    return home, found, trained_on([ON_DISK, ON_DISK], home, found)


def tables(cache):
    """Name -> {key: row} of a machine's cached activations."""
    found = {}
    (rows,) = cache.glob("thaw-rows*")
    for name in {file.name.rsplit("-", 1)[0] for file in rows.glob("thaw-trunk-*.rows")}:
        table = RowCache(lambda: rows).table(name.removeprefix("thaw-"))
        keys = np.unique(np.concatenate([block.keys for block in table.blocks]))
        found[name] = dict(
            zip(keys.tolist(), table.lookup(keys).batch(np.arange(len(keys))), strict=True)
        )
    return found


def check_same_rows(cache, alone):
    """A cache holds all that the cache of one rank does, to the bit."""
    mine = tables(cache)
    assert sorted(map(len, tables(alone).values()))[-1] == IMAGES
    for name, rows in tables(alone).items():
        assert mine[name].keys() == rows.keys()
        assert all(torch.equal(row, mine[name][key]) for key, row in rows.items())


def started(answer):
    return next(event for event in answer.events if isinstance(event, events.RunStarted))


def test_each_image_is_computed_by_one_machine_in_whole_batches(two):
    computed = [answer.computed for answer in two[2]["plain"]]
    assert sorted(row for rows in computed for row in rows) == list(range(IMAGES))
    assert [len(rows) for rows in computed] == [IMAGES // 2, IMAGES // 2]
    firsts = {rows[start] for rows in computed for start in range(0, len(rows), 32)}
    assert firsts == set(range(0, IMAGES, 32))


def test_each_machine_decodes_what_it_computes(two):
    assert [started(answer).decoded for answer in two[2]["plain"]] == [IMAGES // 2, IMAGES // 2]


def test_all_machines_have_the_rows_of_one_rank_to_the_bit(two, alone):
    check_same_rows(two[0] / "cache-0", alone[0] / "cache-0")
    check_same_rows(two[0] / "cache-1", alone[0] / "cache-0")


@pytest.mark.parametrize("name", ["plain", "augmented", "again"])
def test_the_run_is_that_of_one_rank(name, two, alone):
    _, found, answers = two
    check_equal(found[name].folder, alone[1]["plain" if name == "again" else name].folder)
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


def test_machines_that_share_a_cache_send_nothing(tasks, tmp_path):
    """As where THAW_HOME is on the network, and nobody has set THAW_CACHE_DIR."""
    common = Machine(environment=ON_DISK.environment | {"THAW_CACHE_DIR": str(tmp_path / "common")})
    answers = trained_on([common, common], tmp_path, {"plain": tasks()})["plain"]
    assert sorted(row for answer in answers for row in answer.computed) == list(range(IMAGES))
    assert not any(answer.sent for answer in answers)
    assert {len(rows) for rows in tables(tmp_path / "common").values()} == {IMAGES}


@pytest.fixture(scope="module")
def half(tasks, tmp_path_factory):
    """(cache, rows) of a machine that has computed some of the images."""
    home = tmp_path_factory.mktemp("half")
    (answer,) = trained_on([ON_DISK], home, {"half": tasks(train_fraction=0.5)})["half"]
    return home / "cache-0", answer.computed


def test_what_another_machine_has_is_sent_and_only_the_rest_computed(half, alone, tasks, tmp_path):
    cache, known = half
    shutil.copytree(cache, tmp_path / "cache-1")
    found = {"plain": tasks()}
    first, second = trained_on([IN_MEMORY, ON_DISK], tmp_path, found)["plain"]
    assert sorted([*first.computed, *second.computed, *known]) == list(range(IMAGES))
    assert first.computed
    check_equal(found["plain"].folder, alone[1]["plain"].folder)
    assert {len(rows) for rows in tables(tmp_path / "cache-1").values()} == {IMAGES}
    assert (started(first).cache.where, started(first).cache.found) == ("memory", len(known))
    assert sum(sent.get(0, 0) for sent in second.sent) > sum(sent.get(1, 0) for sent in first.sent)


def test_machines_share_by_rank_and_end_where_a_rank_is_killed_meanwhile(alone, tasks, tmp_path):
    found = {"plain": tasks(), "killed": tasks(strategy="last_block", killed_in=2)}
    answers = trained_on([ON_DISK, Machine(2, ON_DISK.environment)], tmp_path, found)
    assert [len(answer.computed) for answer in answers["plain"]] == [64, 32, 32]
    assert [any(answer.sent) for answer in answers["plain"]] == [True, True, False]
    check_equal(found["plain"].folder, alone[1]["plain"].folder)
    first, second, third = (answer.error for answer in answers["killed"])
    assert second == GONE
    for error in (first, third):
        assert "Another process of the run has ended" in error
        assert "gloo" in error  # the reason
        assert "GLHF" not in error  # gloo's advice


def test_a_machine_without_room_for_what_it_is_sent_has_all_train_without_the_cache(
    tasks, tmp_path
):
    """There is room for the rows that it computes itself, and not for those of the others, which are three times as many."""
    settings = {
        "backbone": "efficientnet_lite0",
        "weights": "pretrained",
        "strategy": "custom",
        "cut": "block1",
        "batchnorm": "frozen",
    }
    found = {"together": tasks(**settings)}
    tight = Machine(environment=ON_DISK.environment | {"THAW_CACHE_DISK_GB": "0.001"})
    answers = trained_on([Machine(2, ON_DISK.environment), tight], tmp_path, found)["together"]
    assert [len(answer.computed) for answer in answers] == [64, 32, 32]
    for answer in answers:
        assert started(answer).cache.where == "off"
        assert "neither into memory nor onto the disk" in started(answer).cache.reason
    (tmp_path / "alone").mkdir()
    list(fit(found["together"].config, tmp_path / "alone"))
    check_equal(found["together"].folder, tmp_path / "alone")

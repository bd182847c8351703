"""Copies in another data set of images that a run and the runs before it were trained on."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from finetune_core.data.dataset import load_dataset
from finetune_core.evaluation.single_run.copies import find_known_copies
from finetune_core.evaluation.single_run.other_data import index_other_data
from finetune_core.runs.store import read_run
from finetune_core.work import finish
from tests.shifted import copy_images, darken_images


@pytest.fixture
def parent(trained_runs, tmp_path):
    return read_run(*trained_runs.copied(tmp_path / "runs", "last_block"))


@pytest.fixture(scope="module")
def ids(trained_runs):
    table = load_dataset(trained_runs.data).table
    return {split: rows["id"].tolist() for split, rows in table.groupby("split")}


@pytest.fixture
def child(parent, image_folder, tmp_path):
    """Return a run on other images that started from ``parent``."""
    data = str(image_folder(tmp_path / "own", {"red": 9, "blue": 9}))
    config = parent.config.model_copy(update={"data": data, "from_run": str(parent.run_dir)})
    return replace(parent, run_dir=parent.run_dir.with_name("20260101-000000-child"), config=config)


@pytest.fixture
def mixed(ids, trained_runs, tmp_path):
    """Write darkened test images, four training images of the first run, and a near-copy."""
    folder = darken_images(ids["test"], trained_runs.data, tmp_path / "mixed")
    copy_images(ids["train"][:4], trained_runs.data, folder)
    lighter = np.asarray(Image.open(trained_runs.data / ids["train"][5]), dtype=float) * 0.9
    Image.fromarray(np.uint8(lighter)).save(folder / "red" / "nearly.png")
    return folder


def look_for(run, data, roots=()):
    other = finish(index_other_data(str(data)))
    known = finish(find_known_copies(run, other, roots))
    return known, known.count_copies(np.ones(len(other.table), bool)), other.table["id"]


@pytest.mark.train
def test_what_the_run_before_was_trained_on_is_counted_and_said_but_not_left_out(child, mixed, ids):
    known, copies, names = look_for(child, mixed)
    assert set(names[known.earlier]) == {*ids["train"][:4], "red/nearly.png"}
    assert not known.own.any()
    assert (copies.training, copies.near, copies.earlier) == (0, 0, 5)


def test_images_that_both_know_are_the_runs_own(parent, mixed):
    same = replace(
        parent, config=parent.config.model_copy(update={"from_run": str(parent.run_dir)})
    )
    _, copies, _ = look_for(same, mixed)
    assert (copies.training, copies.near, copies.earlier) == (4, 1, 0)


def test_training_from_scratch_knows_nothing_of_it(child, mixed):
    config = child.config.model_copy(update={"strategy": "from_scratch"})
    assert look_for(replace(child, config=config), mixed)[1].earlier == 0


def test_a_run_before_that_is_gone_is_said(child, parent, mixed, ids):
    shutil.rmtree(parent.run_dir)
    known, copies, _ = look_for(child, mixed)
    assert not known.earlier.any()
    assert "the run that it started from were not looked for" in copies.problem
    assert copies.training == 0  # its own were


@pytest.mark.train
def test_a_run_elsewhere_and_data_that_may_not_be_read_are_not_looked_into(
    child, parent, mixed, trained_runs, tmp_path
):
    elsewhere = shutil.move(parent.run_dir, tmp_path / "elsewhere")
    config = child.config.model_copy(update={"from_run": str(elsewhere)})
    moved = replace(child, config=config)
    assert look_for(moved, mixed)[1].earlier == 5  # a person reads what they may
    assert "is not among the runs" in look_for(moved, mixed, [tmp_path])[1].problem
    shutil.move(elsewhere, parent.run_dir)
    copies = look_for(child, mixed, [tmp_path])[1]
    assert copies.earlier == 0
    assert "lies outside the folders" in copies.problem


@pytest.mark.train
def test_a_circle_of_runs_ends(child, parent, mixed):
    config = parent.config.model_copy(update={"from_run": str(parent.run_dir)})
    (parent.run_dir / "config.json").write_text(config.model_dump_json())
    assert look_for(child, mixed)[1].earlier == 5

"""Stored predictions of other data sets are untrusted input: damage is named and repaired."""

import json
import os
import random
import shutil

import pyarrow.parquet as pq
import pytest

from finetune_core.errors import RunError
from finetune_core.evaluation.single_run import shift_files
from finetune_core.evaluation.single_run.evaluate import evaluation
from finetune_core.evaluation.single_run.shift import predict_shifted
from finetune_core.evaluation.single_run.shift_files import (
    list_runs_without_shift,
    load_shifted_predictions,
    load_shifts,
    read_shift,
)
from finetune_core.evaluation.single_run.shifted import evaluate_shifted
from finetune_core.runs.store import read_run
from finetune_core.work import finish
from tests.damage import BYTES, KINDS, change_table
from tests.deadline import in_time
from tests.evaluation.single_run.test_damaged_results import (
    SOME_TABLES,
    TABLES,
    remove,
    write_table,
)
from tests.factories import NASTY
from tests.shifted import darken_images


@pytest.fixture(scope="module")
def predicted(trained_runs, tmp_path_factory):
    """Predict once; return (directory of a run, other data set, its fingerprint)."""
    base = tmp_path_factory.mktemp("predicted")
    (run_dir,) = trained_runs.copied(base / "runs", "last_block")
    run = read_run(run_dir)
    folder = darken_images(
        evaluation(run, "test").predictions["id"], trained_runs.data, base / "dark"
    )
    return run_dir, folder, finish(predict_shifted([run], str(folder)))


@pytest.fixture
def stored(predicted, tmp_path):
    """Return (run, file, fingerprint)."""
    run = read_run(shutil.copytree(predicted[0], tmp_path / "run"))
    return run, run.run_dir / f"shifted-{predicted[2]}.parquet", predicted[2]


def rewrite_facts(file, change):
    """Rewrite the facts of a file, given a function that changes them to bytes."""
    table = pq.read_table(file)
    metadata = table.schema.metadata
    said = change(json.loads(metadata[b"thaw.shift"]))
    raw = said if isinstance(said, bytes) else json.dumps(said).encode()
    file.write_bytes(write_table(table.replace_schema_metadata(metadata | {b"thaw.shift": raw})))


def test_what_is_stored_is_listed_without_its_table_and_survives_a_copy(
    stored, predicted, monkeypatch
):
    run, _, fingerprint = stored
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *_, **__: pytest.fail("it was read"))
    [known], problems = load_shifts(run)
    assert problems == []
    assert (known.fingerprint, known.data, known.name) == (fingerprint, str(predicted[1]), "dark")
    assert known.classes == sorted(["red", "blue", NASTY])


@pytest.mark.train
def test_what_an_earlier_version_kept_with_the_runs_own_images_is_predicted_anew(stored, predicted):
    run, file, fingerprint = stored
    rewrite_facts(file, lambda facts: {k: v for k, v in facts.items() if k != "without_own"})
    [problem] = load_shifts(run)[1]
    assert "earlier version" in problem
    assert finish(predict_shifted([run], str(predicted[1]))) == fingerprint
    assert load_shifts(run)[1] == []


@pytest.mark.parametrize("name", SOME_TABLES)
def test_a_table_that_holds_no_predictions_is_named_and_computed_anew(stored, predicted, name):
    run, file, fingerprint = stored
    before = load_shifted_predictions(run.run_dir, fingerprint, 3)
    table = pq.read_table(file)
    facts = {b"thaw.shift": table.schema.metadata[b"thaw.shift"]}
    file.write_bytes(write_table(TABLES[name](table).replace_schema_metadata(facts)))
    assert list_runs_without_shift([run], fingerprint) == [run]
    with pytest.raises(RunError, match=rf"{file.name} is damaged"):
        evaluate_shifted(run, fingerprint)
    if name == "no rows":  # one of them, end to end
        assert finish(predict_shifted([run], str(predicted[1]))) == fingerprint
        assert load_shifted_predictions(run.run_dir, fingerprint, 3).equals(before)


FACTS = {
    "nothing": lambda _: b"",
    "a list": lambda _: [1],
    "too deep": lambda _: b"[" * 100_000,
    "no copies": lambda said: {name: one for name, one in said.items() if name != "copies"},
    "a negative count": lambda said: said | {"unreadable": -1},
    "a text for a count": lambda said: said | {"unknown": {"violet": "3"}},
    "an endless name": lambda said: said | {"data": "x" * 100_000},
    "no class": lambda said: said | {"classes": []},
    "other classes": lambda said: said | {"classes": ["cat", "cow", "dog"]},
    "the classes in another order": lambda said: said | {"classes": said["classes"][::-1]},
    "another fingerprint": lambda said: said | {"fingerprint": "0" * 16},
    "no fingerprint": lambda said: said | {"fingerprint": "../../secret"},
}


@pytest.mark.parametrize("change", FACTS.values(), ids=FACTS)
def test_facts_that_are_not_this_runs_are_refused(stored, change):
    run, file, fingerprint = stored
    rewrite_facts(file, change)
    with pytest.raises(RunError, match=rf"{file.name} is damaged"):
        read_shift(run, fingerprint)
    assert load_shifts(run)[0] == []
    assert file.name in load_shifts(run)[1][0]
    assert list_runs_without_shift([run], fingerprint) == [run]


def test_facts_that_are_too_long_are_refused_before_they_are_parsed(stored, monkeypatch):
    run, file, fingerprint = stored
    monkeypatch.setattr(shift_files, "_LARGEST", 100)
    with pytest.raises(RunError, match="too long"):
        read_shift(run, fingerprint)
    assert file.is_file()


def test_predictions_of_an_earlier_state_of_the_run_do_not_count(stored):
    run, _, fingerprint = stored
    os.utime(run.run_dir / "predictions.parquet", ns=(1, 1))
    with pytest.raises(RunError, match="earlier state"):
        evaluate_shifted(run, fingerprint)
    assert list_runs_without_shift([run], fingerprint) == [run]
    assert "dark" in load_shifts(run)[1][0]


@pytest.mark.train
def test_no_link_is_followed_and_no_fifo_waited_for(stored, predicted):
    run, file, fingerprint = stored
    original = predicted[0] / file.name
    before = original.read_bytes()
    file.unlink()
    for place in (lambda: os.mkfifo(file), file.mkdir, lambda: file.symlink_to(original)):
        place()
        assert load_shifts(run)[0] == []
        for read in (
            lambda: read_shift(run, fingerprint),
            lambda: load_shifted_predictions(run.run_dir, fingerprint, 3),
        ):
            with pytest.raises(RunError, match=rf"{file.name} is a"):
                read()
        if place == file.mkdir:
            with pytest.raises(RunError, match="cannot be kept"):
                finish(predict_shifted([run], str(predicted[1])))
        if not file.is_symlink():
            remove(file)
    # takes the place of the link, not of what it leads to
    finish(predict_shifted([run], str(predicted[1])))
    assert not file.is_symlink()
    assert original.read_bytes() == before
    assert len(load_shifted_predictions(run.run_dir, fingerprint, 3)) > 0


def test_what_an_earlier_version_kept_says_nothing_of_the_runs_before(stored):
    run, file, fingerprint = stored

    def without(said):
        said["copies"].pop("earlier")
        return said

    rewrite_facts(file, without)
    assert read_shift(run, fingerprint).copies.earlier == 0


def test_only_so_many_are_listed_and_other_names_are_none(stored, monkeypatch):
    run, file, _ = stored
    monkeypatch.setattr(shift_files, "MOST_LISTED", 3)
    for number in range(5):
        (run.run_dir / f"shifted-{number:016x}.parquet").write_bytes(b"")
    (run.run_dir / "shifted-x.parquet").write_bytes(file.read_bytes())
    found, problems = load_shifts(run)
    assert len(found) + len(problems) == 3


def test_a_runs_own_predictions_are_none_of_another_data_set(stored):
    run, file, fingerprint = stored
    file.write_bytes((run.run_dir / "predictions.parquet").read_bytes())
    with pytest.raises(RunError, match="damaged"):
        read_shift(run, fingerprint)
    with pytest.raises(RunError, match="splits that are not evaluated"):
        load_shifted_predictions(run.run_dir, fingerprint, 3)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_stands_in_its_place_is_used_or_named_and_never_waited_for(stored, tmp_path, seed):
    run, file, fingerprint = stored
    chance, whole = random.Random(seed), file.read_bytes()
    for number in range(12):
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)
        file.write_bytes(whole)
        way = chance.choice([*BYTES, *KINDS, *[change_table] * 12])
        change = f"{number}: {way.__name__} {way(file, chance)}"
        with in_time(change):
            found, problems = load_shifts(run)
            lacking = list_runs_without_shift([run], fingerprint)
        assert len(found) + len(problems) <= 1, change
        if lacking:
            with pytest.raises(RunError, match=r"shifted-|has not predicted"):
                evaluate_shifted(run, fingerprint)
        else:
            assert 0 <= evaluate_shifted(run, fingerprint).accuracy <= 1, change

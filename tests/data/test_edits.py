import pandas as pd
import pytest
from filelock import FileLock

from finetune_core.config import Edit
from finetune_core.data import edits as edits_module
from finetune_core.data.edits import (
    add_edits,
    apply_edits,
    collect_ignored_paths,
    describe_edit,
    describe_edits,
    load_edits,
    relabel_class,
    remove_edits,
    save_edits,
    select_effective_edits,
)
from finetune_core.data.entry import entry_folder
from finetune_core.errors import DataError

TABLE = pd.DataFrame(
    {
        "id": ["a", "b", "c", "d"],
        "class": ["x", "x", "y", "y"],
        "split": ["train", "val", "train", "test"],
    }
)


def exclude(*paths):
    return Edit(action="exclude", paths=paths)


def move(to, *paths):
    return Edit(action="move", paths=paths, to=to)


def relabel(to, *paths):
    return Edit(action="relabel", paths=paths, to=to)


def ignore(kind, *paths):
    return Edit(action="ignore", paths=paths, kind=kind)


def apply_to_table(*edits):
    """Return {id: (class, split)} of the images that are left."""
    return {row[0]: tuple(row[1:]) for row in apply_edits(TABLE, edits).to_numpy().tolist()}


AS_IT_WAS = {"a": ("x", "train"), "b": ("x", "val"), "c": ("y", "train"), "d": ("y", "test")}


@pytest.mark.parametrize(
    ("edits", "changed"),
    [
        ([], {}),
        ([ignore("dark", "a")], {}),
        ([move("test", "a", "b")], {"a": ("x", "test"), "b": ("x", "test")}),
        ([relabel("y", "a"), relabel("new", "d")], {"a": ("y", "train"), "d": ("new", "test")}),
        # the last holds
        ([relabel("y", "a"), relabel("z", "a")], {"a": ("z", "train")}),
        ([relabel("z", "a"), relabel("y", "a")], {"a": ("y", "train")}),
        ([move("val", "a"), relabel("z", "a"), move("test", "a")], {"a": ("z", "test")}),
        (
            [relabel("new", "a", "c"), move("val", "c", "d"), relabel("x", "c"), move("test", "a")],
            {"a": ("new", "test"), "c": ("x", "val"), "d": ("y", "val")},
        ),
        # unknown paths are passed over
        ([exclude("gone"), move("val", "gone"), relabel("y", "gone")], {}),
        ([relabel("z", "gone", "a", "gone too")], {"a": ("z", "train")}),
    ],
)
def test_edits_change_the_images_they_name(edits, changed):
    assert apply_to_table(*edits) == AS_IT_WAS | changed


def test_excluded_images_are_gone_in_any_order():
    assert set(apply_to_table(exclude("a", "d"))) == {"b", "c"}
    assert "a" not in apply_to_table(exclude("a"), move("val", "a"))
    assert "a" not in apply_to_table(relabel("y", "a"), exclude("a"))


def test_the_columns_keep_their_types():
    changed = apply_edits(
        TABLE.astype("str"), [relabel("new", "a"), move("val", "c"), exclude("d")]
    )
    assert changed.dtypes.tolist() == TABLE.astype("str").dtypes.tolist()


def test_the_table_that_was_given_stays_as_it_is():
    before = TABLE.copy()
    apply_to_table(exclude("a"), move("val", "c"), relabel("x", "d"))
    pd.testing.assert_frame_equal(TABLE, before)


def test_a_table_whose_index_has_gaps():
    table = TABLE.iloc[[3, 1]]
    assert apply_edits(table, [relabel("z", "d")])["class"].tolist() == ["z", "x"]


@pytest.mark.parametrize("to", ["", "validation", "holdout"])
def test_there_are_three_splits_to_move_to(to):
    with pytest.raises(DataError, match="train, val, test"):
        apply_to_table(move(to, "a"))


@pytest.fixture
def edits():
    return (
        exclude("a/1.png", "a/2.png"),
        move("val", "otter 🦦.png"),
        relabel("c, d", 'q".png'),
        ignore("dark", "a/3.png"),
    )


def test_edits_are_kept_in_order(tmp_path, edits):
    assert load_edits(tmp_path) == ()
    save_edits(tmp_path, edits)
    assert load_edits(tmp_path) == edits
    save_edits(tmp_path, edits[::-1])
    assert load_edits(tmp_path) == edits[::-1]
    save_edits(tmp_path, ())
    assert load_edits(tmp_path) == ()


def test_edits_of_two_are_added(tmp_path, edits):
    add_edits(tmp_path, edits[:1])
    add_edits(tmp_path, edits[1:])
    assert load_edits(tmp_path) == edits


def test_of_equal_edits_the_latest_is_taken_back(tmp_path):
    first, second, other = move("val", "a"), move("test", "a"), exclude("b")
    save_edits(tmp_path, [first, second, first, other])
    remove_edits(tmp_path, [first, exclude("c")])
    assert load_edits(tmp_path) == (first, second, other)
    remove_edits(tmp_path, [first, first, other])
    assert load_edits(tmp_path) == (second,)


def test_edits_are_kept_for_each_data_set_and_outside_of_it(home, tmp_path, edits):
    (tmp_path / "one").mkdir()
    save_edits(tmp_path / "one", edits)
    assert load_edits(tmp_path / "two") == ()
    assert not list((tmp_path / "one").iterdir())
    assert [path.name for path in home.rglob("*.json")] == ["edits.json"]


DAMAGED = {
    "cut short": b'[{"action": "exclude", "pat',
    "empty": b"",
    "another thing": b"3",
    "an object": b'{"action": "exclude"}',
    "nothing": b"null",
    "an unknown action": b'[{"action": "delete", "paths": []}]',
    "an unknown field": b'[{"action": "exclude", "paths": [], "why": ""}]',
    "no paths": b'[{"action": "exclude"}]',
    "not text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_edits_are_said_and_left_as_they_are(tmp_path, damage):
    save_edits(tmp_path, [exclude("a")])
    file = entry_folder(tmp_path) / "edits.json"
    file.write_bytes(DAMAGED[damage])
    with pytest.raises(DataError, match=r"edits\.json"):
        load_edits(tmp_path)
    assert file.read_bytes() == DAMAGED[damage]


def test_edits_that_cannot_be_kept_are_said(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("THAW_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(DataError, match="cannot be kept"):
        save_edits(tmp_path, [exclude("a")])


def test_another_process_that_changes_edits_is_waited_for(tmp_path, monkeypatch, edits):
    add_edits(tmp_path, edits[:1])
    monkeypatch.setattr(edits_module, "_PATIENCE", 0)
    with FileLock(entry_folder(tmp_path) / "edits.json.lock"):
        for act in (add_edits, remove_edits):
            with pytest.raises(DataError, match="cannot be kept"):
                act(tmp_path, edits[:1])
    add_edits(tmp_path, edits[1:])
    assert load_edits(tmp_path) == edits


def test_a_failure_while_writing_leaves_the_edits_that_were_there(tmp_path, monkeypatch, edits):
    save_edits(tmp_path, edits)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match="No space left"):
        save_edits(tmp_path, ())
    assert load_edits(tmp_path) == edits


def test_ignored_paths_are_gathered_by_kind():
    edits = [ignore("dark", "a"), ignore("dark", "b"), ignore("tiny", "a"), exclude("c")]
    assert collect_ignored_paths(edits) == {"dark": {"a", "b"}, "tiny": {"a"}}


def test_a_run_records_what_changes_the_training(edits):
    assert select_effective_edits(edits) == edits[:3]


def test_edits_are_said_in_words_one_by_one_and_together():
    edits = {
        "3 images excluded": exclude("a", "b", "c"),
        "1 image moved to validation": move("val", "a"),
        "1 image relabelled as cat": relabel("cat", "a"),
        "finding dismissed": ignore("dark", "a", "b"),
    }
    assert [describe_edit(edit) for edit in edits.values()] == list(edits)
    all_edits = [*edits.values(), move("test", "f")]
    said = "3 images excluded, 2 images moved to another split, 1 image relabelled"
    assert describe_edits(all_edits) == said
    assert describe_edits([]) == describe_edits([ignore("dark", "d")]) == ""


def rename_class(name, to, *before):
    table = apply_edits(TABLE, before)
    return apply_to_table(*before, relabel_class(table, name, to))


def test_renamed_class_is_gone_or_merged_and_its_images_keep_their_split():
    assert rename_class("x", " new ") == AS_IT_WAS | {"a": ("new", "train"), "b": ("new", "val")}
    assert {row[0] for row in rename_class("x", "y").values()} == {"y"}
    whole = {"a": ("z", "train"), "c": ("z", "train"), "d": ("z", "test")}
    assert rename_class("y", "z", relabel("y", "a")) == AS_IT_WAS | whole


def test_name_that_no_class_can_have_and_a_class_that_is_gone_are_refused():
    for to in ("", "  ", "x", " x ", "a\nb", "n" * 1001):
        with pytest.raises(DataError, match="cannot be renamed"):
            relabel_class(TABLE, "x", to)
    with pytest.raises(DataError, match="no class 'w'"):
        relabel_class(TABLE, "w", "new")

"""Answers: read from files, stored once and in order, replaced and taken back."""

import json

import pytest

from finetune_core.config import Edit
from finetune_core.data.edits import add_edits, load_edits
from finetune_core.errors import DataError
from finetune_core.labelling.answers import (
    NONE_OF_THESE,
    SKIPPED,
    Answer,
    read_answers,
    save_answers,
)

SPLITS = {"a.png": "train", "b.png": "train", "c.png": "test"}


def make_answer(path, label="", action="label"):
    return Answer(path=path, label=label, action=action)


def list_edits(data):
    return [(edit.action, *edit.paths, edit.to or edit.kind) for edit in load_edits(data)]


def test_answers_are_kept_in_order_and_once_however_often_they_are_sent(tmp_path):
    answers = [
        make_answer("b.png", "red"),
        make_answer("a.png", action="skip"),
        make_answer("c.png", "blue"),
    ]
    for some in (answers[:1], answers, answers, answers[1:]):
        save_answers(tmp_path, SPLITS, some)
    assert list_edits(tmp_path) == [
        ("label", "b.png", "red"),
        ("ignore", "a.png", SKIPPED),
        ("label_test", "c.png", "blue"),
    ]


def test_a_new_answer_replaces_the_earlier_one_and_undo_takes_it_back(tmp_path):
    other = Edit(action="ignore", paths=("a.png",), kind="dark")
    add_edits(tmp_path, [other])
    save_answers(tmp_path, SPLITS, [make_answer("a.png", "red"), make_answer("b.png", "red")])
    save_answers(tmp_path, SPLITS, [make_answer("a.png", action="none")])
    assert list_edits(tmp_path)[1:] == [
        ("label", "b.png", "red"),
        ("ignore", "a.png", NONE_OF_THESE),
    ]
    save_answers(
        tmp_path, SPLITS, [make_answer("b.png", action="undo"), make_answer("a.png", action="undo")]
    )
    assert load_edits(tmp_path) == (other,)
    save_answers(
        tmp_path, SPLITS, [make_answer("b.png", "red"), make_answer("b.png", action="undo")]
    )
    assert load_edits(tmp_path) == (other,)


def test_one_image_that_is_not_in_the_queue_refuses_all_answers(tmp_path):
    with pytest.raises(DataError, match=r"1 answer of .* /etc/passwd"):
        save_answers(
            tmp_path, SPLITS, [make_answer("a.png", "red"), make_answer("/etc/passwd", "red")]
        )
    assert load_edits(tmp_path) == ()


@pytest.mark.parametrize("name", ["answers.csv", "answers.jsonl"])
def test_csv_and_json_lines_say_the_same(tmp_path, name):
    rows = [
        {"path": "a, b.png", "label": "red"},
        {"path": "b.png", "action": "skip"},
        {"path": "c.png", "action": "undo"},
    ]
    lines = [json.dumps(row) for row in rows]
    if name.endswith("csv"):
        lines = ["path,label,action,note", '"a, b.png",red,,x', "b.png,,skip,", "c.png,,undo,"]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    assert read_answers(tmp_path / name) == [
        make_answer("a, b.png", "red"),
        make_answer("b.png", action="skip"),
        make_answer("c.png", action="undo"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "cannot be read"),
        ("7", "Line 2"),
        ('{"label": "red"}', "Line 2 .*: path: "),
        ('{"path": "a.png"}', "Line 2 .*either a label"),
        ('{"path": "a.png", "label": "red", "action": "skip"}', "Line 2 .*either a label"),
        ('{"path": "a.png", "action": "delete"}', "Line 2 .*: action: "),
        ('{"path": "a.png", "label": "r\\ned"}', "Line 2 .*not printable"),
    ],
)
def test_a_line_that_is_no_answer_is_named(tmp_path, line, message):
    file = tmp_path / "answers.jsonl"
    file.write_text('{"path": "a.png", "label": "red"}\n' + line)
    with pytest.raises(DataError, match=message):
        read_answers(file)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.csv cannot be read"):
        read_answers(tmp_path / "gone.csv")

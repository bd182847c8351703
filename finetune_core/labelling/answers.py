"""Answers to the queue of images without labels: read from a file, and kept as edits."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from finetune_core.config import Edit
from finetune_core.config.edit import LONGEST_NAME, LONGEST_PATH
from finetune_core.data.checks import join_names
from finetune_core.data.edits import change_edits
from finetune_core.data.splits import TEST
from finetune_core.errors import DataError
from finetune_core.files import describe_problem, read_regular
from finetune_core.formatting import pluralize

SKIPPED, NONE_OF_THESE = "skipped", "none_of_these"  # kinds of edits without a label
_LARGEST = 2**28  # bytes
_KINDS = {"skip": SKIPPED, "none": NONE_OF_THESE}  # action -> kind of its edit


class Answer(BaseModel):
    """A person's answer about one image without a label.

    Attributes:
        path: id of the image.
        label: its class; empty for the other actions.
        action: ``label``, ``skip``, ``none`` (the image is of none of the classes), or ``undo``,
            which takes back the answer to this image.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    path: str = Field(min_length=1, max_length=LONGEST_PATH)
    label: str = Field("", max_length=LONGEST_NAME)
    action: Literal["label", "skip", "none", "undo"] = "label"

    @model_validator(mode="after")
    def _check_one_answer(self) -> Self:
        if (self.action == "label") != bool(self.label):
            raise ValueError("give either a label, or the action skip, none or undo")
        return self


def read_answers(file: Path) -> list[Answer]:
    """Read answers from a CSV file with the columns path, label and action, or from JSON lines.

    Label or action may be missing: without an action, the image gets the label.

    Raises:
        DataError: if the file cannot be read, or a line is no answer.
    """
    try:
        text = read_regular(file.resolve(), _LARGEST).decode("utf-8-sig")
        rows = _read_csv_rows(text) if file.suffix.lower() == ".csv" else _read_json_rows(text)
        return [_parse_answer(file, line, row) for line, row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"The answers in {file} cannot be read: {describe_problem(file, error)}."
        ) from None


def save_answers(data: str | Path, split_of: Mapping[str, str], answers: Sequence[Answer]) -> None:
    """Store answers as edits of a data set, in one write.

    An image has one answer: a new one replaces the earlier one. An equal answer stays as it is, so
    answers may be sent again.

    Args:
        data: folder or manifest of the data set.
        split_of: id -> split that the image joins, for each image that may be answered.
        answers: the answers, the earliest first.

    Raises:
        DataError: if an image is not in the queue, or the answers cannot be stored.
    """
    unknown = [answer.path for answer in answers if answer.path not in split_of]
    if unknown:
        raise DataError(
            f"{pluralize(len(unknown), 'answer')} of images that are not in the queue: "
            f"{join_names(unknown)}. Take paths from the queue."
        )
    edits: dict[str, Edit | None] = {}
    for answer in answers:
        edits.pop(answer.path, None)  # edits are in the order of the last answers
        edits[answer.path] = _make_edit(answer, split_of[answer.path])

    def change(known: Sequence[Edit]) -> list[Edit]:
        remaining = [
            edit for edit in known if not _is_answer_to(edit, edits) or edit == edits[edit.paths[0]]
        ]
        present = set(remaining)
        return remaining + [edit for edit in edits.values() if edit and edit not in present]

    change_edits(data, change)


def _make_edit(answer: Answer, split: str) -> Edit | None:
    """Return the edit that stores an answer; None if the answer takes one back."""
    if answer.action == "undo":
        return None
    if answer.action == "label":
        action = "label_test" if split == TEST else "label"
        return Edit(action=action, paths=(answer.path,), to=answer.label)
    return Edit(action="ignore", paths=(answer.path,), kind=_KINDS[answer.action])


def _is_answer_to(edit: Edit, paths: Mapping[str, Any]) -> bool:
    """Return whether an edit is an answer to one of some images."""
    answers = edit.action in ("label", "label_test") or edit.kind in _KINDS.values()
    return answers and len(edit.paths) == 1 and edit.paths[0] in paths


def _read_csv_rows(text: str) -> Iterator[tuple[int, Any]]:
    """Yield (line, row) without the empty cells."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    for row in reader:
        yield reader.line_num, {name: value for name, value in row.items() if value}


def _read_json_rows(text: str) -> Iterator[tuple[int, Any]]:
    for line, content in enumerate(text.splitlines(), start=1):
        if content.strip():
            yield line, json.loads(content)


def _parse_answer(file: Path, line: int, row: object) -> Answer:
    try:
        answer = Answer.model_validate(row)
    except ValidationError as error:
        problem = error.errors()[0]
        location = ".".join(map(str, problem["loc"]))
        reason = problem["msg"].removeprefix("Value error, ")
        reason = f"{location}: {reason}" if location else reason
        raise DataError(f"Line {line} of {file}: {reason}.") from None
    if not answer.label.isprintable():
        raise DataError(f"Line {line} of {file}: the label is not printable: {answer.label!r}.")
    return answer

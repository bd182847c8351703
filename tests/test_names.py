"""Names and docstrings: functions are verbs, and docstrings begin with a sentence."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [
    ROOT / "app.py",
    *(
        file
        for folder in ("finetune_core", "pages", "benchmarks", "tests")
        for file in sorted((ROOT / folder).rglob("*.py"))
        if "earlier_run" not in file.parts
    ),
]
FORBIDDEN = re.compile(r"(What|Who|Whoever|Whether|Of|By|As|Likewise|Where|The same)\b")
PARTICIPLE = re.compile(
    r"(?!(?:speed|feed|seed|embed|need|exceed|proceed)$)[a-z]+ed|begun|led|kept|made|held|built|found|given|taken|shown|drawn|said|sent|left|known"
)
# Properties that name a part of what they belong to, with the field's word.
EXCEPTIONS = {"described", "started", "elapsed"}


def find_definitions(file):
    """Return the nodes of the module, classes and functions of a file."""
    tree = ast.parse(file.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in ast.walk(tree) if isinstance(node, (ast.Module, *kinds))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_a_docstring_begins_with_a_sentence_or_a_noun(file):
    docstrings = [ast.get_docstring(node) or "" for node in find_definitions(file)]
    assert [text for text in docstrings if FORBIDDEN.match(text)] == []


def test_no_public_function_is_a_bare_participle():
    product = [file for file in FILES if ROOT / "tests" not in file.parents]
    public = {
        name
        for file in product
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Module | ast.ClassDef)
        for function in node.body
        if isinstance(function, ast.FunctionDef) and not (name := function.name).startswith("_")
    }
    assert len(product) > 100
    assert {name for name in public if PARTICIPLE.fullmatch(name)} == EXCEPTIONS


@pytest.mark.parametrize("text", ["What it holds.", "By name.", "The same for rows."])
def test_a_docstring_that_begins_otherwise_is_found(text, tmp_path):
    file = tmp_path / "one.py"
    file.write_text(f'def run():\n    """{text}"""\n')
    with pytest.raises(AssertionError):
        test_a_docstring_begins_with_a_sentence_or_a_noun(file)

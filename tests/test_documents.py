"""Checks of the documents: their length, their links, and the names that they use."""

import re
from functools import cache
from pathlib import Path

import pytest
from typer.main import get_command

from finetune_core.__main__ import app
from finetune_core.data.findings import KINDS, Finding
from finetune_core.evaluation.single_run.scores import NAMES
from finetune_core.training.strategies.catalogue import STRATEGIES
from tests.documents import missing_in_reference

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
)
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")
CODE = re.compile(r"`([\w./-]+/[\w./-]+|[\w-]+\.(?:py|md|txt|toml))`")

LABEL = re.compile(r"(?<![*\w])\*([A-Z][^*\n]*(?:\n[^*\n]+)?)\*(?!\*)")  # italics with a capital
INLINE = re.compile(r"`([^`]+)`")
COMMAND = re.compile(r"^    (thaw .*?)(?:  |$)", re.M)
OF_OTHERS = {"group_matcher"}  # timm's


@cache
def read_code(*folders):
    """Return the Python files below some folders, with their names, as one text."""
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    return "\n".join(f"{file}\n{file.read_text()}" for file in files)


@cache
def words_of_code():
    """Return every word of the code and the tests, in lower case."""
    code = read_code("finetune_core", "pages", "benchmarks", "tests")
    return set(re.findall(r"\w+", code.lower()))


def is_shown(label):
    """Return whether a string of the app's code is this label, also after an icon."""
    code = read_code("pages", "finetune_core") + (ROOT / "app.py").read_text()
    return any(f'{start}{label}"' in code for start in ('"', ": ", "'"))


@cache
def commands():
    """Return the command line as a dict of command -> options."""
    return {
        name: {
            "--help",
            *(option for one in made.params for option in (*one.opts, *one.secondary_opts)),
        }
        for name, made in get_command(app).commands.items()
    }


def in_backticks(document):
    """Return the text in backticks, outside code blocks."""
    return INLINE.findall(re.sub(r"^    .*$", "", document.read_text(), flags=re.M))


def anchors(document):
    """Return the names that a renderer gives to the headings."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 110
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document):
    for target, anchor in LINK.findall(document.read_text()):
        if "://" in target:
            continue
        found = document.parent / target if target else document
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), f"{target}#{anchor}"


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_files_that_are_named_exist(name):
    files = {
        path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if ".git" not in path.parts
    }
    for named in CODE.findall((ROOT / name).read_text()):
        if "." in named.rsplit("/", 1)[-1] or named.endswith("/"):
            assert any(
                f"/{file}{'/' if (ROOT / file).is_dir() else ''}".endswith(f"/{named}")
                for file in files
            ), named


@pytest.mark.parametrize(
    ("document", "names"),
    [("guide.md", STRATEGIES), ("json.md", KINDS), ("json.md", NAMES)],
    ids=["strategies", "findings", "scores"],
)
def test_lists_are_complete(document, names):
    text = (ROOT / "docs" / document).read_text()
    assert not [name for name in names if not re.search(rf"\b{name}\b", text)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_labels_that_are_named_are_shown_somewhere(document):
    named = {" ".join(label.split()) for label in LABEL.findall(document.read_text())}
    assert not [label for label in named if not is_shown(label)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_names_that_look_like_code_are_in_the_code(document):
    words = {word for code in in_backticks(document) for word in re.findall(r"[A-Za-z_]\w*", code)}
    names = {word for word in words if "_" in word or re.search("[a-z][A-Z]", word)} - OF_OTHERS
    # the ends of an interval are named after its value
    stems = {name: re.sub("_(low|high)$", "", name) for name in names}
    assert not [
        name for name, stem in stems.items() if not {name.lower(), stem.lower()} & words_of_code()
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_options_that_are_named_exist(document):
    known = {option for options in commands().values() for option in options}
    for line in [*in_backticks(document), *COMMAND.findall(document.read_text())]:
        command = re.match(r"thaw ([a-z]+)", line)
        assert not command or command[1] in commands(), line
        wanted = set(re.findall(r"(?<![\w-])--[a-z][\w-]*(?![\w.-])", line))
        assert wanted <= (commands()[command[1]] if command else known), line


def test_every_field_of_a_finding_is_in_the_json_reference():
    assert not missing_in_reference(Finding("dark", "info", "", 0).to_json())

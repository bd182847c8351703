"""Documents keep to what they promise: their length, links that lead somewhere, names that exist."""

import re
from pathlib import Path

import pytest

from finetune_core.data.findings import KINDS
from finetune_core.evaluation.single_run.scores import NAMES
from finetune_core.training.strategies import STRATEGIES

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")
CODE = re.compile(r"`([\w./-]+/[\w./-]+|[\w-]+\.(?:py|md|txt|toml))`")


def anchors(document):
    """The names that a renderer gives to the headings."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 130
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
    files = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if ".git" not in path.parts}
    for named in CODE.findall((ROOT / name).read_text()):
        if "." in named.rsplit("/", 1)[-1] or named.endswith("/"):
            assert any(f"/{file}{'/' if (ROOT / file).is_dir() else ''}".endswith(f"/{named}") for file in files), named


@pytest.mark.parametrize(
    ("document", "names"),
    [("guide.md", STRATEGIES), ("json.md", KINDS), ("json.md", NAMES)],
    ids=["strategies", "findings", "scores"],
)
def test_lists_are_complete(document, names):
    text = (ROOT / "docs" / document).read_text()
    assert not [name for name in names if not re.search(rf"\b{name}\b", text)]

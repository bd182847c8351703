"""The order of the rooms: each imports from the rooms before it, never from those after it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = (
    "finetune_core",  # files, errors, formatting: what every room needs
    "finetune_core.config",
    "finetune_core.data",
    "finetune_core.models",
    "finetune_core.training",
    "finetune_core.inspection",
    "finetune_core.runs",
    "finetune_core.evaluation",
    "finetune_core.evaluation.prediction",
    "finetune_core.evaluation.single_run",
    "finetune_core.evaluation.comparison",
    "finetune_core.evaluation.advice",
    "finetune_core.figures",
    "finetune_core.exporters",
    "finetune_core.commands",
    "finetune_core.api",
    "finetune_core.__main__",
    "pages.shared",
    "pages",
    "app",
)
STREAMLIT = {"pages.shared", "pages", "app"}
FILES = sorted(
    [ROOT / "app.py", *(ROOT / "finetune_core").rglob("*.py"), *(ROOT / "pages").rglob("*.py")]
)


def room(module):
    """The innermost room that a dotted name lies in."""
    return max((name for name in ORDER if f"{module}.".startswith(f"{name}.")), key=len)


def dotted(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(file):
    """What a file imports, wherever in it: dotted names."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=dotted)
def test_a_room_calls_only_the_rooms_before_it(file):
    # the package offers what the api has
    own = "finetune_core.api" if dotted(file) == "finetune_core" else room(dotted(file))
    for name in imported(file):
        if name.split(".")[0] in ("finetune_core", "pages"):
            assert ORDER.index(room(name)) <= ORDER.index(own), f"{own} may not import {name}"


@pytest.mark.parametrize("file", FILES, ids=dotted)
def test_only_the_pages_know_streamlit_and_they_never_import_torch(file):
    tops = {name.split(".")[0] for name in imported(file)}
    assert not tops & (
        {"torch", "torchvision"} if room(dotted(file)) in STREAMLIT else {"streamlit"}
    )

"""The order of the packages: each imports only from the packages before it.

Some modules of a package stand in the order by themselves, where the package's subpackages lie
between them and its other modules.
"""

import ast
import functools
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = (
    "finetune_core",  # files, errors, formatting: needed by every package
    "finetune_core.config",
    "finetune_core.data",
    "finetune_core.models",
    "finetune_core.training.events",  # the formats that a run writes
    "finetune_core.training.predictions",
    "finetune_core.training.strategies",
    "finetune_core.training.devices",
    "finetune_core.training.compile",
    "finetune_core.training.data_pipeline",
    "finetune_core.training.checkpoints",
    "finetune_core.training.step",
    "finetune_core.training",  # the run: its job, preparation, evaluation and state
    "finetune_core.training.heads",
    "finetune_core.training.averaging",
    "finetune_core.training.forecast",
    "finetune_core.training.loop",
    "finetune_core.inspection",
    "finetune_core.labelling",
    "finetune_core.runs",
    "finetune_core.runs.executors",
    "finetune_core.runs.worker",
    "finetune_core.evaluation",
    "finetune_core.evaluation.prediction",
    "finetune_core.evaluation.single_run",
    "finetune_core.evaluation.comparison",
    "finetune_core.evaluation.advice",
    "finetune_core.profiling",
    "finetune_core.figures",
    "finetune_core.reports",
    "finetune_core.exporters",
    "finetune_core.commands",
    "finetune_core.api",
    "finetune_core.__main__",
    "pages.shared",
    "pages",
    "app",
)
STREAMLIT = {"pages.shared", "pages", "app"}


def package_of(module):
    """Return the innermost package of ``ORDER`` that a dotted name lies in."""
    return max((name for name in ORDER if f"{module}.".startswith(f"{name}.")), key=len)


def dotted(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def find_imports(file):
    """Yield the dotted names that a file imports, anywhere in it."""
    statements = ast.parse(file.read_text()).body
    for node in statements:  # and the packages inside, which are appended
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            statements += getattr(node, part, ())


@functools.cache
def imports():
    """Return (module, imported dotted name) of everything in the product."""
    files = [ROOT / "app.py"]
    files += [file for name in ("finetune_core", "pages") for file in (ROOT / name).rglob("*.py")]
    return [(dotted(file), name) for file in files for name in find_imports(file)]


def test_a_package_imports_only_from_the_packages_before_it():
    def position(module):
        # the package itself offers the functions of api
        return ORDER.index("finetune_core.api" if module == "finetune_core" else package_of(module))

    own = [pair for pair in imports() if pair[1].split(".")[0] in ("finetune_core", "pages")]
    assert len(own) > 1000
    wrong = [(a, b) for a, b in own if ORDER.index(package_of(b)) > position(a)]
    assert wrong == []


def check_no_cycle(pairs):
    """Raise CycleError if modules import each other, directly or by way of others.

    Args:
        pairs: (module, imported dotted name), of a module or of something in a module.
    """
    modules = {module for module, _ in pairs}
    graph = TopologicalSorter()
    for module, name in pairs:
        imported = name if name in modules else name.rpartition(".")[0]
        if imported in modules and imported != module:
            graph.add(module, imported)
    graph.prepare()


def test_no_modules_import_each_other():
    # Every import statement counts: imports within functions, which hide a cycle from Python, and
    # imports under TYPE_CHECKING, because two modules that need each other's types belong together.
    # Not counted: modules loaded by name (import_module), and the packages that Python imports on
    # the way to a module, whose __init__.py files import nothing that imports them.
    check_no_cycle(imports())


@pytest.mark.parametrize(
    "pairs",
    [
        [("a.one", "a.two"), ("a.two", "a.one")],
        [("a.one", "a.two.function"), ("a.two", "b.three"), ("b.three", "a.one.Class")],
    ],
)
def test_a_cycle_is_found(pairs):
    with pytest.raises(CycleError):
        check_no_cycle(pairs)


def test_only_the_pages_know_streamlit_and_they_never_import_torch():
    def forbidden(module):
        on_pages = package_of(module) in STREAMLIT
        return {"torch", "torchvision"} if on_pages else {"streamlit"}

    assert [(a, b) for a, b in imports() if b.split(".")[0] in forbidden(a)] == []

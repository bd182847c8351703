"""The order of the packages: each imports only from the packages before it."""

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).parent.parent
ORDER = (
    "finetune_core",  # files, errors, formatting: needed by every package
    "finetune_core.config",
    "finetune_core.data",
    "finetune_core.models",
    "finetune_core.training",
    "finetune_core.inspection",
    "finetune_core.labelling",
    "finetune_core.runs",
    "finetune_core.evaluation",
    "finetune_core.evaluation.prediction",
    "finetune_core.evaluation.single_run",
    "finetune_core.evaluation.comparison",
    "finetune_core.evaluation.advice",
    "finetune_core.profiling",
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


def test_only_the_pages_know_streamlit_and_they_never_import_torch():
    def forbidden(module):
        on_pages = package_of(module) in STREAMLIT
        return {"torch", "torchvision"} if on_pages else {"streamlit"}

    assert [(a, b) for a, b in imports() if b.split(".")[0] in forbidden(a)] == []

"""Thaw's core: everything except Streamlit. ``import finetune_core as thaw`` offers ``api``.

The packages, in the order of the data flow, are ``config``, ``data``, ``models``, ``training``,
``inspection``, ``labelling``, ``runs``, ``evaluation``, ``profiling``, ``figures``, ``reports``,
``exporters``, the command line and ``api``. A package may import from the packages before it, never
from those after it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from finetune_core.memory import tune_allocator

if TYPE_CHECKING:
    from finetune_core.api import (
        advise,
        average,
        compare,
        evaluate,
        export,
        inspect,
        label,
        predict,
        profile,
        resume,
        train,
        tta,
    )

__all__ = [
    "advise",
    "average",
    "compare",
    "evaluate",
    "export",
    "inspect",
    "label",
    "predict",
    "profile",
    "resume",
    "train",
    "tta",
]

tune_allocator()


def __getattr__(name: str) -> Any:
    # Modules are imported by their names. The functions are loaded on first use, because they need
    # torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

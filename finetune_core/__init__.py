"""Thaw's core: everything that is not Streamlit. ``import finetune_core as thaw`` gives the functions of ``api``.

The rooms, in the order data flows: ``config``, ``data``, ``models``, ``training``, ``inspection``, ``labelling``, ``runs``,
``evaluation``, ``profile``, ``exporters``, then ``figures``, the command line and ``api``. A room may call the rooms before it, never those after it.
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
    # modules are imported by their names, and import torch only when they are
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

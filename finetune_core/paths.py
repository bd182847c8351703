"""Where Thaw keeps what it writes: its checkout, or the folder that THAW_HOME names; what only saves time, also where THAW_CACHE_DIR says."""

import os
from pathlib import Path

from finetune_core.errors import FinetuneError

APP = (
    Path(__file__).resolve().parent.parent / "app.py"
)  # the dashboard: in a checkout only, never in an installed copy


def home() -> Path:
    """The folder below which Thaw writes: ``THAW_HOME``, else the checkout, else ``.thaw`` in the person's own folder.

    Raises:
        FinetuneError: when THAW_HOME names what cannot be a folder.
    """
    return _named("THAW_HOME") or (APP.parent if APP.is_file() else Path.home() / ".thaw")


def cache_dir() -> Path:
    """Where activations and decoded images go that do not fit into memory: ``THAW_CACHE_DIR``, a folder on a disk of this machine where
    THAW_HOME is not; else ``cache`` in ``home``.

    Raises:
        FinetuneError: when a variable names what cannot be a folder.
    """
    return _named("THAW_CACHE_DIR") or home() / "cache"


def rows_dir() -> Path:
    """Thaw's own folder in the cache, one for each user: nothing beside it is touched.

    Raises:
        FinetuneError: when a variable names what cannot be a folder.
    """
    return cache_dir() / f"thaw-rows{_of_user()}"


def private_dir() -> Path:
    """The folder of what no other user may see or change; never below a shared cache.

    Raises:
        FinetuneError: when THAW_HOME names what cannot be a folder.
    """
    return home() / f"private{_of_user()}"


def _of_user() -> str:
    """A number of the user, where systems have them: several may share a folder."""
    return f"-{os.getuid()}" if hasattr(os, "getuid") else ""


def _named(variable: str) -> Path | None:
    named = os.environ.get(variable)
    if not named:
        return None
    try:
        folder = Path(named).expanduser().resolve()
        folder.exists()
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "there is no such person here"
        raise FinetuneError(
            f"{variable} cannot be {named}: {reason}. Set it to a folder that can be written."
        ) from None
    return folder


def runs_dir() -> Path:
    """Where runs go unless another folder is named."""
    return home() / "runs"


def data_dir() -> Path:
    """Where the bundled samples are written, and where the app looks for data sets first."""
    return home() / "data"

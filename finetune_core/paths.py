"""Paths of the dashboard and of the folders that Thaw writes to.

Thaw writes below the folder that THAW_HOME names, else into its checkout, else into ``~/.thaw``.
Files that only save time go to THAW_CACHE_DIR.
"""

import os
from pathlib import Path

from finetune_core.errors import FinetuneError

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent


def dashboard() -> Path:
    """Return the script that Streamlit runs: in a wheel inside the package, else in the checkout.

    Raises:
        FinetuneError: if the script is missing.
    """
    for script in (_PACKAGE / "dashboard" / "app.py", _CHECKOUT / "app.py"):
        if script.is_file():
            return script
    raise FinetuneError(
        f"The dashboard is missing from {_PACKAGE}. Install Thaw again, as a wheel or with "
        "`pip install -e .` in a checkout."
    )


def home() -> Path:
    """Return the folder below which Thaw writes.

    Raises:
        FinetuneError: if THAW_HOME cannot be a folder.
    """
    if named := _folder_from_environment("THAW_HOME"):
        return named
    return _CHECKOUT if _is_checkout() else Path.home() / ".thaw"


def cache_dir() -> Path:
    """Return the folder of activations and decoded images that do not fit into memory.

    This is ``THAW_CACHE_DIR``, meant for a local disk if THAW_HOME is not on one, else ``cache`` in
    ``home``.

    Raises:
        FinetuneError: if a variable names something that cannot be a folder.
    """
    return _folder_from_environment("THAW_CACHE_DIR") or home() / "cache"


def rows_dir() -> Path:
    """Return Thaw's own folder in the cache, one per user. Nothing beside it is touched.

    Raises:
        FinetuneError: if a variable names something that cannot be a folder.
    """
    return cache_dir() / f"thaw-rows{_user_suffix()}"


def private_dir() -> Path:
    """Return the folder of files that no other user may see or change.

    The folder is never below a shared cache.

    Raises:
        FinetuneError: if THAW_HOME cannot be a folder.
    """
    return home() / f"private{_user_suffix()}"


def _user_suffix() -> str:
    """Return a suffix with the user's number, where systems have one. Users may share a folder."""
    return f"-{os.getuid()}" if hasattr(os, "getuid") else ""


def _folder_from_environment(variable: str) -> Path | None:
    value = os.environ.get(variable)
    if not value:
        return None
    try:
        folder = Path(value).expanduser().resolve()
        folder.exists()
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "there is no such person here"
        raise FinetuneError(
            f"{variable} cannot be {value}: {reason}. Set it to a folder that can be written."
        ) from None
    return folder


def runs_dir() -> Path:
    """Return the default folder of runs."""
    return home() / "runs"


def data_dir() -> Path:
    """Return the folder of the bundled samples, where the app looks for data sets first."""
    return home() / "data"


def _is_checkout() -> bool:
    """Return whether this package lies in a checkout. Site-packages may hold an ``app.py``, too."""
    return (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "app.py").is_file()

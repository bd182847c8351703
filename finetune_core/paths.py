"""Where the dashboard is, and where Thaw writes.

Thaw writes below the folder that THAW_HOME names, else into its checkout, else into ``~/.thaw``.
What only saves time goes where THAW_CACHE_DIR says.
"""

import os
from pathlib import Path

from finetune_core.errors import FinetuneError

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent


def dashboard() -> Path:
    """Return the script that Streamlit runs: in a wheel inside the package, else in the checkout.

    Raises:
        FinetuneError: when there is none.
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
        FinetuneError: when THAW_HOME names what cannot be a folder.
    """
    if named := _named("THAW_HOME"):
        return named
    return _CHECKOUT if _is_checkout() else Path.home() / ".thaw"


def cache_dir() -> Path:
    """Return where activations and decoded images go that do not fit into memory.

    That is ``THAW_CACHE_DIR``, for a disk of this machine where THAW_HOME is on none, else
    ``cache`` in ``home``.

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


def _is_checkout() -> bool:
    """Return whether this package lies in a checkout. Site-packages may hold an ``app.py``, too."""
    return (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "app.py").is_file()

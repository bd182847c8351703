"""Settings saved under a short id that fits into an address.

They are small JSON files, named by a hash of their content.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune_core import paths
from finetune_core.errors import ConfigError
from finetune_core.files import path_exists, read_regular, stat_regular, write_bytes

MOST_FILES = 1000
_MOST_BYTES = 50_000
_ID = re.compile(r"[0-9a-f]{12}")


def save_settings(values: Mapping[str, Any]) -> str:
    """Save values that JSON can hold, and return their id.

    Equal values have equal ids, on every machine.
    """
    content = json.dumps(values, sort_keys=True, indent=1).encode()
    settings_id = hashlib.sha256(content).hexdigest()[:12]
    file = _file(settings_id)
    with suppress(OSError):  # where nothing can be written, a reload starts with the defaults
        if stat_regular(file):
            file.touch()
        elif len(content) <= _MOST_BYTES:
            _make_room(file.parent)
            write_bytes(file, content)
    return settings_id


def load_settings(wanted: str) -> dict[str, Any]:
    """Return the values saved under an id, not yet validated.

    Raises:
        ConfigError: if there is nothing under that id, or it is damaged.
    """
    file = _file(wanted)
    if not _ID.fullmatch(wanted) or not path_exists(file):
        raise ConfigError({"settings": f"nothing is saved under “{wanted[:80]}”"})
    try:
        content = read_regular(file, _MOST_BYTES)
        values = json.loads(content)
    except (OSError, ValueError, RecursionError):
        raise ConfigError({"settings": f"what was saved under “{wanted}” is damaged"}) from None
    if hashlib.sha256(content).hexdigest()[:12] != wanted or not isinstance(values, dict):
        raise ConfigError({"settings": f"what was saved under “{wanted}” was changed"})
    return values


def _file(name: str) -> Path:
    return paths.home() / "settings" / f"{name}.json"


def _make_room(folder: Path) -> None:
    """Delete the files that were not used for the longest time."""
    files = [file for file in folder.glob("*.json") if _ID.fullmatch(file.stem)]
    if len(files) < MOST_FILES:
        return
    for file in sorted(files, key=lambda one: one.lstat().st_mtime)[: len(files) - MOST_FILES + 1]:
        file.unlink(missing_ok=True)

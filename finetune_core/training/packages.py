"""Compiled code kept beside the activations. It runs in this process, so only what this installation has signed is loaded.

The key lies in a file that nobody else can read. A package is read, verified and loaded as the same bytes: whoever may write to the
cache's folder can make it useless, and no more.
"""

import hmac
import os
import secrets
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from filelock import FileLock

from finetune_core.data.rowcache import CACHE
from finetune_core.files import read_regular, regular_file

_KEY_BYTES, _SIGNATURE_BYTES = 32, 32
_PATIENCE = 10  # seconds, for another process that makes the key

Compiled = Callable[[torch.Tensor], torch.Tensor]


def keep_package(name: str, content: bytes) -> None:
    """Sign a package and keep it, where there is room; without a private key it is kept for nobody."""
    if key := _key(make=True):
        CACHE.store(name, _signature(key, name, content) + content)


def kept_package(name: str) -> bytes | None:
    """A package that this installation kept under this name; None where there is none, or anybody else has written it."""
    stored, key = CACHE.stored(name), _key(make=False)
    if stored is None or key is None:
        return None
    signature, content = stored[:_SIGNATURE_BYTES], stored[_SIGNATURE_BYTES:]
    return content if hmac.compare_digest(signature, _signature(key, name, content)) else None


def load_package(content: bytes) -> Compiled:
    """Load a package: from one tensor, of the shape, strides and type that it was compiled for, to one tensor.

    Raises:
        RuntimeError: when it cannot be loaded.
    """
    with tempfile.TemporaryDirectory(
        prefix="thaw-package-"
    ) as folder:  # nobody else can write to it
        file = Path(folder, "package.pt2")
        file.write_bytes(content)
        # The loader itself: the functions around it import the compiler, and with it Dynamo.
        loader = torch._C._aoti.AOTIModelPackageLoader(str(file), "model", False, 1, -1)

    def run(inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = loader.boxed_run([inputs])[0]
        return output

    return run


def _signature(key: bytes, name: str, content: bytes) -> bytes:
    made = hmac.new(key, name.encode() + b"\0", "sha256")
    made.update(content)
    return made.digest()


def _key(*, make: bool) -> bytes | None:
    """The installation's key; None where there is none that only this user can read, and none is, or can be, made."""
    file = CACHE.folder / "packages.key"
    if (key := _private(file)) or not make:
        return key
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock", timeout=_PATIENCE):
            if key := _private(file):
                return key
            file.unlink(missing_ok=True)
            descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(secrets.token_bytes(_KEY_BYTES))
            return _private(file)
    return None


def _private(file: Path) -> bytes | None:
    """What a key's file holds; None where others can read it, or have written it."""
    found = regular_file(file)
    if found is None or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        return None
    with suppress(OSError):
        key = read_regular(file, _KEY_BYTES)
        return key if len(key) == _KEY_BYTES else None
    return None

"""Compiled code that is kept. It runs in this process, so it lies where no other user can write."""

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress

import torch

from finetune_core.files import temporary_folder
from finetune_core.private import make_room, read_private, write_private

_NAMES = re.compile(r"[\w.-]+\.pt2", re.ASCII)
_DIGEST_BYTES = 32
_LARGEST = 2**31  # bytes of a package
_ALL = 10**9  # bytes of all packages; one of a network's frozen stages takes some 15 MB

Compiled = Callable[[torch.Tensor], torch.Tensor]


def keep_package(name: str, content: bytes) -> None:
    """Keep a package, unless it cannot be kept from other users, or there is no room for it."""
    with suppress(OSError):
        make_room(_NAMES, _ALL - len(content))
        write_private(f"{name}.pt2", _digest(name, content) + content)


def kept_package(name: str) -> bytes | None:
    """Return the package that was kept under this name.

    Returns:
        None where there is none, it is damaged, or other users can read or write it.
    """
    with suppress(OSError):
        stored = read_private(f"{name}.pt2", _LARGEST) or b""
        digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
        return content if digest == _digest(name, content) else None
    return None


def _digest(name: str, content: bytes) -> bytes:
    """Return a checksum: damaged code would end the process."""
    return hashlib.sha256(name.encode() + b"\0" + content).digest()


def load_package(content: bytes) -> Compiled:
    """Load a package: from one tensor, of the shape, strides and type that it was compiled for, to one tensor.

    Raises:
        OSError: when no other users' hands can be kept off it meanwhile, or it cannot be written.
        RuntimeError: when it cannot be loaded.
    """
    with temporary_folder("package") as folder:
        file = folder / "package.pt2"
        file.write_bytes(content)
        # The loader itself: the functions around it import the compiler, and with it Dynamo.
        loader = torch._C._aoti.AOTIModelPackageLoader(str(file), "model", False, 1, -1)

    def run(inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = loader.boxed_run([inputs])[0]
        return output

    return run

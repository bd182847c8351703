"""Storage of compiled code.

The code runs in this process, so it is stored where no other user can write.
"""

import hashlib
import re
from contextlib import suppress

import torch

from finetune_core.files import temporary_folder
from finetune_core.private import evict_oldest, read_private, write_private
from finetune_core.training.devices.device import Forward

_NAMES = re.compile(r"[\w.-]+\.pt2", re.ASCII)
_DIGEST_BYTES = 32
_LARGEST = 2**31  # bytes of a package
# Bytes of all packages. One of a network's frozen stages takes some 15 MB.
_ALL = 10**9


def write_package(name: str, content: bytes) -> None:
    """Store a package, unless other users could reach it or there is no space for it."""
    with suppress(OSError):
        evict_oldest(_NAMES, _ALL - len(content))
        write_private(f"{name}.pt2", _digest(name, content) + content)


def read_package(name: str) -> bytes | None:
    """Return the package that was stored under this name.

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


def load_package(content: bytes) -> Forward:
    """Load a package as a function from one tensor to one tensor.

    The input must have the shape, strides and type that the package was compiled for.

    Raises:
        OSError: If the package cannot be kept from other users meanwhile, or cannot be written.
        RuntimeError: If it cannot be loaded.
    """
    with temporary_folder("package") as folder:
        file = folder / "package.pt2"
        file.write_bytes(content)
        # Call the loader itself: the functions around it import the compiler, and with it Dynamo.
        loader = torch._C._aoti.AOTIModelPackageLoader(str(file), "model", False, 1, -1)

    def run(inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = loader.boxed_run([inputs])[0]
        return output

    return run

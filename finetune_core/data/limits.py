"""What one import may hold: so many bytes, so many files, and names that are possible side by side."""

import os
import shutil
import unicodedata
from dataclasses import dataclass

from finetune_core.data.decode import EXTENSIONS
from finetune_core.data.names import is_noise, printable_name, safe_path
from finetune_core.data.unpacking import Pieces
from finetune_core.errors import DataError
from finetune_core.formatting import number, size
from finetune_core.paths import data_dir

_SPARE = 100_000_000  # bytes of the disk that are left to everyone else


@dataclass(frozen=True)
class Limits:
    """What one import may take.

    Attributes:
        total_bytes: extracted, in all.
        entries: names, and likewise files and folders that they stand for.
        ratio: extracted bytes over packed bytes; checked once more than ``ratio_from_bytes`` are extracted.
        file_bytes: of one image.
        depth: folders above a file.
    """

    total_bytes: int = 50_000_000_000
    entries: int = 1_000_000
    ratio: int = 200
    ratio_from_bytes: int = 50_000_000
    file_bytes: int = 500_000_000
    depth: int = 16


LIMITS = Limits()


class Names:
    """The names given so far: together they have to be possible on any file system, also one that ignores case."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._entries = 0
        # path as a lenient file system compares it -> as given; a folder's ends with "/"
        self._known: dict[str, str] = {}

    def admit(self, name: str, is_folder: bool = False, kind: str = "") -> str | None:
        """Check a name; returns where below the folder it goes, or None when it is no image's.

        Args:
            kind: what it is the name of, in words, unless that is a plain file or folder.

        Raises:
            DataError: when it is not safe, when another name is in its way, when there are too many, or for its kind.
        """
        parts = safe_path(name, self._limits.depth)
        is_folder = is_folder or name.endswith(("/", "\\")) or not parts
        for end in range(1, len(parts) + is_folder):
            self._claim("/".join(parts[:end]) + "/", name)
        path = "/".join(parts)
        if not is_folder:
            self._claim(path, name)
        self._entries += 1
        self.foresee(max(self._entries, len(self._known)))
        if kind:
            raise DataError(
                f"“{printable_name(name)}” is {kind}, not a plain file. "
                "Leave it out, then try again."
            )
        return None if is_folder or not _is_image(parts) else path

    def foresee(self, entries: int) -> None:
        """Refuse what would be too many, before they are there.

        Raises:
            DataError: when that many are too many in all.
        """
        if entries > self._limits.entries:
            raise DataError(
                f"it holds more than {number(self._limits.entries)} files and folders. Split it."
            )

    def _claim(self, path: str, name: str) -> None:
        key = unicodedata.normalize("NFC", path.removesuffix("/")).casefold()
        known = self._known.get(key)
        if known is None:
            self._known[key] = path
        elif known != path or not path.endswith("/"):  # a folder may be named any number of times
            raise DataError(
                f"“{printable_name(name)}” {_clash(known, path)}. "
                "Rename it or leave it out, then try again."
            )


class Budget:
    """Counts what has come out against what may; headers are not believed."""

    def __init__(self, limits: Limits, packed: int | None = None) -> None:
        self._limits = limits
        self._packed = packed
        self._spent = 0

    def spend(self, pieces: Pieces) -> Pieces:
        """The pieces, each counted before it is handed on."""
        for piece in pieces:
            self.foresee(len(piece))
            self._spent += len(piece)
            yield piece

    def foresee(self, more: int) -> None:
        """Refuse what would be too much, before it is there.

        Raises:
            DataError: when that many more bytes are too many in all, for the archive's size, or for the disk.
        """
        limits, total = self._limits, self._spent + more
        if total > limits.total_bytes:
            raise DataError(f"it holds more than {size(limits.total_bytes)}. Split it.")
        if (
            self._packed is not None
            and limits.ratio_from_bytes < total
            and limits.ratio * self._packed < total
        ):
            raise DataError(
                f"it unpacks to more than {limits.ratio} times its size, which photos never do. "
                "Unpack it yourself and check it."
            )
        free = shutil.disk_usage(data_dir()).free
        if free < more + _SPARE:
            raise DataError(
                f"only {size(free)} of the disk with {data_dir()} are free, too few to go on. "
                "Make room there."
            )


def _is_image(parts: tuple[str, ...]) -> bool:
    return os.path.splitext(parts[-1])[1].lower() in EXTENSIONS and not any(
        is_noise(part) for part in parts
    )


def _clash(known: str, path: str) -> str:
    if known == path:
        return "is there twice"
    if known.removesuffix("/") == path.removesuffix("/"):
        return "is both a file and a folder"
    return (
        f"differs from “{printable_name(known)}” only in case or in how accents are stored, "
        "which many systems do not tell apart"
    )

"""Limits of one import: on bytes, on files, and on names that can exist side by side."""

import os
import shutil
import unicodedata
from dataclasses import dataclass

from finetune_core.data.decode import EXTENSIONS
from finetune_core.data.names import escape_name, is_noise, safe_path
from finetune_core.data.unpacking import Pieces
from finetune_core.errors import DataError
from finetune_core.formatting import format_bytes, format_number
from finetune_core.paths import data_dir

_SPARE = 100_000_000  # bytes of the disk that an import leaves free


@dataclass(frozen=True)
class Limits:
    """Limits of one import.

    Attributes:
        total_bytes: unpacked bytes in total.
        entries: the number of names, and of the files and folders that they stand for.
        ratio: unpacked bytes over packed bytes; checked once more than ``ratio_from_bytes`` bytes
            are unpacked.
        ratio_from_bytes: unpacked bytes below which ``ratio`` is not checked.
        file_bytes: bytes of one image.
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
    """The names of one import so far.

    Together they have to be possible on any file system, including one that ignores case.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._entries = 0
        # path as a case-insensitive file system compares it -> path as given, a folder's with "/"
        self._known: dict[str, str] = {}

    def admit(self, name: str, is_folder: bool = False, kind: str = "") -> str | None:
        """Check a name, and return the path below the target folder.

        Args:
            name: the name of an entry.
            is_folder: whether the entry is a folder.
            kind: a description of the entry, if it is neither a plain file nor a folder.

        Returns:
            The path, or None if the entry is no image.

        Raises:
            DataError: if the name is not safe or clashes with another one, if there are too many
                names, or if the entry is of another kind.
        """
        parts = safe_path(name, self._limits.depth)
        is_folder = is_folder or name.endswith(("/", "\\")) or not parts
        for end in range(1, len(parts) + is_folder):
            self._claim("/".join(parts[:end]) + "/", name)
        path = "/".join(parts)
        if not is_folder:
            self._claim(path, name)
        self._entries += 1
        self.check_count(max(self._entries, len(self._known)))
        if kind:
            raise DataError(
                f"“{escape_name(name)}” is {kind}, not a plain file. Leave it out, then try again."
            )
        return None if is_folder or not _is_image(parts) else path

    def check_count(self, entries: int) -> None:
        """Refuse too many entries before they are read.

        Args:
            entries: the number of entries in total.

        Raises:
            DataError: if there are too many.
        """
        if entries > self._limits.entries:
            raise DataError(
                f"it holds more than {format_number(self._limits.entries)} files and folders. "
                "Split it."
            )

    def _claim(self, path: str, name: str) -> None:
        key = unicodedata.normalize("NFC", path.removesuffix("/")).casefold()
        known = self._known.get(key)
        if known is None:
            self._known[key] = path
        elif known != path or not path.endswith("/"):  # folders may be named again, files may not
            raise DataError(
                f"“{escape_name(name)}” {_describe_clash(known, path)}. "
                "Rename it or leave it out, then try again."
            )


class Budget:
    """The unpacked bytes of one import, counted against its limits and the free disk.

    The bytes themselves are counted, because headers cannot be trusted.
    """

    def __init__(self, limits: Limits, packed: int | None = None) -> None:
        self._limits = limits
        self._packed = packed
        self._spent = 0

    def spend(self, pieces: Pieces) -> Pieces:
        """Yield the pieces, and count each one before it is handed on."""
        for piece in pieces:
            self.check_space(len(piece))
            self._spent += len(piece)
            yield piece

    def check_space(self, more: int) -> None:
        """Refuse too many bytes before they are written.

        Args:
            more: the number of bytes to come.

        Raises:
            DataError: if the bytes are too many in total, for the archive's size, or for the disk.
        """
        limits, total = self._limits, self._spent + more
        if total > limits.total_bytes:
            raise DataError(f"it holds more than {format_bytes(limits.total_bytes)}. Split it.")
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
                f"only {format_bytes(free)} of the disk with {data_dir()} are free, too few to go "
                "on. Make room there."
            )


def _is_image(parts: tuple[str, ...]) -> bool:
    return os.path.splitext(parts[-1])[1].lower() in EXTENSIONS and not any(
        is_noise(part) for part in parts
    )


def _describe_clash(known: str, path: str) -> str:
    if known == path:
        return "is there twice"
    if known.removesuffix("/") == path.removesuffix("/"):
        return "is both a file and a folder"
    return (
        f"differs from “{escape_name(known)}” only in case or in how accents are stored, "
        "which many systems do not tell apart"
    )

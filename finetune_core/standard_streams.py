"""The standard streams of a command: closed, full, gone, or unable to encode a name, they never end in a traceback or a wrong status."""

import errno
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from finetune_core.errors import OutputError


def with_safe_streams(command: Callable[[], None]) -> None:
    """Run a command whose results go to stdout and whose progress goes to stderr; what no encoding holds is escaped in both.

    Raises:
        SystemExit: the command's; with status 1 when its results cannot be written. Progress that cannot be written is no reason.
    """
    _fill_closed()
    sys.stdout, sys.stderr = _over(_Results, sys.stdout), _over(_Progress, sys.stderr)
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
    except OutputError as error:
        null = os.open(os.devnull, os.O_WRONLY)
        # Python flushes once more at its end, and would report the same again
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        if error.errno != errno.EPIPE:  # whoever read has read enough
            sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None


class _Results(io.TextIOWrapper):
    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise OutputError(error) from None

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise OutputError(error) from None


class _Progress(io.TextIOWrapper):
    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def _over(kind: type[io.TextIOWrapper], stream: TextIO) -> io.TextIOWrapper:
    return kind(
        stream.buffer,
        stream.encoding,
        "backslashreplace",
        line_buffering=bool(stream.line_buffering),
    )


def _fill_closed() -> None:
    """Python has no stream where a descriptor is closed, and the next file that is opened would get its number, and with it
    all that libraries print. Nothing can be written to the null device where it is opened to be read."""
    for name, mode, flags in (
        ("stdin", "r", os.O_RDONLY),
        ("stdout", "w", os.O_RDONLY),
        ("stderr", "w", os.O_WRONLY),
    ):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, flags)  # the lowest that is free
            os.set_inheritable(number, True)
            stream = open(number, mode, encoding="utf-8")  # noqa: SIM115  to the program's end
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)

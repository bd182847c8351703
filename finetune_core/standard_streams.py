"""Robust standard streams for commands.

Streams that are closed, full, gone, or unable to encode a name never end in a traceback or a wrong
exit status.
"""

import errno
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from finetune_core.errors import OutputError


def with_safe_streams(command: Callable[[], None]) -> None:
    """Run a command whose results go to stdout and whose progress goes to stderr.

    Characters that the encoding lacks are escaped in both.

    Raises:
        SystemExit: as the command does. The status is 1 if its results cannot be written. Progress
            that cannot be written does not count.
    """
    _fill_closed_streams()
    sys.stdout, sys.stderr = _wrap_stream(_Results, sys.stdout), _wrap_stream(_Progress, sys.stderr)
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
    except OutputError as error:
        null = os.open(os.devnull, os.O_WRONLY)
        # Python flushes once more at exit, and would report the same error again.
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        if error.errno != errno.EPIPE:  # the reader has closed the pipe
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


def _wrap_stream(kind: type[io.TextIOWrapper], stream: TextIO) -> io.TextIOWrapper:
    return kind(
        stream.buffer,
        stream.encoding,
        "backslashreplace",
        line_buffering=bool(stream.line_buffering),
    )


def _fill_closed_streams() -> None:
    """Open the null device for every closed standard stream.

    Python has no stream object for a closed descriptor. The next opened file would get its number,
    and with it everything that libraries print. The null device is opened for reading as stdout, so
    that results cannot be written to it.
    """
    for name, mode, flags in (
        ("stdin", "r", os.O_RDONLY),
        ("stdout", "w", os.O_RDONLY),
        ("stderr", "w", os.O_WRONLY),
    ):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, flags)  # the lowest free number
            os.set_inheritable(number, True)
            stream = open(number, mode, encoding="utf-8")  # noqa: SIM115  to the program's end
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)

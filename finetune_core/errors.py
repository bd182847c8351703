"""Errors that a person can do something about.

Any other exception is a bug and keeps its traceback.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

# The dynamic linker's message for a library that does not fit into the address space.
_MAP_FAILED = "failed to map segment from shared object"
_MESSAGES = (
    "can't allocate memory",  # torch on Linux and macOS; Error code 12
    "not enough memory",  # torch on Windows
    "out of memory",  # Apple's GPU, and CUDA
    "ALLOC_FAILED",  # cuBLAS and cuDNN
    "bad_alloc",  # C++
    "Failed to allocate memory",  # onnxruntime
    "Cannot allocate memory",  # the system, where a library passes its message on
    _MAP_FAILED,
    "can't start new thread",  # a thread's stack needs memory, too
)
_POSSIBLE_MESSAGE = "could not create a primitive"  # oneDNN, if memory runs out, but not only then


class FinetuneError(Exception):
    """Base class of Thaw's own errors.

    The message says what happened, where, and what to do.
    """


class ConfigError(FinetuneError):
    """Raised if one or more settings cannot be used.

    Attributes:
        problems: field name -> description of the problem. All problems are listed at once.
    """

    def __init__(self, problems: dict[str, str]) -> None:
        self.problems = dict(problems)
        super().__init__(
            "\n".join(f"{field}: {problem}" for field, problem in self.problems.items())
        )


class DataError(FinetuneError):
    """Raised if a data set cannot be used as it is."""


class ImageError(FinetuneError):
    """Raised if one image cannot be read.

    Callers that read many images catch this error, name the file and continue.
    """


class WeightsError(FinetuneError):
    """Raised if pretrained weights are not available, or do not fit the backbone."""


class RunError(FinetuneError):
    """Raised if a run directory is missing, unreadable, or has nothing to evaluate yet."""


class TrainingError(FinetuneError):
    """Raised if a run that had started cannot continue."""


class OutOfMemory(FinetuneError):
    """Raised if an operation needs more memory than there is."""

    def __init__(self) -> None:
        super().__init__(
            "There is not enough memory for this. Nothing that was saved is lost. Close other "
            "programs, or choose a smaller network, smaller images or fewer of them, then start it "
            "again."
        )


class ExportError(FinetuneError):
    """Raised if a run cannot be exported in this format, or an exported folder cannot be read."""


class OutputError(FinetuneError):
    """Raised if the results of a command cannot be written to standard output.

    Attributes:
        errno: the system's error number.
    """

    def __init__(self, error: OSError) -> None:
        self.errno = error.errno
        reason = "it is closed" if error.errno == errno.EBADF else error.strerror
        super().__init__(
            f"The results cannot be written to standard output: {reason}. Send them elsewhere, "
            "then run the command again."
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out.

    Python, torch and numpy raise different errors, and so do devices.
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, ImportError):
        # On a disk mounted without execution rights, another reason follows.
        return str(error).endswith(_MAP_FAILED) or f"{_MAP_FAILED}: Cannot allocate" in str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)
    )


def is_out_of_memory_in_network(error: BaseException) -> bool:
    """Return whether an error raised within a network means that memory ran out.

    oneDNN does not say so explicitly.
    """
    return is_out_of_memory(error) or _POSSIBLE_MESSAGE in str(error)


@contextmanager
def explain_memory_errors() -> Iterator[None]:
    """Raise OutOfMemory if memory runs out in the block, however a library reports it."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError, ImportError) as error:
        if not is_out_of_memory_in_network(error):
            raise
        raise OutOfMemory from error

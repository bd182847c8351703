"""The errors that a person can do something about. Anything else that is raised is a bug and stays visible."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

# The dynamic linker's words for a library that does not fit into the address space.
_UNMAPPED = "failed to map segment from shared object"
_OUT_OF_MEMORY = (
    "can't allocate memory",  # torch on Linux and macOS; Error code 12
    "not enough memory",  # torch on Windows
    "out of memory",  # Apple's GPU, and CUDA
    "ALLOC_FAILED",  # cuBLAS and cuDNN
    "bad_alloc",  # C++
    "Failed to allocate memory",  # onnxruntime
    "Cannot allocate memory",  # the system, where a library hands its words on
    _UNMAPPED,
    "can't start new thread",  # a thread's stack takes memory, too
)
_POSSIBLY = "could not create a primitive"  # oneDNN, where memory runs out, but not only there


class FinetuneError(Exception):
    """Base of all of Thaw's own errors: the message says what happened, where, and what to do."""


class ConfigError(FinetuneError):
    """One or more settings cannot be used.

    Attributes:
        problems: field name -> what is wrong with it, in words; all of them at once.
    """

    def __init__(self, problems: dict[str, str]) -> None:
        self.problems = dict(problems)
        super().__init__(
            "\n".join(f"{field}: {problem}" for field, problem in self.problems.items())
        )


class DataError(FinetuneError):
    """A data set cannot be used as it is."""


class ImageError(FinetuneError):
    """One image cannot be read; callers that read many images catch this, name the file and go on."""


class WeightsError(FinetuneError):
    """Pretrained weights cannot be had, or do not fit the backbone."""


class RunError(FinetuneError):
    """A run folder is missing, unreadable, or has nothing to evaluate yet."""


class TrainingError(FinetuneError):
    """A run that had started could not go on."""


class OutOfMemory(FinetuneError):
    """Work that needs more memory than there is."""

    def __init__(self) -> None:
        super().__init__(
            "There is not enough memory for this. Nothing that was saved is lost. Close other programs, "
            "or choose a smaller network, smaller images or fewer of them, then start it again."
        )


class ExportError(FinetuneError):
    """A run cannot be exported in this form, or an exported folder cannot be read."""


class OutputError(FinetuneError):
    """The results of a command cannot be written to standard output.

    Attributes:
        errno: the system's number for the reason.
    """

    def __init__(self, error: OSError) -> None:
        self.errno = error.errno
        reason = "it is closed" if error.errno == errno.EBADF else error.strerror
        super().__init__(
            f"The results cannot be written to standard output: {reason}. Send them elsewhere, then run the command again."
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, torch or numpy, on any device, reports with this error that memory ran out."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, ImportError):
        # On a disk from which nothing may be run, another reason follows.
        return str(error).endswith(_UNMAPPED) or f"{_UNMAPPED}: Cannot allocate" in str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(message in str(error) for message in _OUT_OF_MEMORY)
    )


def ran_out(error: BaseException) -> bool:
    """Return whether memory ran out, for an error within a network, where oneDNN does not say so."""
    return is_out_of_memory(error) or _POSSIBLY in str(error)


@contextmanager
def explain_memory_errors() -> Iterator[None]:
    """Raise OutOfMemory for memory that runs out in the block, in whatever way a library reports it."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError, ImportError) as error:
        if not ran_out(error):
            raise
        raise OutOfMemory from error

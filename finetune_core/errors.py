"""The errors that a person can do something about. Anything else that is raised is a bug and stays visible."""

import errno


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

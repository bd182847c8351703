"""Files of the Hugging Face Hub: in its own cache (``HF_HOME``), downloaded with progress, and usable offline (``HF_HUB_OFFLINE``)."""

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from finetune_core.errors import WeightsError
from finetune_core.work import Step, Work

_EVERY = 0.2  # seconds between looks at how far a download is


def is_repository(name: str) -> bool:
    """Whether the Hub's client takes a name, with "@revision" where one is named, for one that a repository can have."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, not re-exported for types

    try:
        validate_repo_id(name.partition("@")[0])
    except HFValidationError:
        return False
    return True


def cached(repository: str, file: str) -> Path | None:
    """Where the Hub's cache has a file; None where it has none."""
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = repository.partition("@")
    found = try_to_load_from_cache(name, file, revision=revision or None)
    return Path(found) if isinstance(found, str) else None


def having(file: str, repositories: Iterable[str]) -> set[str]:
    """Which of these repositories the Hub's cache has a file of: one look at the cache, whatever their number."""
    from huggingface_hub import constants

    try:
        folders = os.listdir(constants.HF_HUB_CACHE)
    except OSError:  # nothing was downloaded yet
        return set()
    parts = (folder.split(constants.REPO_ID_SEPARATOR) for folder in folders)
    held = {"/".join(names) for kind, *names in parts if kind == "models"}
    return {one for one in repositories if one.partition("@")[0] in held and cached(one, file)}


def page(repository: str) -> str:
    """Where a repository is described, and its licence accepted."""
    return f"https://huggingface.co/{repository.partition('@')[0]}"


def address(repository: str, file: str) -> str:
    """Where a file is downloaded from."""
    from huggingface_hub import hf_hub_url

    name, _, revision = repository.partition("@")
    return hf_hub_url(name, file, revision=revision or None)


def fetch(repository: str, file: str) -> Work[Path]:
    """Download a file into the Hub's cache, with the Hub's own client: whole or not at all. What was there is not asked for again.

    Yields:
        Steps that count bytes, in all where the Hub says.

    Raises:
        WeightsError: when it cannot be had: says why, and what to do at the Hub.
    """
    if found := cached(repository, file):
        return found
    download = _Download(repository, file)
    download.start()
    try:
        while download.is_alive():
            with contextlib.suppress(Empty):
                yield download.steps.get(timeout=_EVERY)
    finally:
        download.abandoned.set()
    download.join()
    if download.error:
        raise _in_words(download.error, repository, file) from None
    assert download.path
    return download.path


class _Abandoned(BaseException):
    """Nobody waits for this download any more."""


class _Download(threading.Thread):
    """The Hub's client, which reports to a bar only, beside whoever waits for it."""

    def __init__(self, repository: str, file: str) -> None:
        super().__init__(name="hub-download", daemon=True)
        self.repository, self.file = repository, file
        self.steps: SimpleQueue[Step] = SimpleQueue()
        self.abandoned = threading.Event()
        self.error: Exception | None = None
        self.path: Path | None = None

    def run(self) -> None:
        from huggingface_hub import hf_hub_download

        name, _, revision = self.repository.partition("@")
        try:
            with contextlib.suppress(_Abandoned):
                self.path = Path(
                    hf_hub_download(
                        name, self.file, revision=revision or None, tqdm_class=self._bar()
                    )
                )
        except Exception as error:  # handed to whoever waits, who knows which of them is no bug
            self.error = error

    def _bar(self) -> type[Any]:
        from tqdm.auto import tqdm

        steps, abandoned = self.steps, self.abandoned

        class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
            """Draws nothing; says how many bytes have arrived."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                kwargs.pop("name", None)
                super().__init__(*args, **kwargs | {"disable": True})
                self.arrived, self.whole = kwargs.get("initial") or 0, kwargs.get("total")

            def update(self, n: float | None = 1) -> bool | None:
                if abandoned.is_set():
                    raise _Abandoned
                self.arrived += int(n or 0)
                steps.put(Step(self.arrived, self.whole))
                return None

        return Bar


def _in_words(error: Exception, repository: str, file: str) -> Exception:
    """What went wrong at the Hub, and what to do there; errors of other kinds as they are."""
    from huggingface_hub import errors

    where = page(repository)
    if isinstance(error, errors.GatedRepoError):
        return WeightsError(
            f"{repository} is gated: accept its licence at {where}, then sign in on this machine (`hf auth login`, or HF_TOKEN)."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return WeightsError(
            f"The Hub has no {repository}, or shows it only to those who may see it: look at {where}, and sign in if it is private "
            "(`hf auth login`, or HF_TOKEN)."
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        reason = "HF_HUB_OFFLINE is set" if _is_offline() else _reason(error.__cause__ or error)
        return WeightsError(
            f"{file} of {repository} is not on this machine and could not be downloaded from {where} ({reason})."
        )
    if isinstance(error, errors.EntryNotFoundError):
        return WeightsError(
            f"{where} has no {file}. Other formats can run code when they are read, so Thaw does not load them."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return WeightsError(f"{where} has no revision {repository.partition('@')[2]!r}.")
    if isinstance(error, OSError | ValueError):
        return WeightsError(
            f"{file} of {repository} could not be downloaded from {where} ({_reason(error)})."
        )
    return error


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _reason(error: BaseException) -> str:
    return next(_lines(str(error)), type(error).__name__)


def _lines(text: str) -> Iterator[str]:
    return (line.strip() for line in text.splitlines() if line.strip())

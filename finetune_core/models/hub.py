"""Files from the Hugging Face Hub.

Files go into the Hub's own cache (``HF_HOME``), are downloaded with progress, and can be used
offline (``HF_HUB_OFFLINE``).
"""

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from finetune_core.errors import WeightsError
from finetune_core.work import Step, Work

_EVERY = 0.2  # seconds between two progress reports


def is_repository(name: str) -> bool:
    """Return whether a name is a valid repository name for the Hub's client.

    The name may end with "@revision".
    """
    from huggingface_hub.errors import HFValidationError

    # The function is documented, but not re-exported for types.
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name.partition("@")[0])
    except HFValidationError:
        return False
    return True


def find_cached_path(repository: str, file: str) -> Path | None:
    """Return the path of a file in the Hub's cache, or None if the cache has no copy."""
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = repository.partition("@")
    found = try_to_load_from_cache(name, file, revision=revision or None)
    return Path(found) if isinstance(found, str) else None


def find_cached_repositories(file: str, repositories: Iterable[str]) -> set[str]:
    """Return the repositories whose ``file`` is in the Hub's cache.

    The cache folder is listed once, however many repositories are asked for.
    """
    from huggingface_hub import constants

    try:
        folders = os.listdir(constants.HF_HUB_CACHE)
    except OSError:  # nothing has been downloaded yet
        return set()
    parts = (folder.split(constants.REPO_ID_SEPARATOR) for folder in folders)
    cached_names = {"/".join(names) for kind, *names in parts if kind == "models"}
    return {
        name
        for name in repositories
        if name.partition("@")[0] in cached_names and find_cached_path(name, file)
    }


def build_page_url(repository: str) -> str:
    """Return the address of a repository's page, where its licence is accepted."""
    return f"https://huggingface.co/{repository.partition('@')[0]}"


def build_file_url(repository: str, file: str) -> str:
    """Return the download address of a file."""
    from huggingface_hub import hf_hub_url

    name, _, revision = repository.partition("@")
    return hf_hub_url(name, file, revision=revision or None)


def fetch(repository: str, file: str) -> Work[Path]:
    """Download a file into the Hub's cache with the Hub's own client.

    The file arrives whole or not at all. A file that is already cached is not requested again.

    Yields:
        Steps that count bytes. The total is known if the Hub states it.

    Returns:
        The path of the file in the cache.

    Raises:
        WeightsError: if the download fails. The message says why, and what to do at the Hub.
    """
    if found := find_cached_path(repository, file):
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
        raise _explain(download.error, repository, file) from None
    assert download.path
    return download.path


class _Abandoned(BaseException):
    """Raised in the download thread when nobody waits for the download any more."""


class _Download(threading.Thread):
    """A thread that runs the Hub's client, which reports its progress only to a tqdm bar."""

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
        except Exception as error:  # raised again by fetch, which knows the expected errors
            self.error = error

    def _bar(self) -> type[Any]:
        from tqdm.auto import tqdm

        steps, abandoned = self.steps, self.abandoned

        class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
            """A bar that draws nothing and reports the number of bytes that have arrived."""

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


def _explain(error: Exception, repository: str, file: str) -> Exception:
    """Return a WeightsError that explains an error of the Hub, or an unexpected error as it is."""
    from huggingface_hub import errors

    where = build_page_url(repository)
    if isinstance(error, errors.GatedRepoError):
        return WeightsError(
            f"{repository} is gated: accept its licence at {where}, then sign in on this machine "
            "(`hf auth login`, or HF_TOKEN)."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return WeightsError(
            f"The Hub has no {repository}, or shows it only to those who may see it: look at "
            f"{where}, and sign in if it is private (`hf auth login`, or HF_TOKEN)."
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        reason = "HF_HUB_OFFLINE is set" if _is_offline() else _reason(error.__cause__ or error)
        return WeightsError(
            f"{file} of {repository} is not on this machine and could not be downloaded from "
            f"{where} ({reason})."
        )
    if isinstance(error, errors.EntryNotFoundError):
        return WeightsError(
            f"{where} has no {file}. Other formats can run code when they are read, so Thaw does "
            "not load them."
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

"""Name, note, tags and owner of a run, stored in its ``about.json``."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from finetune_core.errors import RunError
from finetune_core.files import describe_problem, read_regular, write_bytes

ABOUT_FILE = "about.json"
MOST_TAGS, LONGEST_TAG = 20, 40


@dataclass(frozen=True)
class About:
    """Name, note, tags and owner of a run, as given by people. Unset values are empty."""

    name: Annotated[str, Field(max_length=1000)] = ""
    note: Annotated[str, Field(max_length=20_000)] = ""
    owner: Annotated[str, Field(max_length=1000)] = ""
    tags: Annotated[tuple[Annotated[str, Field(max_length=1000)], ...], Field(max_length=1000)] = ()


_ABOUT = TypeAdapter(About)
_LARGEST_ABOUT = 2**18  # bytes


def clean_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return tags without surrounding or repeated spaces and without repeats, in order.

    Raises:
        RunError: if there are too many tags, or one is too long.
    """
    clean = tuple(dict.fromkeys(" ".join(tag.split()) for tag in tags if tag.strip()))
    if len(clean) > MOST_TAGS:
        raise RunError(f"A run has at most {MOST_TAGS} tags, not {len(clean)}: leave some out.")
    if long := next((tag for tag in clean if len(tag) > LONGEST_TAG), ""):
        raise RunError(
            f"A tag has at most {LONGEST_TAG} letters; this one has {len(long)}: "
            f"{long[:LONGEST_TAG]}…"
        )
    return clean


def read_about(run_dir: Path) -> About:
    """Read name, note, tags and owner of a run. All are empty if the file is missing.

    Raises:
        RunError: if the file is damaged.
    """
    path = run_dir / ABOUT_FILE
    try:
        return _ABOUT.validate_json(read_regular(path, _LARGEST_ABOUT), strict=True)
    except FileNotFoundError:
        return About()
    except (OSError, ValueError) as error:
        raise RunError(f"{describe_problem(path, error)}.") from None


def write_about(run_dir: Path, about: About) -> None:
    """Write name, note, tags and owner of a run."""
    write_bytes(run_dir / ABOUT_FILE, json.dumps(asdict(about)).encode(), make_folder=False)

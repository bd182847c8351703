"""Parsing of command-line input: data, settings in files, and lists."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rich.markup import escape

from finetune_core.commands.options import option_name
from finetune_core.commands.terminal import err, progress_bar, show_work
from finetune_core.config import RunConfig, get_setting, read_config
from finetune_core.config.metadata import parse_number
from finetune_core.data.entry import load_split
from finetune_core.data.sources import resolve_data
from finetune_core.errors import ConfigError
from finetune_core.work import with_phase

Number = TypeVar("Number", int, float)


def unpack_data(data: str) -> str:
    """Return the folder or manifest of a named data set, unpacked if it is an archive.

    Raises:
        DataError: if the data set is not available.
    """
    with progress_bar() as bar:
        return show_work(bar, with_phase("unpack", resolve_data(data)))


def read_settings_file(config: Path) -> dict[str, Any]:
    """Return the settings in a ``config.json`` that a person names. The path may be a link.

    Raises:
        ConfigError: if the file cannot be read.
    """
    try:
        return read_config(Path(os.path.realpath(config)))
    except ValueError:
        raise ConfigError({"config": f"{str(config)!r} cannot be the name of a file"}) from None


def load_earlier_settings(
    config: RunConfig | str | os.PathLike[str] | None,
) -> dict[str, Any] | None:
    """Return the settings of an earlier run, given as a config or as a file; None for None.

    Raises:
        ConfigError: if the file cannot be read.
    """
    if config is None:
        return None
    if isinstance(config, RunConfig):
        return config.model_dump()
    return read_settings_file(Path(config))


def load_app_split(data: str | None, as_is: bool) -> dict[str, Any]:
    """Return the split settings that a person has set for the data set in the app."""
    if data is None or as_is:
        return {}
    changed = {
        name: value
        for name, value in load_split(data).items()
        if value != get_setting(name).default
    }
    if changed:
        listed = ", ".join(f"{option_name(name)} {value}" for name, value in changed.items())
        err.print(
            escape(
                "Split as it was set in the app (--as-is leaves that out, an option goes before "
                f"it): {listed}"
            )
        )
    return changed


def parse_rates(text: str) -> dict[str, str]:
    """Parse ``layer3=0.1,head=1`` into stage -> rate. The config checks the rates later.

    Raises:
        ConfigError: if the text has another form.
    """
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name and value for name, _, value in pairs):
        raise ConfigError({"stage_rates": f"must be written STAGE=X,STAGE=X, not {text!r}"})
    return {name.strip(): value for name, _, value in pairs}


def parse_integers(field: str, text: str) -> list[int]:
    """Parse ``0,1,2`` into whole numbers, for a setting with several values.

    Raises:
        ConfigError: naming the option, if the text holds anything else.
    """
    return _parse_list(field, text, int)


def parse_fractions(field: str, text: str) -> list[float]:
    """Parse ``0.1,50%`` into fractions.

    Raises:
        ConfigError: naming the option, if the text holds anything else.
    """
    return _parse_list(field, text, lambda part: float(parse_number(part, share=True)))


def _parse_list(field: str, text: str, read: Callable[[str], Number]) -> list[Number]:
    try:
        return [read(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(
            {get_setting(field).several: f"must be numbers with commas between them, not {text!r}"}
        ) from None


def parse_names(text: str) -> list[str]:
    """Parse ``a,b`` into names."""
    return [name.strip() for name in text.split(",") if name.strip()]

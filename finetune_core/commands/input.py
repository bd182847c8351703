"""What somebody names at the command line, as the commands need it: data, settings in files, lists."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rich.markup import escape

from finetune_core.commands.options import option_name
from finetune_core.commands.terminal import err, progress_bar, show_work
from finetune_core.config import RunConfig, read_config, setting_of
from finetune_core.config.metadata import parse_number
from finetune_core.data.entry import load_split
from finetune_core.data.sources import resolve_data
from finetune_core.errors import ConfigError
from finetune_core.work import in_phase

Number = TypeVar("Number", int, float)


def resolved(data: str) -> str:
    """The folder or manifest of a data set that a person names, unpacked where it is packed.

    Raises:
        DataError: when it cannot be had.
    """
    with progress_bar() as bar:
        return show_work(bar, in_phase("unpack", resolve_data(data)))


def read_settings_file(config: Path) -> dict[str, Any]:
    """Of a ``config.json`` that a person names, which may be a link.

    Raises:
        ConfigError: when it cannot be read.
    """
    try:
        return read_config(Path(os.path.realpath(config)))
    except ValueError:
        raise ConfigError({"config": f"{str(config)!r} cannot be the name of a file"}) from None


def load_earlier_settings(
    config: RunConfig | str | os.PathLike[str] | None,
) -> dict[str, Any] | None:
    """Return the settings of an earlier run, given as such or as a file; None of none.

    Raises:
        ConfigError: when the file cannot be read.
    """
    if config is None:
        return None
    if isinstance(config, RunConfig):
        return config.model_dump()
    return read_settings_file(Path(config))


def load_app_split(data: str | None, as_is: bool) -> dict[str, Any]:
    """How the data set is split in the app, where a person has said so there."""
    if data is None or as_is:
        return {}
    kept = {
        name: value for name, value in load_split(data).items() if value != setting_of(name).default
    }
    if kept:
        listed = ", ".join(f"{option_name(name)} {value}" for name, value in kept.items())
        err.print(
            escape(
                "Split as it was set in the app (--as-is leaves that out, an option goes before "
                f"it): {listed}"
            )
        )
    return kept


def parse_rates(text: str) -> dict[str, str]:
    """``layer3=0.1,head=1`` -> stage -> rate, which the config then checks.

    Raises:
        ConfigError: when it is written otherwise.
    """
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name and rate for name, _, rate in pairs):
        raise ConfigError({"stage_rates": f"must be written STAGE=X,STAGE=X, not {text!r}"})
    return {name.strip(): rate for name, _, rate in pairs}


def parse_integers(field: str, text: str) -> list[int]:
    """``0,1,2`` -> whole numbers, of a setting that several values are given for.

    Raises:
        ConfigError: naming the option.
    """
    return _numbers(field, text, int)


def parse_fractions(field: str, text: str) -> list[float]:
    """``0.1,50%`` -> shares, likewise."""
    return _numbers(field, text, lambda part: float(parse_number(part, share=True)))


def _numbers(field: str, text: str, read: Callable[[str], Number]) -> list[Number]:
    try:
        return [read(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(
            {setting_of(field).several: f"must be numbers with commas between them, not {text!r}"}
        ) from None


def parse_names(text: str) -> list[str]:
    """``a,b`` -> names."""
    return [name.strip() for name in text.split(",") if name.strip()]

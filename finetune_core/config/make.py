"""Validation of settings from outside: a form, the command line, or a ``config.json``.

Settings become a RunConfig, or every problem is reported at once.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune_core.config.problems import describe_problems
from finetune_core.config.run_config import RunConfig
from finetune_core.errors import ConfigError
from finetune_core.files import describe_problem, read_regular
from finetune_core.formatting import format_bytes

CONFIG_FILE = "config.json"  # in the run directory
_LARGEST = 2**25  # bytes; a config.json may name many images


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """Validate settings and report every problem at once.

    Raises:
        ConfigError: if settings cannot be used, with one entry per invalid field.
    """
    try:
        return RunConfig(**values)
    except ValidationError as error:
        problems = describe_problems(error)
    # Conflicts between fields are found only once each field is valid, so validate again without
    # the invalid ones.
    valid = {"data": "any"} | {
        name: value for name, value in values.items() if name not in problems
    }
    try:
        RunConfig(**valid)
    except ConfigError as error:
        problems = error.problems | problems
    raise ConfigError(problems)


def config_bytes(config: RunConfig) -> bytes:
    """Return the content of a ``config.json``.

    Raises:
        ConfigError: if the file would be too large to be read again.
    """
    content = config.model_dump_json(indent=2).encode()
    if len(content) > _LARGEST:
        raise ConfigError(
            {
                "edits": (
                    "the changes to the data set name so many images that a run's settings would "
                    f"be {format_bytes(len(content))}, of which {format_bytes(_LARGEST)} can be "
                    "read. Download the data set as a table (Dataset page, Classes and splits), "
                    "put it into the folder of the images, and use it as the data: the changes "
                    "are in it"
                )
            }
        )
    return content


def read_config(path: Path) -> dict[str, Any]:
    """Return the settings in a ``config.json``, not yet validated.

    Raises:
        ConfigError: if the path is no regular file, cannot be read, or holds no JSON object.
    """
    try:
        values = json.loads(read_regular(path, _LARGEST))
    except OSError as error:
        raise ConfigError(
            {"config": f"{path} cannot be read: {describe_problem(path, error)}"}
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError({"config": f"{path} cannot be read as JSON: {error}"}) from None
    if not isinstance(values, dict):
        raise ConfigError({"config": f"{path} holds no settings (a JSON object was expected)"})
    return values

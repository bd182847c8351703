"""Settings from outside (a form, the command line, a ``config.json``) -> a RunConfig, or every problem at once."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune_core.config.problems import problems_in_words
from finetune_core.config.run_config import RunConfig
from finetune_core.errors import ConfigError
from finetune_core.files import problem_with, read_regular
from finetune_core.formatting import size

CONFIG_FILE = "config.json"  # of a run
_LARGEST = 2**25  # bytes of a config.json: it may name many images


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """Validate settings, naming every problem at once.

    Raises:
        ConfigError: with one entry per field that cannot be used.
    """
    try:
        return RunConfig(**values)
    except ValidationError as error:
        problems = problems_in_words(error)
    # Fields that do not agree with each other are found only once each is valid: ask again without the invalid ones.
    valid = {"data": "any"} | {
        name: value for name, value in values.items() if name not in problems
    }
    try:
        RunConfig(**valid)
    except ConfigError as error:
        problems = error.problems | problems
    raise ConfigError(problems)


def config_bytes(config: RunConfig) -> bytes:
    """What a ``config.json`` holds.

    Raises:
        ConfigError: when it would be too large to be read again.
    """
    content = config.model_dump_json(indent=2).encode()
    if len(content) > _LARGEST:
        raise ConfigError(
            {
                "edits": f"the changes to the data set name so many images that a run's settings would be {size(len(content))}, of which "
                f"{size(_LARGEST)} can be read. Download the data set as a table (Dataset page, Classes and splits), put it into the "
                "folder of the images, and use it as the data: the changes are in it"
            }
        )
    return content


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a ``config.json``, not yet validated.

    Raises:
        ConfigError: when it is no regular file, cannot be read, or is not a JSON object.
    """
    try:
        values = json.loads(read_regular(path, _LARGEST))
    except OSError as error:
        raise ConfigError(
            {"config": f"{path} cannot be read: {problem_with(path, error)}"}
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError({"config": f"{path} cannot be read as JSON: {error}"}) from None
    if not isinstance(values, dict):
        raise ConfigError({"config": f"{path} holds no settings (a JSON object was expected)"})
    return values

"""A run's settings as changes against the defaults."""

from typing import Any

from finetune_core.config.metadata import Setting, numbers_text
from finetune_core.config.run_config import RunConfig, all_settings


def changed_settings(config: RunConfig) -> list[tuple[Setting, Any]]:
    """The settings that are not at their defaults, in the order in which they are declared, without the data set and its changes."""
    listed = [(one, getattr(config, name)) for name, one in all_settings().items() if one.section]
    return [(one, value) for one, value in listed if value != one.default]


def value_in_words(one: Setting, value: Any) -> str:
    """A setting's value as the form shows it."""
    if value is None or value == "":
        return one.placeholder or "none"
    if isinstance(value, tuple) and one.kind == "numbers":
        return numbers_text(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {rate:g}" for name, rate in value.items())
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return one.choices.get(value, str(value)) if one.kind == "choice" else str(value)

"""A run's settings as differences from the defaults."""

from typing import Any

from finetune_core.config.metadata import Setting, format_numbers
from finetune_core.config.run_config import FITTED, RunConfig, all_settings
from finetune_core.formatting import pluralize


def list_changed_settings(config: RunConfig) -> list[tuple[Setting, Any]]:
    """Return the settings that differ from their defaults, in declaration order.

    The data set and its changes are left out.
    """
    settings = [
        (setting, getattr(config, name))
        for name, setting in all_settings().items()
        if setting.section
    ]
    return [(setting, value) for setting, value in settings if value != setting.default]


def describe_training(config: RunConfig) -> str:
    """Return the most important training settings of a run, on one line.

    Settings that follow from data set and strategy stand first, after "auto".
    """
    side = f"{config.image_size} px"
    if config.strategy in FITTED:
        return side
    settings = all_settings()
    parts = {
        "epochs": pluralize(config.epochs, "epoch"),
        "optimizer": settings["optimizer"].choices[config.optimizer],
        "learning_rate": f"lr {config.learning_rate:g}",
        "schedule": settings["schedule"].choices[config.schedule].lower(),
    }
    auto = ", ".join(text for name, text in parts.items() if name in config.auto)
    chosen = [text for name, text in parts.items() if name not in config.auto]
    return " · ".join(filter(None, [f"auto: {auto}" if auto else "", *chosen, side]))


def format_setting_value(setting: Setting, value: Any) -> str:
    """Return a setting's value as the form shows it."""
    if value is None or value == "":
        return setting.placeholder or "none"
    if isinstance(value, tuple) and setting.kind == "numbers":
        return format_numbers(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {rate:g}" for name, rate in value.items())
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return setting.choices.get(value, str(value)) if setting.kind == "choice" else str(value)

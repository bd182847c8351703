"""Settings of the next run in this session.

The form's widgets hold the settings. They are saved under an id, which the address carries.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import streamlit as st

from finetune_core.config import (
    Edit,
    RunConfig,
    all_settings,
    auto_setting_names,
    make_config,
    setting_names,
)
from finetune_core.config.metadata import HARDWARE, SPLIT, format_numbers
from finetune_core.config.run_config import FITTED
from finetune_core.data.entry import load_split
from finetune_core.errors import ConfigError, FinetuneError
from finetune_core.models.catalogue import (
    backbone_info,
    check_backbone_name,
    default_backbone,
    default_image_size,
)
from finetune_core.models.network import network_stages
from finetune_core.models.timm_networks import TIMM
from finetune_core.models.weights import PRETRAINED, RANDOM
from finetune_core.saved_settings import load_settings, save_settings
from finetune_core.training.strategies.catalogue import BASELINE, STRATEGIES
from pages.shared.configure import COMPARISON_PREFIX, FIELD_PREFIX

FROM_STAGE, EVERY_STAGE = "From one stage on", "A rate for each stage"
MOST_SEEDS = 20
FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)
COMPARISON: dict[str, Any] = {
    "strategies": [BASELINE, "feature_extraction", "last_block", "full"],
    "seeds": 3,
    "backbones": [],
    "fractions": [],
    "cuts": [],
}
# Strategies to compare a classifier on frozen features with.
FINE_TUNING = [BASELINE, "feature_extraction", "last_block"]

# Value of a choice that follows from data set and strategy. Other widgets are empty instead.
AUTO = "auto"

# Settings that are set by several widgets together, or by none.
NO_WIDGETS = tuple(name for name, one in all_settings().items() if one.own_widgets)
# Kinds of initial weights.
PRETRAINED_WEIGHTS, EARLIER_RUN, FILE_OF_WEIGHTS, RANDOM_WEIGHTS = (
    "Pretrained",
    "An earlier run",
    "A file",
    "Random",
)
_NOT_KEPT = {"data", "edits", *setting_names(SPLIT)}  # they belong to the data set
_MOST_RATES = 200
_MOST_DEVICES = 10_000  # far more than any machine has
# Backbone -> its stages when it was last readable, or the stages that the settings name.
_SEEN = "stages_seen"


def default_values() -> dict[str, Any]:
    """Return the defaults of all settings that have one."""
    return {name: one.default for name, one in all_settings().items() if not one.required}


def key(name: str) -> str:
    """Return the key of a field's widget."""
    return f"{FIELD_PREFIX}{name}"


def rate_key(stage: str) -> str:
    """Return the key of the widget of a stage's rate."""
    return f"custom_rate_{stage}"


def comparison_key(name: str) -> str:
    """Return the key of a widget of ``COMPARISON``, and set its usual value if it has none."""
    widget_key = f"{COMPARISON_PREFIX}_{name}"
    st.session_state.setdefault(widget_key, COMPARISON[name])
    return widget_key


def get_devices() -> int:
    """Return the number of devices that the next runs train on, as set in the form.

    The number is no setting of a run, because the result does not depend on it.
    """
    return int(st.session_state.get(key("devices")) or 1)


def comparison_box_key() -> str:
    """Return the key of the box that starts the next comparison.

    Each comparison has its own key, so that the box is closed once a comparison is started.
    """
    return f"start_box-{st.session_state.get('comparisons_started', 0)}"


def propose_comparison(strategies: Sequence[str]) -> None:
    """Tick strategies in the comparison form, and open it (a callback of another page)."""
    st.session_state[comparison_key("strategies")] = list(strategies)
    st.session_state[comparison_box_key()] = True


def apply_recipe(recipe: dict[str, Any]) -> None:
    """Set the form's fields to a recipe, and all other fields to their defaults.

    A callback, before the widgets are drawn.
    """
    unchanged = (*setting_names(SPLIT, HARDWARE), *NO_WIDGETS, "seed")
    set_fields(
        {
            name: value
            for name, value in (default_values() | recipe).items()
            if name not in unchanged
        }
    )
    st.session_state["weights_from"] = PRETRAINED_WEIGHTS


def set_fields(values: Mapping[str, Any]) -> None:
    """Set some of the form's fields (a callback)."""
    for name, value in values.items():
        st.session_state[key(name)] = _to_widget_value(name, value)


def use_defaults() -> None:
    """Set all fields to their defaults but network, strategy, seed and hardware (a callback)."""
    backbone = st.session_state[key("backbone")]
    recipe = {"backbone": backbone, "strategy": st.session_state[key("strategy")]}
    with suppress(FinetuneError):
        recipe["image_size"] = default_image_size(backbone)
    apply_recipe(recipe | dict.fromkeys(auto_setting_names()))


def list_changed() -> list[str]:
    """Return the settings that ``use_defaults`` would change, in the order of their fields."""
    config = read_config()
    default = default_values()
    with suppress(FinetuneError):
        default["image_size"] = default_image_size(config.backbone)
    left_out = {"backbone", "strategy", "seed", *setting_names(SPLIT, HARDWARE), *NO_WIDGETS}
    changed = {
        name
        for name, value in default.items()
        if name not in left_out and name not in config.auto and getattr(config, name) != value
    }
    changed |= set(auto_setting_names()) - set(config.auto)
    changed |= {name for name in ("weights", "from_run") if getattr(config, name) != default[name]}
    return [name for name in all_settings() if name in changed]


def is_known(backbone: str) -> bool:
    """Return whether there is a backbone of that name, and its description is on this machine."""
    try:
        return bool(backbone_info(backbone))
    except FinetuneError:
        return False


def use_backbone(name: str, previous: str | None = None) -> None:
    """Put a network into the form (a callback).

    Args:
        name: name of the network.
        previous: name of the network that it replaces. None: the one in the form.
    """
    previous = previous or st.session_state[key("backbone")]
    set_fields(backbone_fields(name, previous, st.session_state.get(key("image_size"))))


def follow_backbone(previous: str) -> None:
    """Update the form to the network that was chosen in its own list (a callback)."""
    use_backbone(st.session_state[key("backbone")], previous)


def backbone_fields(name: str, previous: str, image_size: int | None) -> dict[str, Any]:
    """Return the fields that change when a network replaces another one.

    The image size follows if it was the earlier network's usual one and both networks are known.

    Args:
        name: name of the network.
        previous: name of the network that it replaces.
        image_size: image size in the form, in pixels.
    """
    with suppress(FinetuneError):
        if image_size == default_image_size(previous):
            return {"backbone": name, "image_size": default_image_size(name)}
    return {"backbone": name, "image_size": image_size}


def start_from(config: RunConfig) -> None:
    """Put the settings that follow from an earlier run into the form (a callback).

    Args:
        config: config of the run that the next run starts from.
    """
    set_fields({"backbone": config.backbone} | config.input_settings)


def set_missing_defaults() -> None:
    """Set every field that has no value yet to its default."""
    fields = (
        default_values() | dict.fromkeys(auto_setting_names()) | {"backbone": default_backbone()}
    )
    for name, default in fields.items():
        if name not in NO_WIDGETS:
            st.session_state.setdefault(key(name), _to_widget_value(name, default))


def read_values(data: str, edits: Sequence[Edit]) -> dict[str, Any]:
    """Return the settings in the form, unchecked, for data with these changes.

    Raises:
        DataError: if the saved split of the data set is damaged.
    """
    return _read_widgets() | load_split(data) | {"data": data, "edits": edits}


def set_strategy(name: str, cut: str, backbone: str) -> None:
    """Put a suggested strategy into the form (a callback)."""
    st.session_state[key("backbone")] = backbone
    st.session_state[key("strategy")] = name
    if name == "custom":
        st.session_state["custom_how"] = FROM_STAGE
        st.session_state["custom_cut"] = cut


def toggle_stage(name: str, stages: Sequence[Mapping[str, Any]]) -> None:
    """Freeze one stage of a drawn strategy, or train it (a callback).

    The result is the named strategy that trains the same stages, if there is one. Otherwise it is a
    custom strategy.
    """
    rates = {
        stage["name"]: (stage["rate"] or 1.0) if stage["trains"] != (stage["name"] == name) else 0.0
        for stage in stages
    }
    st.session_state[key("strategy")] = _find_strategy(rates) or "custom"
    st.session_state["custom_how"] = EVERY_STAGE
    for stage_name, rate in rates.items():
        st.session_state[rate_key(stage_name)] = rate


def _find_strategy(rates: Mapping[str, float]) -> str | None:
    """Return the classic strategy with these rates by stage; None if there is none."""
    config, names = read_config(), list(rates)
    for strategy, definition in STRATEGIES.items():
        if definition.classic and not definition.fits:
            rules = definition.rules(config, names)
            if [rule.rate for rule in rules] == list(rates.values()):
                return strategy
    return None


def read_config() -> RunConfig:
    """Return the config in the form, without invalid settings."""
    return make_valid_config(_read_widgets())


def read_image_size() -> int | None:
    """Return the image size in the form, in pixels; None if it is invalid."""
    with suppress(ConfigError):
        return make_config(
            {"data": "any", "image_size": st.session_state.get(key("image_size"))}
        ).image_size
    return None


def list_stage_names() -> list[str]:
    """Return the stages of the backbone in the form, for images of the size in the form.

    If the backbone cannot be read (its folder is gone, say), its earlier stages are returned.
    Without those, the stages that the settings name are returned, with the head.
    """
    backbone = st.session_state[key("backbone")]
    known_stages: dict[str, list[str]] = st.session_state.setdefault(_SEEN, {})
    for size in (read_image_size(), None):
        # If the network cannot have that size, the form says so.
        with suppress(FinetuneError):
            known_stages[backbone] = [
                stage.name for stage in network_stages(backbone, image_size=size)
            ]
            break
    return known_stages.get(backbone, ["head"])


def make_valid_config(values: Mapping[str, Any]) -> RunConfig:
    """Return a config of the valid settings among some.

    Invalid settings get their defaults. Those that can follow from data set and strategy become
    auto.
    """
    remaining = {name: value for name, value in values.items() if name not in _NOT_KEPT} | {
        "data": "any"
    }
    while True:
        try:
            return make_config(remaining)
        except ConfigError as error:
            invalid = (
                (error.problems.keys() & remaining.keys())
                or ({"cut", "stage_rates"} & remaining.keys())
                or remaining.keys() - {"data"}
            )
            remaining = {name: value for name, value in remaining.items() if name not in invalid}
            if "auto" in remaining:
                remaining["auto"] = [
                    *remaining["auto"],
                    *invalid.intersection(auto_setting_names()),
                ]


def save() -> str:
    """Save the valid settings of this session.

    Returns:
        The id of the saved settings; empty if all settings are initial ones.
    """
    comparison = {name: st.session_state[comparison_key(name)] for name in COMPARISON}
    comparison = {name: chosen for name, chosen in comparison.items() if chosen != COMPARISON[name]}
    if rates := st.session_state.get("compared_rates"):
        comparison["rates"] = dict(rates)
    is_touched = any(str(name).startswith(FIELD_PREFIX) for name in st.session_state)
    settings = _dump_config(read_config()) if is_touched else _dump_initial()
    device_entry = {} if get_devices() == 1 else {"devices": get_devices()}
    if settings == _dump_initial() and not comparison and not device_entry:
        return ""
    return save_settings({"settings": settings, "comparison": comparison, **device_entry})


def restore(settings_id: str) -> None:
    """Put saved settings into the form.

    Args:
        settings_id: id of the saved settings.

    Raises:
        ConfigError: if nothing is saved under that id, or it is invalid. The form then has its
            initial settings.
    """
    try:
        saved = load_settings(settings_id)
        settings, comparison = saved.get("settings"), saved.get("comparison")
        if not isinstance(settings, dict) or not isinstance(comparison, dict):
            raise ConfigError({"settings": f"what was saved under “{settings_id}” are no settings"})
        config = make_config(
            {name: value for name, value in settings.items() if name not in _NOT_KEPT}
            | {"data": "any"}
        )
        _check_can_exist(config.backbone)
    except ConfigError:
        _set_widgets(make_config({"data": "any"} | _dump_initial()), {})
        raise
    _set_widgets(config, comparison)
    num_devices = saved.get("devices")
    st.session_state[key("devices")] = (
        num_devices if isinstance(num_devices, int) and 1 <= num_devices <= _MOST_DEVICES else 1
    )


def use_config(config: RunConfig) -> None:
    """Put a run's settings into the form, before its widgets are drawn.

    The settings of the comparison stay as they are.
    """
    comparison = {name: st.session_state[comparison_key(name)] for name in COMPARISON}
    _set_widgets(config, comparison | {"rates": st.session_state.get("compared_rates", {})})
    st.session_state["settings_id"] = save()


def _set_widgets(config: RunConfig, comparison: Mapping[str, Any]) -> None:
    """Set all widgets."""
    values = _dump_config(config) | dict.fromkeys(config.auto)
    set_fields({name: value for name, value in values.items() if name not in NO_WIDGETS})
    kinds = {PRETRAINED: PRETRAINED_WEIGHTS, RANDOM: RANDOM_WEIGHTS}
    st.session_state["weights_from"] = (
        EARLIER_RUN if config.from_run else kinds.get(config.weights, FILE_OF_WEIGHTS)
    )
    st.session_state["weights_file"] = "" if config.weights in kinds else config.weights
    st.session_state["weights_run"] = config.from_run
    st.session_state["custom_how"] = EVERY_STAGE if config.stage_rates is not None else FROM_STAGE
    st.session_state.setdefault(_SEEN, {}).setdefault(config.backbone, _list_named_stages(config))
    names = list_stage_names()
    st.session_state["custom_cut"] = config.cut if config.cut in names else find_last_block(names)
    for setting in ("features_from", "lora_from"):
        stage = getattr(config, setting)
        st.session_state[setting] = stage if stage in names else None
    for name in names:
        st.session_state[rate_key(name)] = float(
            (config.stage_rates or {"head": 1.0}).get(name, 0.0)
        )
    for name, options in {
        "strategies": list(STRATEGIES),
        "backbones": [one for one in comparison.get("backbones") or [] if _can_exist(one)],
        "fractions": FRACTIONS,
        "cuts": names[1:-1] if is_known(config.backbone) else comparison.get("cuts") or [],
    }.items():
        st.session_state.pop(comparison_key(name), None)
        if isinstance(chosen := comparison.get(name), list):
            st.session_state[comparison_key(name)] = [one for one in chosen if one in options]
    seeds, rates = comparison.get("seeds"), comparison.get("rates")
    st.session_state.pop(comparison_key("seeds"), None)
    if isinstance(seeds, int) and 1 <= seeds <= MOST_SEEDS:
        st.session_state[comparison_key("seeds")] = seeds
    st.session_state["compared_rates"] = {
        str(mark): float(rate)
        for mark, rate in (list(rates.items())[:_MOST_RATES] if isinstance(rates, dict) else [])
        if isinstance(rate, int | float) and 0 < rate <= 10
    }


def _read_widgets() -> dict[str, Any]:
    """Return the values of the form's widgets, as fields of the config."""
    set_missing_defaults()
    values = {
        name: st.session_state.get(key(name)) for name in default_values() if name not in NO_WIDGETS
    }
    auto = [name for name in auto_setting_names() if values[name] in (None, "", AUTO)]
    fallback = default_values()
    values |= _read_weights() | {"auto": auto} | {name: fallback[name] for name in auto}
    if (
        values["strategy"] in FITTED
        and (last := st.session_state.get("features_from")) in list_stage_names()
    ):
        values["features_from"] = last
    if (
        values["strategy"] == "lora"
        and (first := st.session_state.get("lora_from")) in list_stage_names()
    ):
        values["lora_from"] = first
    return values | _read_custom_strategy() if values["strategy"] == "custom" else values


def _read_custom_strategy() -> dict[str, Any]:
    names = list_stage_names()
    if st.session_state.get("custom_how", FROM_STAGE) == FROM_STAGE:
        cut = st.session_state.get("custom_cut")
        return {"cut": cut if cut in names else find_last_block(names)}
    return {
        "stage_rates": {
            name: st.session_state.get(rate_key(name), float(name == "head")) for name in names
        }
    }


def find_last_block(names: Sequence[str]) -> str:
    """Return the stage before the head, or the only stage."""
    return names[-2:][0]


def _list_named_stages(config: RunConfig) -> list[str]:
    """Return the stages that a config names, input to head."""
    if config.stage_rates:
        return list(config.stage_rates)
    stages = (config.cut, config.features_from, config.lora_from)
    return [*dict.fromkeys(name for name in stages if name and name != "head"), "head"]


def _can_exist(backbone: object) -> bool:
    """Return whether a backbone can have that name, on this machine or elsewhere."""
    try:
        _check_can_exist(str(backbone))
    except ConfigError:
        return False
    return isinstance(backbone, str)


def _check_can_exist(backbone: str) -> None:
    """Check that a backbone can have that name.

    In contrast to ``check_backbone_name``, any name in timm's catalogue passes. Another version of
    timm may have that network, and the form says what is missing.
    """
    if not backbone.startswith(TIMM):
        check_backbone_name(backbone)


def _read_weights() -> dict[str, str]:
    chosen = st.session_state.get("weights_from", PRETRAINED_WEIGHTS)
    if chosen == FILE_OF_WEIGHTS:
        return {"weights": str(st.session_state.get("weights_file", "")).strip()}
    if chosen == EARLIER_RUN:
        return {"weights": PRETRAINED, "from_run": st.session_state.get("weights_run") or ""}
    return {"weights": RANDOM if chosen == RANDOM_WEIGHTS else PRETRAINED}


def _dump_config(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=_NOT_KEPT)


def _dump_initial() -> dict[str, Any]:
    first = {"data": "any", "backbone": default_backbone(), "auto": auto_setting_names()}
    return _dump_config(make_config(first))


def _to_widget_value(name: str, value: Any) -> Any:
    """Return a value as its widget holds it. Fields that are typed as text hold text."""
    if value is None:
        kind = all_settings()[name].kind
        return {"number": "", "numbers": "", "choice": AUTO}.get(kind)
    if isinstance(value, list | tuple):
        return format_numbers(value)
    if not isinstance(value, float):
        return value
    short = f"{value:g}"
    return short if float(short) == value else repr(value)

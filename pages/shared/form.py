"""The training settings as widgets: the same fields, help and bounds as the config, problems beside their field."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import streamlit as st

from finetune_core.config import SPLIT_FIELDS, Edit, NearDuplicates, RunConfig, bounds, make_config
from finetune_core.data.dataset import Dataset
from finetune_core.data.sources import check_roots
from finetune_core.errors import ConfigError, DataError, FinetuneError
from finetune_core.models.catalogue import backbone_info, backbone_names, default_backbone
from finetune_core.models.network import network_stages
from finetune_core.models.weights import PRETRAINED, RANDOM
from finetune_core.training.prepare import check_config
from finetune_core.training.strategies import STRATEGIES
from pages.shared.chrome import plain
from pages.shared.state import current_dataset, data_folder

DEFAULTS: dict[str, Any] = {name: field.default for name, field in RunConfig.model_fields.items() if not field.is_required()}

_WORDS = {
    "adam": "Adam",
    "adamw": "AdamW",
    "sgd": "SGD with momentum",
    "constant": "Constant",
    "cosine": "Cosine with warm-up",
    "one_cycle": "One cycle",
    "step": "Steps with warm-up",
    "balanced": "Balanced",
    "val_accuracy": "Validation accuracy",
    "val_loss": "Validation loss",
    "frozen": "Frozen",
    "statistics": "Statistics only",
    "none": "None",
    "flips": "Flips",
    "random_resized_crop": "Random crops and flips",
    "val_balanced_accuracy": "Validation balanced accuracy",
    "val_macro_f1": "Validation macro F1",
    "shuffled": "Each image once",
    "auto": "Automatic",
    "off": "Off",
    "fp32": "fp32 (exact)",
    "bf16": "bf16 (half the memory)",
    "cpu": "Processor",
    "cuda": "NVIDIA GPU",
    "mps": "Apple GPU",
    "together": "Kept on one side",
    "apart": "Ignored",
}
_LABELS = {
    "learning_rate": "Learning rate",
    "batch_size": "Batch size",
    "image_size": "Image size (pixels)",
    "warmup_epochs": "Warm-up (epochs)",
    "weight_decay": "Weight decay",
    "split_seed": "Seed of the split",
    "val_fraction": "Validation share",
    "test_fraction": "Test share",
    "thaw_every": "Thaw a stage every (epochs)",
    "layer_decay": "Rate from stage to stage",
    "batchnorm": "BatchNorm in stages that train",
    "l2_sp": "Pull to pretrained weights",
    "label_smoothing": "Label smoothing",
    "class_weights": "Class weights",
    "sampling": "What an epoch holds",
    "train_fraction": "Share of the training images",
    "cutmix": "CutMix",
    "skip_limit": "Lost images allowed (share)",
    "clip_norm": "Longest gradient",
    "micro_batch": "Images at a time",
    "ema": "Average of weights",
    "early_stopping": "Early stopping",
    "edits": "Changes to the data set",
    "groups": "Groups that stay together",
    "near_duplicates": "Copies and near-duplicates",
    "views": "Augmented versions kept",
    "cache": "Cache of frozen stages",
}
_NO_WIDGETS = ("cut", "stage_rates", "weights", "edits")
_FROM_STAGE, _EVERY_STAGE = "From one stage on", "A rate for each stage"


def apply_recipe(recipe: dict[str, Any]) -> None:
    """Set the form's fields, those that the recipe does not name to their defaults (a callback: before the widgets are drawn)."""
    kept = (*SPLIT_FIELDS, *_NO_WIDGETS, "device", "precision", "seed", "cache")
    set_fields({name: value for name, value in (DEFAULTS | recipe).items() if name not in kept})
    st.session_state["weights_from"] = "Pretrained"


def set_fields(values: dict[str, Any]) -> None:
    """Set some of the form's fields (a callback)."""
    for name, value in values.items():
        st.session_state[_key(name)] = _as_widget(name, value)


def fill_in() -> None:
    """Give every field that has none yet its default."""
    for name, default in (DEFAULTS | {"backbone": default_backbone()}).items():
        if default is not None and name not in _NO_WIDGETS:
            st.session_state.setdefault(_key(name), _as_widget(name, default))


def values(data: str, edits: Sequence[Edit]) -> dict[str, Any]:
    """The settings as they stand in the form, unchecked, for data with these changes."""
    fill_in()
    found = {name: st.session_state.get(_key(name)) for name in DEFAULTS if name not in _NO_WIDGETS}
    found["weights"] = _weights()
    if found["strategy"] == "custom":
        found |= _custom_strategy()
    return found | {"data": data, "edits": edits}


def split_settings() -> tuple[dict[str, Any], dict[str, str]]:
    """How to split, as the form has it, with the defaults where it cannot be used; and the problems by field."""
    found = {name: st.session_state.get(_key(name), DEFAULTS[name]) for name in SPLIT_FIELDS}
    try:
        return make_config(found | {"data": "any"}).split_settings, {}
    except ConfigError as error:
        return make_config({"data": "any"}).split_settings, error.problems


def chosen_dataset() -> Dataset | None:
    """The chosen data set, split as the form has it; where there is none, the page says why."""
    if not data_folder():
        st.warning("No data is chosen yet: the Dataset page does that.", icon=":material/photo_library:")
        return None
    try:
        return current_dataset(split_settings()[0])
    except FinetuneError as error:
        st.error(plain(str(error)), icon=":material/error:")
        return None


def split_fields(problems: dict[str, str]) -> None:
    """The widgets of how to split."""
    fill_in()
    with st.grid("auto", min_column_width=200, gap="small"):
        for name in ("val_fraction", "test_fraction"):
            with st.container():
                text_field(name, problems)
        with st.container():
            number_field("split_seed", problems)
        with st.container():
            choice_field("near_duplicates", NearDuplicates, problems)
        with st.container():
            st.text_input(
                label("groups"), key=_key("groups"), help=_help("groups"), placeholder="{group}_*", persist_state="session"
            )
            _problem("groups", problems)


def set_strategy(name: str, cut: str, backbone: str) -> None:
    """Put a suggested strategy into the form (a callback)."""
    st.session_state[_key("backbone")] = backbone
    st.session_state[_key("strategy")] = name
    if name == "custom":
        st.session_state["custom_how"] = _FROM_STAGE
        st.session_state["custom_cut"] = cut


def toggle_stage(name: str, stages: Sequence[Mapping[str, Any]]) -> None:
    """Make the strategy one of its own: as it was drawn, but for one stage, which freezes or trains (a callback)."""
    st.session_state[_key("strategy")] = "custom"
    st.session_state["custom_how"] = _EVERY_STAGE
    for stage in stages:
        trains = stage["trains"] != (stage["name"] == name)
        st.session_state[_rate_key(stage["name"])] = (stage["rate"] or 1.0) if trains else 0.0


def checked(found: dict[str, Any], roots: Sequence[Path]) -> tuple[RunConfig | None, dict[str, str]]:
    """The config, where it can be used, and the problems by field; a file of weights has to lie in one of the folders."""
    try:
        config = make_config(found)
        if config.starts_from not in (PRETRAINED, RANDOM):
            check_roots(config.weights, roots)
        check_config(config)
    except ConfigError as error:
        return None, error.problems
    except DataError as error:
        return None, {"weights": str(error)}
    return config, {}


def number_field(name: str, problems: dict[str, str]) -> None:
    """A whole number, without limits of the widget's own: the config names what is wrong, in words."""
    st.number_input(label(name), key=_key(name), step=1, help=_help(name), persist_state="session")
    _problem(name, problems)


def text_field(name: str, problems: dict[str, str]) -> None:
    """A number typed as text, so that 1e-4 can be written."""
    st.text_input(label(name), key=_key(name), help=_help(name), persist_state="session")
    _problem(name, problems)


def choice_field(name: str, options: Any, problems: dict[str, str]) -> None:
    """One of a few words."""
    st.selectbox(
        label(name),
        get_args(options),
        format_func=lambda option: _WORDS.get(option, option),
        key=_key(name),
        help=_help(name),
        persist_state="session",
    )
    _problem(name, problems)


def optional_field(name: str, problems: dict[str, str]) -> None:
    """A whole number, or nothing."""
    st.number_input(
        label(name),
        key=_key(name),
        step=1,
        value=None,
        placeholder="chosen by Thaw",
        help=_help(name),
        persist_state="session",
    )
    _problem(name, problems)


def backbone_field(problems: dict[str, str]) -> None:
    def shown(name: str) -> str:
        info = backbone_info(name)
        return f"{name} · {info.parameters / 1e6:.1f} M" + ("" if info.ready else " · downloads its weights")

    st.selectbox(
        "Backbone", backbone_names(), format_func=shown, key=_key("backbone"), help=_help("backbone"), persist_state="session"
    )
    _problem("backbone", problems)


def strategy_field(problems: dict[str, str]) -> None:
    st.radio(
        "Strategy",
        list(STRATEGIES),
        format_func=lambda name: STRATEGIES[name].title,
        captions=[f"{strategy.help} ({strategy.source})" for strategy in STRATEGIES.values()],
        key=_key("strategy"),
        help=_help("strategy"),
        persist_state="session",
    )
    chosen = st.session_state[_key("strategy")]
    if chosen == "custom":
        _custom_widgets()
    if chosen in ("linear_probe_then_full", "gradual_unfreezing"):
        optional_field("thaw_every", problems)
    if chosen == "discriminative":
        text_field("layer_decay", problems)
    for name in ("strategy", "cut", "stage_rates"):
        _problem(name, problems)


def weights_field(problems: dict[str, str]) -> None:
    st.session_state.setdefault("weights_from", "Pretrained")
    st.selectbox(
        "Starting weights",
        ["Pretrained", "A file", "Random"],
        key="weights_from",
        persist_state="session",
        help="Random weights are a control: they show what pretraining was worth.",
    )
    if st.session_state["weights_from"] == "A file":
        st.text_input(
            "File of weights",
            key="weights_file",
            persist_state="session",
            help="On the server: safetensors, or a state dict saved by torch.",
        )
    _problem("weights", problems)


def _custom_widgets() -> None:
    names = _stage_names()
    how = st.segmented_control(
        "What trains",
        [_FROM_STAGE, _EVERY_STAGE],
        key="custom_how",
        default=_FROM_STAGE,
        required=True,
        persist_state="session",
    )
    if how == _FROM_STAGE:
        if st.session_state.get("custom_cut") not in names:
            st.session_state["custom_cut"] = names[-2]
        st.selectbox("First stage that trains", names, key="custom_cut", persist_state="session")
        return
    st.caption("How many times the learning rate each stage gets; 0 is frozen.")
    with st.grid("auto", min_column_width=110, gap="small"):
        for name in names:
            st.session_state.setdefault(_rate_key(name), 1.0 if name == "head" else 0.0)
            st.number_input(name, key=_rate_key(name), step=0.1, persist_state="session")


def _custom_strategy() -> dict[str, Any]:
    names = _stage_names()
    if st.session_state.get("custom_how", _FROM_STAGE) == _FROM_STAGE:
        cut = st.session_state.get("custom_cut")
        return {"cut": cut if cut in names else names[-2]}
    return {"stage_rates": {name: st.session_state.get(_rate_key(name), float(name == "head")) for name in names}}


def _stage_names() -> list[str]:
    return [stage.name for stage in network_stages(st.session_state[_key("backbone")])]


def _weights() -> str:
    chosen = st.session_state.get("weights_from", "Pretrained")
    if chosen == "A file":
        return str(st.session_state.get("weights_file", "")).strip()
    return RANDOM if chosen == "Random" else PRETRAINED


def _as_widget(name: str, value: Any) -> Any:
    """Fields that are typed as text hold text."""
    return f"{value:g}" if isinstance(value, float) else value


def _key(name: str) -> str:
    return f"form_{name}"


def _rate_key(stage: str) -> str:
    return f"custom_rate_{stage}"


def label(name: str) -> str:
    """What the form calls a field."""
    return _LABELS.get(name, name.replace("_", " ").capitalize())


def _help(name: str) -> str:
    return bounds(name)["help"]


def _problem(name: str, problems: dict[str, str]) -> None:
    if name in problems:
        st.markdown(f":red[:material/error: {plain(label(name))} {plain(problems[name])}]")

"""The training settings as widgets: the same fields, help and bounds as the config, problems beside their field."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import streamlit as st

from finetune_core.config import SPLIT_FIELDS, NearDuplicates, RunConfig, bounds, make_config
from finetune_core.data.dataset import Dataset
from finetune_core.data.entry import load_split, save_split
from finetune_core.data.sources import check_roots
from finetune_core.errors import ConfigError, DataError, FinetuneError
from finetune_core.models.catalogue import backbone_info, backbone_names
from finetune_core.models.weights import PRETRAINED, RANDOM
from finetune_core.training.prepare import check_config
from finetune_core.training.strategies import STRATEGIES
from pages.shared import settings
from pages.shared.chosen import chosen_data, data_folder, offer_data
from pages.shared.chrome import plain
from pages.shared.state import answered, current_dataset

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


def chosen_dataset() -> Dataset | None:
    """The chosen data set, with its changes and its split; where there is none, the page says why, and offers some."""
    try:
        chosen = chosen_data()
        if chosen:
            return current_dataset()
        st.warning("No data set is chosen yet.", icon=":material/photo_library:")
    except FinetuneError as error:
        st.error(plain(str(error)), icon=":material/error:")
    if not data_folder():
        offer_data()
    return None


def split_fields(data: str) -> None:
    """The widgets of how to split a data set; what is set is kept with it."""
    kept = (data, load_split(data))
    if st.session_state.get("split_shown") != kept:
        settings.set_fields(kept[1])
        st.session_state["split_shown"] = kept
    problems = _split_problems()

    def changed() -> None:
        if not _split_problems():
            answered(lambda: save_split(data, make_config(_split_widgets() | {"data": data}).split_settings))

    with st.grid("auto", min_column_width=200, gap="small"):
        for name in ("val_fraction", "test_fraction"):
            with st.container():
                text_field(name, problems, changed)
        with st.container():
            number_field("split_seed", problems, changed)
        with st.container():
            choice_field("near_duplicates", NearDuplicates, problems, changed)
        with st.container():
            st.text_input(
                label("groups"),
                key=settings.key("groups"),
                help=_help("groups"),
                placeholder="{group}_*",
                persist_state="session",
                on_change=changed,
            )
            _problem("groups", problems)
    if problems:
        st.caption("Until that is put right, the split stays as it was.")


def _split_widgets() -> dict[str, Any]:
    return {name: st.session_state.get(settings.key(name)) for name in SPLIT_FIELDS}


def _split_problems() -> dict[str, str]:
    try:
        make_config(_split_widgets() | {"data": "any"})
    except ConfigError as error:
        return error.problems
    return {}


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


def number_field(name: str, problems: dict[str, str], on_change: Callable[[], None] | None = None) -> None:
    """A whole number, without limits of the widget's own: the config names what is wrong, in words."""
    st.number_input(label(name), key=settings.key(name), step=1, help=_help(name), persist_state="session", on_change=on_change)
    _problem(name, problems)


def text_field(name: str, problems: dict[str, str], on_change: Callable[[], None] | None = None) -> None:
    """A number typed as text, so that 1e-4 can be written."""
    st.text_input(label(name), key=settings.key(name), help=_help(name), persist_state="session", on_change=on_change)
    _problem(name, problems)


def choice_field(name: str, options: Any, problems: dict[str, str], on_change: Callable[[], None] | None = None) -> None:
    """One of a few words."""
    st.selectbox(
        label(name),
        get_args(options),
        format_func=lambda option: _WORDS.get(option, option),
        key=settings.key(name),
        help=_help(name),
        persist_state="session",
        on_change=on_change,
    )
    _problem(name, problems)


def optional_field(name: str, problems: dict[str, str]) -> None:
    """A whole number, or nothing."""
    st.number_input(
        label(name),
        key=settings.key(name),
        step=1,
        value=None,
        placeholder="chosen by Thaw",
        help=_help(name),
        persist_state="session",
    )
    _problem(name, problems)


def backbone_field(problems: dict[str, str]) -> None:
    # What a backbone is called does not say whether its weights are here: that changes while it can be chosen.
    st.selectbox(
        "Backbone",
        backbone_names(),
        format_func=lambda name: f"{name} · {backbone_info(name).parameters / 1e6:.1f} M",
        key=settings.key("backbone"),
        help=_help("backbone"),
        persist_state="session",
    )
    if not backbone_info(st.session_state[settings.key("backbone")]).ready:
        st.caption("Its pretrained weights are not on this machine yet.")
    _problem("backbone", problems)


def strategy_field(problems: dict[str, str]) -> None:
    st.radio(
        "Strategy",
        list(STRATEGIES),
        format_func=lambda name: STRATEGIES[name].title,
        captions=[f"{strategy.help} ({strategy.source})" for strategy in STRATEGIES.values()],
        key=settings.key("strategy"),
        help=_help("strategy"),
        persist_state="session",
    )
    chosen = st.session_state[settings.key("strategy")]
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
    names = settings.stage_names()
    st.session_state.setdefault("custom_how", settings.FROM_STAGE)
    how = st.segmented_control(
        "What trains",
        [settings.FROM_STAGE, settings.EVERY_STAGE],
        key="custom_how",
        required=True,
        persist_state="session",
    )
    if how == settings.FROM_STAGE:
        if st.session_state.get("custom_cut") not in names:
            st.session_state["custom_cut"] = names[-2]
        st.selectbox("First stage that trains", names, key="custom_cut", persist_state="session")
        return
    st.caption("How many times the learning rate each stage gets; 0 is frozen.")
    with st.grid("auto", min_column_width=110, gap="small"):
        for name in names:
            st.session_state.setdefault(settings.rate_key(name), 1.0 if name == "head" else 0.0)
            st.number_input(name, key=settings.rate_key(name), step=0.1, persist_state="session")


def label(name: str) -> str:
    """What the form calls a field."""
    return _LABELS.get(name, name.replace("_", " ").capitalize())


def _help(name: str) -> str:
    return bounds(name)["help"]


def _problem(name: str, problems: dict[str, str]) -> None:
    """What is wrong with a field. Its place is there always, so that nothing below moves, which would be drawn anew."""
    place = st.empty()
    if name in problems:
        place.markdown(f":red[:material/error: {plain(label(name))} {plain(problems[name])}]")

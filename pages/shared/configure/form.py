"""Training settings as widgets: fields, help and bounds of the config, problems beside fields."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from finetune_core import paths
from finetune_core.config import RunConfig, all_settings, get_setting, make_config, setting_names
from finetune_core.config.changes import format_setting_value
from finetune_core.config.metadata import SPLIT, Setting
from finetune_core.data.dataset import Dataset
from finetune_core.data.entry import load_split, save_split
from finetune_core.data.sources import check_roots
from finetune_core.data.splits import TRAIN
from finetune_core.errors import ConfigError, DataError, FinetuneError, WeightsError
from finetune_core.formatting import pluralize
from finetune_core.models.catalogue import backbone_info
from finetune_core.models.timm_networks import FOLDER
from finetune_core.models.weights import PRETRAINED, RANDOM
from finetune_core.runs.store import Run
from finetune_core.training.prepare import check_classes, check_config
from finetune_core.training.strategies.catalogue import STRATEGIES, Fit
from finetune_core.training.strategies.recipes import fill_auto
from pages.shared.chrome import escape_markdown
from pages.shared.configure import settings
from pages.shared.configure.networks import offer_look_up, warn_about_licence
from pages.shared.data.chosen import check_access, data_folder, get_chosen_data, offer_data
from pages.shared.data.datasets import attempt_change, current_dataset
from pages.shared.runs.backend import store, worker
from pages.shared.runs.labels import run_labels


def load_chosen_dataset() -> Dataset | None:
    """Load the chosen data set, with its changes and its split.

    Returns:
        The data set. None if there is none: then the page says why, and offers some.
    """
    try:
        chosen = get_chosen_data()
        if chosen:
            return current_dataset()
        st.warning("No data set is chosen yet.", icon=":material/photo_library:")
    except FinetuneError as error:
        st.error(escape_markdown(str(error)), icon=":material/error:")
    if not data_folder():
        offer_data()
    return None


def draw_split_fields(data: str) -> None:
    """Draw the widgets that say how to split a data set, and save the split with the data set."""
    saved = (data, load_split(data))
    if st.session_state.get("split_shown") != saved:
        settings.set_fields(saved[1])
        st.session_state["split_shown"] = saved
    problems = _check_split()

    def save() -> None:
        if not _check_split():
            attempt_change(
                lambda: save_split(
                    data, make_config(_read_split_widgets() | {"data": data}).split_settings
                )
            )

    draw_section(SPLIT, problems, save)
    if problems:
        st.caption("Until this is corrected, the split stays as it was.")


def _read_split_widgets() -> dict[str, Any]:
    return {name: st.session_state.get(settings.key(name)) for name in setting_names(SPLIT)}


def _check_split() -> dict[str, str]:
    try:
        make_config(_read_split_widgets() | {"data": "any"})
    except ConfigError as error:
        return error.problems
    return {}


def check_settings(
    values: dict[str, Any], roots: Sequence[Path], dataset: Dataset | None
) -> tuple[RunConfig | None, dict[str, str]]:
    """Check the settings of the form.

    A file of weights, and a folder with a network, have to lie in one of the readable folders.

    Args:
        values: settings, unchecked.
        roots: readable folders.
        dataset: the data set to train on; None if none is chosen.

    Returns:
        The config, or None if the data set cannot be trained with it, and the problems by field.
    """
    try:
        config = make_config(values)
        if config.earlier_run:
            check_roots(config.earlier_run, [paths.runs_dir(), *roots])
        elif config.initial_weights not in (PRETRAINED, RANDOM):
            check_access(config.weights)
        if config.backbone.startswith(FOLDER):
            check_access(config.backbone.removeprefix(FOLDER))
        check_config(config)
        config = fill(config, dataset)
    except ConfigError as error:
        return None, error.problems
    except DataError as error:
        return None, {"weights": str(error)}
    try:
        if dataset:
            check_classes(dataset)
    except DataError as error:
        return None, {"data": str(error)}
    return config, {}


def fill(config: RunConfig, dataset: Dataset | None) -> RunConfig:
    """Choose the settings that are left to Thaw, if there is a data set to choose them for."""
    return fill_auto(config, dataset.split_counts.get(TRAIN, 0)) if dataset else config


def draw_section(
    name: str,
    problems: dict[str, str],
    on_change: Callable[[], None] | None = None,
    config: RunConfig | None = None,
) -> None:
    """Draw the fields of a section side by side, without fields that have their own widgets.

    Args:
        name: name of the section.
        problems: problems by field.
        on_change: called when a field has changed.
        config: the run as it stands. Its values stand in the fields that are left to Thaw.
    """
    with st.grid("auto", min_column_width=200, gap="small"):
        for field in list_fields(name):
            with st.container():
                draw_setting(field, problems, on_change, config)


def draw_devices_field(problems: dict[str, str]) -> None:
    """Draw the number of devices that the next runs train on, if there is a choice."""
    if worker().executor.max_devices() == 1 and settings.get_devices() == 1:
        return
    st.session_state.setdefault(settings.key("devices"), 1)
    st.number_input(
        "Devices",
        step=1,
        key=settings.key("devices"),
        persist_state="session",
        width=200,
        help="How many GPUs, or without any how many shares of the processor's cores, train one "
        "run together: each takes a part of every batch. The result is the same, to rounding; it "
        "is there sooner where the runs are long, and starting takes some seconds more.",
    )
    _draw_problem("devices", problems)


def check_devices(config: RunConfig | None = None) -> dict[str, str]:
    """Return the problems with the number of devices, by field.

    The machine may have fewer devices, or several devices may not be able to share this run.
    """
    devices, executor = settings.get_devices(), worker().executor
    max_devices = executor.max_devices()
    if not 1 <= devices <= max_devices:
        return {
            "devices": f"must be from 1 to {max_devices}, which one machine has"
            if max_devices > 1
            else "must be 1: there is only one"
        }
    try:
        if config:
            executor.check(config, devices)
    except ConfigError as error:
        return error.problems
    return {}


def describe_devices() -> str:
    """Return the number of devices in words; empty for one device."""
    return f"on {pluralize(settings.get_devices(), 'device')}" if settings.get_devices() > 1 else ""


def draw_forecast_note() -> None:
    """Say what the forecasts leave out, if several devices are chosen."""
    if settings.get_devices() > 1:
        st.caption(
            "Forecasts are for one device. Several are faster; by how much is not forecast. Each "
            "takes as much memory as one."
        )


def list_fields(section: str) -> list[str]:
    """Return the settings of a section that have a widget and that the chosen strategy obeys."""
    is_stepwise = get_head_fit() is None
    return [
        name
        for name in setting_names(section)
        if name not in settings.NO_WIDGETS and (is_stepwise or not get_setting(name).stepwise)
    ]


def get_head_fit() -> Fit | None:
    """Return how the chosen strategy fits its head.

    Returns:
        None if the strategy trains in steps, or none is chosen yet.
    """
    chosen = st.session_state.get(settings.key("strategy"))
    return STRATEGIES[chosen].fits if chosen else None


def draw_setting(
    name: str,
    problems: dict[str, str],
    on_change: Callable[[], None] | None = None,
    config: RunConfig | None = None,
) -> None:
    """Draw the widget of a setting, and its problem beneath.

    Args:
        name: name of the setting.
        problems: problems by field.
        on_change: called when the field has changed.
        config: as for ``draw_section``.
    """
    setting = get_setting(name)
    placeholder = setting.placeholder
    if setting.follows:
        is_known = config and name in config.auto
        placeholder = (
            f"auto: {format_setting_value(setting, getattr(config, name))}" if is_known else "auto"
        )
    arguments: dict[str, Any] = {
        "label": setting.label,
        "key": settings.key(name),
        "help": setting.help,
        "persist_state": "session",
        "on_change": on_change,
    }
    if setting.kind == "choice":
        first = {settings.AUTO: "Auto"} if setting.follows else {}
        options = first | dict(setting.choices)
        st.selectbox(options=list(options), format_func=lambda name: options[name], **arguments)
        if st.session_state[settings.key(name)] == settings.AUTO:
            st.caption(placeholder)
    elif setting.kind == "integer":
        # The widget has no limits of its own, because the config describes the problem in words.
        empty: dict[str, Any] = (
            {"value": None, "placeholder": placeholder}
            if setting.optional or setting.follows
            else {}
        )
        st.number_input(step=1, **empty, **arguments)
    else:
        # Numbers are typed as text, so that 1e-4 and 20 % can be entered.
        st.text_input(placeholder=placeholder or None, **arguments)
    _draw_problem(name, problems)


def draw_backbone_problems(problems: dict[str, str]) -> None:
    """Say why the chosen backbone is invalid, or that its licence restricts its use."""
    chosen = st.session_state[settings.key("backbone")]
    try:
        info = backbone_info(chosen)
    except ConfigError as error:
        # Shown even if other settings have problems, which are checked first.
        _draw_problem("backbone", error.problems | problems)
    except WeightsError as error:
        _draw_problem("backbone", {"backbone": str(error)} | problems)
        offer_look_up(chosen, "backbone")
    else:
        _draw_problem("backbone", problems)
        warn_about_licence(info)


def draw_strategy_settings(problems: dict[str, str]) -> None:
    """Draw the settings that only the chosen strategy has, and their problems."""
    with st.container():
        # Always there: otherwise everything below would be drawn anew.
        chosen = st.session_state[settings.key("strategy")]
        if chosen == "custom":
            _draw_custom_widgets()
        for name in STRATEGIES[chosen].settings:
            if name in ("features_from", "lora_from"):
                _draw_stage_widget(name)
            elif name not in settings.NO_WIDGETS:
                draw_setting(name, problems)
        own = [
            name
            for one in STRATEGIES.values()
            for name in one.settings
            if name in settings.NO_WIDGETS
        ]
        for name in ("strategy", *dict.fromkeys(own)):
            _draw_problem(name, problems)


def draw_weights_field(problems: dict[str, str]) -> None:
    """Draw the choice of initial weights: pretrained, an earlier run, a file, or random."""
    st.session_state.setdefault("weights_from", settings.PRETRAINED_WEIGHTS)
    chosen = st.selectbox(
        get_label("weights"),
        [
            settings.PRETRAINED_WEIGHTS,
            settings.EARLIER_RUN,
            settings.FILE_OF_WEIGHTS,
            settings.RANDOM_WEIGHTS,
        ],
        key="weights_from",
        persist_state="session",
        on_change=_follow_run,
        help="Random weights are a control: they show what pretraining was worth.",
    )
    with st.container():
        # Always there: otherwise everything below would be drawn anew.
        if chosen == settings.FILE_OF_WEIGHTS:
            st.text_input(
                "File of weights",
                key="weights_file",
                persist_state="session",
                help="On this computer: safetensors, or a state dict saved by torch.",
            )
        elif chosen == settings.EARLIER_RUN:
            _draw_run_field()
    for name in ("weights", "from_run"):
        _draw_problem(name, problems)


def _draw_run_field() -> None:
    """Draw the choice among finished runs that another run can start from."""
    by_folder = {str(run.run_dir): run for run in _list_start_runs()}
    labels = run_labels(by_folder.values())
    current = st.session_state.get("weights_run")
    options = [*by_folder, *([current] if current and current not in by_folder else [])]
    st.selectbox(
        get_label("from_run"),
        options,
        format_func=lambda folder: (
            labels[by_folder[folder].run_id] if folder in by_folder else folder
        ),
        key="weights_run",
        persist_state="session",
        on_change=_follow_run,
        placeholder="No run has finished yet",
        disabled=not options,
        help=get_setting("from_run").help,
    )


def _list_start_runs() -> list[Run]:
    finished = [run for run in store().list_runs() if run.status == "finished"]
    single = [run for run in finished if not run.config.is_ensemble]
    return [run for run in single if STRATEGIES[run.config.strategy].fits != "nearest_neighbours"]


def _follow_run() -> None:
    """Take backbone and image size from the chosen run, at first the latest one (a callback)."""
    if st.session_state["weights_from"] != settings.EARLIER_RUN:
        return
    by_folder = {str(run.run_dir): run for run in _list_start_runs()}
    if not st.session_state.get("weights_run"):
        st.session_state["weights_run"] = next(iter(by_folder), None)
    if run := by_folder.get(st.session_state["weights_run"]):
        settings.start_from(run.config)


def _draw_custom_widgets() -> None:
    names = settings.list_stage_names()
    st.session_state.setdefault("custom_how", settings.FROM_STAGE)
    mode = st.segmented_control(
        "What trains",
        [settings.FROM_STAGE, settings.EVERY_STAGE],
        key="custom_how",
        required=True,
        persist_state="session",
    )
    if mode == settings.FROM_STAGE:
        if st.session_state.get("custom_cut") not in names:
            st.session_state["custom_cut"] = settings.find_last_block(names)
        st.selectbox("First stage that trains", names, key="custom_cut", persist_state="session")
        return
    st.caption("How many times the learning rate each stage gets; 0 is frozen.")
    with st.grid("auto", min_column_width=110, gap="small"):
        for name in names:
            st.session_state.setdefault(settings.rate_key(name), 1.0 if name == "head" else 0.0)
            st.number_input(name, key=settings.rate_key(name), step=0.1, persist_state="session")


def _draw_stage_widget(name: str) -> None:
    """Draw the widget of a setting that names a stage, or none."""
    names, setting = settings.list_stage_names()[:-1], get_setting(name)
    if st.session_state.get(name) not in names:
        st.session_state[name] = None
    st.selectbox(
        setting.label,
        names,
        None,
        placeholder=setting.placeholder,
        help=setting.help,
        key=name,
        persist_state="session",
    )


def get_label(name: str) -> str:
    """Return the form's label of a setting. Any other name is its own label."""
    setting = all_settings().get(name)
    return setting.label if setting else name.replace("_", " ").capitalize()


def format_value(setting: Setting, value: Any) -> str:
    """Return a setting's value as the form shows it, escaped for Markdown."""
    return escape_markdown(
        STRATEGIES[value].title
        if setting.name == "strategy"
        else format_setting_value(setting, value)
    )


def _draw_problem(name: str, problems: dict[str, str]) -> None:
    """Draw the problem of a field.

    Its place is there at all times. Otherwise the fields below would move, and be drawn anew.
    """
    place = st.empty()
    if name in problems:
        place.markdown(
            f":red[:material/error: {escape_markdown(get_label(name))} "
            f"{escape_markdown(problems[name])}]"
        )

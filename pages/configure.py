"""Configure: backbone, strategy and settings of the next run, with a drawing of the strategy."""

from functools import partial
from pathlib import Path

import streamlit as st

from finetune_core.config import RunConfig, get_setting, setting_names
from finetune_core.config.changes import describe_training
from finetune_core.config.metadata import ADVANCED, HARDWARE, TRAINING
from finetune_core.data.dataset import Dataset
from finetune_core.data.edits import describe_edits, select_effective_edits
from finetune_core.data.splits import TRAIN
from finetune_core.errors import FinetuneError
from finetune_core.figures.curves import plot_lr_range_test
from finetune_core.formatting import format_memory, format_rough_duration, pluralize
from finetune_core.models.weights import RANDOM
from finetune_core.training.data_pipeline.trunk import choose_num_views, why_uncached
from finetune_core.training.forecast.lr_finder import RateCurve, find_rate
from finetune_core.training.strategies.catalogue import STRATEGIES, count_epochs
from finetune_core.training.strategies.stage_plan import cut_index, list_stages, plan_strategy
from pages.shared.chrome import draw_next_step, escape_markdown, go, start_page
from pages.shared.configure import form, settings
from pages.shared.configure.advice import draw_backbone_advice
from pages.shared.configure.choices import (
    ChoiceContext,
    collect_context,
    draw_backbone_cards,
    draw_other_strategy_cards,
    draw_strategy_cards,
)
from pages.shared.configure.forecasts import forecast_all, time_in_background
from pages.shared.configure.networks import OPEN as NETWORKS_KEY
from pages.shared.configure.networks import draw_network_finder
from pages.shared.configure.origin import warn_of_other_data
from pages.shared.configure.presets import draw_preset_changes, draw_presets
from pages.shared.configure.stages import draw_strategy
from pages.shared.configure.weights import offer_weights
from pages.shared.data.chosen import data_folder, data_name, readable_roots
from pages.shared.jobs import offer
from pages.shared.runs.backend import submit
from pages.shared.runs.profile import offer_profile

MORE_KEY, SETTINGS_KEY, STRATEGIES_KEY = "more_settings", "training_settings", "more_strategies"
MOST_LINES = 3  # problems in the bar; beyond that the bar scrolls

start_page(
    "pages/configure.py",
    "Decide which stages of a pretrained network train, and how. Cold stages stay frozen, warm "
    "ones train.",
)


def describe_data() -> Dataset | None:
    """Say which data set is trained on, beside the presets.

    Returns:
        The data set; None if it cannot be read.
    """
    with st.container(horizontal=True, vertical_alignment="center"):
        with st.container(width="stretch"):
            dataset = form.load_chosen_dataset()
            if dataset:
                images = pluralize(len(dataset.table), "image")
                classes = pluralize(len(dataset.classes), "class", "classes")
                changes = describe_edits(dataset.edits)
                st.markdown(
                    f"Training on **{escape_markdown(data_name(data_folder()))}**: {images} in "
                    f"{classes}"
                    + (f", with your changes ({escape_markdown(changes)})." if changes else ".")
                )
        draw_presets()
    return dataset


def draw_plan(valid: RunConfig, problems: dict[str, str], num_classes: int | None) -> None:
    """Draw the strategy, even if other settings of the form are invalid."""
    try:
        draw_strategy(
            valid, num_classes or 1000, settings.toggle_stage, rates="learning_rate" not in problems
        )
    except FinetuneError:
        st.caption("The strategy is drawn once its settings below are valid.")
    if valid.earlier_run:
        st.info(
            f"Starts from {escape_markdown(Path(valid.earlier_run).name)}: frozen stages stay as "
            "that run left them.",
            icon=":material/account_tree:",
        )
    if valid.initial_weights == RANDOM:
        st.warning(
            "The backbone starts from random weights; frozen stages stay random.",
            icon=":material/casino:",
        )


def choose_network(
    valid: RunConfig, config: RunConfig | None, context: ChoiceContext, problems: dict[str, str]
) -> str | None:
    """Draw the networks at hand and the ways to other networks.

    Returns:
        The reason why no run can be started; None if one can.
    """
    st.markdown(f":small[{form.get_label('backbone')}]", help=get_setting("backbone").help)
    draw_backbone_cards(valid, context)
    with st.container():
        form.draw_backbone_problems(problems)
    unfold_problems(NETWORKS_KEY, {"backbone"} & problems.keys())
    with st.grid("auto", min_column_width=320, gap="small"):
        with st.container():
            draw_network_finder()
        with st.container():
            draw_backbone_advice(config, context.dataset)
    with st.container():
        return offer_weights([valid])


def choose_strategy(
    valid: RunConfig,
    config: RunConfig | None,
    context: ChoiceContext,
    problems: dict[str, str],
    reason: str | None,
) -> None:
    """Draw the strategies and the settings of the chosen strategy.

    Args:
        reason: why no run can be started.
    """
    st.markdown(f":small[{form.get_label('strategy')}]", help=get_setting("strategy").help)
    draw_strategy_cards(valid, context)
    form.draw_strategy_settings(problems)
    with st.expander(
        "More strategies", icon=":material/category:", key=STRATEGIES_KEY, on_change="rerun"
    ):
        if st.session_state.get(STRATEGIES_KEY):
            draw_other_strategy_cards(valid, context)
            with st.container():
                if config and context.dataset:
                    forecast_all(config, context, context.dataset)
    with st.container():
        if config and context.dataset:
            offer_profile(
                config, context.dataset, button_key="profile", disabled=reason is not None
            )


def unfold_problems(key: str, problems: set[str]) -> None:
    """Open a fold as soon as one of its fields has a new problem.

    Args:
        key: key of the fold's widget.
        problems: names of the fold's fields that have a problem now.
    """
    seen_key = f"{key}_problems"
    if problems - st.session_state.get(seen_key, set()):
        st.session_state[key] = True
    st.session_state[seen_key] = problems


def draw_training_settings(
    valid: RunConfig, config: RunConfig | None, dataset: Dataset | None, problems: dict[str, str]
) -> None:
    """Draw the training settings, folded under a summary, and the learning-rate finder."""
    advanced = {"weights", "from_run", "devices", *setting_names(*ADVANCED)}
    unfold_problems(MORE_KEY, advanced & problems.keys())
    unfold_problems(SETTINGS_KEY, (advanced | set(setting_names(TRAINING))) & problems.keys())
    st.markdown(f":small[Training] · {escape_markdown(describe_training(valid))}")
    # A label that changes would redraw the fields, and take the focus from the one being typed in.
    with st.expander(
        "Training settings", icon=":material/tune:", key=SETTINGS_KEY, on_change="rerun"
    ):
        form.draw_section(TRAINING, problems, config=config)
        with st.container():
            if form.get_head_fit():
                st.caption(
                    "The head is fitted in one go, so settings of training in steps are hidden."
                )
            elif config and dataset:
                describe_augmentation(config)
                offer_rate_finder(config)
        with st.expander("More settings", key=MORE_KEY, on_change="rerun"):
            form.draw_weights_field(problems)
            for section in filter(form.list_fields, ADVANCED):
                st.markdown(f"**{section}**")
                form.draw_section(section, problems, config=config)
                if section == HARDWARE:
                    form.draw_devices_field(problems)


def offer_rate_finder(config: RunConfig) -> None:
    """Offer a learning-rate range test, and offer its suggestion."""
    curve: RateCurve | None = offer(
        "Find a learning rate",
        f"rates:{config.model_dump_json(exclude={'learning_rate', 'epochs'})}",
        "Trying learning rates",
        partial(find_rate, config, readable_roots()),
        button_key="find-rate",
        icon=":material/speed:",
        help="For a rate of your own, not auto: a range test (Smith 2017) trains a copy for a "
        "hundred steps at rising rates. A good rate is one where the loss still falls.",
    )
    if curve is None:
        return
    st.plotly_chart(
        plot_lr_range_test(curve.rates, curve.losses, curve.suggestion),
        key="rates",
        alt="Learning-rate range test: loss against learning rate",
    )
    if curve.suggestion is None:
        st.info(
            "The loss did not fall within a hundred steps, so there is nothing to suggest.",
            icon=":material/info:",
        )
    else:
        text = f"Use {curve.suggestion:g}"
        st.button(
            text,
            icon=":material/check:",
            on_click=settings.set_fields,
            args=({"learning_rate": curve.suggestion},),
        )


def describe_augmentation(config: RunConfig) -> None:
    """Say which augmented images the run will see, before the run starts."""
    cut = cut_index(plan_strategy(config, list_stages(config)))
    num_views = choose_num_views(config, cut)
    if num_views == 0:
        st.caption(
            "Augmentation: a new version of each image every epoch, so the frozen stages' output "
            "cannot be cached."
        )
    elif num_views:
        method = (
            "computed again each time"
            if why_uncached(config, cut)
            else "run through the frozen stages once"
        )
        st.caption(
            f"Augmentation: {pluralize(num_views, 'version')} of each image, {method} and used in "
            "turn (More settings changes the number)."
        )


def summarize(config: RunConfig, context: ChoiceContext, *, is_timing: bool) -> str:
    """Return one line about the run: strategy, length, and forecast.

    Args:
        is_timing: whether the run's steps are being timed.
    """
    devices, forecast = form.describe_devices(), context.forecast(config)
    cost = "estimating the time …" if is_timing else ""
    if forecast:
        cost = f"about {format_rough_duration(forecast.seconds)}{' on one' if devices else ''}"
    parts = [
        f"**{STRATEGIES[config.strategy].title}**",
        pluralize(config.epochs, "epoch") if count_epochs(config) else "no epochs",
        devices,
        cost,
    ]
    return " · ".join(filter(None, parts))


def describe_details(config: RunConfig, context: ChoiceContext, dataset: Dataset) -> str:
    """Return the facts that the one line leaves out: network, images, and memory."""
    training = int((dataset.table["split"] == TRAIN).sum()) * config.train_fraction
    forecast = context.forecast(config)
    parts = [
        escape_markdown(config.backbone),
        pluralize(max(1, round(training)), "training image"),
        format_memory(forecast.memory_bytes, forecast.device_bytes) if forecast else "",
    ]
    return " · ".join(filter(None, parts))


def draw_start_bar(
    config: RunConfig | None, context: ChoiceContext, problems: dict[str, str], reason: str | None
) -> None:
    """Draw the bar that is always visible: the next run, or why none can start, and *Start*."""
    with st.bottom.container(horizontal=True, vertical_alignment="center", key="start_bar"):
        with st.container(width="stretch", gap=None):
            if problems:
                st.markdown(
                    f":red[:material/error: **{pluralize(len(problems), 'setting')} cannot be "
                    "used:**]"
                )
                with st.container(
                    gap=None, height=80 if len(problems) > MOST_LINES else "content", border=False
                ):
                    for name, problem in problems.items():
                        st.markdown(
                            f":small[:red[{escape_markdown(form.get_label(name))} "
                            f"{escape_markdown(problem)}]]"
                        )
            elif config and context.dataset:
                if reason:
                    st.markdown(f":orange[:material/download:] {reason}")
                else:
                    is_timing = time_in_background(config, context)
                    st.markdown(
                        summarize(config, context, is_timing=is_timing),
                        help=describe_details(config, context, context.dataset),
                    )
        pressed = st.button(
            "Start training",
            type="primary",
            icon=":material/local_fire_department:",
            disabled=config is None or reason is not None,
            help=reason,
            key="start",
        )
    if config and pressed:
        try:
            run = submit(config, settings.get_devices())
        except FinetuneError as error:
            st.bottom.error(escape_markdown(str(error)))
            return
        go("pages/train.py", run)


# Each part has its own container. Whatever appears in it, the fields below keep their places and
# the text typed into them.
settings.set_missing_defaults()
with st.container():
    dataset = describe_data()
values = settings.read_values(
    (data_folder() if dataset else "") or "any",
    select_effective_edits(dataset.edits) if dataset else (),
)
config, problems = form.check_settings(values, readable_roots(), dataset)
if device_problems := form.check_devices(config):
    config, problems = None, problems | device_problems
if dataset is None:
    # The missing data set is mentioned above.
    problems.pop("data", None)
with st.container():
    draw_preset_changes()
    warn_of_other_data(data_folder() if dataset else None)
valid = form.fill(settings.make_valid_config(values), dataset)
with st.container():
    draw_plan(valid, problems, len(dataset.classes) if dataset else None)
context = collect_context(dataset, timed=config is not None)
reason = choose_network(valid, config, context, problems)
choose_strategy(valid, config, context, problems, reason)
draw_training_settings(valid, config, dataset, problems)
if dataset is None:
    with st.bottom:
        draw_next_step("pages/dataset.py", "Choose data first")
else:
    draw_start_bar(config, context, problems, reason)

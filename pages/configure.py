"""Configure: backbone, strategy and settings of the next run, with a drawing of the strategy."""

from functools import partial
from pathlib import Path

import streamlit as st

from finetune_core.config import RunConfig, names_in, setting_of
from finetune_core.config.changes import training_in_words
from finetune_core.config.metadata import ADVANCED, HARDWARE, TRAINING
from finetune_core.data.dataset import Dataset
from finetune_core.data.edits import edits_in_words, effective
from finetune_core.data.splits import TRAIN
from finetune_core.errors import FinetuneError
from finetune_core.figures.curves import rate_curve
from finetune_core.formatting import memory, rough_duration, things
from finetune_core.models.weights import RANDOM
from finetune_core.training.lr_finder import RateCurve, find_rate
from finetune_core.training.stage_plan import cut_index, plan, stages_of
from finetune_core.training.strategies import STRATEGIES, epochs_of
from finetune_core.training.trunk import chosen_views, why_uncached
from pages.shared.chrome import go, next_step, page, plain
from pages.shared.configure import form, settings
from pages.shared.configure.advice import which_backbone
from pages.shared.configure.choices import (
    Known,
    backbone_cards,
    known_of,
    other_strategy_cards,
    strategy_cards,
)
from pages.shared.configure.forecasts import forecast_all, time_in_background
from pages.shared.configure.networks import OPEN as NETWORKS_KEY
from pages.shared.configure.networks import network_finder
from pages.shared.configure.origin import say_whose_settings
from pages.shared.configure.presets import draw_presets, preset_changes
from pages.shared.configure.stages import draw_strategy
from pages.shared.configure.weights import offer_weights
from pages.shared.data.chosen import data_folder, data_name, readable_roots
from pages.shared.jobs import offer
from pages.shared.runs.backend import submit
from pages.shared.runs.profile import offer_profile

MORE_KEY, SETTINGS_KEY, STRATEGIES_KEY = "more_settings", "training_settings", "more_strategies"
MOST_LINES = 3  # problems in the bar; beyond that the bar scrolls

page(
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
            dataset = form.chosen_dataset()
            if dataset:
                images = things(len(dataset.table), "image")
                classes = things(len(dataset.classes), "class", "classes")
                changes = edits_in_words(dataset.edits)
                st.markdown(
                    f"Training on **{plain(data_name(data_folder()))}**: {images} in {classes}"
                    + (f", with your changes ({plain(changes)})." if changes else ".")
                )
        draw_presets()
    return dataset


def draw(valid: RunConfig, problems: dict[str, str], classes: int | None) -> None:
    """Draw the strategy, even if other settings of the form are invalid."""
    try:
        draw_strategy(
            valid, classes or 1000, settings.toggle_stage, rates="learning_rate" not in problems
        )
    except FinetuneError:
        st.caption("The strategy is drawn once its settings below are valid.")
    if valid.earlier_run:
        st.info(
            f"Starts from {plain(Path(valid.earlier_run).name)}: frozen stages stay as that run "
            "left them.",
            icon=":material/account_tree:",
        )
    if valid.starts_from == RANDOM:
        st.warning(
            "The backbone starts from random weights; frozen stages stay random.",
            icon=":material/casino:",
        )


def choose_network(
    valid: RunConfig, config: RunConfig | None, known: Known, problems: dict[str, str]
) -> str | None:
    """Draw the networks at hand and the ways to other networks.

    Returns:
        The reason why no run can be started; None if one can.
    """
    st.markdown(f":small[{form.label('backbone')}]", help=setting_of("backbone").help)
    backbone_cards(valid, known)
    with st.container():
        form.backbone_problems(problems)
    unfold_problems(NETWORKS_KEY, {"backbone"} & problems.keys())
    with st.grid("auto", min_column_width=320, gap="small"):
        with st.container():
            network_finder()
        with st.container():
            which_backbone(config, known.dataset)
    with st.container():
        return offer_weights([valid])


def choose_strategy(
    valid: RunConfig,
    config: RunConfig | None,
    known: Known,
    problems: dict[str, str],
    reason: str | None,
) -> None:
    """Draw the strategies and the settings of the chosen strategy.

    Args:
        reason: why no run can be started.
    """
    st.markdown(f":small[{form.label('strategy')}]", help=setting_of("strategy").help)
    strategy_cards(valid, known)
    form.strategy_settings(problems)
    with st.expander(
        "More strategies", icon=":material/category:", key=STRATEGIES_KEY, on_change="rerun"
    ):
        if st.session_state.get(STRATEGIES_KEY):
            other_strategy_cards(valid, known)
            with st.container():
                if config and known.dataset:
                    forecast_all(config, known, known.dataset)
    with st.container():
        if config and known.dataset:
            offer_profile(config, known.dataset, button_key="profile", disabled=reason is not None)


def unfold_problems(key: str, inside: set[str]) -> None:
    """Open a fold as soon as one of its fields has a new problem.

    Args:
        key: key of the fold's widget.
        inside: names of the fold's fields that have a problem now.
    """
    seen = f"{key}_problems"
    if inside - st.session_state.get(seen, set()):
        st.session_state[key] = True
    st.session_state[seen] = inside


def set_training(
    valid: RunConfig, config: RunConfig | None, dataset: Dataset | None, problems: dict[str, str]
) -> None:
    """Draw the training settings, folded under a summary, and the learning-rate finder."""
    advanced = {"weights", "from_run", "devices", *names_in(*ADVANCED)}
    unfold_problems(MORE_KEY, advanced & problems.keys())
    unfold_problems(SETTINGS_KEY, (advanced | set(names_in(TRAINING))) & problems.keys())
    st.markdown(f":small[Training] · {plain(training_in_words(valid))}")
    # A label that changes would redraw the fields, and take the focus from the one being typed in.
    with st.expander(
        "Training settings", icon=":material/tune:", key=SETTINGS_KEY, on_change="rerun"
    ):
        form.section(TRAINING, problems, config=config)
        with st.container():
            if form.fits():
                st.caption(
                    "The head is fitted in one go, so settings of training in steps are hidden."
                )
            elif config and dataset:
                about_augmentation(config)
                rate_finder(config)
        with st.expander("More settings", key=MORE_KEY, on_change="rerun"):
            form.weights_field(problems)
            for section in filter(form.fields_in, ADVANCED):
                st.markdown(f"**{section}**")
                form.section(section, problems, config=config)
                if section == HARDWARE:
                    form.devices_field(problems)


def rate_finder(config: RunConfig) -> None:
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
        rate_curve(curve.rates, curve.losses, curve.suggestion),
        key="rates",
        alt="Learning-rate range test: loss against learning rate",
    )
    if curve.suggestion is None:
        st.info(
            "The loss did not fall within a hundred steps, so there is nothing to suggest.",
            icon=":material/info:",
        )
    else:
        words = f"Use {curve.suggestion:g}"
        st.button(
            words,
            icon=":material/check:",
            on_click=settings.set_fields,
            args=({"learning_rate": curve.suggestion},),
        )


def about_augmentation(config: RunConfig) -> None:
    """Say which augmented images the run will see, before the run starts."""
    cut = cut_index(plan(config, stages_of(config)))
    views = chosen_views(config, cut)
    if views == 0:
        st.caption(
            "Augmentation: a new version of each image every epoch, so the frozen stages' output "
            "cannot be cached."
        )
    elif views:
        how = (
            "computed again each time"
            if why_uncached(config, cut)
            else "run through the frozen stages once"
        )
        st.caption(
            f"Augmentation: {things(views, 'version')} of each image, {how} and used in turn "
            "(More settings changes the number)."
        )


def summarize(config: RunConfig, known: Known, *, timing: bool) -> str:
    """Return one line about the run: strategy, length, and forecast.

    Args:
        timing: whether the run's steps are being timed.
    """
    where, forecast = form.on_devices(), known.expects(config)
    cost = "estimating the time …" if timing else ""
    if forecast:
        cost = f"about {rough_duration(forecast.seconds)}{' on one' if where else ''}"
    parts = [
        f"**{STRATEGIES[config.strategy].title}**",
        things(config.epochs, "epoch") if epochs_of(config) else "no epochs",
        where,
        cost,
    ]
    return " · ".join(filter(None, parts))


def detail(config: RunConfig, known: Known, dataset: Dataset) -> str:
    """Return the facts that the one line leaves out: network, images, and memory."""
    training = int((dataset.table["split"] == TRAIN).sum()) * config.train_fraction
    forecast = known.expects(config)
    parts = [
        plain(config.backbone),
        things(max(1, round(training)), "training image"),
        memory(forecast.memory_bytes, forecast.device_bytes) if forecast else "",
    ]
    return " · ".join(filter(None, parts))


def start_bar(
    config: RunConfig | None, known: Known, problems: dict[str, str], reason: str | None
) -> None:
    """Draw the bar that is always visible: the next run, or why none can start, and *Start*."""
    with st.bottom.container(horizontal=True, vertical_alignment="center", key="start_bar"):
        with st.container(width="stretch", gap=None):
            if problems:
                st.markdown(
                    f":red[:material/error: **{things(len(problems), 'setting')} cannot be used:**]"
                )
                with st.container(
                    gap=None, height=80 if len(problems) > MOST_LINES else "content", border=False
                ):
                    for name, problem in problems.items():
                        st.markdown(f":small[:red[{plain(form.label(name))} {plain(problem)}]]")
            elif config and known.dataset:
                if reason:
                    st.markdown(f":orange[:material/download:] {reason}")
                else:
                    timing = time_in_background(config, known)
                    st.markdown(
                        summarize(config, known, timing=timing),
                        help=detail(config, known, known.dataset),
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
            run = submit(config, settings.devices())
        except FinetuneError as error:
            st.bottom.error(plain(str(error)))
            return
        go("pages/train.py", run)


# Each part has its own container. Whatever appears in it, the fields below keep their places and
# the text typed into them.
settings.fill_in()
with st.container():
    dataset = describe_data()
found = settings.values(
    (data_folder() if dataset else "") or "any", effective(dataset.edits) if dataset else ()
)
config, problems = form.checked(found, readable_roots(), dataset)
if wrong := form.devices_problem(config):
    config, problems = None, problems | wrong
if dataset is None:
    # The missing data set is mentioned above.
    problems.pop("data", None)
with st.container():
    preset_changes()
    say_whose_settings(data_folder() if dataset else None)
valid = form.fill(settings.valid_config(found), dataset)
with st.container():
    draw(valid, problems, len(dataset.classes) if dataset else None)
known = known_of(dataset, timed=config is not None)
reason = choose_network(valid, config, known, problems)
choose_strategy(valid, config, known, problems, reason)
set_training(valid, config, dataset, problems)
if dataset is None:
    with st.bottom:
        next_step("pages/dataset.py", "Choose data first")
else:
    start_bar(config, known, problems, reason)

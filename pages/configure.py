"""Configure: backbone, strategy and settings of the next run, with the strategy drawn."""

import hashlib
from functools import partial
from pathlib import Path

import streamlit as st

from finetune_core.config import RunConfig, names_in, setting_of
from finetune_core.config.metadata import ADVANCED, HARDWARE, TRAINING
from finetune_core.data.dataset import Dataset
from finetune_core.data.edits import edits_in_words, effective
from finetune_core.data.splits import TRAIN
from finetune_core.errors import FinetuneError
from finetune_core.figures.curves import rate_curve
from finetune_core.formatting import duration, memory, number, size, things
from finetune_core.models.weights import RANDOM
from finetune_core.training.forecast import comparable
from finetune_core.training.lr_finder import RateCurve, find_rate
from finetune_core.training.stage_plan import cut_index, plan, stages_of
from finetune_core.training.strategies import STRATEGIES, epochs_of
from finetune_core.training.timing import calibrate
from finetune_core.training.trunk import chosen_views, why_uncached
from pages.shared.chrome import go, next_step, page, plain
from pages.shared.configure import form, settings
from pages.shared.configure.advice import which_backbone
from pages.shared.configure.choices import Known, backbone_cards, known_of, strategy_cards
from pages.shared.configure.networks import network_finder
from pages.shared.configure.presets import draw_presets
from pages.shared.configure.stages import draw_strategy
from pages.shared.configure.weights import offer_weights
from pages.shared.data.chosen import data_folder, data_name, readable_roots
from pages.shared.jobs import begin, offer, shown_outcome
from pages.shared.runs.backend import submit, why_not_timed
from pages.shared.runs.profile import offer_profile

MORE_KEY = "more_settings"
MOST_LINES = 3  # of problems in the bar; of more, the rest is scrolled to

page(
    "pages/configure.py",
    "Decide which stages of a pretrained network train, and how. Cold stages stay frozen, warm ones train.",
)


def data_in_words() -> Dataset | None:
    """Say which data set is trained on, and return it if it can be read."""
    dataset = form.chosen_dataset()
    if dataset is None:
        return None
    name = data_name(data_folder())
    st.markdown(
        f"Training on **{plain(name)}**: {things(len(dataset.table), 'image')} in {things(len(dataset.classes), 'class', 'classes')}"
        + (
            f", with your changes ({plain(edits_in_words(dataset.edits))})."
            if edits_in_words(dataset.edits)
            else "."
        )
    )
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
            f"Starts from {plain(Path(valid.earlier_run).name)}: frozen stages stay as that run left them.",
            icon=":material/account_tree:",
        )
    if valid.starts_from == RANDOM:
        st.warning(
            "The backbone starts from random weights; frozen stages stay random.",
            icon=":material/casino:",
        )


def what(
    valid: RunConfig, config: RunConfig | None, known: Known, problems: dict[str, str]
) -> str | None:
    """What trains: backbone and strategy; returns why nothing can be started."""
    with st.container():
        form.backbone_field(problems)
    backbone_cards(valid, known)
    network_finder()
    which_backbone(config, known.dataset)
    with st.container():
        reason = offer_weights([valid])
    with st.container(
        horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"
    ):
        st.markdown(
            f":small[{form.label('strategy')}]", help=setting_of("strategy").help, width="content"
        )
        timing = measure_button(config, known, known.dataset) if config and known.dataset else None
    with st.container():
        if timing:
            shown_outcome(timing)
    strategy_cards(valid, known)
    form.strategy_settings(problems)
    with st.container():
        if config and known.dataset:
            forecast_table(config, known)
            offer_profile(config, known.dataset, button_key="profile", disabled=reason is not None)
    return reason


def how(config: RunConfig | None, dataset: Dataset | None, problems: dict[str, str]) -> None:
    """How it trains: settings, and the learning-rate range test."""
    inside = {"weights", "from_run", "devices", *names_in(*ADVANCED)} & problems.keys()
    # something is wrong in there that was not before
    if inside - st.session_state.get("problems_inside", set()):
        st.session_state[MORE_KEY] = True
    st.session_state["problems_inside"] = inside
    form.section(TRAINING, problems, config=config)
    with st.container():
        if form.fits():
            st.caption(
                "The head is fitted in one go: epochs, learning rate, batch size, augmentation and all else that steers training in steps "
                "mean nothing here and are not shown."
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


def measure_button(config: RunConfig, known: Known, dataset: Dataset) -> str:
    """Offer to time each strategy; returns the key of that job."""
    compared = comparable(config, known.num_images)
    complete = all(known.expects(one) for one in compared)
    mark = hashlib.sha256("".join(one.model_dump_json() for one in compared).encode()).hexdigest()[
        :16
    ]
    key = f"forecast:{mark}-{dataset.fingerprint}"
    reason = why_not_timed()
    st.button(
        "Measure again" if complete else "Forecast all strategies",
        icon=":material/timer:",
        disabled=reason is not None,
        help=reason
        or "Times a few steps of every strategy on this machine and extrapolates; each finished run refines the forecast.",
        key="forecast",
        on_click=begin,
        args=(
            key,
            "Timing a few steps of each strategy",
            partial(calibrate, compared, dataset, known.book, again=complete),
        ),
    )
    return key


def forecast_table(config: RunConfig, known: Known) -> None:
    """All strategies that were timed, side by side."""
    forecasts = {one.strategy: known.expects(one) for one in comparable(config, known.num_images)}
    rows = [
        {
            "Strategy": ("▸ " if name == config.strategy else "") + STRATEGIES[name].title,
            "Trainable": number(one.trainable_parameters),
            "Total": duration(one.seconds),
            "Per epoch": duration(one.epoch_seconds) if one.epoch_seconds else "none",
            "Memory": size(one.memory_bytes),
            **({} if one.device_bytes is None else {"GPU memory": size(one.device_bytes)}),
            "Cache": size(one.cache_bytes) if one.cache_bytes else "none",
        }
        for name, one in forecasts.items()
        if one
    ]
    if not rows:
        return
    notes = {
        "Total": "The whole run when nothing is cached yet; less after a run with the same frozen stages.",
        "Per epoch": "The mean, if stages thaw during the run.",
        "Memory": "Weights, optimizer, decoded images, cache, and activations of a step, as far as they are not on a GPU; in addition to the program itself.",
        "GPU memory": "Weights, optimizer, and activations of a step.",
        "Cache": "The frozen stages' output for each image, computed once.",
    }
    columns = {name: st.column_config.TextColumn(help=note) for name, note in notes.items()}
    with st.expander("Forecast of all strategies", icon=":material/table:"):
        st.dataframe(rows, hide_index=True, column_config=columns)
        form.about_forecasts()


def rate_finder(config: RunConfig) -> None:
    """Run a learning-rate range test, and offer its suggestion."""
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
    """Which augmented images the run will see, before it starts."""
    cut = cut_index(plan(config, stages_of(config)))
    views = chosen_views(config, cut)
    if views == 0:
        st.caption(
            "Augmentation: a new version of each image every epoch, so the frozen stages' output cannot be cached."
        )
    elif views:
        how = (
            "computed again each time"
            if why_uncached(config, cut)
            else "run through the frozen stages once"
        )
        st.caption(
            f"Augmentation: {things(views, 'version')} of each image, {how} and used in turn (More settings changes the number)."
        )


def summary(config: RunConfig, known: Known, dataset: Dataset) -> str:
    """The run in one line."""
    training = int((dataset.table["split"] == TRAIN).sum()) * config.train_fraction
    where, forecast = form.on_devices(), known.expects(config)
    costs = []
    if forecast:
        costs = [
            f"about {duration(forecast.seconds)}{' on one' if where else ''}",
            memory(forecast.memory_bytes, forecast.device_bytes),
        ]
    parts = [
        f"**{STRATEGIES[config.strategy].title}** on **{plain(config.backbone)}**",
        things(max(1, round(training)), "training image"),
        things(config.epochs, "epoch") if epochs_of(config) else "no epochs",
        where,
        *costs,
    ]
    return " · ".join(filter(None, parts))


def start_bar(
    config: RunConfig | None, known: Known, problems: dict[str, str], reason: str | None
) -> None:
    """What would be started, or why nothing can be, and Start: always visible."""
    with st.bottom.container(
        horizontal=True, vertical_alignment="center", border=True, key="start_bar"
    ):
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
                st.markdown(
                    f":orange[:material/download:] {reason}"
                    if reason
                    else summary(config, known, known.dataset)
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


# Each part in a container of its own: whatever appears in it, the fields below keep their places, and what is typed into them.
with st.container():
    dataset = data_in_words()
found = settings.values(
    (data_folder() if dataset else "") or "any", effective(dataset.edits) if dataset else ()
)
config, problems = form.checked(found, readable_roots(), dataset)
if wrong := form.devices_problem(config):
    config, problems = None, problems | wrong
if dataset is None:
    problems.pop("data", None)  # that there is none is said above
draw_presets()
valid = form.fill(settings.valid_config(found), dataset)
with st.container():
    draw(valid, problems, len(dataset.classes) if dataset else None)
known = known_of(dataset, timed=config is not None)
left, right = st.columns([3, 2], gap="large")
with left:
    reason = what(valid, config, known, problems)
with right:
    how(config, dataset, problems)
if dataset is None:
    with st.bottom:
        next_step("pages/dataset.py", "Choose data first")
else:
    start_bar(config, known, problems, reason)

"""Configure: backbone, strategy and settings of the next run, with the strategy drawn."""

import hashlib
from functools import partial
from typing import Any

import streamlit as st

from finetune_core.config import RunConfig, names_in
from finetune_core.config.metadata import ADVANCED, TRAINING
from finetune_core.data.dataset import Dataset
from finetune_core.data.edits import edits_in_words, effective
from finetune_core.errors import ConfigError, FinetuneError
from finetune_core.figures.curves import rate_curve
from finetune_core.formatting import duration, number, size, things
from finetune_core.models.catalogue import PACKAGED
from finetune_core.models.network import network_stages
from finetune_core.models.weights import RANDOM
from finetune_core.recipes import FEATURE_EXTRACTION_RECIPE, TUTORIAL_RECIPE
from finetune_core.training.forecast import SpeedBook, calibrate, comparable, forecast
from finetune_core.training.hyperrule import rule_of
from finetune_core.training.lr_finder import RateCurve, find_rate
from finetune_core.training.stage_plan import cut_index, plan
from finetune_core.training.strategies import STRATEGIES
from finetune_core.training.trunk import chosen_views, why_uncached
from pages.shared.chrome import go, next_step, page, plain
from pages.shared.configure import form, settings
from pages.shared.configure.stages import draw_strategy
from pages.shared.configure.weights import offer_weights
from pages.shared.data.chosen import data_folder, data_name, readable_roots
from pages.shared.jobs import begin, outcome
from pages.shared.runs.backend import submit, why_not_timed

MORE_KEY = "more_settings"

page(
    "pages/configure.py",
    "Decide which stages of a pretrained network train, and how. Cold stages stay frozen, warm ones train.",
)


def recipes(dataset: Dataset | None) -> None:
    with st.container(horizontal=True):
        st.button(
            "The tutorial's recipe",
            icon=":material/menu_book:",
            on_click=settings.apply_recipe,
            args=(TUTORIAL_RECIPE,),
            help="ResNet-18 from ImageNet, a new head, layer4 and head trained with Adam at 0.0001, cross-entropy, batch 32, 224 pixels, "
            "ImageNet's normalisation, 10 epochs.",
        )
        st.button(
            "Feature extraction",
            icon=":material/ac_unit:",
            on_click=settings.apply_recipe,
            args=(FEATURE_EXTRACTION_RECIPE,),
            help="The same network and settings, but only the head trains, with Adam at 0.001: faster.",
        )
        st.button(
            "Tutorial, no download",
            icon=":material/package_2:",
            on_click=settings.apply_recipe,
            args=(TUTORIAL_RECIPE | {"backbone": PACKAGED},),
            help=f"The tutorial's settings on {PACKAGED}, whose weights are installed with Thaw.",
        )
        if dataset:
            rule = rule_of(dataset)
            st.button(
                "Fit to the size of my data",
                icon=":material/straighten:",
                on_click=settings.set_fields,
                args=(rule.settings,),
                help="Length, image size, optimizer and learning rate by the number of images, in the manner of BiT's HyperRule "
                f"(Kolesnikov et al. 2020): a default, not a search. {rule.reason}",
            )


def data_in_words() -> Dataset | None:
    """Says what will be trained on; the data set, where it can be read."""
    dataset = form.chosen_dataset()
    if dataset is None:
        return None
    name = data_name(data_folder())
    st.markdown(
        f"Training on **{plain(name)}**: {things(len(dataset.table), 'image')} in {things(len(dataset.classes), 'class', 'classes')}"
        + (f", with your changes ({plain(edits_in_words(dataset.edits))})." if edits_in_words(dataset.edits) else ".")
    )
    return dataset


def draw(found: dict[str, Any], problems: dict[str, str], classes: int | None) -> None:
    """Draw the strategy, whatever is still wrong in the form."""
    try:
        draw_strategy(settings.sound(found), classes or 1000, settings.toggle_stage, rates="learning_rate" not in problems)
    except ConfigError:
        st.caption("The strategy is drawn once its settings below can be used.")


def fields(problems: dict[str, str]) -> None:
    inside = {"weights", *names_in(*ADVANCED)} & problems.keys()
    if inside - st.session_state.get("problems_inside", set()):  # something is wrong in there that was not before
        st.session_state[MORE_KEY] = True
    st.session_state["problems_inside"] = inside
    left, right = st.columns(2, gap="large")
    with left:
        form.backbone_field(problems)
        form.strategy_field(problems)
    with right:
        form.section(TRAINING, problems)
        with st.expander("More settings", key=MORE_KEY, on_change="rerun"):
            form.weights_field(problems)
            for section in ADVANCED:
                st.markdown(f"**{section}**")
                form.section(section, problems)


def about_weights(found: dict[str, Any]) -> None:
    if found["weights"] == RANDOM or found["strategy"] == "from_scratch":
        st.warning("The backbone starts from random weights; frozen stages stay random.", icon=":material/casino:")


def forecasts(config: RunConfig, dataset: Dataset) -> None:
    """What each strategy would take, side by side."""
    st.subheader("What it will take", anchor=False)
    book = SpeedBook()
    compared = comparable(config)
    if not all(book.knows(one, dataset) for one in compared):
        st.caption(
            "Thaw times a few steps of every strategy on this machine and works out the rest; each run that ends corrects it."
        )
        reason = why_not_timed()
        mark = hashlib.sha256("".join(one.model_dump_json() for one in compared).encode()).hexdigest()[:16]
        key = f"forecast:{mark}-{dataset.fingerprint}"
        timing = (key, "Timing a few steps of each strategy", partial(calibrate, compared, dataset, book))
        st.button(
            "Forecast all strategies",
            icon=":material/timer:",
            disabled=reason is not None,
            help=reason,
            on_click=begin,
            args=timing,
        )
        try:
            outcome(key)
        except FinetuneError as error:
            st.error(plain(str(error)))
        if reason:
            st.caption(reason)
        return
    rows = []
    reading = book.decode_seconds(dataset, config.image_size)
    for one in compared:
        told = forecast(one, dataset, book.speed(one), reading)
        rows.append(
            {
                "Strategy": ("▸ " if one.strategy == config.strategy else "") + STRATEGIES[one.strategy].title,
                "Trainable": number(told.trainable_parameters),
                "In all": duration(told.seconds),
                "An epoch": duration(told.epoch_seconds),
                "Memory": size(told.memory_bytes),
                "Cache": size(told.cache_bytes) if told.cache_bytes else "none",
            }
        )
    notes = {
        "In all": "Everything, when nothing is cached yet: less after a run with the same frozen stages.",
        "Memory": "Weights, optimizer, decoded images, cache and what a step holds; the program itself comes on top.",
        "Cache": "What the frozen stages make of each image, computed once.",
    }
    st.dataframe(
        rows, hide_index=True, column_config={name: st.column_config.TextColumn(help=note) for name, note in notes.items()}
    )


def rate_finder(config: RunConfig) -> None:
    """Try rising learning rates, and offer the one that suits."""
    st.subheader("Which learning rate", anchor=False)
    st.caption("Trains a copy for a hundred steps at ever higher rates. A good rate lies where the loss still falls.")
    key = f"rates:{config.model_dump_json(exclude={'learning_rate', 'epochs'})}"
    trying = (key, "Trying learning rates", partial(find_rate, config, readable_roots()))
    st.button("Find a learning rate", icon=":material/speed:", on_click=begin, args=trying)
    try:
        curve: RateCurve | None = outcome(key)
    except FinetuneError as error:
        st.error(plain(str(error)))
        return
    if curve is None:
        return
    st.plotly_chart(rate_curve(curve.rates, curve.losses, curve.suggestion), key="rates", alt="Loss at rising learning rates")
    if curve.suggestion is None:
        st.info("The loss did not fall within a hundred steps, so there is nothing to suggest.", icon=":material/info:")
    else:
        words = f"Use {curve.suggestion:g}"
        st.button(words, icon=":material/check:", on_click=settings.set_fields, args=({"learning_rate": curve.suggestion},))


def about_augmentation(config: RunConfig) -> None:
    """Which augmented images the run will see, before it starts."""
    cut = cut_index(plan(config, network_stages(config.backbone)))
    views = chosen_views(config, cut)
    if views == 0:
        st.caption(
            "Augmentation: a fresh version of each image every epoch, so nothing is kept of what the frozen stages make of it."
        )
    elif views and not why_uncached(config, cut):
        st.caption(
            f"Augmentation: {things(views, 'version')} of each image, computed through the frozen stages once and used in turn "
            "(More settings changes the number)."
        )


def start(config: RunConfig | None, problems: dict[str, str]) -> None:
    if problems:
        st.error(f"{things(len(problems), 'setting')} cannot be used:", icon=":material/error:")
        for name, problem in problems.items():
            st.markdown(f"- :red[{plain(form.label(name))} {plain(problem)}]")
    reason = offer_weights([config]) if config else None
    pressed = st.button(
        "Start training",
        type="primary",
        icon=":material/local_fire_department:",
        disabled=config is None or reason is not None,
        help=reason,
    )
    if pressed:
        try:
            run = submit(config)
        except FinetuneError as error:
            st.error(plain(str(error)))
            return
        go("pages/train.py", run)


dataset = data_in_words()
root = data_folder() if dataset else ""
classes = len(dataset.classes) if dataset else None
recipes(dataset)
found = settings.values(root or "any", effective(dataset.edits) if dataset else ())
config, problems = form.checked(found, readable_roots(), dataset)
if dataset is None:
    problems.pop("data", None)  # that there is none is said above
draw(found, problems, classes)
about_weights(found)
fields(problems)
if classes is None:
    next_step("pages/dataset.py", "Choose data first")
else:
    if config and dataset:
        about_augmentation(config)
        rate_finder(config)
        forecasts(config, dataset)
    start(config, problems)

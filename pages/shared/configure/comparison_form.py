"""Form that starts a comparison: strategies, seeds, forecasts, and a button to queue all runs."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import streamlit as st

from finetune_core.config import RunConfig
from finetune_core.data.dataset import Dataset
from finetune_core.data.edits import select_effective_edits
from finetune_core.data.recent import data_id
from finetune_core.data.sample import SAMPLE_NAME
from finetune_core.data.splits import TRAIN
from finetune_core.errors import ConfigError, FinetuneError, WeightsError
from finetune_core.evaluation.comparison.arms import arm_titles
from finetune_core.formatting import format_duration, format_percent, pluralize
from finetune_core.runs.design import (
    FROM,
    design_runs,
    forecast_arm,
    forecast_spread,
    group_by_arm,
    set_rates,
)
from finetune_core.training.devices.speed_book import SpeedBook
from finetune_core.training.forecast.lr_finder import find_rate
from finetune_core.training.forecast.timing import calibrate
from finetune_core.training.strategies.catalogue import BASELINE, STRATEGIES, count_epochs
from finetune_core.training.strategies.recipes import DEMO_RECIPE
from finetune_core.work import Work
from pages.shared.address import link_parameters
from pages.shared.chrome import escape_markdown
from pages.shared.configure import form, settings
from pages.shared.configure.networks import list_networks
from pages.shared.configure.weights import offer_weights
from pages.shared.data.chosen import data_folder, data_name, readable_roots
from pages.shared.jobs import begin, forget, show_outcome
from pages.shared.runs.backend import submit, why_not_timed, worker


@dataclass(frozen=True)
class Selection:
    """Selection in the form.

    Attributes:
        strategies: names of strategies, and cuts as ``FROM`` followed by a stage.
        seeds: number of seeds.
        backbones: names of backbones. Empty: the one of the Configure page.
        fractions: fractions of the training images. Empty: the one of the Configure page.
    """

    strategies: list[str]
    seeds: int
    backbones: list[str]
    fractions: list[float]


def draw_start_form() -> list[str] | None:
    """Draw the form of strategies and seeds with its forecasts.

    Returns:
        The ids of the runs once they are queued; None before that, or if no run can be started.
    """
    dataset = form.load_chosen_dataset()
    if dataset is None:
        return None
    base, problems = form.check_settings(
        settings.read_values(data_folder(), select_effective_edits(dataset.edits)),
        readable_roots(),
        dataset,
    )
    if device_problems := form.check_devices():
        base, problems = None, problems | device_problems
    _draw_summary(base, problems, dataset)
    if base is None:
        return None
    selection = _draw_choices(base)
    try:
        configs = design_runs(
            base,
            selection.strategies,
            range(base.seed, base.seed + selection.seeds),
            selection.backbones,
            selection.fractions,
            dataset.split_counts.get(TRAIN, 0),
        )
    except ConfigError as error:
        st.info(
            escape_markdown(
                " ".join(
                    f"{form.get_label(name)}: {problem}."
                    for name, problem in error.problems.items()
                )
            )
        )
        return None
    except WeightsError as error:
        st.info(escape_markdown(str(error)))
        return None
    found_rates = st.session_state.setdefault("compared_rates", {})
    rates = {
        arm: found_rates.get(_search_key(arm_configs[0]))
        for arm, arm_configs in group_by_arm(configs).items()
    }
    configs = set_rates(configs, rates)
    table = st.container()
    with st.container():
        reason = offer_weights(configs)
    with st.container(horizontal=True):
        if _draw_start_button(configs, reason) and (run_ids := queue_runs(configs)):
            # Return before computing things that the next page does not need.
            return run_ids
        timing, search = _draw_preparing_buttons(configs, dataset)
    with st.container():
        _show_outcomes(timing, search)
    with table:
        _draw_table(configs, dataset)
    return None


def _draw_summary(base: RunConfig | None, problems: dict[str, str], dataset: Dataset) -> None:
    """Say in one line which settings all runs share."""
    data = data_folder()
    is_sample, name = data_id(data) == SAMPLE_NAME, data_name(data)
    if "data" in problems:
        st.error(escape_markdown(problems["data"]), icon=":material/error:")
    elif base is None:
        listed = " ".join(
            f"{form.get_label(field)} {problem}." for field, problem in problems.items()
        )
        st.error(
            escape_markdown(f"The settings of the Configure page are invalid. {listed}"),
            icon=":material/error:",
        )
    else:
        st.markdown(
            escape_markdown(
                f"All on {name} ({pluralize(len(dataset.table), 'image')}), from "
                f"{_describe_start(base)}: {pluralize(base.epochs, 'epoch')} of batches of "
                f"{base.batch_size}, learning rate {base.learning_rate:g} "
                f"({base.schedule.replace('_', ' ')}, {base.optimizer}), {base.image_size} "
                f"pixels, augmentation {base.augmentation.replace('_', ' ')}. All share the "
                "split; for equal seeds also the new head and the order of the images."
                + (
                    f" Each trains {form.describe_devices()}, those without epochs on one."
                    if form.describe_devices()
                    else ""
                )
            )
        )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.page_link(
            "pages/configure.py",
            label="Change these settings",
            icon=":material/tune:",
            width="content",
            query_params=link_parameters(),
        )
        quick = {name: DEMO_RECIPE[name] for name in ("epochs", "image_size")}
        if (
            is_sample
            and base is not None
            and any(getattr(base, name) > value for name, value in quick.items())
        ):
            st.button(
                "Quick settings for the sample",
                type="tertiary",
                icon=":material/bolt:",
                on_click=settings.apply_recipe,
                args=(DEMO_RECIPE,),
                help=f"{quick['epochs']} epochs at {quick['image_size']} pixels: enough for "
                "digits, and several times faster.",
            )


def _describe_start(base: RunConfig) -> str:
    return (
        f"{base.backbone} as the run {Path(base.from_run).name} left it"
        if base.from_run
        else base.backbone
    )


def _draw_choices(base: RunConfig) -> Selection:
    names = [name for name in STRATEGIES if name != "custom" or base.strategy == "custom"]
    chosen = st.pills(
        "Strategies",
        names,
        selection_mode="multi",
        format_func=lambda name: STRATEGIES[name].title,
        key=settings.comparison_key("strategies"),
        persist_state="session",
        help="Which stages train. Each strategy is trained with every seed; one that is fitted "
        "without epochs once, unless a share of the training images is drawn by the seed.",
    )
    with st.container():
        # Always there: otherwise everything below would be drawn anew.
        if BASELINE not in chosen:
            st.button(
                "Add the linear probe as the baseline",
                icon=":material/flag:",
                type="tertiary",
                key="compare_baseline",
                on_click=_add_baseline,
                help=f"{STRATEGIES[BASELINE].help} The verdict then says what training gained "
                "over it.",
            )
    seeds = st.number_input(
        "Seeds",
        1,
        settings.MOST_SEEDS,
        key=settings.comparison_key("seeds"),
        persist_state="session",
        width=200,
        help="A seed determines the initial weights of the head and the order of the images. With "
        "one, a lucky run looks like a better strategy; three show the variation between seeds.",
    )
    with st.expander("Backbones, training fractions, cuts"):
        backbones, fractions, cuts = _draw_more_choices(base)
    return Selection(
        [*chosen, *(f"{FROM}{stage}" for stage in cuts)], int(seeds), backbones, fractions
    )


def _add_baseline() -> None:
    key = settings.comparison_key("strategies")
    st.session_state[key] = [*st.session_state[key], BASELINE]


def _draw_more_choices(base: RunConfig) -> tuple[list[str], list[float], list[str]]:
    """Draw the choice of backbones, training fractions, and first stages to train."""
    backbones = st.multiselect(
        "Backbones",
        list_networks(
            base.backbone, *st.session_state.get(settings.comparison_key("backbones"), [])
        ),
        key=settings.comparison_key("backbones"),
        persist_state="session",
        placeholder=base.backbone,
        help="The pretrained networks to start from. Empty: the one of the Configure page.",
    )
    fractions = st.multiselect(
        "Training fractions",
        settings.FRACTIONS,
        format_func=lambda share: format_percent(share, 0),
        key=settings.comparison_key("fractions"),
        persist_state="session",
        placeholder=format_percent(base.train_fraction, 0),
        help="Also train on a part of the images, to see what more data is worth. A larger part "
        "contains the smaller ones; all are evaluated on the same images.",
    )
    cuts = st.multiselect(
        "First stage that trains",
        settings.list_stage_names()[1:-1],
        key=settings.comparison_key("cuts"),
        persist_state="session",
        placeholder="no additional cuts",
        help=f"Additional strategies: train {base.backbone} from this stage to the head. Shows "
        "which cut is best.",
    )
    return backbones, fractions, cuts


def _draw_table(configs: Sequence[RunConfig], dataset: Dataset) -> None:
    """Draw the forecast of each arm, and of all arms together."""
    book, rows = SpeedBook(), []
    forecasts: list[list[float]] = []
    arms = list(group_by_arm(configs).values())
    for title, arm_configs in zip(
        arm_titles([arm_configs[0] for arm_configs in arms]), arms, strict=True
    ):
        arm_forecasts = forecast_arm(arm_configs, dataset, book)
        seconds = sum(arm_forecasts) if arm_forecasts else None
        forecasts += [arm_forecasts] if arm_forecasts else []
        rows.append(
            {
                "Strategy": title,
                "Runs": len(arm_configs),
                "Learning rate": f"{arm_configs[0].learning_rate:g}"
                if count_epochs(arm_configs[0])
                else "none",
                "Forecast": format_duration(seconds) if seconds is not None else "not timed yet",
            }
        )
    st.dataframe(rows, hide_index=True)
    st.markdown(
        f"**{pluralize(len(configs), 'run')}** in total: "
        f"{_describe_total(forecasts) if len(forecasts) == len(arms) else _NOT_TIMED}."
    )
    form.draw_forecast_note()


_NOT_TIMED = "*Forecast* times a few steps and estimates the duration"


def _describe_total(forecasts: Sequence[Sequence[float]]) -> str:
    """Return in words how long all runs take: one after another, or on all slots of the executor.

    Args:
        forecasts: seconds of each run, arm by arm.
    """
    machines = worker().executor.slots_by_machine()
    if sum(machines) < 2:
        return f"about {format_duration(sum(map(sum, forecasts)))}"
    schedule = forecast_spread(forecasts, machines)
    saves = (
        " Runs that find the frozen stages' output on their machine save "
        f"{format_duration(schedule.saved)} of work"
        if schedule.saved
        else ""
    )
    return (
        f"about {format_duration(schedule.seconds)}, {sum(machines)} runs at a time on "
        f"{pluralize(len(machines), 'machine')}.{saves}"
    ).rstrip(".")


def _draw_start_button(configs: Sequence[RunConfig], reason: str | None) -> bool:
    return st.button(
        f"Start {pluralize(len(configs), 'run')}",
        type="primary",
        icon=":material/local_fire_department:",
        disabled=reason is not None,
        help=reason,
        key="compare_start",
    )


def queue_runs(configs: Sequence[RunConfig]) -> list[str] | None:
    """Queue runs.

    Returns:
        The ids of the runs; None, with an error on the page, if a run cannot work.
    """
    try:
        with st.spinner("Queueing"):
            return [
                submit(config, settings.get_devices() if count_epochs(config) else 1)
                for config in configs
            ]
    except FinetuneError as error:
        st.error(escape_markdown(str(error)), icon=":material/error:")
    return None


def _draw_preparing_buttons(configs: Sequence[RunConfig], dataset: Dataset) -> tuple[str, str]:
    """Draw the buttons for forecasts and for finding learning rates.

    Returns:
        The keys of both jobs.
    """
    reason = why_not_timed()
    first_configs = [arm_configs[0] for arm_configs in group_by_arm(configs).values()]
    is_timed = all(SpeedBook().has_all_speeds(config, dataset) for config in first_configs)
    mark = hashlib.sha256(
        "".join(config.model_dump_json() for config in first_configs).encode()
    ).hexdigest()[:16]
    timing, search = f"forecast:{mark}-{dataset.fingerprint}", f"rates-each:{mark}"
    st.button(
        "Forecast",
        icon=":material/timer:",
        disabled=reason is not None or is_timed,
        help=reason,
        key="compare_forecast",
        on_click=begin,
        args=(
            timing,
            "Timing a few steps of each",
            partial(calibrate, first_configs, dataset, SpeedBook()),
        ),
    )
    st.button(
        "Find a learning rate for each",
        icon=":material/speed:",
        key="compare_find",
        help="For a rate of your own: a range test for each strategy, a hundred steps at rising "
        "rates. The recipe auto has a rate for each strategy already.",
        on_click=begin,
        args=(
            search,
            "Trying learning rates",
            partial(_find_rates, first_configs, readable_roots()),
        ),
    )
    if st.session_state["compared_rates"]:
        st.button(
            "Undo the search",
            on_click=st.session_state["compared_rates"].clear,
            key="compare_one_rate",
        )
    return timing, search


def _show_outcomes(timing: str, search: str) -> None:
    """Draw progress and errors of both jobs, and put the rates that were found into the form."""
    show_outcome(timing)
    if found := show_outcome(search):
        st.session_state["compared_rates"].update(found)
        forget(search)
        st.rerun()


def _find_rates(configs: Sequence[RunConfig], roots: Sequence[Path]) -> Work[dict[str, float]]:
    """Find a learning rate for each arm.

    Returns:
        Arm (``_search_key``) -> learning rate.
    """
    rates = {}
    for config in filter(count_epochs, configs):
        curve = yield from find_rate(config, roots)
        if curve.suggestion is not None:
            rates[_search_key(config)] = curve.suggestion
    return rates


def _search_key(config: RunConfig) -> str:
    """Return a hash of the settings that a learning rate was found for."""
    key = config.model_dump_json(exclude={"learning_rate", "epochs", "seed"})
    return hashlib.sha256(key.encode()).hexdigest()[:16]

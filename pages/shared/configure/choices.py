"""Backbone and strategy as cards: trained stages, forecast, and the best result so far."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import streamlit as st

from finetune_core.config import RunConfig
from finetune_core.data.dataset import Dataset
from finetune_core.data.splits import TRAIN
from finetune_core.errors import ConfigError, FinetuneError, WeightsError
from finetune_core.evaluation.run_accuracy import (
    best_run,
    find_best_runs,
    run_accuracy,
    training_key,
)
from finetune_core.formatting import (
    format_memory,
    format_percent,
    format_rough_duration,
    format_short_number,
)
from finetune_core.models.catalogue import PACKAGED, backbone_info, list_ready_backbones
from finetune_core.models.weights import why_no_download
from finetune_core.runs.store import Run
from finetune_core.training.devices.speed_book import SpeedBook
from finetune_core.training.forecast.forecast import Forecast, forecast_run
from finetune_core.training.strategies.catalogue import BASELINE, STRATEGIES, Fit
from finetune_core.training.strategies.recipes import fill_auto
from finetune_core.training.strategies.stage_plan import (
    describe_strategy,
    list_stages,
    plan_strategy,
)
from pages.shared.account import owner
from pages.shared.chrome import escape_markdown
from pages.shared.configure import settings
from pages.shared.configure.cards import Card, choose_card
from pages.shared.configure.stages import choose_stage_look
from pages.shared.configure.weights import count_parameters, format_download_size
from pages.shared.runs.backend import store

_USUAL = (PACKAGED, "resnet18", "resnet50")  # shown after the backbones at hand
_MOST_BACKBONES = 3
_USUAL_STRATEGIES = (BASELINE, "last_block", "last_two_blocks", "full")


@dataclass(frozen=True)
class ChoiceContext:
    """Facts that the cards show: the data set, the best runs so far, and forecasts.

    Attributes:
        dataset: None if none is chosen.
        timed: whether forecasts can be made: the settings are valid.
        best: ``find_best_runs`` of this person's runs.
        book: speeds that were measured on this machine.
    """

    dataset: Dataset | None
    timed: bool
    best: Mapping[tuple[str, ...], Run]
    book: SpeedBook = field(default_factory=SpeedBook)
    _forecasts: dict[str, Forecast | None] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        """Number of training images of the data set; 0 without one."""
        return self.dataset.split_counts.get(TRAIN, 0) if self.dataset else 0

    def forecast(self, config: RunConfig) -> Forecast | None:
        """Return the forecast of a run, computed once.

        Returns:
            None if nothing was timed, or the config does not fit its backbone.
        """
        if not (self.dataset and self.timed):
            return None
        key = config.model_dump_json(exclude={"edits"})
        if key not in self._forecasts:
            self._forecasts[key] = None
            # The config may name a stage of another backbone: then the card shows no time.
            with suppress(FinetuneError):
                self._forecasts[key] = forecast_run(config, self.dataset, self.book)
        return self._forecasts[key]


def collect_context(dataset: Dataset | None, *, timed: bool) -> ChoiceContext:
    """Collect the facts for a data set from this person's runs."""
    person = owner()
    own_runs = (run for run in store().list_runs() if run.owner == person)
    return ChoiceContext(
        dataset, timed, find_best_runs(own_runs, dataset.fingerprint) if dataset else {}
    )


def draw_backbone_cards(config: RunConfig, context: ChoiceContext) -> None:
    """Draw the backbones at hand."""
    cards = [
        _make_backbone_card(name, config, context)
        for name in _list_backbones(config.backbone, context)
    ]
    choose_card("Backbones", cards, config.backbone, settings.use_backbone, "backbone_cards")


def draw_strategy_cards(config: RunConfig, context: ChoiceContext) -> None:
    """Draw the usual strategies and the chosen one, and say when the chosen one pays."""
    chosen = st.session_state[settings.key("strategy")]
    names = list(dict.fromkeys([*_USUAL_STRATEGIES, chosen]))
    _choose_strategy("Strategies", names, config, context)
    strategy = STRATEGIES[chosen]
    st.caption(
        f"**{strategy.title}**: {strategy.help}", help=f"{escape_markdown(strategy.source)}."
    )


def draw_other_strategy_cards(config: RunConfig, context: ChoiceContext) -> None:
    """Draw all but the usual strategies.

    The chosen strategy also stands here, because a card that left would take the keyboard's focus
    with it.
    """
    names = [name for name in STRATEGIES if name not in _USUAL_STRATEGIES]
    _choose_strategy("More strategies", names, config, context)


def _choose_strategy(
    title: str, names: Sequence[str], config: RunConfig, context: ChoiceContext
) -> None:
    choose_card(
        title,
        [_make_strategy_card(name, config, context) for name in names],
        st.session_state[settings.key("strategy")],
        lambda name: settings.set_fields({"strategy": name}),
        f"{title.lower().replace(' ', '_')}_cards",
    )


def _list_backbones(chosen: str, context: ChoiceContext) -> list[str]:
    """Return a few backbones: used before, or with weights on this machine, and the chosen one."""
    used = [
        name
        for name in dict.fromkeys(recipe[0] for recipe in context.best)
        if settings.is_known(name)
    ]
    names = list(dict.fromkeys([*used, *list_ready_backbones(), *_USUAL]))[:_MOST_BACKBONES]
    return names if chosen in names else [*names[:-1], chosen]


def _make_backbone_card(name: str, config: RunConfig, context: ChoiceContext) -> Card:
    best = best_run(run for recipe, run in context.best.items() if recipe[0] == name)
    try:
        info = backbone_info(name)
    except FinetuneError:
        # The field above says why.
        return Card(name, name, line="not on this machine", before=_format_best_run(best))
    size = count_parameters(info)
    count = f"{format_short_number(size)} parameters as published" if size else "size not known"
    download = (
        "no weights"
        if why_no_download(info)
        else f"download {format_download_size([info])}".rstrip()
    )
    top1 = f" · {info.top1:.1f} % on ImageNet" if info.top1 else ""
    research = " · research only" if info.is_research_only else ""
    return Card(
        name,
        name,
        line=f"{count}{top1}{research}",
        facts=_format_costs(
            context.forecast(
                config.model_copy(
                    update=settings.backbone_fields(name, config.backbone, config.image_size)
                )
            )
        )
        or ("" if info.is_ready else download),
        before=_format_best_run(best),
    )


def _make_strategy_card(name: str, config: RunConfig, context: ChoiceContext) -> Card:
    strategy = STRATEGIES[name]
    other = config
    if name != config.strategy:
        other = config.model_copy(update=config.strategy_changes(name))
        if context.num_images:
            other = fill_auto(other, context.num_images)
    card = Card(name, strategy.title, strategy.summary, tip=f"{strategy.help} ({strategy.source})")
    if name == "custom" != config.strategy:
        return card
    classes = len(context.dataset.classes) if context.dataset else 1000
    try:
        stages = list_stages(other, classes)
        rows = describe_strategy(plan_strategy(other, stages), stages)
    except ConfigError as error:
        # Problems of the network itself are shown once, beside its fields.
        problems = [
            problem
            for field, problem in error.problems.items()
            if field not in ("backbone", "image_size")
        ]
        return Card(name, strategy.title, strategy.summary, facts="; ".join(problems), tip=card.tip)
    except WeightsError:
        return card
    share = sum(row["trained"] for row in rows) / sum(row["parameters"] for row in rows)
    costs = _format_costs(context.forecast(other))
    return Card(
        name,
        strategy.title,
        strategy.summary,
        facts=_format_share(strategy.fits, share) + (f" · {costs}" if costs else ""),
        before=_format_best_run(context.best.get(training_key(other))),
        strip=tuple(
            choose_stage_look(row, index == len(rows) - 1) for index, row in enumerate(rows)
        ),
        tip=card.tip,
    )


def _format_share(fits: Fit | None, share: float) -> str:
    if fits == "nearest_neighbours":
        return "no training"
    share_in_words = format_percent(share, 0 if share == 1 else 1)
    return f"{share_in_words} of parameters{' fitted' if fits else ''}"


def _format_costs(forecast: Forecast | None) -> str:
    return (
        f"{format_rough_duration(forecast.seconds)} · "
        f"{format_memory(forecast.memory_bytes, forecast.device_bytes)}"
        if forecast
        else ""
    )


def _format_best_run(run: Run | None) -> str:
    accuracy = run_accuracy(run) if run else None
    return f"best run: {accuracy.to_text()}" if accuracy else ""

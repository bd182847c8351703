"""Drawing of a strategy: the backbone as a row of stages, cold if frozen, warm if training.

The stages can be made clickable.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from finetune_core.config import RunConfig
from finetune_core.formatting import (
    format_learning_rate,
    format_number,
    format_percent,
    format_short_number,
)
from finetune_core.models.network import network_stages
from finetune_core.training.strategies.catalogue import STRATEGIES, Fit
from finetune_core.training.strategies.stage_plan import (
    cut_index,
    describe_strategy,
    find_last_stage,
    list_stages,
    plan_strategy,
)

_HEAD_WORDS: dict[Fit | None, str] = {
    None: "new, trains",
    "linear_probe": "new, fitted",
    "prototypes": "new, fitted",
    "nearest_neighbours": "k-NN",
}
_PART_WORDS = {"norms": "norm layers only", "biases": "biases only"}

# Dark text on light tiles is readable in both themes. The word and the icon say the same as the
# colour.
LOOKS_CSS = """
.unused { background: transparent; color: inherit; border-color: #8a8f98; border-style: dashed; }
.frozen { background: #cfe8f7; color: #0b3c5d; border-color: #8cc4e6; }
.passing { background: #a9d3ee; color: #0b3c5d; border-color: #2f86bd;
  box-shadow: inset 0 -5px 0 #2f86bd; }
.tinted { background: #dfe6ea; color: #0b3c5d; border-color: #8cc4e6;
  box-shadow: inset 0 -5px 0 #f0a35e; }
.thaws { background: #ece3dd; color: #4a3326; border-color: #f0a35e; }
.warm { background: #ffd9b0; color: #6b2a00; border-color: #f0a35e; }
.head { background: #ff9d57; color: #4a1a00; border-color: #d9622b; }
"""
_CSS = (
    """
.row { display: flex; flex-wrap: wrap; gap: 6px; align-items: stretch;
  font-family: var(--st-font); }
.tile { flex: 1 1 92px; min-width: 92px; padding: 10px 8px; border: 1px solid;
  border-radius: 10px; text-align: center; font: inherit; font-size: 13px; line-height: 1.45; }
button.tile { cursor: pointer; }
button.tile:hover, button.tile:focus-visible {
  outline: 3px solid var(--st-primary-color); outline-offset: 1px; }
.name { font-weight: 700; font-size: 14px; overflow-wrap: anywhere; }
.word { font-weight: 600; }
.word::before { content: "local_fire_department" / ""; margin-right: 3px;
  font: normal 1.2em "Material Symbols Rounded"; vertical-align: -0.2em; }
.frozen .word::before, .passing .word::before { content: "ac_unit" / ""; }
.unused .word::before { content: "block" / ""; }
@media (max-width: 640px) {
  .row { gap: 4px; }
  .tile { flex-basis: 64px; min-width: 64px; padding: 5px 2px; font-size: 12px; line-height: 1.3; }
  .size { display: none; }
}
"""
    + LOOKS_CSS
)
_JS = """
export default function ({ data, parentElement, setTriggerValue }) {
  const row = parentElement.querySelector(".row")
  row.setAttribute("role", data.clickable ? "group" : "list")
  row.setAttribute("aria-label", "Stages")
  // Elements stay while they can, so that the one that has the focus keeps it.
  data.tiles.forEach((tile, index) => {
    const clickable = data.clickable && tile.look !== "head"
    let element = row.children[index]
    if (!element || (element.tagName === "BUTTON") !== clickable) {
      const fresh = document.createElement(clickable ? "button" : "div")
      for (const part of ["name", "size", "word", "rate"]) {
        const line = document.createElement("div")
        line.className = part
        fresh.append(line)
      }
      if (element) element.replaceWith(fresh)
      else row.append(fresh)
      element = fresh
    }
    element.className = `tile ${tile.look}`
    for (const line of element.children) line.textContent = tile[line.className]
    if (clickable) {
      element.type = "button"
      const still = tile.look === "frozen" || tile.look === "unused"
      element.title = still ? `Let ${tile.name} train` : `Freeze ${tile.name}`
      const now = [tile.word, tile.rate].filter(Boolean).join(", ")
      element.setAttribute("aria-label", `${element.title} (now: ${now})`)
      element.setAttribute("aria-pressed", String(!still))
      element.onclick = () => setTriggerValue("clicked", tile.name)
    } else if (!data.clickable) element.setAttribute("role", "listitem")
  })
  while (row.children.length > data.tiles.length) row.lastElementChild.remove()
}
"""
_ROW = st.components.v2.component(
    "thaw_stages", html='<div class="row" role="list"></div>', css=_CSS, js=_JS
)


def draw_strategy(
    config: RunConfig,
    classes: int,
    on_click: Callable[[str, list[dict[str, Any]]], None] | None = None,
    *,
    rates: bool = True,
) -> None:
    """Draw the stages that a config would train.

    Args:
        config: config of the run.
        classes: number of classes.
        on_click: called with the name of a stage that was clicked, and all stages as drawn.
        rates: whether the learning rate is known, and drawn.

    Raises:
        ConfigError: if the strategy does not fit the backbone, or the backbone is not known any
            more.
        WeightsError: if the backbone is not known any more.
    """
    stages = list_stages(config, classes)
    rows = add_unused_stages(describe_strategy(plan_strategy(config, stages), stages), config)
    draw_stages(
        rows, config.learning_rate if rates else None, on_click, STRATEGIES[config.strategy].fits
    )


def add_unused_stages(
    stages: Sequence[Mapping[str, Any]], config: RunConfig
) -> list[Mapping[str, Any]]:
    """Return a run's stages, and the backbone's stages after the end of the network.

    Raises:
        ConfigError: if the backbone is not known any more.
        WeightsError: if the backbone is not known any more.
    """
    used = {stage["name"] for stage in stages}
    all_stages = (
        network_stages(config.backbone, image_size=config.image_size)
        if find_last_stage(config)
        else ()
    )
    unused = [stage for stage in all_stages if stage.name not in used]
    rows = [
        {
            "name": stage.name,
            "parameters": 0,
            "trains": False,
            "rate": 0.0,
            "thaw_epoch": 1,
            "unused": True,
        }
        for stage in unused
    ]
    return [*stages[:-1], *rows, *stages[-1:]]


def draw_stages(
    stages: Sequence[Mapping[str, Any]],
    learning_rate: float | None,
    on_click: Callable[[str, list[dict[str, Any]]], None] | None = None,
    fits: Fit | None = None,
) -> None:
    """Draw stages, input to head.

    Args:
        stages: ``name, parameters, trains, rate`` of each stage, as in a RunStarted row; see
            ``add_unused_stages``.
        learning_rate: learning rate of the run. A stage trains at ``rate`` times it. None if it is
            not known.
        on_click: as in ``draw_strategy``.
        fits: how the head is fitted in one go, without a learning rate; None if it trains.
    """
    key = "drawn_stages"

    def choose() -> None:
        if on_click and (name := st.session_state[key].clicked):
            on_click(name, [dict(stage) for stage in stages])

    tiles = [
        _make_tile(stage, index == len(stages) - 1, learning_rate, fits)
        for index, stage in enumerate(stages)
    ]
    _ROW(
        data={"tiles": tiles, "clickable": on_click is not None}, key=key, on_clicked_change=choose
    )
    trained = sum(
        stage.get("trained", stage["parameters"] if stage["trains"] else 0) for stage in stages
    )
    total = sum(stage["parameters"] for stage in stages)
    share = format_percent(trained / total, 0 if trained == total else 1)
    caption = (
        f"**{format_number(trained)}** of {format_number(total)} parameters "
        f"{'are fitted' if fits else 'train'} ({share})."
    )
    # The factors of LoRA come on top of the network's own parameters.
    if any(tile["look"] == "tinted" for tile in tiles):
        caption = (
            f"**{format_number(trained)}** parameters train, {share} of the network's "
            f"{format_number(total)}: LoRA's factors beside frozen weights."
        )
    if fits == "nearest_neighbours":
        caption = "Nothing trains: the training images' features stand in for the head."
    st.markdown(caption + (" Click a stage to freeze it, or to let it train." if on_click else ""))


def draw_passing(config: RunConfig, first: str) -> None:
    """Draw the stages of a run while its frozen stages are computed, once for all epochs.

    Args:
        config: config of the run.
        first: first of the frozen stages that images go through now. Earlier stages have been
            computed before.

    Raises:
        ConfigError: as in ``draw_strategy``.
        WeightsError: as in ``draw_strategy``.
    """
    stages = list_stages(config)
    strategy = plan_strategy(config, stages)
    tiles = [
        _make_tile(
            stage, index == len(stages) - 1, config.learning_rate, STRATEGIES[config.strategy].fits
        )
        for index, stage in enumerate(describe_strategy(strategy, stages))
    ]
    names = [tile["name"] for tile in tiles]
    computing = range(names.index(first) if first in names else 0, cut_index(strategy))
    for index, tile in enumerate(tiles):
        if index in computing:
            tile |= {"look": "passing", "word": "computing"}
        elif index < computing.start:
            tile["word"] = "computed"
    # The number of classes is not known yet.
    tiles[-1]["size"] = ""
    _ROW(data={"tiles": tiles, "clickable": False}, key="drawn_stages")


def choose_stage_look(stage: Mapping[str, Any], is_head: bool) -> str:
    """Return the look of a stage.

    Returns:
        ``unused``, ``frozen``, ``tinted`` (frozen with a small part that trains), ``thaws`` (trains
        later), ``warm`` (trains), or ``head`` (the head, if it trains).
    """
    if stage.get("unused"):
        return "unused"
    if stage["trains"] and stage.get("part", "all") in ("lora", "lora_norms"):
        return "tinted"
    return (
        "frozen"
        if not stage["trains"]
        else "head"
        if is_head
        else "thaws"
        if stage["thaw_epoch"] > 1
        else "warm"
    )


def _make_tile(
    stage: Mapping[str, Any], is_head: bool, learning_rate: float | None, fits: Fit | None
) -> dict[str, str]:
    style = choose_stage_look(stage, is_head)
    # The parameters of an unused stage are not counted.
    share = stage.get("trained", 0) / (stage["parameters"] or 1)
    words = {
        "unused": "not used",
        "frozen": "frozen",
        "tinted": f"LoRA {format_percent(share, 1)}",
        "thaws": f"from epoch {stage['thaw_epoch']}",
        "warm": _PART_WORDS.get(stage.get("part", "all"), "trains"),
        "head": _HEAD_WORDS[fits],
    }
    return {
        "name": stage["name"],
        "size": "" if style == "unused" else format_short_number(stage["parameters"]),
        "word": words[style],
        "rate": "left out"
        if style == "unused"
        else ""
        if not stage["trains"]
        else "no learning rate"
        if fits
        else "lr ?"
        if learning_rate is None
        else f"lr {format_learning_rate(learning_rate * stage['rate'])}",
        "look": style,
    }

"""The strategy drawn: the backbone as a row of stages, cold where frozen, warm where training."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from finetune_core.config import RunConfig
from finetune_core.models.network import network_stages
from finetune_core.training.strategies import describe, plan
from finetune_core.words import number, percent, rate, short_number

# Dark words on light tiles: readable in both themes. The word and the sign say it, too, not the colour alone.
_LOOKS = {
    "frozen": ("#cfe8f7", "#0b3c5d", "#8cc4e6", "❄ frozen"),
    "thaws": ("#ece3dd", "#4a3326", "#f0a35e", ""),
    "warm": ("#ffd9b0", "#6b2a00", "#f0a35e", "🔥 trains"),
    "head": ("#ff9d57", "#4a1a00", "#d9622b", "🔥 new, trains"),
}


def draw_strategy(config: RunConfig, classes: int) -> None:
    """Draw what a config would train.

    Raises:
        ConfigError: when its strategy does not fit its backbone.
    """
    stages = network_stages(config.backbone, classes)
    draw_stages(describe(plan(config, stages), stages), config.learning_rate)


def draw_stages(stages: Sequence[Mapping[str, Any]], learning_rate: float) -> None:
    """Draw stages, input to head.

    Args:
        stages: ``name, parameters, trains, rate`` each, as in a RunStarted row.
        learning_rate: of the run; a stage gets ``rate`` times as much.
    """
    tiles = "".join(_tile(stage, index, len(stages), learning_rate) for index, stage in enumerate(stages))
    st.html(f'<div role="list" style="display:flex;flex-wrap:wrap;gap:6px;align-items:stretch">{tiles}</div>')
    trained = sum(stage.get("trained", stage["parameters"] if stage["trains"] else 0) for stage in stages)
    total = sum(stage["parameters"] for stage in stages)
    st.markdown(f"**{number(trained)}** of {number(total)} parameters train ({percent(trained / total)}).")


def _tile(stage: Mapping[str, Any], index: int, count: int, learning_rate: float) -> str:
    look = "frozen" if not stage["trains"] else "head" if index == count - 1 else "thaws" if stage["thaw_epoch"] > 1 else "warm"
    background, ink, edge, word = _LOOKS[look]
    parts = {"norms": "🔥 norms only", "biases": "🔥 biases only"}
    word = parts.get(stage.get("part", "all"), word) if look == "warm" else word
    if look == "thaws":
        word = f"🔥 from epoch {stage['thaw_epoch']}"
    rate_line = f"rate {rate(learning_rate * stage['rate'])}" if stage["trains"] else "unchanged"
    return (
        f'<div role="listitem" style="flex:1 1 92px;min-width:92px;padding:10px 8px;border-radius:10px;text-align:center;'
        f'background:{background};color:{ink};border:1px solid {edge};font-size:13px;line-height:1.45">'
        f'<div style="font-weight:700;font-size:14px;overflow-wrap:anywhere">{html.escape(stage["name"])}</div>'
        f"<div>{short_number(stage['parameters'])}</div>"
        f'<div style="font-weight:600">{word}</div><div>{rate_line}</div></div>'
    )

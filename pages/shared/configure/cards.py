"""Radio group of compact cards, whose options show more than a name."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import streamlit as st

from pages.shared.configure.stages import LOOKS_CSS

_CSS = (
    """
.cards { container-type: inline-size; font-family: var(--st-font); color: var(--st-text-color); }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(215px, 1fr)); gap: 8px; }
.card { display: flex; flex-direction: column; gap: 2px; padding: 8px 10px; cursor: pointer;
  font-size: 13px; line-height: 1.35; border: 1px solid var(--st-border-color);
  border-radius: var(--st-base-radius); overflow-wrap: anywhere; }
.card:hover { border-color: var(--st-primary-color); }
.card:has(:checked) { border-color: var(--st-primary-color);
  background: var(--st-secondary-background-color);
  box-shadow: inset 0 0 0 1px var(--st-primary-color); }
.card:has(:focus-visible) { outline: 3px solid var(--st-primary-color); outline-offset: 2px; }
.top { display: flex; gap: 7px; align-items: baseline; }
input { flex: none; margin: 0; accent-color: var(--st-primary-color); transform: translateY(2px);
  outline: none; }
.title { font-weight: 600; font-size: 14px; }
.line { opacity: 0.8; }
.facts { font-variant-numeric: tabular-nums; }
.before { font-weight: 600; }
.strip { display: flex; gap: 2px; margin-top: auto; padding-top: 4px; }
.strip span { flex: 1; height: 5px; border-width: 1px; border-style: solid; border-radius: 3px; }
.card > :empty { display: none; }
@container (max-width: 440px) {
  .grid { grid-template-columns: 1fr; gap: 5px; }
  .card { display: grid; grid-template-columns: 1fr minmax(60px, 100px); align-items: center;
    padding: 6px 10px; }
  .top, .line, .before { grid-column: 1 / -1; }
  .strip { margin-top: 0; padding-top: 0; }
  .card:not(:has(:checked)) .line { display: none; }
}
"""
    + LOOKS_CSS
    + ".strip .tinted { box-shadow: inset 0 -1px 0 #f0a35e; }\n"
)
_JS = """
const parts = ["title", "line", "facts", "before"]
export default function ({ data, parentElement, setTriggerValue }) {
  const grid = parentElement.querySelector(".grid")
  grid.setAttribute("aria-label", data.label)
  // Elements stay while they can, so that the one that has the focus keeps it.
  data.cards.forEach((card, index) => {
    let element = grid.children[index]
    if (!element) {
      element = document.createElement("label")
      element.className = "card"
      element.innerHTML =
        '<span class="top"><input type="radio"><span class="title"></span></span>' +
        '<span class="line"></span><span class="facts"></span><span class="before"></span>' +
        '<span class="strip" aria-hidden="true"></span>'
      grid.append(element)
    }
    for (const part of parts) element.querySelector("." + part).textContent = card[part]
    element.title = card.tip
    const input = element.querySelector("input")
    input.name = data.label
    input.checked = card.value === data.chosen
    input.setAttribute("aria-label", card.title)
    const description = [card.line, card.facts, card.before].filter(Boolean).join(" ")
    input.setAttribute("aria-description", description)
    input.onchange = () => setTriggerValue("chosen", card.value)
    element.querySelector(".strip").replaceChildren(...card.strip.map((look) => {
      const bit = document.createElement("span")
      bit.className = look
      return bit
    }))
  })
  while (grid.children.length > data.cards.length) grid.lastElementChild.remove()
}
"""
_CARDS = st.components.v2.component(
    "thaw_cards",
    html='<div class="cards"><div class="grid" role="radiogroup"></div></div>',
    css=_CSS,
    js=_JS,
)


@dataclass(frozen=True)
class Card:
    """One option.

    Attributes:
        value: value passed to the callback.
        title: title, also the name for screen readers.
        line: short description.
        facts: numbers, in short.
        before: best result with this option so far.
        strip: look of each stage with this option, input to head (``stages.choose_stage_look``).
        tip: tooltip.
    """

    value: str
    title: str
    line: str = ""
    facts: str = ""
    before: str = ""
    strip: tuple[str, ...] = ()
    tip: str = ""


def choose_card(
    label: str, cards: Sequence[Card], chosen: str, on_choice: Callable[[str], None], key: str
) -> None:
    """Draw the cards.

    Args:
        label: name of the group for screen readers.
        cards: the options.
        chosen: value of the card that is chosen now.
        on_choice: called with the value of the card that was chosen (a callback, before the widgets
            are drawn).
        key: key of the component.
    """

    def notify() -> None:
        if value := st.session_state[key].chosen:
            on_choice(value)

    data = {"label": label, "cards": [asdict(card) for card in cards], "chosen": chosen}
    _CARDS(data=data, key=key, on_chosen_change=notify)

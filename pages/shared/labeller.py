"""The component that shows one image or nine and takes their class by a key, and what it sends."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import streamlit as st
from pydantic import BaseModel, Field, ValidationError

from finetune_core.errors import FinetuneError
from finetune_core.labelling.answers import Answer
from pages.shared.chrome import escape_markdown

_HTML = """
<div class="desk">
<div class="picture" tabindex="-1"></div>
<div class="answers">
<p class="proposal" role="status"></p>
<div class="buttons classes"></div>
<div class="buttons others"></div>
<p class="state" role="status"></p>
</div>
</div>
"""
_CSS = """
* { box-sizing: border-box; }
.desk { display: flex; flex-wrap: wrap; gap: 24px; }
.picture { flex: 0 1 400px; min-width: 0; aspect-ratio: 1; border-radius: var(--st-base-radius);
  background: var(--st-secondary-background-color); overflow: hidden; }
.picture img { display: block; width: 100%; height: 100%; object-fit: contain; }
.picture.many { display: grid; grid-template: repeat(3, 1fr) / repeat(3, 1fr); gap: 4px;
  background: none; overflow: visible; }
.tile { position: relative; display: flex; flex-direction: column; min-width: 0; min-height: 0;
  padding: 4px; border-width: 2px; }
.tile img { flex: 1; min-height: 0; }
.tile span { flex: none; font-size: 14px; line-height: 20px; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; }
.tile[aria-pressed="true"] { border-color: #b53b0a; }
.tile[aria-pressed="false"] img { opacity: 0.35; }
.answers { flex: 1 1 280px; min-width: 0; }
.buttons { display: flex; flex-wrap: wrap; gap: 8px; margin: 8px 0; }
.others { margin-top: 24px; }
button { min-height: 40px; padding: 6px 12px; border: 1px solid var(--st-border-color);
  border-radius: var(--st-button-radius); background: var(--st-background-color);
  color: var(--st-text-color); font: inherit; font-family: var(--st-font); font-size: 16px;
  text-align: left; overflow-wrap: anywhere; cursor: pointer; }
button.first { border-color: #b53b0a; background: #b53b0a; color: #fff; }
button:focus-visible { outline: 3px solid var(--st-primary-color); outline-offset: 2px; }
button:disabled { opacity: 0.5; cursor: not-allowed; }
kbd { margin-right: 8px; font-family: var(--st-code-font); font-size: 14px; opacity: 0.8; }
p { min-height: 20px; margin: 4px 0; color: var(--st-text-color); font-family: var(--st-font);
  font-size: 16px; overflow-wrap: anywhere; }
.state { font-size: 14px; }
"""
_LABELLER = st.components.v2.component(
    "thaw_labeller",
    html=_HTML,
    css=_CSS,
    js=Path(__file__).with_suffix(".js").read_text(encoding="utf-8"),
)


class _Numbered(Answer):
    number: int = Field(ge=1)


class _Sent(BaseModel):
    """All answers that a browser does not know to be kept.

    Attributes:
        token: identifies the component's lifetime, in which answers are numbered from 1.
    """

    token: str = Field(max_length=100)
    answers: tuple[_Numbered, ...]


def draw_labeller(
    key: str,
    queue: dict[str, Any],
    keep: Callable[[Sequence[Answer]], None],
    like: Callable[[str], None],
) -> None:
    """Draw the images to label and the buttons of its answers.

    The browser shows the next image at once, and sends an answer until it is acknowledged. An
    answer whose number was kept before is passed over.

    Args:
        key: key of the component.
        queue: ``data``: the data set's id; ``order``: images of another order are dropped;
            ``most``: greatest number of images on show; ``classes``: their names;
            ``images``: ``id, src, alt, note, proposal`` of the next ones; ``more``: whether other
            images follow when the component asks again.
        keep: keeps answers. Its error is shown, and the answers are sent again.
        like: called with the id of the image whose like are asked for.
    """
    state = st.session_state.setdefault(f"{key}-state", {})

    def keep_answers() -> None:
        # its page has just been left: the browser keeps its answers
        if key in st.session_state:
            _take(st.session_state[key].answers, state, keep)

    def ask_for_like() -> None:
        if key in st.session_state and isinstance(st.session_state[key].like, str):
            like(st.session_state[key].like)

    with st.container():  # always there, so that the component is not drawn anew
        if problem := state.get("problem"):
            st.error(escape_markdown(problem), icon=":material/error:")
    known = {name: state.get(name, "") for name in ("token", "answered", "problem")}
    _LABELLER(
        key=key,
        data=queue | known,
        on_answers_change=keep_answers,
        on_like_change=ask_for_like,
        on_more_change=lambda: None,
    )


def _take(sent: object, state: dict[str, Any], keep: Callable[[Sequence[Answer]], None]) -> None:
    """Keep the answers that are new, and note which was the last."""
    state.pop("problem", None)
    if sent is None:
        return
    try:
        found = _Sent.model_validate(sent)
    except ValidationError:
        state["problem"] = "An answer could not be read. Reload the page."
        return
    if state.get("token") != found.token:
        state.update(token=found.token, answered=0)
    fresh = [answer for answer in found.answers if answer.number > state["answered"]]
    try:
        if fresh:
            keep(fresh)
            state["answered"] = fresh[-1].number
    except FinetuneError as error:
        state["problem"] = str(error)

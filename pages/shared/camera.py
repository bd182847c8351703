"""Camera of the browser: a component that records frames, or classifies one frame after another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st

from finetune_core.data.camera import StorageError
from finetune_core.data.frames import Batch, read_batch
from finetune_core.errors import FinetuneError
from pages.shared.chrome import escape_markdown

_HTML = """
<p class="problem" role="alert" hidden></p>
<video class="video" playsinline muted aria-label="What the camera sees" hidden></video>
<div class="buttons">
<button class="hold" type="button"></button>
<button class="turn" type="button"></button>
</div>
<p class="say" role="status"></p>
<p class="rate"></p>
<div class="strip"></div>
"""
_CSS = """
:host { display: block; }
* { box-sizing: border-box; }
.video { display: block; width: 100%; max-width: 480px; max-height: 45vh;
  border-radius: var(--st-base-radius); background: #000; object-fit: contain; }
.video[hidden], .hold[hidden], .problem[hidden] { display: none; }
.buttons { display: flex; flex-wrap: wrap; gap: 8px; margin: 8px 0; }
button { min-height: 40px; padding: 6px 14px; border: 1px solid var(--st-border-color);
  border-radius: var(--st-button-radius); background: var(--st-background-color);
  color: var(--st-text-color); font: inherit; font-family: var(--st-font); font-size: 16px;
  cursor: pointer; }
button:focus-visible { outline: 3px solid var(--st-primary-color); outline-offset: 2px; }
button:disabled { opacity: 0.5; cursor: not-allowed; }
.hold, .first { border-color: #b53b0a; background: #b53b0a; color: #fff; }
.hold { flex: 1 1 220px; max-width: 480px; min-height: 56px; font-weight: 600;
  touch-action: none; user-select: none; -webkit-user-select: none; overflow-wrap: anywhere; }
.hold[aria-pressed="true"] { background: #7a2605; }
p { margin: 4px 0; color: var(--st-text-color); font-family: var(--st-font);
  font-size: 14px; overflow-wrap: anywhere; }
.problem { padding: 10px 12px; border-radius: var(--st-base-radius);
  background: var(--st-red-background-color); color: var(--st-red-text-color); }
.strip { display: flex; gap: 4px; max-width: 480px; }
.strip img { flex: 0 1 54px; min-width: 0; aspect-ratio: 1; object-fit: cover; border-radius: 4px; }
"""
_CAMERA = st.components.v2.component(
    "thaw_camera",
    html=_HTML,
    css=_CSS,
    js=Path(__file__).with_suffix(".js").read_text(encoding="utf-8"),
)


def draw_camera(key: str, data: dict[str, Any], on_frames: Callable[[Batch], None]) -> None:
    """Draw the camera.

    The browser sends nothing more until the page acknowledges the last batch. Frames that could not
    be stored are sent again every few seconds.

    Args:
        key: key of the component.
        data: ``mode`` is ``record`` or ``live``. In mode ``record`` also ``recording``,
            ``class_name`` (empty if nothing can be recorded yet) and ``ready``: whether enough is
            recorded to go on.
        on_frames: called with each batch before the page is drawn. The page shows a
            ``FinetuneError`` that it raises.
    """
    answered_key, unstored_key, problem_key = f"{key}-answered", f"{key}-unstored", f"{key}-problem"

    def receive() -> None:
        # The page has just been left: the browser keeps the frames that are not acknowledged.
        if key not in st.session_state:
            return
        batch = st.session_state[key].frames
        for name in (unstored_key, problem_key):
            st.session_state.pop(name, None)
        if isinstance(batch, dict) and isinstance(batch.get("id"), str):
            # Acknowledge a refused batch, too: otherwise it would be sent again.
            st.session_state[answered_key] = batch["id"][:100]
        try:
            on_frames(read_batch(batch))
        except StorageError as error:
            st.session_state[unstored_key], st.session_state[problem_key] = (
                st.session_state.pop(answered_key),
                str(error),
            )
        except FinetuneError as error:
            st.session_state[problem_key] = str(error)

    with st.container():
        # Always there: otherwise the camera would be drawn anew.
        if text := st.session_state.get(problem_key):
            st.error(escape_markdown(text), icon=":material/error:")
    state = {
        "answered": st.session_state.get(answered_key, ""),
        "unstored": st.session_state.get(unstored_key, ""),
    }
    _CAMERA(data=data | state, key=key, on_frames_change=receive)

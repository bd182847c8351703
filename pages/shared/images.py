"""Small pictures, made once, shown a page at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import streamlit as st

from finetune_core.data.decode import thumbnail
from finetune_core.data.threads import in_threads
from finetune_core.errors import DataError, ImageError
from finetune_core.evaluation.run_images import run_image
from finetune_core.runs.store import Run
from pages.shared.chosen import readable_roots
from pages.shared.chrome import plain

_SIDE = 160


@dataclass(frozen=True)
class Picture:
    """An image of a gallery: its file, or why it may not be shown; a caption, what a screen reader says, and, where it can be chosen,
    its id."""

    path: Path | DataError
    caption: str
    alt: str
    id: str = ""


def run_picture(run: Run, sample: str, caption: str, alt: str) -> Picture:
    """One of a run's images, unless it lies outside the folders that this server may read."""
    try:
        return Picture(run_image(run, sample, readable_roots()), caption, alt)
    except DataError as error:
        return Picture(error, caption, alt)


def gallery(count: int, picture: Callable[[int], Picture], key: str, per_page: int = 24, *, choose: bool = False) -> set[str]:
    """A grid of ``count`` labelled thumbnails, ``per_page`` at a time; ``picture`` is asked for those on show only.

    Args:
        choose: whether images can be ticked.

    Returns:
        The ids of those that are, on whatever page of the gallery.
    """
    chosen: set[str] = st.session_state.setdefault(f"chosen-{key}", set())
    pages = -(-count // per_page)
    at = st.pagination(pages, key=key) if pages > 1 else 1
    asked = [picture(index) for index in range((at - 1) * per_page, min(count, at * per_page))]
    shown = [one for one in asked if isinstance(one.path, Path)]
    for reason in dict.fromkeys(str(one.path) for one in asked if not isinstance(one.path, Path)):
        st.warning(plain(reason), icon=":material/lock:")
    with st.grid("auto", min_column_width=120, gap="small"):
        for item, small in in_threads(_small, shown):
            with st.container(gap="xxsmall"):
                if isinstance(small, bytes):
                    st.image(small, caption=None if choose else plain(item.caption), alt=item.alt, width="stretch")
                else:
                    st.caption(plain(small))
                if choose:
                    box = f"choose-{key}-{item.id}"
                    st.session_state[box] = item.id in chosen
                    st.checkbox(plain(item.caption), key=box, on_change=_toggle, args=(chosen, item.id, box))
    return chosen


def _toggle(chosen: set[str], sample: str, box: str) -> None:
    (chosen.add if st.session_state[box] else chosen.discard)(sample)


def _small(picture: Picture) -> bytes | str:
    """A JPEG, or why there is none."""
    try:
        return _thumbnail(picture.path, picture.path.stat().st_mtime_ns)
    except FileNotFoundError:
        return f"{picture.path.name} is not there any more"
    except ImageError as error:
        return str(error)


@lru_cache(maxsize=5000)
def _thumbnail(path: Path, _changed: int) -> bytes:
    return thumbnail(path, _SIDE)

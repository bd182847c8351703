"""Small pictures, made once, shown a page at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import streamlit as st

from finetune_core.data.decode import thumbnail
from finetune_core.data.threads import in_threads
from finetune_core.errors import ImageError
from pages.shared.chrome import plain

_SIDE = 160


@dataclass(frozen=True)
class Picture:
    """An image of a gallery: its file, a caption, and what a screen reader says."""

    path: Path
    caption: str
    alt: str


def gallery(count: int, picture: Callable[[int], Picture], key: str, per_page: int = 24) -> None:
    """A grid of ``count`` labelled thumbnails, ``per_page`` at a time; ``picture`` is asked for those on show only."""
    pages = -(-count // per_page)
    at = st.pagination(pages, key=key) if pages > 1 else 1
    shown = [picture(index) for index in range((at - 1) * per_page, min(count, at * per_page))]
    with st.grid("auto", min_column_width=120, gap="small"):
        for item, small in in_threads(_small, shown):
            with st.container(gap="xxsmall"):
                if isinstance(small, bytes):
                    st.image(small, caption=plain(item.caption), alt=item.alt, width="stretch")
                else:
                    st.caption(plain(small))


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

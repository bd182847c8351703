"""Galleries of thumbnails. Thumbnails are cached, and shown one page at a time."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import streamlit as st
from streamlit.runtime import get_instance

from finetune_core.data.decode import encode_thumbnail, read_scaled
from finetune_core.data.threads import map_in_threads
from finetune_core.errors import DataError, FinetuneError, ImageError
from finetune_core.evaluation.run_images import resolve_image
from finetune_core.formatting import format_number
from finetune_core.runs.store import Run
from pages.shared.chrome import escape_markdown
from pages.shared.data.chosen import make_data_key, readable_roots

_SIDE = 160
_OPENED_SIDE = 640  # pixels of an image in the dialog
_ALONE_SIDE = 560  # pixels at most of an image that has nothing beside it
# The button below an image carries the image's name, and takes clicks on the image, too.
_OPENED_BY_IMAGE = """<style>
[class*="st-key-opens-"] { position: relative; }
[class*="st-key-opens-"] [class*="st-key-open-"],
[class*="st-key-opens-"] [class*="st-key-open-"] * { position: static; }
[class*="st-key-opens-"] [class*="st-key-open-"] button::after {
  content: ""; position: absolute; inset: 0; }
[class*="st-key-opens-"] [class*="st-key-open-"] p { overflow-wrap: anywhere; white-space: normal; }
</style>"""
# Least widths in pixels: of a cell, of a cell with two images, and of an image in that.
_WIDTH, _PAIR_WIDTH, _SIDE_WIDTH = (120, 300, 40)
_MOST_COLUMNS, _MOST_PAIRS = 8, 3


@dataclass(frozen=True)
class Picture:
    """Image of a gallery.

    Attributes:
        path: file of the image, or the reason why the image may not be shown.
        caption: text below the image.
        alt: text for screen readers.
        id: id of the image, if the image can be selected or opened.
        beside: image to compare this one with.
    """

    path: Path | DataError
    caption: str
    alt: str
    id: str = ""
    beside: "Picture | None" = None


def make_run_picture(run: Run, sample: str, caption: str, alt: str) -> Picture:
    """Return the picture of one of a run's images; see ``make_data_picture``."""
    return make_data_picture(run.config.data, sample, caption, alt)


def make_data_picture(data: str, sample: str, caption: str, alt: str) -> Picture:
    """Return the picture of an image of the data set that a run names.

    Images outside the folders that this server may read get a reason instead of a file.
    """
    try:
        return Picture(resolve_image(data, sample, readable_roots()), caption, alt, sample)
    except DataError as error:
        return Picture(error, caption, alt, sample)


def draw_gallery(
    count: int,
    picture: Callable[[int], Picture],
    key: str,
    per_page: int = 24,
    *,
    can_open: bool = False,
    width: int = _WIDTH,
) -> str | None:
    """Draw a grid of labelled thumbnails, one page at a time.

    Args:
        count: number of images.
        picture: returns the picture of an index. Called only for the images on show.
        key: key of the gallery.
        per_page: images on a page.
        can_open: whether a click opens an image.
        width: least width of an image in pixels.

    Returns:
        The id of the image that was clicked, if images can be opened.
    """
    pictures = [picture(index) for index in choose_page(count, key, per_page)]
    for reason in dict.fromkeys(
        str(one.path) for one in pictures if not isinstance(one.path, Path)
    ):
        st.warning(escape_markdown(reason), icon=":material/lock:")
    if can_open:
        st.html(_OPENED_BY_IMAGE)
    return _draw_grid(
        [one for one in pictures if isinstance(one.path, Path)],
        per_page,
        key=key,
        can_open=can_open,
        width=width,
    )


def draw_picture_gallery(
    count: int, picture: Callable[[int], Picture], key: str, per_page: int = 24, width: int = _WIDTH
) -> None:
    """Draw a gallery of a few images. A click opens an image.

    Args:
        width: least width of an image in pixels.
    """
    opened = draw_gallery(count, picture, key, per_page, can_open=True, width=width)
    if opened is not None:
        open_picture(next(item for item in map(picture, range(count)) if item.id == opened))


def choose_images(
    ids: Sequence[str],
    picture: Callable[[int], Picture],
    key: str,
    per_page: int = 24,
    partners: Mapping[str, str] = MappingProxyType({}),
) -> set[str]:
    """Draw a gallery in which images can be selected: one by one, all on show, or none.

    A click on an image opens it. Selected images on other pages of the gallery are shown below the
    gallery. Selected images that are not in ``ids``, because a filter hides them, are not counted,
    and the page says so. Such images are selected again once the filter shows them.

    Args:
        ids: ids of the images.
        picture: returns the picture of an index.
        key: key of the gallery.
        per_page: images on a page.
        partners: id -> id of the image beside it, for images beside it that can be selected, too.

    Returns:
        The selected ids among ``ids`` and the partners.
    """
    chosen = _get_selection(key)
    visible = [picture(index) for index in choose_page(len(ids), key, per_page)]
    head = st.container(horizontal=True, vertical_alignment="center")
    st.html(_OPENED_BY_IMAGE)
    opened = _draw_grid(visible, per_page, chosen, key, can_open=True)
    counted = chosen.intersection([*ids, *partners.values()]) if chosen else set()
    shown = {side.id for item in visible for side in _list_sides(item) if side.id}
    other_page_ids = counted - shown
    other_indices = (
        [
            index
            for index, sample in enumerate(ids)
            if other_page_ids & {sample, partners.get(sample)}
        ]
        if other_page_ids
        else []
    )
    with head:
        is_all_shown_chosen = shown <= chosen
        st.button(
            "Select all shown",
            key=f"all-{key}",
            type="tertiary",
            disabled=is_all_shown_chosen,
            on_click=chosen.update,
            args=(shown,),
        )
        st.button(
            "Clear selection",
            key=f"none-{key}",
            type="tertiary",
            disabled=not chosen,
            on_click=chosen.clear,
        )
        if chosen:
            num_hidden = len(chosen) - len(counted)
            left_out = (
                f" {format_number(num_hidden)} more, hidden by the filter, left out."
                if num_hidden
                else ""
            )
            st.caption(f"{format_number(len(counted))} selected.{left_out}")
    if other_indices:
        more = (
            f", {per_page} of {format_number(len(other_indices))}"
            if len(other_indices) > per_page
            else ""
        )
        st.caption(f"Selected on other pages{more}:")
        others = [picture(index) for index in other_indices[:per_page]]
        opened = _draw_grid(others, per_page, chosen, key, can_open=True) or opened
        visible += others
    if opened is not None:
        open_picture(next(item for item in visible if item.id == opened))
    return counted


def open_picture(item: Picture) -> None:
    """Open a dialog with a large image under its file name, and the image beside it."""
    st.dialog(escape_markdown(Path(item.id).name), width="large")(_draw_opened)(item)


def _draw_opened(item: Picture) -> None:
    sides = _list_sides(item)
    with st.grid(len(sides), min_column_width=_PAIR_WIDTH):
        for side in sides:
            if isinstance(side.path, Path):
                try:
                    image = read_scaled(side.path, _OPENED_SIDE)
                except FinetuneError as error:
                    st.error(escape_markdown(str(error)), icon=":material/error:")
                    continue
                # A single image as wide as the dialog would be higher than the window.
                alone = min(_ALONE_SIDE, _ALONE_SIDE * image.width // image.height)
                width: int | Literal["stretch"] = "stretch" if len(sides) > 1 else max(1, alone)
                caption = escape_markdown(side.alt)
                st.image(image, caption=caption, alt=side.alt, width=width, output_format="JPEG")


def choose_page(count: int, key: str, per_page: int) -> range:
    """Draw the page numbers of a list, and return the indices on the current page.

    Args:
        count: length of the list.
        key: key of the widget.
        per_page: entries on a page.
    """
    num_pages = -(-count // per_page)
    page = st.pagination(num_pages, key=key) if num_pages > 1 else 1
    return range((page - 1) * per_page, min(count, page * per_page))


def unselect(key: str, ids: Iterable[str]) -> None:
    """Remove images from the selection of a gallery (may be a callback).

    Args:
        key: key of the gallery.
        ids: ids of the images.
    """
    _get_selection(key).difference_update(ids)


def _get_selection(key: str) -> set[str]:
    chosen: set[str] = st.session_state.setdefault(make_data_key(f"chosen-{key}"), set())
    return chosen


def _draw_grid(
    visible: Sequence[Picture],
    per_page: int,
    chosen: set[str] | None = None,
    key: str = "",
    *,
    can_open: bool = False,
    width: int = _WIDTH,
) -> str | None:
    """Draw the images in columns that divide a full page evenly.

    Args:
        chosen: ids of the selected images. If given, each image has a checkbox.

    Returns:
        The id of the image that was clicked, if images can be opened.
    """
    opened = None
    has_pairs = any(item.beside for item in visible)
    max_columns = _MOST_PAIRS if has_pairs else _MOST_COLUMNS
    columns = next(count for count in range(max_columns, 0, -1) if per_page % count == 0)
    with st.grid(columns, min_column_width=_PAIR_WIDTH if has_pairs else width, gap="small"):
        for item, thumbnails in map_in_threads(_make_thumbnails, visible):
            with st.container(gap="xxsmall", border=has_pairs):
                if _draw_cell(item, thumbnails, chosen is not None, key, can_open=can_open):
                    opened = item.id
                for side in _list_sides(item):
                    if chosen is not None and side.id:
                        box = f"choose-{key}-{side.id}"
                        st.session_state[box] = side.id in chosen
                        st.checkbox(
                            escape_markdown(side.caption),
                            key=box,
                            on_change=_toggle,
                            args=(chosen, side.id, box),
                        )
    return opened


def _draw_cell(
    item: Picture,
    thumbnails: Sequence[bytes | str],
    has_checkbox: bool,
    key: str,
    *,
    can_open: bool,
) -> bool:
    """Draw an image and the one beside it; return whether the image was clicked.

    The checkboxes stand outside of the container that takes the clicks.
    """
    can_open = can_open and isinstance(thumbnails[0], bytes)
    sides = _list_sides(item)
    with st.container(gap="xxsmall", key=f"opens-{key}-{item.id}" if can_open else None):
        with st.grid(len(sides), min_column_width=_SIDE_WIDTH, wrap=False, gap="xsmall"):
            for side, side_thumbnail in zip(sides, thumbnails, strict=True):
                with st.container():
                    _draw_side(side, side_thumbnail, captioned=not (has_checkbox and side.id))
        return can_open and _draw_open_button(item, key)


def _draw_open_button(item: Picture, key: str) -> bool:
    return st.button(
        # The suffix would break onto a second line of a narrow tile; the dialog shows it.
        escape_markdown(Path(item.id).stem),
        key=f"open-{key}-{item.id}",
        type="tertiary",
        icon=":material/zoom_in:",
        width="stretch",
    )


def _draw_side(item: Picture, image: bytes | str, *, captioned: bool) -> None:
    if isinstance(image, bytes):
        st.image(
            image,
            caption=escape_markdown(item.caption) if captioned else None,
            alt=item.alt,
            width="stretch",
        )
    else:
        st.caption(escape_markdown(image))


def _toggle(chosen: set[str], sample: str, box: str) -> None:
    (chosen.add if st.session_state[box] else chosen.discard)(sample)


def _make_thumbnails(picture: Picture) -> list[bytes | str]:
    return [
        make_thumbnail(one.path) if isinstance(one.path, Path) else str(one.path)
        for one in _list_sides(picture)
    ]


def _list_sides(picture: Picture) -> list[Picture]:
    return [picture, picture.beside] if picture.beside else [picture]


def make_thumbnail(path: Path, side: int = _SIDE) -> bytes | str:
    """Return the thumbnail of a file, a JPEG of ``side × side`` pixels, or a reason in words."""
    try:
        status = path.stat()
        return _cached_thumbnail(path, (status.st_mtime_ns, status.st_size, status.st_ino), side)
    except FileNotFoundError:
        return f"{path.name} no longer exists"
    except ImageError as error:
        return str(error)


def serve_picture(picture: bytes, place: str) -> str:
    """Return an address at which this server hands out a JPEG.

    The address holds until the page is redrawn without the image, or another image takes the place.

    Args:
        place: names a place for an image within the session.
    """
    base = str(st.get_option("server.baseUrlPath")).strip("/")
    url = get_instance().media_file_mgr.add(picture, "image/jpeg", place)
    return f"/{base}{url}" if base else url


@lru_cache(maxsize=5000)
def _cached_thumbnail(path: Path, _version: tuple[int, ...], side: int) -> bytes:
    return encode_thumbnail(path, side)

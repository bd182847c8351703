"""Table of all networks with search and filters, and a field for other repositories or folders."""

from contextlib import suppress
from functools import partial

import streamlit as st

from finetune_core.config import get_setting
from finetune_core.errors import FinetuneError
from finetune_core.formatting import format_percent
from finetune_core.models.catalogue import (
    BackboneInfo,
    backbone_info,
    backbone_names,
    catalogue_entry,
    check_backbone_name,
    download_bytes,
    find_backbones,
    known_parameter_count,
    list_ready_backbones,
)
from finetune_core.models.licences import licence_name
from finetune_core.models.network import network_stages
from finetune_core.models.timm_networks import FOLDER, HUB, has_description, is_timm_name
from finetune_core.models.weights import fetch_description
from pages.shared.chrome import escape_markdown
from pages.shared.configure import settings
from pages.shared.data.chosen import check_access
from pages.shared.jobs import offer

OPEN, _SEARCH, _FILTERS, _NAMED = (
    "networks_open",
    "networks_search",
    "networks_filters",
    "networks_named",
)
_READY, _COMMERCIAL = "On this machine", "Exclude research-only"
_SIZES = {"Any size": None, "Up to 10 M": 1e7, "Up to 30 M": 3e7, "Up to 100 M": 1e8}
_RESEARCH_ONLY = "Research only: the licence of these weights rules commercial use out."


def list_networks(*chosen: str) -> list[str]:
    """Return the networks that lists offer.

    These are the packaged networks, torchvision's, timm's networks that are on this machine, and
    the chosen ones.
    """
    names = [name for name in backbone_names() if not is_timm_name(name)]
    return list(dict.fromkeys([*names, *list_ready_backbones(), *chosen]))


def format_name_and_size(name: str) -> str:
    """Return a network's name and its size in millions of parameters.

    The size is left out if it is not known without looking at the network, which may be gone.
    """
    num_parameters = None
    with suppress(FinetuneError):
        num_parameters = known_parameter_count(name)
    return f"{name} · {num_parameters / 1e6:.1f} M" if num_parameters else name


def _draw_chosen_network() -> None:
    """Draw the list of networks, and describe the weights of the chosen one."""
    chosen = st.session_state[settings.key("backbone")]
    # The options do not say whether weights are on this machine, because that may change while
    # the list is open.
    st.selectbox(
        get_setting("backbone").label,
        list_networks(chosen),
        format_func=format_name_and_size,
        key=settings.key("backbone"),
        help=get_setting("backbone").help,
        persist_state="session",
        on_change=settings.follow_backbone,
        args=(chosen,),
    )
    with suppress(FinetuneError):
        # Its problems are shown above.
        _describe_network(backbone_info(chosen))


def _describe_network(info: BackboneInfo) -> None:
    """Describe the weights of a network: input, licence, and source."""
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (info.mean, info.std))
    page = f" [{info.repository}]({info.page})" if info.page and info.repository else ""
    badge = (
        f":{'orange' if info.is_research_only else 'gray'}-badge[:material/gavel: "
        f"{escape_markdown(licence_name(info.licence))}]"
    )
    # No caption: its grey is too faint for the badge.
    st.markdown(f"{badge}{page}", help="The licence of the weights, as their source states it.")
    st.caption(
        f"Pretrained at {info.image_size} pixels, {format_percent(info.crop)} of the image, "
        f"{info.interpolation}; mean {mean}, std {std}"
    )


def warn_about_licence(info: BackboneInfo) -> None:
    """Warn if the licence of a network's weights rules commercial use out."""
    if info.is_research_only:
        st.warning(_RESEARCH_ONLY, icon=":material/gavel:")


def draw_network_finder() -> None:
    """Draw a list, a table, and a field for other networks, only while the box is open."""
    with st.expander("Find a network", icon=":material/search:", key=OPEN, on_change="rerun"):
        if st.session_state.get(OPEN):
            _draw_chosen_network()
            _draw_table()
            _draw_name_field()


def _draw_table() -> None:
    query, filters, size_limit = _draw_filters()
    ready = set(list_ready_backbones())
    found = [name for name in find_backbones(query) if name in ready or _READY not in filters]
    infos = [info for info in map(catalogue_entry, found) if _matches(info, filters, size_limit)]
    selection = st.dataframe(
        {
            "Network": [info.name for info in infos],
            "Licence": [
                licence_name(info.licence) + (" · research only" if info.is_research_only else "")
                for info in infos
            ],
            "Million parameters": [
                (info.known_parameter_count or 0) / 1e6 or None for info in infos
            ],
            "Pixels": [info.image_size for info in infos],
            "ImageNet accuracy": [info.top1 for info in infos],
            "Download": [
                None if info.name in ready else _download_megabytes(info) for info in infos
            ],
            "Ready": [info.name in ready for info in infos],
        },
        column_config={
            "Million parameters": st.column_config.NumberColumn(format="%.1f"),
            "ImageNet accuracy": st.column_config.NumberColumn(
                format="%.1f %%",
                help="Top-1 accuracy of these weights as torchvision states it for its own; timm "
                "and packages state none.",
            ),
            "Download": st.column_config.NumberColumn(
                "Download (MB)", format="%.0f", help="Nothing for networks on this machine."
            ),
        },
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key=f"networks:{query}:{filters}:{size_limit}",  # a selection belongs to these rows
    )
    rows = selection["selection"]["rows"]
    chosen = infos[rows[0]].name if rows and rows[0] < len(infos) else None
    st.button(
        f"Use {escape_markdown(chosen)}" if chosen else "Select a row to use that network",
        disabled=chosen is None,
        key="networks_use",
        on_click=settings.use_backbone,
        args=(chosen,),
    )


def _download_megabytes(info: BackboneInfo) -> float | None:
    """Return the size of a download in MB; None if it is not known."""
    return download_bytes(info.known_parameter_count) / 1e6 if info.known_parameter_count else None


def _draw_filters() -> tuple[str, list[str], str]:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        query = st.text_input(
            "Search",
            key=_SEARCH,
            placeholder="dinov3, convnext, mobilenetv4, …",
            persist_state="session",
        )
        size_limit = st.selectbox(
            "Size", list(_SIZES), key="networks_size", persist_state="session", width=150
        )
    filters = st.pills(
        "Only",
        [_READY, _COMMERCIAL],
        selection_mode="multi",
        key=_FILTERS,
        persist_state="session",
        label_visibility="collapsed",
    )
    return query.strip(), list(filters), size_limit


def _matches(info: BackboneInfo, filters: list[str], size_limit: str) -> bool:
    max_parameters = _SIZES[size_limit]
    if max_parameters and (info.known_parameter_count or 0) > max_parameters:
        # A network of unknown size may fit.
        return False
    return not (_COMMERCIAL in filters and info.is_research_only)


def _draw_name_field() -> None:
    """Draw a field for a repository of the Hub or a folder: look the network up, then use it."""
    name = st.text_input(
        "Another network",
        key=_NAMED,
        placeholder=f"{HUB}USER/MODEL or {FOLDER}FOLDER",
        help="A network of timm by its repository on the Hugging Face Hub, or by a folder with "
        "config.json and model.safetensors. " + get_setting("backbone").help,
    ).strip()
    if not name.startswith((HUB, FOLDER)):
        return
    try:
        check_backbone_name(name)
        if name.startswith(FOLDER):
            check_access(name.removeprefix(FOLDER))
        if not has_description(name):
            offer_look_up(name, "named")
        elif network_stages(name):
            st.button(
                f"Use {escape_markdown(name)}",
                key="networks_use_named",
                on_click=settings.use_backbone,
                args=(name,),
            )
    except FinetuneError as error:
        st.error(escape_markdown(str(error)), icon=":material/error:")


def offer_look_up(name: str, place: str) -> None:
    """Draw a button that fetches a network's description from the Hub.

    Args:
        name: name of the network.
        place: names this button among several on a page.
    """
    offer(
        "Look it up",
        f"network:{name}",
        f"Looking up {name}",
        partial(fetch_description, name),
        kept=False,
        button_key=f"networks_look_up_{place}",
    )

"""Missing pretrained weights: the reason why no run can be started, and the download."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial

import streamlit as st

from finetune_core.config import RunConfig
from finetune_core.errors import FinetuneError
from finetune_core.formatting import format_bytes
from finetune_core.models.catalogue import PACKAGED, BackboneInfo, download_bytes
from finetune_core.models.network import parameter_count
from finetune_core.models.weights import why_no_download
from finetune_core.training.prepare import fetch_weights, list_missing_weights
from pages.shared.chrome import escape_markdown
from pages.shared.jobs import offer


def count_parameters(info: BackboneInfo) -> int | None:
    """Return the number of parameters of a published network.

    Returns:
        None if the network cannot be built. The page says so beside the choice of the network.
    """
    with suppress(FinetuneError):
        return parameter_count(info.name)
    return None


def format_download_size(infos: Iterable[BackboneInfo]) -> str:
    """Return the approximate size of some backbones' weights in words.

    Returns:
        An empty string if the size of one of them is not known.
    """
    counts = [count_parameters(info) or 0 for info in infos]
    return format_bytes(download_bytes(sum(counts))) if all(counts) else ""


def offer_weights(configs: Sequence[RunConfig]) -> str | None:
    """Offer to download the weights that runs need and this machine lacks.

    The progress of the download is drawn, and the reason if it failed.

    Returns:
        The reason why no run can be started; None if nothing is missing.
    """
    try:
        missing = list_missing_weights(configs)
    except FinetuneError:
        # The network is gone or not known yet. The page says so beside its choice.
        return None
    if not missing:
        return None
    reasons = [reason for info in missing if (reason := why_no_download(info))]
    for reason in reasons:
        st.warning(escape_markdown(reason), icon=":material/folder_off:")
    if reasons:
        return escape_markdown(reasons[0])
    names = ", ".join(info.name for info in missing)
    st.info(
        f"The pretrained weights of {names} are not on this machine yet. Offline, use {PACKAGED} "
        "or a file of weights (*More settings* on the Configure page).",
        icon=":material/download:",
    )
    download = format_download_size(missing)
    offer(
        f"Download the weights (about {download})" if download else "Download the weights",
        f"weights:{names}",
        f"Downloading the weights of {names}",
        partial(fetch_weights, missing),
        kept=False,
        button_key="download-weights",
        icon=":material/download:",
    )
    return f"The weights of {names} have to be downloaded first."

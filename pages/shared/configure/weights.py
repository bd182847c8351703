"""Pretrained weights that are not on this machine: why nothing can be started, and their download."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial

import streamlit as st

from finetune_core.config import RunConfig
from finetune_core.errors import FinetuneError
from finetune_core.formatting import size
from finetune_core.models.catalogue import PACKAGED, BackboneInfo, download_bytes
from finetune_core.models.network import parameter_count
from finetune_core.models.weights import why_no_download
from finetune_core.training.prepare import fetch_weights, missing_weights
from pages.shared.chrome import plain
from pages.shared.jobs import offer


def parameters_of(info: BackboneInfo) -> int | None:
    """How many a published network has; None where it cannot be built, which is said where it is chosen."""
    with suppress(FinetuneError):
        return parameter_count(info.name)
    return None


def download_size(infos: Iterable[BackboneInfo]) -> str:
    """About how much the weights of some backbones are; empty where that is not known of one of them."""
    counts = [parameters_of(info) or 0 for info in infos]
    return size(download_bytes(sum(counts))) if all(counts) else ""


def offer_weights(configs: Sequence[RunConfig]) -> str | None:
    """Offer to download what runs need and this machine lacks, with its progress, or why it failed; returns why none can be started."""
    try:
        missing = missing_weights(configs)
    except FinetuneError:  # a network is gone, or not known yet: said where it is chosen
        return None
    if not missing:
        return None
    nowhere = [reason for info in missing if (reason := why_no_download(info))]
    for reason in nowhere:
        st.warning(plain(reason), icon=":material/folder_off:")
    if nowhere:
        return plain(nowhere[0])
    names = ", ".join(info.name for info in missing)
    st.info(
        f"The pretrained weights of {names} are not on this machine yet. Offline, use {PACKAGED} or a file of weights "
        "(*More settings* on the Configure page).",
        icon=":material/download:",
    )
    about = download_size(missing)
    offer(
        f"Download the weights (about {about})" if about else "Download the weights",
        f"weights:{names}",
        f"Downloading the weights of {names}",
        partial(fetch_weights, missing),
        kept=False,
        button_key="download-weights",
        icon=":material/download:",
    )
    return f"The weights of {names} have to be downloaded first."

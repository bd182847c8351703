"""Pretrained weights that are not on this machine: why nothing can be started, and their download."""

from collections.abc import Iterable, Sequence
from functools import partial

import streamlit as st

from finetune_core.config import RunConfig
from finetune_core.errors import FinetuneError
from finetune_core.formatting import size
from finetune_core.models.catalogue import PACKAGED, BackboneInfo, download_bytes
from finetune_core.training.prepare import fetch_weights, missing_weights
from pages.shared.chrome import plain
from pages.shared.jobs import begin, outcome


def download_size(infos: Iterable[BackboneInfo]) -> str:
    """About how much the weights of some backbones are."""
    return size(download_bytes(sum(info.parameters for info in infos)))


def offer_weights(configs: Sequence[RunConfig]) -> str | None:
    """Offer to download what runs need and this machine lacks, with its progress, or why it failed; returns why none can be started."""
    missing = missing_weights(configs)
    if not missing:
        return None
    names = ", ".join(info.name for info in missing)
    st.info(
        f"The pretrained weights of {names} are not on this machine yet. Offline, use {PACKAGED} or a file of weights "
        "(*More settings* on the Configure page).",
        icon=":material/download:",
    )
    key = f"weights:{names}"
    st.button(
        f"Download the weights (about {download_size(missing)})",
        icon=":material/download:",
        key="download-weights",
        on_click=begin,
        args=(key, f"Downloading the weights of {names}", partial(fetch_weights, missing)),
        kwargs={"kept": False},
    )
    try:
        outcome(key)
    except FinetuneError as error:
        st.error(plain(str(error)), icon=":material/error:")
    return f"The weights of {names} have to be downloaded first."

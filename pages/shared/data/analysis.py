"""The analysis of a data set with embeddings: its button, its progress, and the backbone and size that Configure has."""

from collections.abc import Callable
from functools import partial

import streamlit as st

from finetune_core.data.dataset import Dataset
from finetune_core.inspection.deep import DeepReport, inspect_deeply
from finetune_core.models.catalogue import PACKAGED, default_backbone, ready_backbones
from finetune_core.work import Work
from pages.shared.configure import settings
from pages.shared.data.datasets import image_fit, keep_report, report_of
from pages.shared.jobs import begin, jobs, shown_outcome

VIEW = "dataset_view"  # key of the view of the Dataset page that is open
PROBES = "Linear probe by layer"


def backbone_and_size() -> tuple[str, int]:
    """As Configure has them, where they can be used."""
    backbone = st.session_state.get("form_backbone", default_backbone())
    usual = settings.defaults()["image_size"]
    size = settings.image_size() if settings.key("image_size") in st.session_state else usual
    return (backbone, size) if size and settings.is_known(backbone) else (PACKAGED, usual)


def analyze(dataset: Dataset, key: str) -> None:
    """The button that computes features; a report of a data set that was changed since is not shown any more."""
    _, image_size = backbone_and_size()
    ready = ready_backbones()
    # the tabs' boxes may say something else since
    begun = st.session_state.get(f"embeddings-{dataset.fingerprint}", "")
    going = jobs().find(begun) is not None
    with st.container(horizontal=True, vertical_alignment="bottom"):
        place = st.empty()
        backbone = ready[0]
        if len(ready) > 1:
            backbone = st.selectbox("Backbone", ready, key=f"embeddings-backbone-{key}", width=260)
        place.button(
            "Analyze with embeddings",
            icon=":material/troubleshoot:",
            key=f"embeddings-{key}",
            on_click=_begin,
            args=(dataset.fingerprint, *_analysis(dataset, backbone, image_size)),
            disabled=going,
        )
    st.caption(
        f"Runs every image once through {backbone} at {image_size} pixels: finds possible label errors, outliers, shift between splits "
        "and similar images, draws a map, and fits a linear probe by layer. What is computed is kept, so it goes on where it was stopped."
    )
    if report := shown_outcome(begun):
        keep_report(dataset, report)
        st.rerun()


def compare_layers(dataset: Dataset) -> None:
    """Start the analysis unless its report is there, and show the linear probe by layer (a callback)."""
    st.session_state[VIEW] = PROBES
    if report_of(dataset) is not None:
        return
    _, image_size = backbone_and_size()
    backbone, *_ = ready_backbones()
    _begin(dataset.fingerprint, *_analysis(dataset, backbone, image_size))


def _analysis(
    dataset: Dataset, backbone: str, image_size: int
) -> tuple[str, Callable[[], Work[DeepReport]]]:
    """Return the key of an analysis among the jobs, and what starts it."""
    fit = image_fit()
    key = f"embeddings:{dataset.fingerprint}:{backbone}:{image_size}:{fit}"
    return key, partial(inspect_deeply, dataset, backbone, image_size, fit)


def _begin(fingerprint: str, key: str, work: Callable[[], Work[DeepReport]]) -> None:
    """A callback."""
    st.session_state[f"embeddings-{fingerprint}"] = key
    begin(key, "Computing features", work)

"""Analysis of a data set with embeddings: button, progress, backbone and image size."""

from collections.abc import Callable
from functools import partial

import streamlit as st

from finetune_core.data.dataset import Dataset
from finetune_core.inspection.deep import DeepReport, inspect_deeply
from finetune_core.models.catalogue import PACKAGED, default_backbone, list_ready_backbones
from finetune_core.work import Work
from pages.shared.configure import settings
from pages.shared.data.chosen import make_data_key
from pages.shared.data.datasets import cache_report, find_report, image_fit
from pages.shared.jobs import begin, jobs, show_outcome

VIEW = "dataset_view"  # key of the open view of the Dataset page
PROBES = "Linear probe by layer"


def backbone_and_size() -> tuple[str, int]:
    """Return backbone and image size as set on Configure, if they are valid."""
    backbone = st.session_state.get("form_backbone", default_backbone())
    default_size = settings.default_values()["image_size"]
    size = (
        settings.read_image_size()
        if settings.key("image_size") in st.session_state
        else default_size
    )
    return (backbone, size) if size and settings.is_known(backbone) else (PACKAGED, default_size)


def analyze(dataset: Dataset, key: str) -> None:
    """Draw the button that computes features; while that is running, its progress instead.

    Args:
        dataset: the data set.
        key: names this button among several.
    """
    _, image_size = backbone_and_size()
    ready = list_ready_backbones()
    # The boxes may have changed since the analysis was started.
    job_key = st.session_state.get(f"embeddings-{dataset.fingerprint}", "")
    is_running = jobs().find(job_key) is not None
    with st.container(horizontal=True, vertical_alignment="bottom"):
        place = st.empty()
        backbone = ready[0]
        if len(ready) > 1:
            backbone = st.selectbox("Backbone", ready, key=f"embeddings-backbone-{key}", width=260)
        if not is_running:
            place.button(
                "Compute features",
                icon=":material/troubleshoot:",
                key=f"embeddings-{key}",
                on_click=_begin_analysis,
                args=(dataset.fingerprint, *_plan_analysis(dataset, backbone, image_size)),
            )
    st.caption(
        f"Runs every image once through {backbone} at {image_size} pixels: finds possible label "
        "errors, outliers, shift between splits and similar images, draws a map, and fits a "
        "linear probe by layer. What is computed is kept, so it goes on where it was stopped."
    )
    if report := show_outcome(job_key):
        cache_report(dataset, report)
        st.session_state[_analyzed_key()] = True
        st.rerun()


def has_outdated_report(dataset: Dataset) -> bool:
    """Return whether this session has analysed the data set, but not as it is now."""
    return bool(st.session_state.get(_analyzed_key())) and find_report(dataset) is None


def _analyzed_key() -> str:
    return make_data_key("analyzed")


def compare_layers(dataset: Dataset) -> None:
    """Show the linear probe by layer, and start the analysis if there is no report (a callback)."""
    st.session_state[VIEW] = PROBES
    if find_report(dataset) is not None:
        return
    _, image_size = backbone_and_size()
    backbone, *_ = list_ready_backbones()
    _begin_analysis(dataset.fingerprint, *_plan_analysis(dataset, backbone, image_size))


def _plan_analysis(
    dataset: Dataset, backbone: str, image_size: int
) -> tuple[str, Callable[[], Work[DeepReport]]]:
    """Return the key of an analysis among the jobs, and a function that starts the analysis."""
    fit = image_fit()
    key = f"embeddings:{dataset.fingerprint}:{backbone}:{image_size}:{fit}"
    return key, partial(inspect_deeply, dataset, backbone, image_size, fit)


def _begin_analysis(fingerprint: str, key: str, work: Callable[[], Work[DeepReport]]) -> None:
    """Start an analysis (a callback)."""
    st.session_state[f"embeddings-{fingerprint}"] = key
    begin(key, "Computing features", work)

"""Trained networks and their explanations, cached for all sessions."""

import streamlit as st

from finetune_core.evaluation.prediction.explain import Explanation, explain
from finetune_core.evaluation.prediction.predictor import Predictor, load_predictor
from finetune_core.evaluation.run_images import resolve_image
from finetune_core.runs.store import Run
from finetune_core.training.predictions import predictions_mtime
from pages.shared.data.chosen import readable_roots
from pages.shared.runs.backend import store


def get_predictor(run: Run) -> Predictor:
    """Return the best network of a run.

    Raises:
        FinetuneError: if there is none, or its backbone has changed.
    """
    return _load_predictor(run.run_id, predictions_mtime(run.run_dir))


def get_explanation(
    run: Run,
    sample: str,
    classes: tuple[int, ...],
    layer: str | None = None,
    data: str | None = None,
) -> Explanation:
    """Return the Grad-CAM of some classes over an image.

    Args:
        run: the run whose network is explained.
        sample: id of the image.
        classes: labels of the classes.
        layer: stage whose output is explained. None: chosen by ``explain``.
        data: data set of the image. None: the run's.

    Raises:
        FinetuneError: if the image is gone, damaged or may not be read, or the backbone or stage
            has no spatial feature map.
    """
    return _compute_explanation(
        run.run_id,
        predictions_mtime(run.run_dir),
        data or run.config.data,
        sample,
        classes,
        layer,
    )


# Further training changes the weights of a run but not its id. ``changed`` tells them apart,
# because the predictions are written anew.
@st.cache_resource(max_entries=4, show_spinner="Loading the network")
def _load_predictor(run_id: str, changed: int) -> Predictor:
    return load_predictor(store().get_run(run_id))


@st.cache_data(max_entries=100, show_spinner="Computing Grad-CAM")
def _compute_explanation(
    run_id: str, changed: int, data: str, sample: str, classes: tuple[int, ...], layer: str | None
) -> Explanation:
    image = resolve_image(data, sample, readable_roots())
    return explain(get_predictor(store().get_run(run_id)), image, classes, layer)

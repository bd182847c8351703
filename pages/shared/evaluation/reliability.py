"""Reliability on Evaluate: how far accuracy and confidence can be trusted, and where not."""

import streamlit as st

from finetune_core.evaluation.single_run.metrics import Evaluation
from finetune_core.runs.store import Run
from pages.shared.evaluation.calibration import draw_calibration
from pages.shared.evaluation.shifted import draw_shifted_data
from pages.shared.evaluation.tabs import draw_robustness, draw_slices
from pages.shared.evaluation.tta import draw_test_time_flips

_VIEWS = {
    "Calibration": draw_calibration,
    "Slices": draw_slices,
    "Robustness": draw_robustness,
    "Shifted data": draw_shifted_data,
    "Test-time augmentation (flip)": draw_test_time_flips,
}


def draw_reliability(run: Run, result: Evaluation) -> None:
    """Draw the chosen view."""
    chosen = st.segmented_control(
        "View",
        list(_VIEWS),
        default="Calibration",
        required=True,
        key="reliability_view",
        persist_state="session",
        label_visibility="collapsed",
    )
    _VIEWS[chosen](run, result)

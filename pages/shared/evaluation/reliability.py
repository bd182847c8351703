"""Reliability on Evaluate: how far accuracy and confidence can be trusted, and where not."""

import streamlit as st

from finetune_core.evaluation.single_run.metrics import Evaluation
from finetune_core.runs.store import Run
from pages.shared.evaluation.calibration import calibration
from pages.shared.evaluation.shifted import shifted_data
from pages.shared.evaluation.tabs import by_slice, robustness
from pages.shared.evaluation.tta import flips_at_test_time

_VIEWS = {
    "Calibration": calibration,
    "Slices": by_slice,
    "Robustness": robustness,
    "Shifted data": shifted_data,
    "Test-time augmentation (flip)": flips_at_test_time,
}


def reliability(run: Run, result: Evaluation) -> None:
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

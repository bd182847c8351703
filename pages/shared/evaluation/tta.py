"""Test-time augmentation on Evaluate: the effect of flips on the accuracy."""

from functools import partial

import streamlit as st

from finetune_core.evaluation.comparison.tta import evaluate_flips, flip_warnings
from finetune_core.evaluation.single_run.metrics import Evaluation
from finetune_core.evaluation.single_run.tta import predict_with_flips
from finetune_core.formatting import SPLIT_TITLES, format_percent, format_points
from finetune_core.runs.store import Run
from pages.shared.chrome import escape_markdown
from pages.shared.data.chosen import readable_roots
from pages.shared.jobs import offer


def draw_test_time_flips(run: Run, _result: Evaluation) -> None:
    """Draw the button that measures the effect of flips, and its result for both splits."""
    st.markdown(
        "The mean of the probabilities of each image and its mirror image, against those of the "
        "image alone."
    )
    for warning in flip_warnings(run):
        st.caption(f":material/warning: {escape_markdown(warning)}")
    found = evaluate_flips(run)
    offer(
        "Measure again" if found else "Evaluate with flips",
        f"tta:{run.run_dir}",
        "Predicting mirror images",
        partial(predict_with_flips, run, readable_roots()),
        kept=False,
        button_key="measure-tta",
        icon=":material/flip:",
        type="tertiary" if found else "secondary",
    )
    if not found:
        return
    st.dataframe(
        [
            {
                "Images": SPLIT_TITLES[one.plain.split],
                "Without": format_percent(one.plain.accuracy),
                "With flips": format_percent(one.with_flips.accuracy),
                "Difference (points)": format_points(one.claim.gain),
                "95 % interval": (
                    f"{format_points(one.claim.low)} to {format_points(one.claim.high)}"
                ),
                "McNemar p": f"{one.claim.p:.2g}",
                "Loss without": f"{one.plain.loss:.3f}",
                "Loss with flips": f"{one.with_flips.loss:.3f}",
            }
            for one in found
        ],
        hide_index=True,
        key="tta",
    )
    for one in found:
        st.markdown(escape_markdown(one.to_text()))
    st.caption(
        "Computed in fp32, from the same pixels. Predict and exports classify without flips. The "
        "result is kept with the run."
    )

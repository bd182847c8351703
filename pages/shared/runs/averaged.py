"""Part of the Train page for runs that average others."""

import streamlit as st

from finetune_core.figures.averages import plot_mixing_curve
from finetune_core.formatting import format_percent
from finetune_core.runs.log import describe_average
from finetune_core.runs.store import Run
from finetune_core.training.averaging.shifted_images import MOST_IMAGES
from pages.shared.chrome import escape_markdown

_NO_SHIFT = (
    "Evaluate the run on another data set first (*Shifted data* on Evaluate), and its accuracy "
    "there is drawn, too."
)


def draw_average(run: Run) -> None:
    """Draw the averaged runs and what was chosen.

    A greedy soup chooses networks, WiSE-FT chooses the mixing coefficient.
    """
    average = run.history.averaged
    if not average:
        return
    st.markdown(escape_markdown(describe_average(average)))
    if average["ingredients"]:
        rows = [
            {
                "Run": one["run"],
                "Validation accuracy with it": format_percent(one["accuracy"]),
                "Kept": "yes" if one["kept"] else "no",
            }
            for one in average["ingredients"]
        ]
        with st.expander("Networks that were tried", icon=":material/table:"):
            st.dataframe(rows, hide_index=True)
            st.caption(
                "In this order, the best network first. Test images play no part in the choice."
            )
    if average["curve"]:
        alt = (
            "Validation accuracy against the mixing coefficient of WiSE-FT, and accuracy on other "
            "data sets where they were predicted"
        )
        shifted = [one for one in average["shifted"] if one["curve"]]
        st.plotly_chart(
            plot_mixing_curve(average["curve"], average["coefficient"], shifted),
            key="mixing",
            alt=alt,
        )
        st.caption(
            "Of equally accurate coefficients the smallest is taken, which stays closest to the "
            "start. "
            + (
                f"Dotted: at most {MOST_IMAGES} images of each other data set that the run had "
                "predicted; nothing is chosen by them."
                if shifted
                else _NO_SHIFT
            )
        )

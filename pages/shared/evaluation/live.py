"""Predict → Live camera: frames of the camera, classified several times per second."""

from collections.abc import Sequence

import numpy as np
import streamlit as st

from finetune_core.data.frames import Batch
from finetune_core.evaluation.prediction.live import FramePrediction, predict_frame
from finetune_core.formatting import format_number, format_percent
from finetune_core.runs.store import Run
from pages.shared.camera import draw_camera
from pages.shared.chrome import escape_markdown, go
from pages.shared.configure import settings
from pages.shared.evaluation.networks import get_predictor
from pages.shared.evaluation.prediction import Classifier
from pages.shared.runs.again import use_again

_MOST_BARS = 10
_KEY = "live-camera"


def offer_live_camera(run: Run) -> None:
    """Draw the button that leads from a run to its live camera."""
    if st.button("Try it with the camera", icon=":material/videocam:", key="to-live"):
        st.session_state["input_kind"] = "live"
        go("pages/predict.py", run.run_id)


def offer_fine_tuning(run: Run) -> None:
    """Draw the button that compares a classifier on frozen features with fine-tuning.

    The comparison uses the same images.
    """
    compare = st.button(
        "Compare with fine-tuning",
        icon=":material/compare_arrows:",
        key="compare-live",
        on_click=settings.propose_comparison,
        args=(settings.FINE_TUNING,),
        help="Would it be better if stages of the backbone trained, too?",
    )
    if compare:
        use_again(run, "pages/compare.py")


@st.fragment
def draw_live(classifiers: Sequence[Classifier]) -> None:
    """Draw the camera, and the networks' predictions for its latest frame."""
    run_ids = tuple(classifier.run.run_id for classifier in classifiers)

    def classify(batch: Batch) -> None:
        st.session_state[f"{_KEY}-answers"] = (
            run_ids,
            [
                predict_frame(
                    get_predictor(classifier.run), classifier.neighbour_index, batch.frames[-1]
                )
                for classifier in classifiers
            ],
        )

    # In this order, a narrow screen shows both.
    bars, picture = st.columns([4, 5], gap="medium")
    answered_ids, answers = st.session_state.get(f"{_KEY}-answers", ((), []))
    with picture:
        draw_camera(_KEY, {"mode": "live"}, classify)
        st.caption(
            "Frames are sent only to the machine that Thaw runs on, which computes on its "
            "processor and keeps none of them."
        )
    with bars:
        if answered_ids != run_ids:
            st.info("Turn on the camera, and hold something up.", icon=":material/videocam:")
            return
        for classifier, prediction in zip(classifiers, answers, strict=True):
            if len(classifiers) > 1:
                st.caption(escape_markdown(classifier.title))
            _draw_bars(classifier, prediction)


def _draw_bars(classifier: Classifier, prediction: FramePrediction) -> None:
    """Draw one bar per class in the order of the classes, so that no bar jumps.

    Of many classes the likeliest have bars, and the rest share one.
    """
    shares = prediction.probabilities
    labels = np.sort(shares.argsort()[::-1][:_MOST_BARS])
    best = int(shares.argmax())
    for index in labels:
        name, share = escape_markdown(classifier.classes[index]), float(shares[index])
        text = f"{name} · {format_percent(share, 0)}"
        st.progress(min(1.0, max(0.0, share)), text=f"**{text}**" if index == best else text)
    if (num_others := len(shares) - len(labels)) > 0:
        rest = min(1.0, max(0.0, 1 - float(shares[labels].sum())))
        st.progress(
            rest, text=f"{format_number(num_others)} other classes · {format_percent(rest, 0)}"
        )
    with st.container():
        # Always there: otherwise everything below would be drawn anew.
        if prediction.unlike:
            st.warning(
                "Unlike anything in training: do not trust this prediction.",
                icon=":material/travel_explore:",
            )

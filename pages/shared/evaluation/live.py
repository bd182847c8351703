"""Predict → Live camera: what is held up, classified several times per second."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import streamlit as st

from finetune_core.data.frames import Batch
from finetune_core.formatting import number, percent
from pages.shared.camera import camera
from pages.shared.chrome import plain
from pages.shared.evaluation.networks import predictor
from pages.shared.evaluation.prediction import Classifier

_MOST_BARS = 10
_KEY = "live-camera"


class _Answer(NamedTuple):
    """Of one network, for one frame; ``unlike``: any training image, None where that is not known."""

    probabilities: np.ndarray
    unlike: bool | None


@st.fragment
def live(classifiers: Sequence[Classifier]) -> None:
    """Draw the camera, and what the networks take its latest frame for."""
    asked = tuple(one.run.run_id for one in classifiers)

    def arrived(batch: Batch) -> None:
        st.session_state[f"{_KEY}-answers"] = (asked, [_answer(one, batch.frames[-1]) for one in classifiers])

    picture, bars = st.columns([5, 4], gap="medium")
    with picture:
        camera(_KEY, {"mode": "live"}, arrived)
        st.caption(
            "Frames are sent only to the machine that Thaw runs on, which computes on its processor and keeps none of them."
        )
    of, answers = st.session_state.get(f"{_KEY}-answers", ((), []))
    with bars:
        if of != asked:
            st.info("Turn on the camera, and hold something up.", icon=":material/videocam:")
            return
        for one, answer in zip(classifiers, answers, strict=True):
            if len(classifiers) > 1:
                st.caption(plain(one.title))
            _bars(one, answer)


def _answer(one: Classifier, frame: bytes) -> _Answer:
    if one.known is None:
        return _Answer(predictor(one.run).probabilities([frame])[0], None)
    looks, near = one.known
    features, probabilities = looks.look(frame)
    return _Answer(probabilities, bool(near.unlike(features[None])[0]))


def _bars(one: Classifier, answer: _Answer) -> None:
    """One bar per class, in the order of the classes, so that none jumps; of many classes the likeliest, and the rest together."""
    shares = answer.probabilities
    shown = np.sort(shares.argsort()[::-1][:_MOST_BARS])
    best = int(shares.argmax())
    for index in shown:
        name, share = plain(one.classes[index]), float(shares[index])
        words = f"{name} · {percent(share, 0)}"
        st.progress(min(1.0, max(0.0, share)), text=f"**{words}**" if index == best else words)
    if (folded := len(shares) - len(shown)) > 0:
        rest = min(1.0, max(0.0, 1 - float(shares[shown].sum())))
        st.progress(rest, text=f"{number(folded)} other classes · {percent(rest, 0)}")
    with st.container():  # always there, so that nothing below is drawn anew
        if answer.unlike:
            st.warning("Unlike anything in training: do not trust this prediction.", icon=":material/travel_explore:")

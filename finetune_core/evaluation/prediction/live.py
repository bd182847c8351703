"""Prediction of a camera's frames, one after the other."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from finetune_core.evaluation.prediction.neighbours import Known
from finetune_core.evaluation.prediction.predictor import Predictor
from finetune_core.training.data_pipeline.batches import disable_helper_threads

# One image is too little work to share between threads: on busy cores they wait for each other
# many times longer than the work takes.
_threads = ThreadPoolExecutor(2, thread_name_prefix="live", initializer=disable_helper_threads)


@dataclass(frozen=True)
class FramePrediction:
    """Prediction of one network for one frame.

    Attributes:
        probabilities: float64 ``[classes]``.
        unlike: True if the frame is unlike all training images; None if these are not known.
    """

    probabilities: np.ndarray
    unlike: bool | None


def predict_frame(predictor: Predictor, known: Known | None, frame: bytes) -> FramePrediction:
    """Predict a frame.

    Args:
        predictor: the network.
        known: encoder of the network and its training images.
        frame: the image file's bytes.

    Raises:
        ImageError: if the frame cannot be read.
    """
    return _threads.submit(_predict_frame, predictor, known, frame).result()


def _predict_frame(predictor: Predictor, known: Known | None, frame: bytes) -> FramePrediction:
    if known is None:
        return FramePrediction(predictor.predict_proba([frame])[0], None)
    encoder, neighbourhood = known
    features, probabilities = encoder.encode_image(frame)
    return FramePrediction(probabilities, bool(neighbourhood.find_unlike(features[None])[0]))

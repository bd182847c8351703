"""Predictions for a person's own images: one image with reasons, or many images as a table."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from finetune_core.data.archives import unpack_archive
from finetune_core.errors import FinetuneError, ImageError
from finetune_core.evaluation.comparison.arms import run_titles
from finetune_core.evaluation.prediction.batch import (
    ImagePrediction,
    NetworkPredictions,
    list_images,
    make_unpack_folder,
    predict_images,
    side_by_side_csv,
)
from finetune_core.evaluation.prediction.explain import Explanation, explain
from finetune_core.evaluation.prediction.neighbours import (
    Encoder,
    Known,
    Neighbourhood,
    compute_neighbourhood,
    load_neighbourhood,
    make_encoder,
    neighbours_mtime,
)
from finetune_core.evaluation.prediction.predictor import Predictor
from finetune_core.figures.evaluation import plot_probabilities
from finetune_core.formatting import format_number, format_percent, pluralize
from finetune_core.runs.store import Run
from finetune_core.training.data_pipeline.preview import draw_crop
from finetune_core.training.predictions import predictions_mtime
from finetune_core.work import Work, with_phase
from pages.shared.chrome import PLAIN, escape_markdown
from pages.shared.data.chosen import readable_roots
from pages.shared.evaluation.networks import get_predictor
from pages.shared.images import Picture, draw_gallery, make_run_picture
from pages.shared.jobs import begin, jobs, offer, show_outcome
from pages.shared.runs.backend import store

_SHOWN, _NEAREST = 5, 4  # classes; training images
_HEADING = 40  # characters
_SIDE = 320  # pixels of a picture


class EncodedImage(NamedTuple):
    """Features of an image, and the training images that they are compared with.

    Attributes:
        neighbourhood: neighbourhood of the training images.
        features: features of the image, ``[parts, d]``.
    """

    neighbourhood: Neighbourhood
    features: np.ndarray


@dataclass(frozen=True)
class Classifier:
    """Network of a run, with the features of its training images.

    Attributes:
        run: the run.
        title: title of the run.
        classes: names of the classes.
        encoder: part of the network before its head. None if the network cannot be cut there.
        neighbourhood: features of the training images. None before ``offer_neighbours``.
    """

    run: Run
    title: str
    classes: tuple[str, ...]
    encoder: Encoder | None
    neighbourhood: Neighbourhood | None

    @property
    def neighbour_index(self) -> Known | None:
        """Encoder and training features to find similar training images.

        None before ``offer_neighbours``.
        """
        return (self.encoder, self.neighbourhood) if self.encoder and self.neighbourhood else None


def load_classifier(run: Run, title: str) -> Classifier:
    """Load a run's network.

    Raises:
        FinetuneError: if the network cannot be built.
    """
    classes = get_predictor(run).classes
    changed = predictions_mtime(run.run_dir)
    encoder = _load_encoder(run.run_id, changed)
    return Classifier(
        run,
        title,
        classes,
        encoder,
        _load_neighbourhood(run.run_id, changed, neighbours_mtime(run)),
    )


@st.cache_resource(max_entries=4, show_spinner=False)
def _load_encoder(run_id: str, changed: int) -> Encoder | None:
    try:
        return make_encoder(get_predictor(store().get_run(run_id)))
    except FinetuneError:
        # The network can still classify images.
        return None


@st.cache_resource(max_entries=4, show_spinner="Loading the features of the training images")
def _load_neighbourhood(run_id: str, changed: int, written: int) -> Neighbourhood | None:
    encoder = _load_encoder(run_id, changed)
    return load_neighbourhood(store().get_run(run_id), encoder) if encoder else None


# Every click on the page asks for all images again. So results are cached by the image's content.
@st.cache_data(max_entries=500, show_spinner=False)
def _compute_probabilities(run_id: str, changed: int, image: bytes) -> np.ndarray:
    probabilities: np.ndarray = get_predictor(store().get_run(run_id)).predict_proba([image])[0]
    return probabilities


@st.cache_data(max_entries=500, show_spinner=False)
def _compute_features(run_id: str, changed: int, image: bytes, _encoder: Encoder) -> np.ndarray:
    return _encoder.encode_image(image)[0]


@st.cache_data(max_entries=50, show_spinner="Computing Grad-CAM")
def _compute_explanation(
    run_id: str, changed: int, image: bytes, classes: tuple[int, ...]
) -> Explanation:
    return explain(get_predictor(store().get_run(run_id)), image, classes)


def offer_neighbours(
    classifiers: list[Classifier], label: str = "Show nearest training images"
) -> None:
    """Offer to compute the training images' features for networks that have none yet.

    Args:
        classifiers: the networks.
        label: label of the button, which names the purpose.
    """
    unknown = [one for one in classifiers if one.encoder and one.neighbourhood is None]
    if not unknown:
        return
    offer(
        label,
        f"neighbours:{','.join(one.run.run_id for one in classifiers)}",
        "Computing the features of the training images",
        partial(_compute_neighbourhoods, unknown, readable_roots()),
        kept=len(unknown) > 1,
        button_key="compute-neighbours",
        icon=":material/grid_view:",
        help="Runs the training images through the network once. After that, each new image is "
        "shown with its nearest neighbours, and images unlike anything in training are flagged.",
    )


def _compute_neighbourhoods(classifiers: Sequence[Classifier], roots: Sequence[Path]) -> Work[None]:
    for one in classifiers:
        if one.encoder:
            yield from compute_neighbourhood(one.run, one.encoder, roots)


def draw_image(
    key: str,
    name: str,
    image: bytes,
    classifiers: list[Classifier],
    *,
    brief: bool = False,
    heading: bool = True,
) -> None:
    """Draw the predictions of one or more networks for an image.

    Args:
        key: distinguishes the images on a page.
        name: name of the image.
        image: content of the file.
        classifiers: the networks.
        brief: for a presentation: the prediction large, the details folded away.
        heading: whether the name stands above.
    """
    with st.container(border=not brief):
        if heading:
            st.markdown(f"**{escape_markdown(name)}**")
        for one, column in zip(
            classifiers,
            st.columns(len(classifiers), gap="medium")
            if len(classifiers) > 1
            else [st.container()],
            strict=True,
        ):
            with column:
                if len(classifiers) > 1:
                    st.caption(escape_markdown(one.title))
                _draw_answer(
                    f"{key}-{one.run.run_id}", name, image, one, brief or len(classifiers) > 1
                )


def _draw_answer(
    key: str, name: str, image: bytes, classifier: Classifier, is_narrow: bool
) -> None:
    run_id, changed = classifier.run.run_id, predictions_mtime(classifier.run.run_dir)
    try:
        probabilities, encoded = _compute_probabilities(run_id, changed, image), None
        if classifier.neighbour_index:
            encoder, neighbourhood = classifier.neighbour_index
            encoded = EncodedImage(
                neighbourhood, _compute_features(run_id, changed, image, encoder)
            )
    except ImageError as error:
        st.error(escape_markdown(f"{name}: {error}"), icon=":material/broken_image:")
        return
    order = probabilities.argsort()[::-1][:_SHOWN]
    best = classifier.classes[order[0]]
    st.markdown(f"## {escape_markdown(_shorten(best))} · {format_percent(probabilities[order[0]])}")
    if encoded and encoded.neighbourhood.find_unlike(encoded.features[None])[0]:
        st.warning(
            "Unlike anything in training: farther from the training images than "
            f"{format_percent(1 - encoded.neighbourhood.error, 0)} of the validation images are. "
            "Do not trust the prediction.",
            icon=":material/travel_explore:",
        )
    pictures, bars = (
        (st.container(), st.container()) if is_narrow else st.columns([2, 3], gap="medium")
    )
    with pictures:
        _draw_grad_cam(name, image, classifier, int(order[0]))
    with bars:
        st.plotly_chart(
            plot_probabilities(
                [classifier.classes[i] for i in order], probabilities[order].tolist()
            ),
            key=f"bars-{key}",
            alt=f"Probabilities of the most likely classes of {name}",
            config=PLAIN,
        )
    if encoded:
        _draw_neighbours(key, classifier, encoded)


def _draw_grad_cam(name: str, image: bytes, classifier: Classifier, best: int) -> None:
    try:
        explained = _compute_explanation(
            classifier.run.run_id, predictions_mtime(classifier.run.run_dir), image, (best,)
        )
    except FinetuneError as error:
        st.caption(escape_markdown(str(error)))
        return
    network = get_predictor(classifier.run)
    text = "Grad-CAM" if explained.heat[best].any() else "Grad-CAM: no evidence for this class"
    with st.grid("auto", min_column_width=150, gap="small"):
        crop = draw_crop(image, network.network.info, network.image_size, _SIDE)
        caption = "The network sees what is framed"
        st.image(crop, caption=caption, alt=f"{name}: {caption}")
        st.image(
            explained.overlays[best],
            caption=text,
            alt=f"{name}: {text}: {classifier.classes[best]}",
        )


def _draw_neighbours(key: str, classifier: Classifier, encoded: EncodedImage) -> None:
    rows, _ = encoded.neighbourhood.find_nearest(encoded.features, _NEAREST)
    st.markdown(
        "**Nearest training images**",
        help="By cosine distance between features, just before the head.",
    )

    def picture(index: int) -> Picture:
        sample, kind = (
            str(encoded.neighbourhood.ids[rows[index]]),
            classifier.classes[encoded.neighbourhood.labels[rows[index]]],
        )
        return make_run_picture(
            classifier.run, sample, kind, f"Training image {sample}, class {kind}"
        )

    draw_gallery(len(rows), picture, key=f"near-{key}", per_page=_NEAREST)
    if not encoded.neighbourhood.unchanged:
        st.caption(
            "The data set has changed since the run, so these may not all have been trained on."
        )


def draw_archive(classifiers: Sequence[Classifier]) -> None:
    """Draw the upload of an archive, and the table of each network's prediction for each image."""
    upload = st.file_uploader(
        "A ZIP or TAR archive of images",
        type=["zip", "tar", "gz", "tgz", "bz2", "tbz2", "xz", "txz"],
        key="archive",
        help="Unpacked to classify its images, then deleted. Folders in it are only part of the "
        "names.",
    )
    if upload is None:
        return
    # The key leaves out whether neighbours are known: another session may compute them meanwhile,
    # and the result of this job would be lost.
    marks = [f"{one.run.run_id}-{predictions_mtime(one.run.run_dir)}" for one in classifiers]
    key = f"naming:{upload.file_id}:{','.join(marks)}"
    answers = show_outcome(key)
    if answers is not None:
        _draw_table(classifiers, Path(upload.name).stem, answers)
        if not _lacks_flags(classifiers, answers):
            return
    networks = [get_predictor(one.run) for one in classifiers]
    text = "Classify" if answers is None else "Classify again"
    st.button(
        text if len(classifiers) == 1 else f"{text} with {pluralize(len(classifiers), 'network')}",
        type="primary",
        icon=":material/play_arrow:",
        key="classify",
        on_click=begin,
        args=(key, "Classifying images", partial(_predict_archive, classifiers, networks, upload)),
        kwargs={"kept": False},
        disabled=jobs().find(key) is not None,
    )


def _lacks_flags(
    classifiers: Sequence[Classifier], predictions: Sequence[Sequence[ImagePrediction]]
) -> bool:
    """Return whether neighbours have become known since the predictions were made.

    Predicting again would then flag images unlike anything in training.
    """
    sides = zip(classifiers, predictions, strict=True)
    return any(
        one.neighbourhood and row.unlike is None
        for one, rows in sides
        for row in rows
        if row.probabilities is not None
    )


def _predict_archive(
    classifiers: Sequence[Classifier], networks: Sequence[Predictor], upload: UploadedFile
) -> Work[list[list[ImagePrediction]]]:
    """Unpack an archive, then classify its images with one network after another.

    Returns:
        The predictions of each network.
    """
    with make_unpack_folder() as folder:
        yield from with_phase("unpack", unpack_archive(upload, upload.name, folder))
        images = list_images(folder)
        return (yield from _predict_with_each(classifiers, networks, images))


def _predict_with_each(
    classifiers: Sequence[Classifier],
    networks: Sequence[Predictor],
    images: Sequence[tuple[str, Path]],
) -> Work[list[list[ImagePrediction]]]:
    answers: list[list[ImagePrediction]] = []
    for one, network in zip(classifiers, networks, strict=True):
        work = predict_images(network, images, one.neighbour_index)
        work = with_phase("name", work, len(answers) * len(images), len(classifiers) * len(images))
        answers.append((yield from work))
    return answers


def _draw_table(
    classifiers: Sequence[Classifier], stem: str, predictions: Sequence[Sequence[ImagePrediction]]
) -> None:
    titles = run_titles([one.run for one in classifiers]) if len(classifiers) > 1 else [""]
    answers = [
        NetworkPredictions(title, one.classes, rows)
        for title, one, rows in zip(titles, classifiers, predictions, strict=True)
    ]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"{_describe_answers(answers)}.", width="stretch")
        st.download_button(
            "Download CSV",
            lambda: side_by_side_csv(answers),
            f"{stem}-predictions.csv",
            "text/csv",
            icon=":material/download:",
            on_click="ignore",
            key="predictions-csv",
        )
    table, columns = pd.DataFrame({"File": [row.file for row in answers[0].predictions]}), {}
    for one in answers:
        mark = f", {one.title}" if one.title else ""
        table[f"Class{mark}"] = one.top
        table[f"Confidence{mark}"] = [
            None if row.probabilities is None else 100 * float(row.probabilities.max())
            for row in one.predictions
        ]
        table[f"Note{mark}"] = [
            row.problem or ("unlike anything in training" if row.unlike else "")
            for row in one.predictions
        ]
        columns[f"Confidence{mark}"] = st.column_config.ProgressColumn(
            min_value=0, max_value=100, format="%.1f %%"
        )
    st.dataframe(table, hide_index=True, height=360, key="predictions-table", column_config=columns)
    for one in answers:
        counts = Counter(name for name in one.top if name).most_common(12)
        listed = ", ".join(f"{name} {format_number(count)}" for name, count in counts)
        st.caption(
            escape_markdown(
                f"Predictions per class{f', {one.title}' if one.title else ''}: {listed}"
            )
        )


def _describe_answers(answers: Sequence[NetworkPredictions]) -> str:
    first = answers[0].predictions
    readable = sum(row.probabilities is not None for row in first)
    text = f"**{pluralize(readable, 'image')} classified**"
    if len(answers) > 1:
        alike = sum(
            bool(tops[0]) and len(set(tops)) == 1
            for tops in zip(*(one.top for one in answers), strict=True)
        )
        text += f" by {pluralize(len(answers), 'network')}, which agree on {format_number(alike)}"
    elif unlike := sum(bool(row.unlike) for row in first):
        text += f", {format_number(unlike)} unlike anything in training"
    return text + (
        f", {format_number(len(first) - readable)} could not be read"
        if readable < len(first)
        else ""
    )


def _shorten(name: str) -> str:
    return name if len(name) <= _HEADING else f"{name[: _HEADING - 1]}…"

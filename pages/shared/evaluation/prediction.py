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
    Answers,
    ImagePrediction,
    images_below,
    predict_images,
    side_by_side_csv,
    unpacking_folder,
)
from finetune_core.evaluation.prediction.explain import Explanation, explain
from finetune_core.evaluation.prediction.neighbours import (
    Encoder,
    Known,
    Neighbourhood,
    compute_neighbourhood,
    encoder,
    known_neighbourhood,
    neighbours_changed,
)
from finetune_core.evaluation.prediction.predictor import Predictor
from finetune_core.figures.evaluation import probability_bars
from finetune_core.formatting import number, percent, things
from finetune_core.runs.store import Run
from finetune_core.training.predictions import predictions_changed
from finetune_core.training.preview import draw_crop
from finetune_core.work import Work, in_phase
from pages.shared.chrome import plain
from pages.shared.data.chosen import readable_roots
from pages.shared.evaluation.networks import predictor
from pages.shared.images import Picture, gallery, run_picture
from pages.shared.jobs import begin, jobs, offer, shown_outcome
from pages.shared.runs.backend import store

_SHOWN, _NEAREST = 5, 4  # classes; training images
_HEADING = 40  # characters
_SIDE = 320  # pixels of a picture


class Seen(NamedTuple):
    """Features of an image, and the training images that they are compared with.

    Attributes:
        near: neighbourhood of the training images.
        features: features of the image, ``[parts, d]``.
    """

    near: Neighbourhood
    features: np.ndarray


@dataclass(frozen=True)
class Classifier:
    """Network of a run, with the features of its training images.

    Attributes:
        run: the run.
        title: title of the run.
        classes: names of the classes.
        looks: part of the network before its head. None if the network cannot be cut there.
        near: features of the training images. None before ``offer_neighbours``.
    """

    run: Run
    title: str
    classes: tuple[str, ...]
    looks: Encoder | None
    near: Neighbourhood | None

    @property
    def known(self) -> Known | None:
        """Encoder and training features to find similar training images.

        None before ``offer_neighbours``.
        """
        return (self.looks, self.near) if self.looks and self.near else None


def load_classifier(run: Run, title: str) -> Classifier:
    """Load a run's network.

    Raises:
        FinetuneError: if the network cannot be built.
    """
    classes = predictor(run).classes
    changed = predictions_changed(run.run_dir)
    looks = _encoder(run.run_id, changed)
    return Classifier(
        run, title, classes, looks, _near(run.run_id, changed, neighbours_changed(run))
    )


@st.cache_resource(max_entries=4, show_spinner=False)
def _encoder(run_id: str, changed: int) -> Encoder | None:
    try:
        return encoder(predictor(store().run(run_id)))
    except FinetuneError:
        # The network can still classify images.
        return None


@st.cache_resource(max_entries=4, show_spinner="Loading the features of the training images")
def _near(run_id: str, changed: int, written: int) -> Neighbourhood | None:
    looks = _encoder(run_id, changed)
    return known_neighbourhood(store().run(run_id), looks) if looks else None


# Every click on the page asks for all images again. So results are cached by the image's content.
@st.cache_data(max_entries=500, show_spinner=False)
def _probabilities(run_id: str, changed: int, image: bytes) -> np.ndarray:
    probabilities: np.ndarray = predictor(store().run(run_id)).probabilities([image])[0]
    return probabilities


@st.cache_data(max_entries=500, show_spinner=False)
def _features(run_id: str, changed: int, image: bytes, _looks: Encoder) -> np.ndarray:
    return _looks.look(image)[0]


@st.cache_data(max_entries=50, show_spinner="Computing Grad-CAM")
def _explained(run_id: str, changed: int, image: bytes, classes: tuple[int, ...]) -> Explanation:
    return explain(predictor(store().run(run_id)), image, classes)


def offer_neighbours(
    classifiers: list[Classifier], label: str = "Show nearest training images"
) -> None:
    """Offer to compute the training images' features for networks that have none yet.

    Args:
        classifiers: the networks.
        label: label of the button, which names the purpose.
    """
    unknown = [one for one in classifiers if one.looks and one.near is None]
    if not unknown:
        return
    offer(
        label,
        f"neighbours:{','.join(one.run.run_id for one in classifiers)}",
        "Computing the features of the training images",
        partial(_neighbourhoods, unknown, readable_roots()),
        kept=len(unknown) > 1,
        button_key="compute-neighbours",
        icon=":material/grid_view:",
        help="Runs the training images through the network once. After that, each new image is "
        "shown with its nearest neighbours, and images unlike anything in training are flagged.",
    )


def _neighbourhoods(classifiers: Sequence[Classifier], roots: Sequence[Path]) -> Work[None]:
    for one in classifiers:
        if one.looks:
            yield from compute_neighbourhood(one.run, one.looks, roots)


def show_image(
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
            st.markdown(f"**{plain(name)}**")
        for one, column in zip(
            classifiers,
            st.columns(len(classifiers), gap="medium")
            if len(classifiers) > 1
            else [st.container()],
            strict=True,
        ):
            with column:
                if len(classifiers) > 1:
                    st.caption(plain(one.title))
                _answer(f"{key}-{one.run.run_id}", name, image, one, brief or len(classifiers) > 1)


def _answer(key: str, name: str, image: bytes, one: Classifier, narrow: bool) -> None:
    run_id, changed = one.run.run_id, predictions_changed(one.run.run_dir)
    try:
        probabilities, seen = _probabilities(run_id, changed, image), None
        if one.known:
            looks, near = one.known
            seen = Seen(near, _features(run_id, changed, image, looks))
    except ImageError as error:
        st.error(plain(f"{name}: {error}"), icon=":material/broken_image:")
        return
    order = probabilities.argsort()[::-1][:_SHOWN]
    best = one.classes[order[0]]
    st.markdown(f"## {plain(_short(best))} · {percent(probabilities[order[0]])}")
    if seen and seen.near.unlike(seen.features[None])[0]:
        st.warning(
            "Unlike anything in training: farther from the training images than "
            f"{percent(1 - seen.near.error, 0)} of the validation images are. Do not trust the "
            "prediction.",
            icon=":material/travel_explore:",
        )
    pictures, bars = (
        (st.container(), st.container()) if narrow else st.columns([2, 3], gap="medium")
    )
    with pictures:
        _grad_cam(name, image, one, int(order[0]))
    with bars:
        st.plotly_chart(
            probability_bars([one.classes[i] for i in order], probabilities[order].tolist()),
            key=f"bars-{key}",
            alt=f"Probabilities of the most likely classes of {name}",
        )
    if seen:
        _neighbours(key, one, seen)


def _grad_cam(name: str, image: bytes, one: Classifier, best: int) -> None:
    try:
        seen = _explained(one.run.run_id, predictions_changed(one.run.run_dir), image, (best,))
    except FinetuneError as error:
        st.caption(plain(str(error)))
        return
    network = predictor(one.run)
    words = "Grad-CAM" if seen.heat[best].any() else "Grad-CAM: no evidence for this class"
    with st.grid("auto", min_column_width=150, gap="small"):
        framed = draw_crop(image, network.network.info, network.image_size, _SIDE)
        caption = "The network sees what is framed"
        st.image(framed, caption=caption, alt=f"{name}: {caption}")
        st.image(seen.overlays[best], caption=words, alt=f"{name}: {words}: {one.classes[best]}")


def _neighbours(key: str, one: Classifier, seen: Seen) -> None:
    rows, _ = seen.near.nearest(seen.features, _NEAREST)
    st.markdown(
        "**Nearest training images**",
        help="By cosine distance between features, just before the head.",
    )

    def picture(index: int) -> Picture:
        sample, kind = str(seen.near.ids[rows[index]]), one.classes[seen.near.labels[rows[index]]]
        return run_picture(one.run, sample, kind, f"Training image {sample}, class {kind}")

    gallery(len(rows), picture, key=f"near-{key}", per_page=_NEAREST)
    if not seen.near.unchanged:
        st.caption(
            "The data set has changed since the run, so these may not all have been trained on."
        )


def many(classifiers: Sequence[Classifier]) -> None:
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
    marks = [f"{one.run.run_id}-{predictions_changed(one.run.run_dir)}" for one in classifiers]
    key = f"naming:{upload.file_id}:{','.join(marks)}"
    answers = shown_outcome(key)
    if answers is not None:
        _table(classifiers, Path(upload.name).stem, answers)
        if not _says_less(classifiers, answers):
            return
    networks = [predictor(one.run) for one in classifiers]
    words = "Classify" if answers is None else "Classify again"
    st.button(
        words if len(classifiers) == 1 else f"{words} with {things(len(classifiers), 'network')}",
        type="primary",
        icon=":material/play_arrow:",
        key="classify",
        on_click=begin,
        args=(key, "Classifying images", partial(_predictions, classifiers, networks, upload)),
        kwargs={"kept": False},
        disabled=jobs().find(key) is not None,
    )


def _says_less(
    classifiers: Sequence[Classifier], predictions: Sequence[Sequence[ImagePrediction]]
) -> bool:
    """Return whether neighbours have become known since the predictions were made.

    Predicting again would then flag images unlike anything in training.
    """
    sides = zip(classifiers, predictions, strict=True)
    return any(
        one.near and row.unlike is None
        for one, rows in sides
        for row in rows
        if row.probabilities is not None
    )


def _predictions(
    classifiers: Sequence[Classifier], networks: Sequence[Predictor], upload: UploadedFile
) -> Work[list[list[ImagePrediction]]]:
    """Unpack an archive, then classify its images with one network after another.

    Returns:
        The predictions of each network.
    """
    with unpacking_folder() as folder:
        yield from in_phase("unpack", unpack_archive(upload, upload.name, folder))
        images = images_below(folder)
        return (yield from _with_each(classifiers, networks, images))


def _with_each(
    classifiers: Sequence[Classifier],
    networks: Sequence[Predictor],
    images: Sequence[tuple[str, Path]],
) -> Work[list[list[ImagePrediction]]]:
    answers: list[list[ImagePrediction]] = []
    for one, network in zip(classifiers, networks, strict=True):
        work = predict_images(network, images, one.known)
        work = in_phase("name", work, len(answers) * len(images), len(classifiers) * len(images))
        answers.append((yield from work))
    return answers


def _table(
    classifiers: Sequence[Classifier], stem: str, predictions: Sequence[Sequence[ImagePrediction]]
) -> None:
    titles = run_titles([one.run for one in classifiers]) if len(classifiers) > 1 else [""]
    answers = [
        Answers(title, one.classes, rows)
        for title, one, rows in zip(titles, classifiers, predictions, strict=True)
    ]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"{_in_words(answers)}.", width="stretch")
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
        listed = ", ".join(f"{name} {number(count)}" for name, count in counts)
        st.caption(plain(f"Predictions per class{f', {one.title}' if one.title else ''}: {listed}"))


def _in_words(answers: Sequence[Answers]) -> str:
    first = answers[0].predictions
    readable = sum(row.probabilities is not None for row in first)
    text = f"**{things(readable, 'image')} classified**"
    if len(answers) > 1:
        alike = sum(
            bool(tops[0]) and len(set(tops)) == 1
            for tops in zip(*(one.top for one in answers), strict=True)
        )
        text += f" by {things(len(answers), 'network')}, which agree on {number(alike)}"
    elif unlike := sum(bool(row.unlike) for row in first):
        text += f", {number(unlike)} unlike anything in training"
    return text + (
        f", {number(len(first) - readable)} could not be read" if readable < len(first) else ""
    )


def _short(name: str) -> str:
    return name if len(name) <= _HEADING else f"{name[: _HEADING - 1]}…"

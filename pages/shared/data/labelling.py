"""Dataset, Label: add a folder of images, and give each image its class by a key."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from finetune_core.config import Edit
from finetune_core.config.edit import LONGEST_NAME
from finetune_core.data.dataset import Dataset, compute_fingerprint
from finetune_core.data.edits import collect_labelled_paths, load_edits, remove_edits
from finetune_core.data.entry import unlabelled_folder
from finetune_core.data.listing import image_root
from finetune_core.data.splits import TEST
from finetune_core.errors import FinetuneError
from finetune_core.formatting import format_number, format_percent
from finetune_core.labelling.answers import SKIPPED, Answer, save_answers
from finetune_core.labelling.pool import (
    Unlabelled,
    add_class,
    load_unlabelled,
    remove_folder,
)
from finetune_core.labelling.session import ORDERS, Labelling, Labels, Probe, prepare_labelling
from pages.shared.chrome import escape_markdown
from pages.shared.data.analysis import backbone_and_size
from pages.shared.data.chosen import get_chosen_data, make_data_key, readable_roots
from pages.shared.data.datasets import attempt_change, image_fit, keep_latest
from pages.shared.data.label_queue import SessionQueue
from pages.shared.data.unlabelled import add_unlabelled
from pages.shared.jobs import forget, wait_for
from pages.shared.labeller import draw_labeller

_AT_ONCE = {1: "One", 9: "Nine"}


def label_images(dataset: Dataset) -> None:
    """Draw the folders of images without labels, and the images to label."""
    data = get_chosen_data()
    unlabelled = load_unlabelled(data)
    if not unlabelled.folders:
        st.markdown("Add images without labels, then give each one its class by a key.")
        add_unlabelled(data, unlabelled)
        return
    try:
        labelling = _prepare_labelling(dataset, data, unlabelled)
        if labelling is not None:
            _draw_desk(data, labelling)
    except FinetuneError as error:
        # A folder may be gone: it can be removed below.
        st.error(escape_markdown(str(error)), icon=":material/error:")
    with st.expander("Folders without labels", icon=":material/folder:", key="label-folders"):
        _draw_folders(data, unlabelled)
        add_unlabelled(data, unlabelled)


def _draw_folders(data: str, unlabelled: Unlabelled) -> None:
    for folder in unlabelled.folders:
        with st.container(horizontal=True, vertical_alignment="center"):
            # Uploads and recordings lie in a folder that nobody has chosen: show the name only.
            is_upload = Path(folder).is_relative_to(unlabelled_folder(image_root(data)))
            folder_name = Path(folder).name if is_upload else folder
            st.markdown(f":material/folder: {escape_markdown(folder_name)}", width="stretch")
            st.button(
                "Remove",
                key=f"label-remove-{folder}",
                help="Its images wait no longer. Labels and files stay.",
                on_click=lambda folder=folder: attempt_change(lambda: remove_folder(data, folder)),
            )


@st.cache_resource(show_spinner=False)
def _labellings() -> dict[tuple[Any, ...], Labelling]:
    """Return the labellings of this process, by the data set's own images, folders and backbone."""
    return {}


def _prepare_labelling(dataset: Dataset, data: str, unlabelled: Unlabelled) -> Labelling | None:
    """Compute the features of all images, with a progress bar. Labels do not invalidate the cache.

    Returns:
        None if the computation was stopped.
    """
    backbone, size = backbone_and_size()
    fit = image_fit()
    own = dataset.table[~dataset.table["id"].isin(list(collect_labelled_paths(dataset.edits)))]
    key = (
        data,
        unlabelled.folders,
        unlabelled.set_aside,
        backbone,
        size,
        fit,
        compute_fingerprint(own),
    )
    labelling = _labellings().get(key)
    if labelling is None:
        job = "label:" + ":".join(map(str, key))
        roots = readable_roots()
        work = partial(prepare_labelling, dataset, unlabelled, backbone, size, roots, fit)
        labelling = wait_for(job, "Computing features", work)
        if labelling is None:
            st.button("Continue", key="label-again", on_click=forget, args=(job,))
            return None
        keep_latest(_labellings(), key, labelling)
    return labelling


@st.fragment
def _draw_desk(data: str, labelling: Labelling) -> None:
    """Draw the part of the page that a key changes. An answer redraws only this fragment."""
    if problem := st.session_state.pop("label_problem", None):
        st.error(escape_markdown(problem), icon=":material/error:")
    try:
        edits = load_edits(data)
        labels = labelling.get_labels(edits)
        classes = _list_classes(data, labelling, labels)
        order, of, num_images = _choose_order(classes)
        queue = _get_queue(labelling)
        queue.rank(labels, order, of)
        draw_labeller(
            make_data_key("label-keys"),
            {
                "data": st.session_state.get("data_id", ""),
                "order": f"{order}/{of}",
                "most": num_images,
                "classes": classes,
                **queue.next_images(labels),
            },
            keep=partial(_save_known, data, labelling),
            like=_show_similar,
        )
        _draw_summary(labelling, labels, queue.probe)
        _draw_footer(data, labelling, edits, labels)
    except FinetuneError as error:
        st.error(escape_markdown(str(error)), icon=":material/error:")


def _get_queue(labelling: Labelling) -> SessionQueue:
    """Return this session's queue for a labelling."""
    key = make_data_key("label-queue")
    queue = st.session_state.get(key)
    if queue is None or queue.labelling is not labelling:
        queue = st.session_state[key] = SessionQueue(labelling)
    return queue


def _save_known(data: str, labelling: Labelling, answers: Sequence[Answer]) -> None:
    """Save answers from a browser, except for images that have left the queue."""
    known_answers = [answer for answer in answers if answer.path in labelling.split_of]
    save_answers(data, labelling.split_of, known_answers)


def _show_similar(sample: str) -> None:
    st.session_state[make_data_key("label-like")] = sample
    st.session_state[make_data_key("label-order")] = "similar"


def _list_classes(data: str, labelling: Labelling, labels: Labels) -> list[str]:
    """Return all classes. Those of the data set keep their keys, and new ones follow."""
    new = load_unlabelled(data).classes
    return list(dict.fromkeys((*labelling.classes, *new, *labelling.list_classes(labels))))


def _choose_order(classes: Sequence[str]) -> tuple[str, str, int]:
    """Draw the choice of an order and of the number of images shown at once.

    Returns:
        The order, the image or class that the order refers to, and the number of images.
    """
    similar_to = st.session_state.get(make_data_key("label-like"), "")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        order = st.selectbox(
            "Order",
            [one for one in ORDERS if one != "similar" or similar_to],
            format_func=ORDERS.__getitem__,
            key=make_data_key("label-order"),
            width=280,
            help="Uncertain: the linear probe changes its mind where features are left out "
            "(DropQuery, Gupte et al. 2024). Images for testing always come first, in a random "
            "order.",
        )
        of = ""
        if order == "probable":
            of = st.selectbox("Class", classes, key=make_data_key("label-of"), width=200) or ""
        num_images = st.segmented_control(
            "Images",
            list(_AT_ONCE),
            format_func=_AT_ONCE.__getitem__,
            default=1,
            required=True,
            key="label-most",
            persist_state="session",
            help="A key answers all images on show but those that you click.",
        )
    if order == "similar":
        of = similar_to
        st.caption(f"Like {escape_markdown(Path(similar_to).name)}")
    return order, of, num_images


def _draw_summary(labelling: Labelling, labels: Labels, probe: Probe) -> None:
    facts = [
        f"{format_number(labels.count)} labelled",
        f"{format_number(labels.waiting.sum())} to label",
    ]
    if labels.none:
        facts.append(f"{format_number(labels.none)} of none of these classes")
    if probe.accuracy is not None:
        facts.append(f"linear probe {format_percent(probe.accuracy)} on validation images")
    st.markdown(" · ".join(facts))
    has_test_images = (labelling.pool["split"] == TEST).any()
    st.caption(
        "The model chooses what is labelled, so these images only train: they never enter "
        "validation or test."
        + (" A random tenth was set aside for testing." if has_test_images else "")
    )


def _draw_footer(data: str, labelling: Labelling, edits: Sequence[Edit], labels: Labels) -> None:
    """Draw the field for a new class and the buttons below the images.

    The buttons bring skipped images back, download the manifest, and update the page.
    """
    key = make_data_key("label-class")

    def add() -> None:
        if name := str(st.session_state[key]).strip():
            _attempt(lambda: add_class(data, name))
        st.session_state[key] = ""

    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.text_input("New class", key=key, on_change=add, max_chars=LONGEST_NAME, width=200)
        if labels.skipped:
            skipped = [edit for edit in edits if edit.kind == SKIPPED]
            st.button(
                f"Bring back {format_number(labels.skipped)} skipped",
                key="label-skipped",
                on_click=_attempt,
                args=(lambda: remove_edits(data, skipped),),
            )
        st.download_button(
            "Manifest",
            lambda: labelling.to_manifest(edits).to_csv(index=False).encode(),
            file_name="manifest.csv",
            mime="text/csv",
            icon=":material/download:",
            on_click="ignore",
            key="label-manifest",
            help="path, label and split of all images with a label.",
        )
        if st.button("Update the page", key="label-update", icon=":material/refresh:"):
            st.rerun()


def _attempt(change: Callable[[], None]) -> None:
    """Run the body of a callback. Its error is shown beside the images."""
    try:
        change()
    except FinetuneError as error:
        st.session_state["label_problem"] = str(error)

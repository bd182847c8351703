"""Predict: classify new images with one or more runs, or present one run to colleagues."""

from urllib.parse import urlencode

import streamlit as st

from finetune_core.data.decode import EXTENSIONS
from finetune_core.errors import FinetuneError
from finetune_core.formatting import pluralize
from finetune_core.runs.store import Run
from pages.shared.account import require_sign_in
from pages.shared.chrome import draw_next_step, escape_markdown, start_page
from pages.shared.evaluation.export import draw_export_buttons
from pages.shared.evaluation.live import draw_live, offer_fine_tuning
from pages.shared.evaluation.prediction import (
    Classifier,
    draw_archive,
    draw_image,
    load_classifier,
    offer_neighbours,
)
from pages.shared.runs.backend import store
from pages.shared.runs.damaged import draw_damaged_runs
from pages.shared.runs.first_run import draw_empty_page
from pages.shared.runs.labels import run_title
from pages.shared.runs.picker import choose_run, choose_runs

MOST_BESIDE = 2  # runs: a screen holds three columns
MOST_CLASSES = 12
KINDS = sorted(suffix[1:] for suffix in EXTENSIONS)
INPUTS = {
    "files": ":material/upload: Files",
    "camera": ":material/photo_camera: Camera",
    "live": ":material/videocam: Live camera",
    "many": ":material/folder_zip: Archive",
}


def describe_classes(classifier: Classifier) -> str:
    """Return the classes that a network distinguishes, in words."""
    names = ", ".join(classifier.classes[:MOST_CLASSES]) + (
        ", …" if len(classifier.classes) > MOST_CLASSES else ""
    )
    return (
        f"This network distinguishes {pluralize(len(classifier.classes), 'class', 'classes')}: "
        f"{names}."
    )


def load_classifiers(runs: list[Run]) -> list[Classifier]:
    """Load the networks of some runs; show an error for each one that cannot be loaded."""
    found = []
    for run in runs:
        try:
            found.append(load_classifier(run, run_title(run)))
        except FinetuneError as error:
            st.error(escape_markdown(str(error)), icon=":material/error:")
    return found


def choose_beside(runs: list[Run], chosen: Run) -> list[Run]:
    """Draw the box that chooses further runs to classify the same image.

    The choice is in the address, as ``beside``.
    """
    others = [run for run in runs if run.run_id != chosen.run_id]
    placeholder = "Also classify the same images with other runs"
    return (
        choose_runs("Compare with", others, "beside", most=MOST_BESIDE, placeholder=placeholder)
        if others
        else []
    )


def draw_presentation_link(run: Run) -> None:
    """Draw the address of the presentation, with advice on phones and cameras."""
    address = (
        f"{(st.context.url or '').split('?')[0]}?{urlencode({'present': 1, 'run': run.run_id})}"
    )
    with st.expander("Share", icon=":material/co_present:"):
        st.markdown(
            "A page with this network and nothing else, for a big screen or a phone. Anyone who "
            "can reach this server can open it:"
        )
        st.code(address, language=None, wrap_lines=True)
        st.link_button("Open the presentation", address, icon=":material/open_in_new:")
        st.caption(
            "A phone cannot open an address with localhost or 127.0.0.1: start the server with "
            "--server.address 0.0.0.0 and use this machine's name instead. A browser gives its "
            "camera only to localhost and https; elsewhere a phone's own file chooser takes the "
            "photo."
        )


def read_images(kind: str) -> list[tuple[str, str, bytes]]:
    """Draw the input widget.

    Returns:
        ``(key, name, content)`` of each image that this session has given, the latest last.
    """
    if kind == "camera":
        photo = st.camera_input("A photo", key="camera", label_visibility="collapsed")
        return [("photo", "Photo", photo.getvalue())] if photo else []
    uploads = st.file_uploader(
        "Images",
        KINDS,
        accept_multiple_files=True,
        key="images",
        help="They are processed in memory and not stored.",
    )
    return [(upload.file_id, upload.name, upload.getvalue()) for upload in uploads]


def present(runs: list[Run]) -> None:
    """Draw the presentation: one run and its predictions, the latest image first, nothing else."""
    st.set_page_config(page_title="Thaw", page_icon="❄️", layout="centered")
    require_sign_in()
    requested = st.query_params.get("run")
    run = next((run for run in runs if run.run_id == requested), None)
    if run is None:
        st.title("Network not found", anchor=False)
        st.markdown("The run in this address has not finished an epoch, or no longer exists.")
        st.stop()
    st.title(escape_markdown(run.name) if run.name else "Which class is this?", anchor=False)
    classifiers = load_classifiers([run])
    if not classifiers:
        st.stop()
    kind = st.segmented_control(
        "Input",
        ["files", "camera", "live"],
        format_func=INPUTS.__getitem__,
        default="files",
        required=True,
        label_visibility="collapsed",
    )
    if kind == "live":
        draw_live(classifiers)
    images = [] if kind == "live" else read_images(kind)
    for key, name, image in reversed(images):
        draw_image(key, name, image, classifiers, brief=True, heading=len(images) > 1)
    st.caption(escape_markdown(describe_classes(classifiers[0])))
    st.stop()


def try_out(runs: list[Run]) -> None:
    """Draw the choice of runs and of input, and the predictions."""
    chosen = choose_run(runs, damaged)
    classifiers = load_classifiers([chosen, *choose_beside(runs, chosen)])
    if not classifiers or classifiers[0].run is not chosen:
        if len(runs) > 1:
            st.markdown("Another run can be chosen above.")
        return
    kind = st.segmented_control(
        "Input",
        list(INPUTS),
        format_func=INPUTS.__getitem__,
        default="files",
        required=True,
        key="input_kind",
        persist_state="session",
        label_visibility="collapsed",
    )
    if kind == "live":
        draw_live(classifiers)
        offer_neighbours(classifiers, "Flag what is unlike the training images")
        if chosen.history.fitted:
            offer_fine_tuning(chosen)
    else:
        offer_neighbours(classifiers)
    if kind == "many":
        draw_archive(classifiers)
    elif kind != "live":
        images = read_images(kind)
        if not images:
            st.info(
                escape_markdown(f"Upload an image. {describe_classes(classifiers[0])}"),
                icon=":material/upload:",
            )
        for key, name, image in images:
            draw_image(key, name, image, classifiers)
        if not all(one.neighbourhood for one in classifiers):
            st.caption(
                "A network always predicts one of its classes, even for an image of something else."
            )
    draw_presentation_link(chosen)
    draw_export_buttons(chosen)


found, damaged = store().list_all()
judged = [run for run in found if run.is_evaluable]
if st.query_params.get("present") == "1":
    present(judged)
start_page("pages/predict.py", "Classify new images with a trained network.")
if judged:
    try_out(judged)
    draw_damaged_runs(damaged)
    draw_next_step("pages/configure.py", "Train another network", primary=False)
else:
    draw_empty_page(
        "There is no trained network yet. Train one, or see it work on the sample first."
    )
    draw_damaged_runs(damaged)
    draw_next_step("pages/configure.py", "Configure a run", primary=False)

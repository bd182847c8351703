"""Changes to the data set: made on selected images or on whole classes, listed, and undone."""

import hashlib
from collections.abc import Sequence

import streamlit as st

from finetune_core.config import Edit
from finetune_core.data.checks import join_names
from finetune_core.data.dataset import Dataset
from finetune_core.data.edits import describe_edit, describe_edits, name_image, relabel_class
from finetune_core.data.findings import KINDS
from finetune_core.data.splits import SPLITS
from finetune_core.formatting import SPLIT_TITLES, format_number, pluralize
from pages.shared.chrome import escape_markdown
from pages.shared.data.datasets import attempt_change, change, undo
from pages.shared.images import choose_page, unselect

_SHOWN = 3  # edits of one change
_LISTED = 20  # changes at a time


def change_undoably(*edits: Edit) -> None:
    """Change the data set (a callback), and offer to undo the change at once."""
    change(*edits)
    if "change_problem" in st.session_state:
        return
    st.session_state["last_change"], st.session_state["change_is_new"] = edits, True
    for edit in edits:
        unselect(f"finding-{edit.kind}", edit.paths)


def draw_last_change(edits: Sequence[Edit]) -> None:
    """Draw the latest change with *Undo* at the foot of the window, while it is in effect."""
    latest = st.session_state.get("last_change", ())
    if not latest or not set(latest) <= set(edits):
        return
    text = escape_markdown(
        "; ".join(describe_edit(edit) for edit in latest[:_SHOWN])
        + (", …" if len(latest) > _SHOWN else "")
    )
    if st.session_state.pop("change_is_new", False):
        st.toast(f"{text}. *Undo* is at the foot of the window.", icon=":material/check:")
    with st.bottom, st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f":material/check: {text}", width="content")
        st.button("Undo", key="undo-last", icon=":material/undo:", on_click=undo, args=(latest,))


def draw_changes(edits: Sequence[Edit]) -> None:
    """List all changes, the latest first, each with *Undo*."""
    if not edits:
        return
    summary = describe_edits(edits)
    text = (
        f"Changes to this data set: {summary}"
        if summary
        else f"{pluralize(len(edits), 'finding')} dismissed"
    )
    st.markdown(f":material/edit_note: {escape_markdown(text)}")
    # The numbers stand above, because a label that changes with each undone change would close the
    # box.
    box = st.expander("All changes", key="changes_box", on_change="rerun")
    if not box.open:
        return
    with box:
        st.caption("The files stay as they are. Every run records the changes it was trained with.")
        listed = list(dict.fromkeys(reversed(edits)))
        for edit in (listed[index] for index in choose_page(len(listed), "changes-page", _LISTED)):
            mark = hashlib.sha256(edit.model_dump_json().encode()).hexdigest()[:16]
            with st.container(horizontal=True, vertical_alignment="center"):
                st.markdown(
                    escape_markdown(describe_edit(edit) + _format_reason(edit) + _list_paths(edit)),
                    width="stretch",
                )
                st.button(
                    "Undo",
                    key=f"undo-{mark}",
                    icon=":material/undo:",
                    on_click=undo,
                    args=((edit,),),
                )
        st.button("Undo all", key="undo-all", type="tertiary", on_click=undo, args=(tuple(edits),))


def _format_reason(edit: Edit) -> str:
    return f" ({KINDS[edit.kind].title.lower()})" if edit.kind in KINDS else ""


def _list_paths(edit: Edit) -> str:
    return f": {join_names([name_image(path) for path in edit.paths])}" if edit.paths else ""


def draw_tools(dataset: Dataset, chosen: set[str], key: str) -> None:
    """Draw the buttons that change the selected images of a gallery.

    Args:
        dataset: the data set.
        chosen: ids of the selected images.
        key: key of the gallery.
    """
    if not chosen:
        st.caption("Select images to exclude, move or relabel them.")
        return
    paths = tuple(sorted(chosen))

    def change_images(action: str, widget: str | None = None) -> None:
        to = str(st.session_state[widget] or "").strip() if widget else ""
        if to or not widget:
            change_undoably(Edit(action=action, paths=paths, to=to))
            unselect(key, paths)
        if action == "relabel":
            # The next images may have another class.
            st.session_state[name] = None

    split, name = f"{key}-split", f"{key}-class"
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.button(
            f"Exclude {pluralize(len(paths), 'image')}",
            key=f"{key}-exclude",
            on_click=change_images,
            args=("exclude",),
        )
        st.selectbox("Split", SPLITS, key=split, format_func=SPLIT_TITLES.__getitem__, width=140)
        st.button("Move there", key=f"{key}-move", on_click=change_images, args=("move", split))
        st.selectbox(
            "Class",
            dataset.classes,
            index=None,
            key=name,
            placeholder="Choose or type one",
            accept_new_options=True,
            width=200,
        )
        st.button(
            "Relabel",
            key=f"{key}-relabel",
            on_click=change_images,
            args=("relabel", name),
            disabled=not st.session_state[name],
        )


def draw_rename_form(dataset: Dataset) -> None:
    """Draw the form that renames a class. With another class's name, the two are merged."""
    st.header("Rename or merge classes", anchor=False)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = st.selectbox("Class", dataset.classes, key="rename-class", width=240)
        key = f"rename-to-{name}"
        help_ = (
            "The name of another class merges the two. No image changes its split, and the files "
            "stay as they are."
        )
        new_name = st.text_input("New name", key=key, width=240, help=help_).strip()
        is_merge = new_name != name and new_name in dataset.classes
        text, icon = (
            (f"Merge into {new_name}", ":material/merge:")
            if is_merge
            else ("Rename", ":material/edit:")
        )
        st.button(
            escape_markdown(text),
            icon=icon,
            key="rename",
            on_click=_rename,
            args=(dataset, name, key),
        )
    if is_merge:
        counts = dataset.table["class"].value_counts()
        st.caption(
            escape_markdown(
                f"{pluralize(counts[name], 'image')} of {name} join the "
                f"{format_number(counts[new_name])} of {new_name}."
            )
        )


def _rename(dataset: Dataset, name: str, key: str) -> None:
    """Rename a class (a callback).

    It reads the text box itself, because the same click may have filled the box in.
    """
    attempt_change(
        lambda: change_undoably(relabel_class(dataset.table, name, st.session_state[key]))
    )

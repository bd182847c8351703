"""Findings as cards: what, why it matters, examples, and one action; and the changes made so far, each of which can be undone."""

from collections.abc import Sequence

import streamlit as st

from finetune_core.config import Edit
from finetune_core.data.dataset import Dataset
from finetune_core.data.edits import edit_in_words, edits_in_words
from finetune_core.data.findings import KINDS, Finding
from finetune_core.data.splits import SPLITS
from finetune_core.words import SPLIT_WORDS, number, things
from pages.shared.chrome import plain
from pages.shared.images import Picture, gallery
from pages.shared.state import change, undo

_LOOKS = {
    "error": ("red", ":material/error:"),
    "warning": ("orange", ":material/warning:"),
    "info": ("gray", ":material/info:"),
}
_ORDER = {"error": 0, "warning": 1, "info": 2}
_VERBS = {"exclude": "Exclude", "move": "Move to the other split", "relabel": "Relabel"}
_PER_PAGE = 6


def cards(dataset: Dataset, findings: Sequence[Finding]) -> None:
    """One card a finding, the gravest first."""
    for finding in sorted(findings, key=lambda one: _ORDER[one.severity]):
        with st.container(border=True):
            _card(dataset, finding)


def _card(dataset: Dataset, finding: Finding) -> None:
    kind = KINDS[finding.kind]
    color, icon = _LOOKS[finding.severity]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.badge(f"{kind.title}: {number(finding.count)}", color=color, icon=icon)
        st.markdown(plain(finding.message), width="stretch")
    st.caption(plain(kind.why))
    pictured = [path for path in finding.paths if path in dataset.by_id.index]
    if finding.kind == "shift" or not pictured:
        _as_text(finding)
        _answers(finding, [])
    else:
        _answers(finding, sorted(_examples(dataset, finding, pictured)))


def _examples(dataset: Dataset, finding: Finding, pictured: list[str]) -> set[str]:
    """The images, each beside what it is compared with; returns those that were ticked."""
    rows = dataset.by_id
    beside = {path: next(other for other in one if other != path) for one in finding.sets for path in one[1:] + one[:1]}

    def picture(index: int) -> Picture:
        path = pictured[index]
        note = finding.notes.get(path) or rows.at[path, "class"]
        return Picture(dataset.root / path, note, f"{path}: {note}", path)

    chosen = gallery(len(pictured), picture, key=f"finding-{finding.kind}", per_page=_PER_PAGE, choose=True)
    shown = finding.kind == "label_errors"
    if finding.sets and st.toggle("Side by side with what they resemble", value=shown, key=f"beside-{finding.kind}"):
        pairs = [path for path in pictured if path in beside]

        def pair(index: int) -> Picture:
            path = pairs[index // 2] if index % 2 == 0 else beside[pairs[index // 2]]
            return Picture(dataset.root / path, f"{path} ({rows.at[path, 'class']})", path)

        gallery(2 * len(pairs), pair, key=f"pairs-{finding.kind}", per_page=_PER_PAGE)
    return chosen & set(pictured)


def _as_text(finding: Finding) -> None:
    names = finding.paths or finding.classes
    if names:
        with st.expander(f"All {number(len(names))}" if len(names) > 1 else "Which one"):
            st.dataframe([{"Path": path, "Why": finding.notes.get(path, "")} for path in names], hide_index=True)


def _answers(finding: Finding, chosen: list[str]) -> None:
    """The finding's one action, on the ticked images or on all; and a way to leave things as they are."""
    action = KINDS[finding.kind].action
    with st.container(horizontal=True):
        if action:
            paths = chosen or list(finding.paths)
            target = (
                f" as {finding.to[paths[0]]}" if action == "relabel" and len({finding.to[path] for path in paths}) == 1 else ""
            )
            words = f"{_VERBS[action]} {_which(paths, chosen)}{target}"
            st.button(plain(words), key=f"act-{finding.kind}", on_click=change, args=finding.edits(paths))
        leave = Edit(action="ignore", paths=finding.paths or finding.classes, kind=finding.kind)
        st.button("Leave as it is", key=f"ignore-{finding.kind}", type="tertiary", on_click=change, args=(leave,))


def _which(paths: Sequence[str], chosen: Sequence[str]) -> str:
    if chosen:
        return f"the {number(len(paths))} ticked"
    return "it" if len(paths) == 1 else f"all {number(len(paths))}"


def changes(edits: Sequence[Edit]) -> None:
    """Everything that was changed, each with its way back."""
    if not edits:
        return
    told = edits_in_words(edits)
    with st.expander(
        f"Changes to this data set: {told}" if told else f"{things(len(edits), 'finding')} left as they are",
        icon=":material/edit_note:",
    ):
        st.caption("The files stay as they are. Every run records the changes it was trained with.")
        for number_, edit in enumerate(edits):
            with st.container(horizontal=True, vertical_alignment="center"):
                st.markdown(plain(f"{edit_in_words(edit)}{_reason(edit)}: {_some(edit.paths)}"), width="stretch")
                st.button("Undo", key=f"undo-{number_}", icon=":material/undo:", on_click=undo, args=((edit,),))
        st.button("Undo all", key="undo-all", type="tertiary", on_click=undo, args=(tuple(edits),))


def _reason(edit: Edit) -> str:
    return f" ({KINDS[edit.kind].title.lower()})" if edit.kind in KINDS else ""


def _some(paths: Sequence[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {number(len(paths) - 3)} more" if len(paths) > 3 else "")


def tools(dataset: Dataset, chosen: set[str], key: str) -> None:
    """What can be done with ticked images anywhere on the page."""
    if not chosen:
        st.caption("Tick images to exclude, move or relabel them.")
        return
    paths = tuple(sorted(chosen))

    def act(action: str, widget: str | None = None) -> None:
        to = str(st.session_state[widget] or "").strip() if widget else ""
        if to or not widget:
            change(Edit(action=action, paths=paths, to=to))
            chosen.clear()

    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.button(f"Exclude {things(len(paths), 'image')}", key=f"{key}-exclude", on_click=act, args=("exclude",))
        st.selectbox("Split", SPLITS, key=f"{key}-split", format_func=SPLIT_WORDS.get, width=140)
        st.button("Move there", key=f"{key}-move", on_click=act, args=("move", f"{key}-split"))
        st.selectbox("Class", dataset.classes, key=f"{key}-class", accept_new_options=True, width=200)
        st.button("Relabel", key=f"{key}-relabel", on_click=act, args=("relabel", f"{key}-class"))

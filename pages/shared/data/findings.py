"""Findings: one line each, and on request a reason, examples, and actions."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import streamlit as st

from finetune_core.config import Edit
from finetune_core.data.dataset import Dataset
from finetune_core.data.decode import PAD
from finetune_core.data.edits import name_image
from finetune_core.data.findings import KINDS, Action, Finding, Severity
from finetune_core.formatting import format_number, pluralize
from pages.shared.chrome import Color, escape_markdown
from pages.shared.configure import settings
from pages.shared.configure.origin import set_fields_for
from pages.shared.data.changes import change_undoably
from pages.shared.data.chosen import get_chosen_data, make_data_key
from pages.shared.images import Picture, choose_images, draw_picture_gallery

_LOOKS: dict[Severity, tuple[Color, str]] = {
    "error": ("red", ":material/error:"),
    "warning": ("orange", ":material/warning:"),
    "info": ("gray", ":material/info:"),
}
_ORDER = {"error": 0, "warning": 1, "info": 2}
_VERBS: dict[Action, str] = {
    "exclude": "Exclude",
    "move": "Move to the other split",
    "relabel": "Relabel",
}
_PER_PAGE = 6
_ORDERS = {
    "label": "Label confidence, lowest first",
    "confidence": "Prediction confidence, highest first",
}
_MOST_LISTED = 1000  # paths sent to the browser
_BORDER = 3  # images shown on each side of a threshold


def list_findings(dataset: Dataset, findings: Sequence[Finding]) -> None:
    """Draw one line per finding, the gravest first. Findings that only inform are folded."""
    notes = [one for one in findings if one.severity == "info"]
    problems = [one for one in findings if one.severity != "info"]
    if not problems:
        st.markdown(":green[:material/check_circle:] Nothing looks wrong.")
    with st.container(gap="xxsmall"):
        for finding in sorted(problems, key=lambda one: _ORDER[one.severity]):
            _draw_line(dataset, finding)
    if not notes:
        return
    # A label with the number of findings would close the box at each dismissal.
    box = st.expander(
        "Information", icon=":material/info:", key=make_data_key("notes"), on_change="rerun"
    )
    if box.open:
        with box, st.container(gap="xxsmall"):
            for finding in notes:
                _draw_line(dataset, finding)


def _draw_line(dataset: Dataset, finding: Finding) -> None:
    color, icon = _LOOKS[finding.severity]
    count, sentence = _split_message(finding)
    is_open = st.session_state.get(_review_key()) == finding.kind
    with st.container(gap="xsmall"):
        with st.container(horizontal=True, vertical_alignment="center", wrap=False):
            st.badge(count, color=color, icon=icon)
            st.markdown(escape_markdown(sentence), width="stretch")
            st.button(
                "Close" if is_open else "Review",
                key=f"review-{finding.kind}",
                type="tertiary",
                on_click=_review,
                args=("" if is_open else finding.kind,),
            )
        if is_open:
            with st.container(border=True):
                _draw_details(dataset, finding)


def _review_key() -> str:
    """Return the key of the session value that holds the kind of the open finding."""
    return make_data_key("reviewed")


def _review(kind: str) -> None:
    """Open the finding of a kind, or close it with an empty string (a callback)."""
    st.session_state[_review_key()] = kind


def _split_message(finding: Finding) -> tuple[str, str]:
    """Return a finding's number, and its message without that number.

    The number is empty if the message starts with another one, or nothing is counted.
    """
    first, _, rest = finding.message.partition(" ")
    count = format_number(finding.count)
    if first == count:
        return count, rest
    is_counted = (finding.paths or finding.classes) and not first[0].isdigit()
    return count if is_counted else "", finding.message


def _draw_details(dataset: Dataset, finding: Finding) -> None:
    kind = KINDS[finding.kind]
    st.markdown(f"**{escape_markdown(kind.title)}**")
    st.caption(escape_markdown(kind.why))
    # Either all paths of a finding are images of the table, or none is. There may be a million.
    if finding.kind == "shift" or not finding.paths or finding.paths[0] not in dataset.by_id.index:
        _draw_paths(finding)
        _draw_actions(finding, set())
    elif finding.kind == "similar_class_names":
        _draw_spellings(dataset, finding)
        _draw_dismiss_button(finding)
    else:
        paths = _sort_paths(finding, finding.paths)
        picture = _make_pictures(dataset, finding)
        partners = _find_partners(finding)
        partner_paths = set(partners.values())
        leads = [path for path in paths if path not in partner_paths] if partner_paths else paths
        key = f"finding-{finding.kind}"
        chosen = choose_images(
            leads, lambda index: picture(leads[index], partners), key, _PER_PAGE, partners
        )
        if kind.ranked and kind.action and len(paths) > 1:
            _draw_bulk_selection(finding, kind.action, paths, picture)
        _draw_actions(finding, chosen)


def _find_partners(finding: Finding) -> dict[str, str]:
    """Return first -> second of each pair in which both images can be selected."""
    pairs = [one for one in finding.sets if len(one) == 2]
    selectable = set(finding.paths) if pairs else set()
    return {first: second for first, second in pairs if {first, second} <= selectable}


def _sort_paths(finding: Finding, paths: Sequence[str]) -> Sequence[str]:
    """Draw the choice of an order; return the paths in that order.

    The order is that of the finding (least likely label first), or by the model's confidence in
    another class.
    """
    if len(paths) < 2 or not finding.confidence:
        return paths
    order = st.segmented_control(
        "Sort by",
        list(_ORDERS),
        format_func=_ORDERS.__getitem__,
        default="label",
        required=True,
        key=f"order-{finding.kind}",
        persist_state="session",
    )
    return (
        paths
        if order == "label"
        else sorted(paths, key=finding.confidence.__getitem__, reverse=True)
    )


def _make_pictures(dataset: Dataset, finding: Finding) -> Callable[..., Picture]:
    """Return a function that makes the picture of an image of a finding.

    The picture shows the image beside the one to compare it with. An image beside it can be
    selected if it is a partner.
    """
    classes = dataset.by_id["class"]
    beside = {
        path: next(other for other in one if other != path)
        for one in finding.sets
        for path in one[1:] + one[:1]
    }

    def picture(path: str, partners: Mapping[str, str] = MappingProxyType({})) -> Picture:
        note = finding.notes.get(path) or classes.loc[path]
        twin = beside.get(path)
        name = name_image(path)
        other = None
        if twin:
            caption = f"{name_image(twin)} ({classes.loc[twin]})"
            other = Picture(dataset.root / twin, caption, twin, partners.get(path, ""))
        caption = f"{name}: {note}" if twin else note
        return Picture(dataset.root / path, caption, f"{name}: {note}", path, other)

    return picture


def _draw_bulk_selection(
    finding: Finding, action: Action, paths: Sequence[str], picture: Callable[[str], Picture]
) -> None:
    """Draw the selection of the first images of a list that is sorted by confidence.

    Images at the border are shown, so that the effect of a threshold is visible before it is used.
    """
    with st.expander("Bulk selection"):
        count = st.slider(
            "How many, most confident first",
            0,
            len(paths),
            key=f"several-{finding.kind}",
            help="The further down, the more of them are correct as they are.",
        )
        if not count:
            return
        for text, border in (
            ("Last ones included", paths[max(0, count - _BORDER) : count]),
            ("First ones excluded", paths[count:][:_BORDER]),
        ):
            if border:
                st.caption(text)
                pictures = [picture(path) for path in border]
                key = f"border-{text}-{finding.kind}"
                draw_picture_gallery(len(pictures), pictures.__getitem__, key)
        st.button(
            f"{_VERBS[action]} these {format_number(count)}",
            key=f"act-several-{finding.kind}",
            on_click=_apply,
            args=(finding, paths[:count]),
        )


def _draw_spellings(dataset: Dataset, finding: Finding) -> None:
    """Draw each pair of similar class names with images of both, each with its own button."""
    pairs: dict[tuple[str, str], list[str]] = {}
    for path in finding.paths:
        pairs.setdefault((finding.notes[path], finding.to[path]), []).append(path)
    table = dataset.table
    for (name, target), paths in pairs.items():
        examples = [*paths[:_BORDER], *table.loc[table["class"] == target, "id"].head(_BORDER)]

        def picture(index: int, examples: Sequence[str] = examples) -> Picture:
            path = examples[index]
            return Picture(dataset.root / path, str(dataset.by_id.at[path, "class"]), path, path)

        draw_picture_gallery(len(examples), picture, key=f"spelling-{name}-{target}")
        text = f"Relabel {pluralize(len(paths), 'image')} of {name} as {target}"
        key = f"act-spelling-{name}-{target}"
        st.button(escape_markdown(text), key=key, on_click=_apply, args=(finding, paths))


def _draw_paths(finding: Finding) -> None:
    names = finding.paths or finding.classes
    if names:
        listed = names[:_MOST_LISTED]
        text = (
            f"All {format_number(len(names))}"
            if len(listed) == len(names)
            else f"{format_number(len(listed))} of {format_number(len(names))}"
        )
        with st.expander(text if len(names) > 1 else "Which one"):
            st.dataframe(
                [{"Path": path, "Why": finding.notes.get(path, "")} for path in listed],
                hide_index=True,
            )


def _draw_actions(finding: Finding, chosen: set[str]) -> None:
    """Draw the finding's one action and a button to dismiss the finding.

    The action is applied to the selected images, or to all images if the finding was measured.
    """
    action = KINDS[finding.kind].action
    paths = [path for path in finding.paths if path in chosen]
    if not paths and (finding.allows_bulk_action or len(finding.paths) == 1):
        paths = list(finding.paths)
    with st.container(horizontal=True, vertical_alignment="center"):
        if action and paths:
            targets = {finding.to[path] for path in paths} if action == "relabel" else set()
            text = f"{_VERBS[action]} {_describe_selection(paths, chosen)}" + (
                f" as {min(targets)}" if len(targets) == 1 else ""
            )
            # A click on the button for all images must not act on images that were selected
            # meanwhile, nor the other way round.
            key = f"act-{'selected' if chosen else 'all'}-{finding.kind}"
            st.button(escape_markdown(text), key=key, on_click=_apply, args=(finding, paths))
        elif action:
            st.caption(f"Select the images to {_VERBS[action].lower()}.", width="content")
        if finding.kind == "extreme_aspect":
            _draw_padding_button()
        _draw_dismiss_button(finding)


def _draw_padding_button() -> None:
    if settings.read_config().fit == PAD:
        st.markdown(":green[:material/check:] Images are padded to squares.", width="content")
        return
    st.button(
        "Pad to square",
        key="pad-to-square",
        icon=":material/fit_screen:",
        on_click=set_fields_for,
        args=(get_chosen_data(), {"fit": PAD}),
        help="Sets *Image fit* on Configure: all images of this data set are kept whole, and the "
        "shorter side is filled with gray.",
    )


def _draw_dismiss_button(finding: Finding) -> None:
    st.button(
        "Dismiss",
        key=f"ignore-{finding.kind}",
        type="tertiary",
        on_click=_dismiss,
        args=(finding,),
    )


def _apply(finding: Finding, paths: Sequence[str]) -> None:
    """Apply a finding's action to images (a callback).

    The changes are made on the click, not for each button that is drawn.
    """
    change_undoably(*finding.make_edits(paths))


def _dismiss(finding: Finding) -> None:
    """Dismiss a finding (a callback)."""
    change_undoably(
        Edit(action="ignore", paths=finding.paths or finding.classes, kind=finding.kind)
    )


def _describe_selection(paths: Sequence[str], chosen: set[str]) -> str:
    if chosen:
        return f"the {format_number(len(paths))} selected"
    return "it" if len(paths) == 1 else f"all {format_number(len(paths))}"

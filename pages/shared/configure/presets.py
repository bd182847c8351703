"""Presets: settings that are known to work, set at once. The page lists and undoes the changes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st

from finetune_core.config import all_settings, auto_setting_names
from finetune_core.models.catalogue import PACKAGED, backbone_info
from finetune_core.training.strategies.recipes import FEATURE_EXTRACTION_RECIPE, TUTORIAL_RECIPE
from pages.shared.configure import form, settings
from pages.shared.configure.weights import format_download_size

_APPLIED = "preset_applied"


@dataclass(frozen=True)
class Preset:
    """Settings, set at once.

    Attributes:
        title: title of the preset.
        icon: icon of its button.
        help: help text of its button.
        settings: settings by name.
        whole: whether all other settings go back to their defaults.
    """

    title: str
    icon: str
    help: str
    settings: Mapping[str, Any]
    whole: bool = True


@dataclass(frozen=True)
class _AppliedPreset:
    """Fields of the form by name, before and after a preset."""

    title: str
    before: dict[str, Any]
    after: dict[str, Any]


_PRESETS = (
    Preset(
        "Auto",
        ":material/auto_awesome:",
        "Length, learning rate and schedule follow from the number of training images and the "
        "strategy.",
        dict.fromkeys(auto_setting_names()),
        whole=False,
    ),
    Preset(
        "The tutorial's recipe",
        ":material/menu_book:",
        "ResNet-18 from ImageNet, a new head, layer4 and head trained with Adam at 0.0001, "
        "cross-entropy, batch 32, 224 pixels, ImageNet's normalisation, 10 epochs.",
        TUTORIAL_RECIPE,
    ),
    Preset(
        "Feature extraction",
        ":material/ac_unit:",
        "The same network and settings, but only the head trains, with Adam at 0.001: faster.",
        FEATURE_EXTRACTION_RECIPE,
    ),
    Preset(
        "Tutorial, no download",
        ":material/package_2:",
        f"The tutorial's settings on {PACKAGED}, whose weights are installed with Thaw.",
        TUTORIAL_RECIPE | {"backbone": PACKAGED},
    ),
)


def draw_presets() -> None:
    """Draw a menu of all presets."""
    with st.popover("Presets", icon=":material/menu_book:"):
        for preset in _PRESETS:
            _draw_button(preset)


def draw_preset_changes() -> None:
    """Say what the last preset changed, until another change is made."""
    applied = st.session_state.get(_APPLIED)
    if applied and applied.after == _read_form():
        _draw_changes(applied)


def _draw_button(preset: Preset) -> None:
    download = _describe_download(preset)
    note = (
        f" **Its weights are not on this machine: about {download} to download.**"
        if download
        else ""
    )
    pressed = st.button(
        preset.title,
        key=f"preset-{preset.title}",
        icon=preset.icon,
        width="stretch",
        help=preset.help + note,
        on_click=None if download else _apply,
        args=None if download else (preset,),
    )
    if pressed and download:
        _confirm(preset, download)


def _describe_download(preset: Preset) -> str:
    """Return the size of the download that a preset's network needs before it can be used.

    Returns:
        A size in words; empty if nothing has to be downloaded.
    """
    name = preset.settings.get("backbone", "")
    if not name or name == st.session_state[settings.key("backbone")]:
        return ""
    info = backbone_info(name)
    return "" if info.is_ready else format_download_size([info])


@st.dialog("Switch to a backbone without its weights?")
def _confirm(preset: Preset, download: str) -> None:
    name = preset.settings["backbone"]
    st.markdown(
        f"*{preset.title}* switches to **{name}**. Its pretrained weights are not on this "
        f"machine: about {download} have to be downloaded before training can start. *Tutorial, no "
        f"download* uses {PACKAGED}, which is here."
    )
    with st.container(horizontal=True):
        switch = st.button(
            f"Switch to {name}", on_click=_apply, args=(preset,), key="preset-anyway"
        )
        cancel = st.button("Cancel", key="preset-cancel")
    if switch or cancel:
        st.rerun()


def _apply(preset: Preset) -> None:
    """Apply a preset (a callback, before the widgets are drawn)."""
    fields = _read_form()
    (settings.apply_recipe if preset.whole else settings.set_fields)(dict(preset.settings))
    st.session_state[_APPLIED] = _AppliedPreset(preset.title, fields, _read_form())


def _undo(applied: _AppliedPreset) -> None:
    """Undo a preset (a callback)."""
    st.session_state.update(applied.before)
    del st.session_state[_APPLIED]


def _read_form() -> dict[str, Any]:
    """Return the values of the form's widgets, by key."""
    names = [
        settings.key(name) for name in settings.default_values() if name not in settings.NO_WIDGETS
    ]
    return {name: st.session_state.get(name) for name in names} | {
        "weights_from": st.session_state.get("weights_from", "Pretrained")
    }


def _draw_changes(applied: _AppliedPreset) -> None:
    changed = [
        f"{setting.label} {form.format_value(setting, applied.before[key])} → "
        f"**{form.format_value(setting, applied.after[key])}**"
        for name, setting in all_settings().items()
        if (key := settings.key(name)) in applied.after
        and applied.before[key] != applied.after[key]
    ]
    if applied.before["weights_from"] != applied.after["weights_from"]:
        changed.append(
            f"{all_settings()['weights'].label} {applied.before['weights_from']} → "
            f"**{applied.after['weights_from']}**"
        )
    listed = " · ".join(changed) if changed else "no change"
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(
            f":material/check: *{applied.title}*: {listed}.",
            width="content" if len(changed) < 4 else "stretch",
        )
        if changed:
            st.button(
                "Undo",
                type="tertiary",
                icon=":material/undo:",
                key="preset-undo",
                on_click=_undo,
                args=(applied,),
            )

"""Declaration of settings, once, as fields of the config.

The form, the command line and the export read everything they need from these fields.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, Field
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

NETWORK = "Network"
TRAINING = "Training"
DATA = "Data and augmentation"
OPTIMIZATION = "Optimization and regularization"
STOPPING = "Stopping"
HARDWARE = "Hardware and memory"
SPLIT = "Split"
SECTIONS = (NETWORK, TRAINING, DATA, OPTIMIZATION, STOPPING, HARDWARE, SPLIT)
ADVANCED = (DATA, OPTIMIZATION, STOPPING, HARDWARE)  # a form folds these sections away

Kind = Literal["choice", "integer", "number", "numbers", "text", "structure"]
InScript = Literal["repeated", "irrelevant", "missing"]

# 1,250 is one and a quarter for some readers and more than a thousand for others.
_THOUSANDS = re.compile(r"[1-9]\d{0,2}(,\d{3})+")
_LIMITS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
_METAVARS: dict[Kind, str] = {
    "choice": "NAME",
    "integer": "N",
    "number": "X",
    "numbers": "X,X,X",
    "text": "TEXT",
    "structure": "TEXT",
}


@dataclass(frozen=True)
class Setting:
    """A setting as its field declares it.

    Attributes:
        label: the standard term for the setting.
        help: the explanation in plain words.
        section: section of the form and of the command line's help. Empty: shown in neither.
        option: name on the command line, without dashes.
        metavar: placeholder of the value in the command line's help.
        kind: type of the value. ``numbers`` are three numbers, and a ``structure`` needs a widget
            of its own.
        optional: whether the value may be empty.
        choices: value -> label in a form.
        placeholder: text shown in an empty field.
        share: whether the value may be written in percent.
        several: option of commands that take several values of the setting.
        in_script: whether a stand-alone script repeats the setting, need not, or cannot.
        stepwise: whether the setting only affects training in steps, and nothing where a head is
            fitted instead.
        own_widgets: whether a form needs more than the standard widget for the kind.
        follows: whether the value follows from the data set and the strategy unless a person sets
            it (``recipes.fill_auto``).
        limits: ``ge``, ``gt``, ``le`` and ``lt``, as in pydantic -> number.
    """

    name: str
    label: str
    help: str
    section: str
    option: str
    metavar: str
    kind: Kind
    optional: bool
    default: Any
    required: bool
    choices: Mapping[str, str]
    placeholder: str
    share: bool
    several: str
    in_script: InScript
    stepwise: bool
    own_widgets: bool
    follows: bool
    limits: Mapping[str, float]

    @property
    def allowed_values_text(self) -> str:
        """The allowed values in a few words, or an empty string where they cannot be listed."""
        if self.limits.keys() == {"ge", "le"}:
            return f"{self.limits['ge']} to {self.limits['le']}"
        return ", ".join(self.choices) or ", ".join(
            f"{_LIMITS[name]} {value}" for name, value in self.limits.items()
        )


def setting(
    default: Any = ...,
    *,
    label: str,
    help: str,
    section: str = "",
    choices: Mapping[str, str] | None = None,
    option: str = "",
    metavar: str = "",
    placeholder: str = "",
    share: bool = False,
    several: str = "",
    in_script: InScript = "missing",
    stepwise: bool = False,
    own_widgets: bool = False,
    follows: bool = False,
    **bounds: Any,
) -> Any:
    """Declare a field of the config with its metadata.

    Args:
        default: the default value. Without one, the setting is required.
        label: the standard term for the setting.
        help: the explanation in plain words.
        section: section of the form and of the command line's help. Empty: shown in neither.
        choices: value -> label in a form. None: each value of a choice is its own label.
        option: name on the command line, without dashes. Empty: the field's name, with ``-`` for
            ``_``.
        metavar: placeholder of the value in the command line's help. Empty: follows from the kind.
        placeholder: text shown in an empty field.
        share: whether the value may be written in percent.
        several: option of commands that take several values of the setting.
        in_script: whether a stand-alone script repeats the setting (``repeated``), need not
            (``irrelevant``), or cannot (``missing``).
        stepwise: whether the setting only affects training in steps, and nothing where a head is
            fitted instead.
        own_widgets: whether a form needs more than the standard widget for the kind.
        follows: whether the value follows from the data set and the strategy unless a person sets
            it (``recipes.fill_auto``).
        bounds: arguments of pydantic's ``Field``: ``ge``, ``gt``, ``le``, ``lt``, ``max_length``, …
    """
    metadata: JsonDict = {
        "section": section,
        "choices": {**(choices or {})},
        "option": option,
        "metavar": metavar,
        "placeholder": placeholder,
        "share": share,
        "several": several,
        "in_script": in_script,
        "stepwise": stepwise,
        "own_widgets": own_widgets,
        "follows": follows,
    }
    return Field(default, title=label, description=help, json_schema_extra=metadata, **bounds)


@lru_cache(maxsize=8)
def collect_settings(model: type[BaseModel]) -> dict[str, Setting]:
    """Return the settings that a config declares, by name, in declaration order."""
    return {name: _build_setting(name, field) for name, field in model.model_fields.items()}


def parse_number(text: str, share: bool = False) -> str | float:
    """Parse a number as people write it. Other text is returned unchanged.

    ``0,2`` is 0.2, and so is ``20 %`` if ``share`` is true.
    """
    number = text.strip()
    percent = share and number.endswith("%")
    number = number.removesuffix("%").rstrip() if percent else number
    if number.count(",") == 1 and "." not in number and not _THOUSANDS.fullmatch(number):
        number = number.replace(",", ".")
    elif not percent:
        return text
    try:
        # Convert as text: 14.3 / 100 is not the number nearest to 0.143.
        return float(f"{number}e-2" if percent else number)
    except ValueError:
        return text


def parse_numbers(text: str) -> list[str | float]:
    """Parse numbers separated by commas, semicolons or spaces.

    If the text contains points, no comma is a decimal comma.
    """
    parts = (text.replace(",", " ") if "." in text else text).replace(";", " ").split()
    parts = text.split(",") if len(parts) == 1 else [part.removesuffix(",") for part in parts]
    return [parse_number(part) for part in parts]


def format_numbers(values: Iterable[float]) -> str:
    """Format numbers in a row so that they can be read back exactly."""
    return ", ".join(repr(float(value)) for value in values)


def _build_setting(name: str, field: FieldInfo) -> Setting:
    extra: Any = field.json_schema_extra or {}
    kind, optional = _kind_of(field.annotation)
    return Setting(
        name=name,
        label=field.title or name.replace("_", " ").capitalize(),
        help=field.description or "",
        section=extra.get("section", ""),
        option=extra.get("option") or name.replace("_", "-"),
        metavar=extra.get("metavar") or _METAVARS[kind],
        kind=kind,
        optional=optional,
        default=None if field.is_required() else field.default,
        required=field.is_required(),
        choices=extra.get("choices")
        or {value: value for value in get_args(field.annotation) if kind == "choice"},
        placeholder=extra.get("placeholder", ""),
        share=extra.get("share", False),
        several=extra.get("several", ""),
        in_script=extra.get("in_script", "missing"),
        stepwise=extra.get("stepwise", False),
        own_widgets=extra.get("own_widgets", False),
        follows=extra.get("follows", False),
        limits={
            name: value
            for constraint in field.metadata
            for name in _LIMITS
            if (value := getattr(constraint, name, None)) is not None
        },
    )


def _kind_of(annotation: Any) -> tuple[Kind, bool]:
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return "choice", False
    if NoneType in parts:
        (inner,) = (part for part in parts if part is not NoneType)
        return _kind_of(inner)[0], True
    kinds: dict[Any, Kind] = {
        int: "integer",
        float: "number",
        str: "text",
        tuple[float, float, float]: "numbers",
    }
    return kinds.get(annotation, "structure"), False

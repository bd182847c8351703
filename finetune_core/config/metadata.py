"""How a setting is declared, once, as a field of the config: the form, the command line and the export read all they need from it."""

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
ADVANCED = (DATA, OPTIMIZATION, STOPPING, HARDWARE)  # a form folds these away

Kind = Literal["choice", "integer", "number", "numbers", "text", "structure"]
InScript = Literal["repeated", "irrelevant", "missing"]

# 1,250: one and a quarter to some, more than a thousand to others
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
        label: the field's standard term.
        help: the plain explanation.
        section: where it belongs on a form and in the command line's help; empty: on neither.
        option: its name on the command line, without dashes.
        metavar: what stands for its value in the command line's help.
        kind: what it holds; ``numbers`` are three, and a ``structure`` needs a widget of its own.
        optional: whether it may be left empty.
        choices: value -> what a form calls it.
        placeholder: what an empty field shows.
        share: whether it may be written in percent.
        several: the option of a command that takes several of its values.
        in_script: whether a stand-alone script repeats it, need not, or cannot.
        stepwise: whether only training in steps obeys it: it means nothing where a head is fitted instead.
        own_widgets: whether a form needs more for it than the widget that suits its kind.
        follows: whether it follows from the data set and the strategy unless a person sets it (``recipes.fill_auto``).
        limits: ``ge``, ``gt``, ``le`` and ``lt``, as pydantic has them -> number.
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
    def values_in_words(self) -> str:
        """Which values it may have; empty where that is not a matter of a few words."""
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
    """A field of the config, with all that anything but the code that obeys it has to know; see ``Setting``.

    Args:
        bounds: what pydantic's ``Field`` takes: ``ge``, ``gt``, ``le``, ``lt``, ``max_length``, …
    """
    described: JsonDict = {
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
    return Field(default, title=label, description=help, json_schema_extra=described, **bounds)


@lru_cache(maxsize=8)
def settings_of(model: type[BaseModel]) -> dict[str, Setting]:
    """The settings that a config declares, by name, in their order."""
    return {name: _described(name, field) for name, field in model.model_fields.items()}


def as_number(text: str, share: bool = False) -> str | float:
    """A number as people write it: ``20 %`` (of a share) and ``0,2`` are 0.2. Anything else stays as it is."""
    number = text.strip()
    percent = share and number.endswith("%")
    number = number.removesuffix("%").rstrip() if percent else number
    if number.count(",") == 1 and "." not in number and not _THOUSANDS.fullmatch(number):
        number = number.replace(",", ".")
    elif not percent:
        return text
    try:
        # as text: 14.3 / 100 is not the number nearest to 0.143
        return float(f"{number}e-2" if percent else number)
    except ValueError:
        return text


def as_numbers(text: str) -> list[str | float]:
    """Numbers as people write them side by side: between commas, semicolons or spaces. With points in them, no comma is a decimal one."""
    parts = (text.replace(",", " ") if "." in text else text).replace(";", " ").split()
    parts = text.split(",") if len(parts) == 1 else [part.removesuffix(",") for part in parts]
    return [as_number(part) for part in parts]


def numbers_text(values: Iterable[float]) -> str:
    """Numbers side by side, to be read back exactly."""
    return ", ".join(repr(float(value)) for value in values)


def _described(name: str, field: FieldInfo) -> Setting:
    extra: Any = field.json_schema_extra or {}
    kind, optional = _kind(field.annotation)
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
            for one in field.metadata
            for name in _LIMITS
            if (value := getattr(one, name, None)) is not None
        },
    )


def _kind(annotation: Any) -> tuple[Kind, bool]:
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return "choice", False
    if NoneType in parts:
        (held,) = (part for part in parts if part is not NoneType)
        return _kind(held)[0], True
    kinds: dict[Any, Kind] = {
        int: "integer",
        float: "number",
        str: "text",
        tuple[float, float, float]: "numbers",
    }
    return kinds.get(annotation, "structure"), False

"""Descriptions of pydantic's validation errors in plain words."""

import reprlib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

_SHORT = reprlib.Repr()  # text from a file may be long or deeply nested
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200


def describe_problems(error: ValidationError) -> dict[str, str]:
    """Return field -> description of the problem."""
    return {_field_name(problem): _describe(problem) for problem in error.errors()}


def _field_name(problem: Mapping[str, Any]) -> str:
    return str(problem["loc"][0]) if problem["loc"] else "settings"


def _describe(problem: Mapping[str, Any]) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    given = _SHORT.repr(problem.get("input"))
    match kind:
        case "greater_than":
            return f"must be more than {context['gt']:g}, not {given}"
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}, not {given}"
        case "less_than":
            return f"must be less than {context['lt']:g}, not {given}"
        case "less_than_equal":
            return f"must be at most {context['le']:g}, not {given}"
        case "literal_error":
            return f"must be {context['expected']}, not {given}"
        case "int_parsing" | "int_type" | "int_from_float":
            return f"must be a whole number, not {given}"
        case "float_parsing" | "float_type" | "finite_number":
            return f"must be a number, not {given}"
        case "extra_forbidden":
            return "is not a setting that Thaw knows"
        case "missing":
            return "is needed"
        case "string_too_short":
            return "must not be empty"
    return str(problem["msg"])

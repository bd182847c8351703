"""A text with parts that are left out: lines ``#: if NAME``, ``#: else``, ``#: end``, and ``#: NAME`` for a text to be put in."""

import re
from collections.abc import Collection, Mapping

_INSERTION = re.compile(r"#: (\w+)")


def filled(template: str, facts: Collection[str], texts: Mapping[str, str]) -> str:
    """The template with the parts whose condition is among ``facts``, and its insertions.

    Raises:
        KeyError: when a text is missing.
    """
    lines: list[str] = []
    open_parts: list[bool] = []
    for line in template.splitlines():
        word, _, name = (
            line.strip().removeprefix("#: ").partition(" ")
            if line.strip().startswith("#: ")
            else ("", "", "")
        )
        match word:
            case "if":
                open_parts.append(name in facts)
            case "else":
                open_parts[-1] = not open_parts[-1]
            case "end":
                open_parts.pop()
            case _ if all(open_parts):
                lines.append(_INSERTION.sub(lambda match: texts[match[1]], line))
    return "\n".join(lines) + "\n"

"""A small template language for source code.

``#: if NAME``, ``#: else`` and ``#: end`` on lines of their own enclose optional lines.
``#: NAME`` within a line stands for an inserted text.
"""

import re
from collections.abc import Collection, Mapping

_INSERTION = re.compile(r"#: (\w+)")


def fill_template(template: str, facts: Collection[str], texts: Mapping[str, str]) -> str:
    """Return the template with its optional lines selected and its texts inserted.

    Args:
        template: the template.
        facts: names of the conditions that hold.
        texts: name -> text to insert.

    Raises:
        KeyError: if a text is missing.
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

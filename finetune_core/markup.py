"""Text and tables as HTML, for reports and notebooks.

Text from files is escaped here and nowhere else.
"""

import html
from collections.abc import Iterable, Sequence


def escape_html(text: object) -> str:
    """Escape text for the content of an element or the value of an attribute.

    A file name may be invalid Unicode, which HTML does not allow.
    """
    return html.escape(str(text)).encode("utf-8", "replace").decode()


def table(columns: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table with column titles. Every cell is escaped."""
    head = "".join(f"<th>{escape_html(column)}</th>" for column in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape_html(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return (
        "<div "
        f'class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def paragraphs(*lines: object) -> str:
    """Return every non-empty line as an HTML paragraph."""
    return "".join(f"<p>{escape_html(line)}</p>" for line in lines if line)

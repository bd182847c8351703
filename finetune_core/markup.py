"""Words and tables as HTML, for reports and notebooks. What comes from files is escaped here and nowhere else."""

import html
from collections.abc import Iterable, Sequence


def escaped(words: object) -> str:
    """As the content of an element or the value of an attribute; a file's name may be no valid Unicode, HTML has to be."""
    return html.escape(str(words)).encode("utf-8", "replace").decode()


def table(columns: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """With its columns' names above; every cell is escaped."""
    head = "".join(f"<th>{escaped(column)}</th>" for column in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{escaped(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def paragraphs(*lines: object) -> str:
    """Each that is not empty in a paragraph of its own."""
    return "".join(f"<p>{escaped(line)}</p>" for line in lines if line)

"""Helpers of tests that check the documents."""

import re
from collections.abc import Iterable
from pathlib import Path

REFERENCE = Path(__file__).parent.parent / "docs" / "json.md"


def missing_in_reference(fields: Iterable[str]) -> list[str]:
    """Return the fields of JSON output that the reference does not name."""
    text = REFERENCE.read_text()
    return sorted(name for name in fields if not re.search(rf"\b{re.escape(name)}\b", text))

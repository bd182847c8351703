"""Badges of the two claims of a comparison."""

from collections.abc import Sequence

from finetune_core.evaluation.comparison.arms import Arm
from finetune_core.evaluation.comparison.pair_text import CLAIMS, describe_pair
from finetune_core.evaluation.comparison.paired import About
from finetune_core.evaluation.comparison.pairs import Pair
from pages.shared.chrome import Color, escape_markdown

_LOOKS: dict[About, tuple[Color, str]] = {
    "strategies": ("blue", ":material/science:"),
    "networks": ("violet", ":material/hub:"),
}


def format_pair(arms: Sequence[Arm], pair: Pair) -> str:
    """Return both claims about a pair as Markdown, each with its badge."""
    text = describe_pair(arms, pair)
    return "  \n".join(
        f"{_format_badge(claim)} {escape_markdown(getattr(text, claim))}" for claim in CLAIMS
    )


def _format_badge(claim: About) -> str:
    color, icon = _LOOKS[claim]
    return f":{color}-badge[{icon} {CLAIMS[claim]}]"

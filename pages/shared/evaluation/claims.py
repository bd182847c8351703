"""How the two claims of a comparison look, wherever one is made."""

from finetune_core.evaluation.comparison.paired import About
from finetune_core.evaluation.comparison.verdicts import CLAIMS
from pages.shared.chrome import Color

CLAIM_LOOKS: dict[About, tuple[Color, str]] = {
    "strategies": ("blue", ":material/science:"),
    "networks": ("violet", ":material/hub:"),
}


def claim_badge(claim: About) -> str:
    """As Markdown."""
    color, icon = CLAIM_LOOKS[claim]
    return f":{color}-badge[{icon} {CLAIMS[claim]}]"

"""Licences of pretrained weights, and whether they rule out commercial use."""

# Names used by the Hugging Face Hub and timm. The licence texts decide. These names are shown
# before anything is downloaded.
_RESEARCH_ONLY = {"fair-noncommercial-research-license", "apple-amlr", "seer-license"}
# torchvision states addresses.
_ADDRESSES = {"https://github.com/facebookresearch/SWAG/blob/main/LICENSE": "cc-by-nc-4.0"}


def licence_name(licence: str | None) -> str:
    """Return the short name of a licence for display."""
    return _ADDRESSES.get(licence or "", licence or "not stated")


def is_research_only(licence: str | None) -> bool:
    """Return whether a licence rules out commercial use. False where it is unknown."""
    name = licence_name(licence).lower()
    return name in _RESEARCH_ONLY or "-nc-" in f"-{name}-" or "noncommercial" in name

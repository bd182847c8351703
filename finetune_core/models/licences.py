"""Licences of pretrained weights: which of them rule commercial use out."""

# As the Hugging Face Hub and timm name them. Their own texts decide; this is what is shown before anything is downloaded.
_RESEARCH_ONLY = {"fair-noncommercial-research-license", "apple-amlr", "seer-license"}
# that torchvision gives
_ADDRESSES = {"https://github.com/facebookresearch/SWAG/blob/main/LICENSE": "cc-by-nc-4.0"}


def licence_name(licence: str | None) -> str:
    """A licence's short name, as it is shown."""
    return _ADDRESSES.get(licence or "", licence or "not stated")


def is_research_only(licence: str | None) -> bool:
    """Whether a licence rules commercial use out; False where it is not known."""
    name = licence_name(licence).lower()
    return name in _RESEARCH_ONLY or "-nc-" in f"-{name}-" or "noncommercial" in name

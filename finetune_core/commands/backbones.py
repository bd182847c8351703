"""The ``backbones`` command: list networks with size, licence and whether weights are here."""

from contextlib import suppress
from typing import Any

from finetune_core.commands.runs import fetch_descriptions
from finetune_core.commands.terminal import out, print_table
from finetune_core.errors import ConfigError
from finetune_core.formatting import format_bytes, format_percent, format_short_number
from finetune_core.models.catalogue import (
    BackboneInfo,
    backbone_info,
    download_bytes,
    find_backbones,
)
from finetune_core.models.licences import licence_name
from finetune_core.models.network import parameter_count
from finetune_core.models.timm_networks import FOLDER, HUB

_FEW = 20  # up to this many networks, unknown sizes are counted, a fraction of a second each


def list_backbones(word: str, *, ready: bool) -> list[dict[str, Any]]:
    """Return one row per network whose name contains ``word``.

    A repository or a folder is looked up instead.

    Args:
        word: part of a name, a repository, or a folder.
        ready: only list networks whose weights are on this machine.

    Raises:
        FinetuneError: if the repository or folder holds no network.
    """
    names = (word,) if word.startswith((HUB, FOLDER)) else find_backbones(word)
    fetch_descriptions(name for name in names if name.startswith(HUB))
    infos = [info for info in map(backbone_info, names) if info.is_ready or not ready]
    return [
        _build_row(
            info, _count_parameters(info) if len(infos) <= _FEW else info.known_parameter_count
        )
        for info in infos
    ]


def print_backbones(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table, and a note on the missing accuracies."""
    print_table(
        ["Name", "Parameters", "Ready", "Licence", "Pixels", "Download", "ImageNet top-1"],
        [
            [
                row["name"],
                format_short_number(row["parameters"]) if row["parameters"] else "–",
                "yes" if row["ready"] else "no",
                licence_name(row["licence"]) + (" · research only" if row["research_only"] else ""),
                str(row["image_size"]),
                f"~{format_bytes(row['download_bytes'])}" if row["download_bytes"] else "–",
                format_percent(row["imagenet_top1"] / 100) if row["imagenet_top1"] else "",
            ]
            for row in rows
        ],
    )
    if any(row["imagenet_top1"] for row in rows):
        out.print(
            "ImageNet top-1 is what torchvision states for its own weights; timm and packages "
            "state none."
        )
    if not rows:
        out.print("There is none. `python -m finetune_core backbones` lists all.")


def _count_parameters(info: BackboneInfo) -> int | None:
    """Return the number of parameters, or None where the network cannot be built."""
    with suppress(ConfigError):
        return parameter_count(info.name)
    return None


def _build_row(info: BackboneInfo, parameters: int | None) -> dict[str, Any]:
    return {
        "name": info.name,
        "source": info.source,
        "parameters": parameters,
        "image_size": info.image_size,
        "imagenet_top1": info.top1,
        "licence": info.licence,
        "research_only": info.is_research_only,
        "download_bytes": download_bytes(parameters) if parameters and not info.is_ready else None,
        "ready": info.is_ready,
        "weights": str(info.file) if info.is_ready else info.url,
        "page": info.page,
    }

"""Grad-CAM by Captum: the parts of an image that support a class (Selvaraju et al. 2017)."""

import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from plotly.colors import sequential
from torch import nn
from torch.nn import functional as F

from finetune_core.errors import RunError
from finetune_core.evaluation.prediction.predictor import Predictor
from finetune_core.training.data_pipeline.preview import network_input

_SIDE = 320  # pixels of an overlay
_STRONGEST = 0.65  # opacity of the highest heat
# Cells along a side: a map of 2 hardly shows where, a map of 4 does.
_COARSE, _FINE = (2, 4)
_MOST_EXTRA_TOKENS = 8  # class token, distillation token, registers
# The luminance of Plasma grows evenly from cold to hot, also for the colour-blind and in print.
_COLORS = np.array(
    [[int(part, 16) for part in (c[1:3], c[3:5], c[5:7])] for c in sequential.Plasma], dtype=float
)


@dataclass(frozen=True)
class Explanation:
    """Grad-CAM of one image.

    Attributes:
        picture: JPEG of the network's input: the centre crop of the image.
        overlays: class -> JPEG of the input with the heat map as an overlay.
        heat: class -> float32 ``[s, s]`` in 0…1 on the network's input; all 0 if nothing supports
            the class.
        layer: the stage whose output the heat map was computed on.
        cells: side of that output.
        layers: every stage whose output is a map of more than one cell -> side of the map, from the
            input to the head.
        probabilities: float64 ``[classes]``.
    """

    picture: bytes
    overlays: dict[int, bytes]
    heat: dict[int, np.ndarray]
    layer: str
    cells: int
    layers: dict[str, int]
    probabilities: np.ndarray

    @property
    def is_coarse(self) -> bool:
        """True if the last map is so small that an earlier one is explained by default."""
        return self.layers[next(reversed(self.layers))] <= _COARSE


@dataclass(frozen=True)
class _Layout:
    """Layout of a picture in a module's output ``[1, …]``.

    ``kind`` is ``first`` (channels first), ``last`` (channels last), or ``tokens`` that follow
    ``extra`` other tokens.
    """

    kind: str
    side: int
    extra: int = 0

    def to_map(self, output: torch.Tensor) -> torch.Tensor:
        """Return the output as ``[n, c, side, side]``."""
        if self.kind == "first":
            return output
        if self.kind == "last":
            return output.permute(0, 3, 1, 2)
        tokens = output[:, self.extra :].transpose(1, 2)
        return tokens.reshape(*tokens.shape[:2], self.side, self.side)

    def from_map(self, picture: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Return a map in the layout of the module's output.

        The map is copied, because later modules may work in place.
        """
        if self.kind == "first":
            return picture.clone()
        if self.kind == "last":
            return picture.permute(0, 2, 3, 1).clone()
        return torch.cat([output[:, : self.extra], picture.flatten(2).transpose(1, 2)], dim=1)


def explain(
    predictor: Predictor, image: Path | bytes, classes: Sequence[int], layer: str | None = None
) -> Explanation:
    """Compute Grad-CAM overlays of an image for some classes.

    The predictor's network is copied, not changed, because other threads may use it meanwhile.

    Args:
        predictor: the network.
        image: a file, or its bytes.
        classes: labels of the classes to explain.
        layer: the stage whose output is explained. If None, the last stage whose map the head uses.
            If the last map has 2 × 2 cells or fewer, the last stage of at least 4 × 4.

    Raises:
        ImageError: if the image cannot be read.
        RunError: if the backbone, or that stage, has no spatial feature map that the head uses; if
            the network is an ensemble.
    """
    if predictor.network.members:
        raise RunError(
            "There is no Grad-CAM for an ensemble: each of its networks has maps of its own. Look "
            "at its runs one by one."
        )
    preview = network_input(image, predictor.network.info, predictor.image_size)
    model = copy.deepcopy(predictor.network.model).eval().requires_grad_(False)
    square = predictor.device.move_inputs(preview.tensor[None])
    stages = {stage.name: stage.modules for stage in predictor.network.stages[:-1]}
    layouts, probabilities = _find_layouts(
        model, [path for paths in stages.values() for path in paths], square
    )
    mapped = {
        stage: found_paths
        for stage, paths in stages.items()
        if (found_paths := [path for path in paths if path in layouts])
    }
    layers = {stage: layouts[paths[-1]].side for stage, paths in mapped.items()}
    candidates = _default_stages(layers) if layer is None else [layer] if layer in layers else []
    for stage, path in [(name, path) for name in candidates for path in reversed(mapped[name])]:
        maps = _compute_class_maps(model, path, layouts[path], square, classes)
        # In the last block only the class token reaches the head, so the maps of patches are 0.
        if maps.any():
            layer = stage
            break
    else:
        which = "none of its stages has" if layer is None else f"{layer} does not pass to the head"
        raise RunError(
            f"There is no Grad-CAM for {predictor.network.info.name}: {which} a spatial feature "
            "map."
        )
    heat = {
        label: _resize_map(map_, predictor.image_size)
        for label, map_ in zip(classes, maps.clamp(min=0), strict=True)
    }
    picture = Image.fromarray(preview.image).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    overlays = {label: _encode_jpeg(_blend(picture, map_)) for label, map_ in heat.items()}
    return Explanation(
        _encode_jpeg(picture), overlays, heat, layer, layouts[path].side, layers, probabilities
    )


def _default_stages(layers: dict[str, int]) -> list[str]:
    """Return the stages to explain in order of preference.

    They go from the head back to the input, past maps that are too small at first.
    """
    backwards = list(reversed(layers))
    fine = next((index for index, stage in enumerate(backwards) if layers[stage] >= _FINE), 0)
    return backwards[fine:] if backwards and layers[backwards[0]] <= _COARSE else backwards


def _find_layouts(
    model: nn.Module, paths: Sequence[str], square: torch.Tensor
) -> tuple[dict[str, _Layout], np.ndarray]:
    """Return the layouts of the modules that output a map, and the class probabilities.

    A map has more than one cell. The modules are in forward order.
    """
    layouts: dict[str, _Layout] = {}

    def record(path: str, output: object) -> None:
        layout = _infer_layout(output) if isinstance(output, torch.Tensor) else None
        if layout:
            layouts[path] = layout

    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda _module, _inputs, output, path=path: record(path, output)
        )
        for path in paths
    ]
    with torch.no_grad():
        logits = model(square)
    for handle in handles:
        handle.remove()
    return layouts, logits[0].float().cpu().double().softmax(0).numpy()


def _infer_layout(output: torch.Tensor) -> _Layout | None:
    if output.ndim == 4:
        _, first, second, third = output.shape
        if first == second != third:
            return _Layout("last", first) if first > 1 else None
        return _Layout("first", third) if second == third > 1 else None
    if output.ndim == 3:
        for extra in range(_MOST_EXTRA_TOKENS + 1):
            side = round(max(0, output.shape[1] - extra) ** 0.5)
            if side > 1 and side**2 == output.shape[1] - extra:
                return _Layout("tokens", side, extra)
    return None


def _compute_class_maps(
    model: nn.Module, path: str, layout: _Layout, square: torch.Tensor, classes: Sequence[int]
) -> torch.Tensor:
    """Return Grad-CAM of each class before its ReLU.

    Returns:
        Float32 ``[classes, side, side]`` on the CPU.
    """
    from captum.attr import LayerGradCam  # the import takes a while

    picture = nn.Identity()

    def through_picture(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        # No weight needs a gradient, so the graph begins here, and the stages before cost only a
        # forward pass.
        return layout.from_map(picture(layout.to_map(output).detach().requires_grad_()), output)

    handle = model.get_submodule(path).register_forward_hook(through_picture)
    try:
        inputs = square.repeat(len(classes), 1, 1, 1)
        maps: torch.Tensor = LayerGradCam(model, picture).attribute(
            inputs, target=list(classes), relu_attributions=False
        )
    finally:
        handle.remove()
    return maps[:, 0].detach().float().cpu()


def _resize_map(cells: torch.Tensor, side: int) -> np.ndarray:
    """Return a map, resized to the picture's size and scaled to 0…1."""
    smooth = F.interpolate(
        cells[None, None], size=(side, side), mode="bilinear", align_corners=False
    )[0, 0]
    return (smooth / smooth.max().clamp(min=1e-12)).numpy()


def _blend(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    heat = np.asarray(Image.fromarray(heat).resize(picture.size, Image.Resampling.BILINEAR)).clip(
        0, 1
    )
    steps = np.linspace(0, 1, len(_COLORS))
    color = np.stack([np.interp(heat, steps, _COLORS[:, channel]) for channel in range(3)], axis=-1)
    cover = _STRONGEST * heat[..., None]
    return Image.fromarray(
        np.rint(np.asarray(picture) * (1 - cover) + color * cover).astype(np.uint8)
    )


def _encode_jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()

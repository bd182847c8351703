"""Classify images with the network in this folder, without Thaw.

    python predict.py IMAGE…

Needs pillow, numpy, and for model.onnx: onnxruntime; for model.pt2: torch; for model.safetensors: torch, safetensors, and
torchvision or timm, whichever model.json names.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FOLDER = Path(__file__).resolve().parent


def preprocess(path, steps):
    """An image file -> float32 [3, size, size], as the network was trained on it."""
    side, size = steps["resize_to"], steps["centre_crop_to"]
    with Image.open(path) as image:
        # decode a large JPEG at a smaller scale; other formats take no notice
        image.draft("RGB", (side, side))
        image.load()
        image = to_rgb(ImageOps.exif_transpose(image))
    how = Image.Resampling[steps["interpolation"].upper()]
    if steps["fit"] == "crop":
        square = ImageOps.fit(image, (side, side), how)
    else:
        scale = side / max(image.size)
        image = image.resize([max(1, round(length * scale)) for length in image.size], how)
        square = Image.new("RGB", (side, side), tuple(steps["padding"]))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    square = np.asarray(square)
    edge = round((side - size) / 2)
    pixels = square[edge : edge + size, edge : edge + size].astype(np.float32) / 255
    pixels = (pixels - np.float32(steps["mean"])) / np.float32(steps["std"])
    return pixels.transpose(2, 0, 1)


def to_rgb(image):
    """8-bit RGB: transparency on white, 16-bit gray by its top 8 bits, gray without a fixed range stretched to it."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        gray = np.asarray(image).astype(np.float64)
        gray[np.isnan(gray)] = -np.inf
        finite = np.isfinite(gray)
        low, high = gray.min(where=finite, initial=np.inf), gray.max(where=finite, initial=-np.inf)
        if image.mode.startswith("I;16") or (
            image.mode == "I" and low >= 0 and 255 < high <= 65535
        ):
            gray = gray / 257
        elif high > low:
            gray = (gray - low) * 255 / (high - low)
        return Image.fromarray(np.rint(gray.clip(0, 255)).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def load(info):
    """Return a function: float32 [batch, 3, size, size] -> logits [batch, classes]."""
    name = next(name for name in LOADERS if (FOLDER / name).exists())
    return LOADERS[name](FOLDER / name, info)


def load_onnx(file, info):
    import onnxruntime

    session = onnxruntime.InferenceSession(file)
    return lambda images: session.run(["logits"], {"image": images})[0]


def load_program(file, info):
    import torch

    return without_gradients(torch.export.load(file).module())


def load_weights(file, info):
    return without_gradients(rebuild(file, info["network"], len(info["classes"])))


def without_gradients(model):
    import torch

    @torch.no_grad()
    def forward(images):
        return model(torch.from_numpy(images)).numpy()

    return forward


LOADERS = {"model.onnx": load_onnx, "model.pt2": load_program, "model.safetensors": load_weights}


def rebuild(file, network, classes):
    """Take the network's structure from the library that defines it, and fill it with weights."""
    from safetensors.torch import load_file

    model = (
        ensemble(network["members"], classes)
        if "members" in network
        else structure(network, classes)
    )
    state = model.state_dict()  # with the versions of its layers, which a file of tensors lacks
    state.update(load_file(file))
    model.load_state_dict(state)
    return model.eval()


def structure(network, classes):
    """One network, its weights still to be filled in."""
    from torch import nn

    if "features_from" in network:
        sys.exit(
            f"This network ends after {network['features_from']}, so its structure is in no library. Export it as ONNX or torch.export to run "
            "it with this file, or name images with Thaw: python -m finetune_core predict FOLDER IMAGE…"
        )
    if network["library"] == "timm":
        import timm

        model = timm.create_model(network["name"], **network["options"])
    else:
        from torchvision.models import get_model

        model = get_model(network["name"], weights=None, **network["options"])
    for path in network["heads"]:
        old = model.get_submodule(path)
        if isinstance(old, nn.Linear):
            head = nn.Linear(old.in_features, classes)
        else:
            head = nn.Conv2d(old.in_channels, classes, old.kernel_size, old.stride, old.padding)
        model.set_submodule(path, head)
    return model


def ensemble(members, classes):
    """Several networks, which answer the logarithm of their mean probabilities. Each gets images normalised as in its training."""
    import torch
    from torch import nn

    class Ensemble(nn.Module):
        def __init__(self):
            super().__init__()
            self.members = nn.ModuleList(structure(one, classes) for one in members)
            for at, one in enumerate(members):
                if (one["mean"], one["std"]) != (members[0]["mean"], members[0]["std"]):
                    self.register_buffer(f"scale_{at}", torch.ones(3, 1, 1))
                    self.register_buffer(f"shift_{at}", torch.zeros(3, 1, 1))

        def forward(self, images):
            answers = []
            for at, member in enumerate(self.members):
                seen = images * getattr(self, f"scale_{at}", 1) + getattr(self, f"shift_{at}", 0)
                answers.append(member(seen).log_softmax(dim=1))
            return torch.stack(answers).logsumexp(dim=0) - np.log(len(answers))

    return Ensemble()


def main():
    """Print one JSON object per image; returns the exit status: 1 where one could not be read."""
    info = json.loads((FOLDER / "model.json").read_text(encoding="utf-8"))
    forward = load(info)
    status = 0
    for path in sys.argv[1:]:
        try:
            if not Path(path).is_file():  # a FIFO, say, which would be waited for
                raise OSError("there is no such file")
            pixels = preprocess(path, info["preprocessing"])
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            print(f"{path} cannot be read: {error}", file=sys.stderr)
            status = 1
            continue
        logits = forward(pixels[None])[0].astype(np.float64)
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        best = int(probabilities.argmax())
        print(
            json.dumps(
                {
                    "image": path,
                    "class": info["classes"][best],
                    "probability": float(probabilities[best]),
                }
            )
        )
    return status


if __name__ == "__main__":
    sys.exit(main())

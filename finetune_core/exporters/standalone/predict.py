"""Classify images with the network in this folder, without Thaw.

    python predict.py IMAGE…

Needs pillow and numpy. model.onnx also needs onnxruntime, model.pt2 needs torch, and
model.safetensors needs torch, safetensors, and torchvision or timm, whichever model.json names.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FOLDER = Path(__file__).resolve().parent


def preprocess(path, steps):
    """Read an image file and return float32 [3, size, size], preprocessed as in training."""
    side, size = steps["resize_to"], steps["centre_crop_to"]
    with Image.open(path) as image:
        # Decode a large JPEG at a smaller scale. Other formats ignore this.
        image.draft("RGB", (side, side))
        image.load()
        image = to_rgb(ImageOps.exif_transpose(image))
    resampling = Image.Resampling[steps["interpolation"].upper()]
    if steps["fit"] == "crop":
        square = ImageOps.fit(image, (side, side), resampling)
    else:
        scale = side / max(image.size)
        image = image.resize([max(1, round(length * scale)) for length in image.size], resampling)
        square = Image.new("RGB", (side, side), tuple(steps["padding"]))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    square = np.asarray(square)
    edge = round((side - size) / 2)
    pixels = square[edge : edge + size, edge : edge + size].astype(np.float32) / 255
    pixels = (pixels - np.float32(steps["mean"])) / np.float32(steps["std"])
    return pixels.transpose(2, 0, 1)


def to_rgb(image):
    """Convert an image to 8-bit RGB.

    Transparent pixels become white. 16-bit gray keeps its top 8 bits. Gray without a fixed range is
    stretched to the full range.
    """
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
    """Return a function that maps float32 [batch, 3, size, size] to logits [batch, classes]."""
    name = next(name for name in LOADERS if (FOLDER / name).exists())
    return LOADERS[name](FOLDER / name, info)


def load_onnx(file, info):
    """Return a function that runs model.onnx with onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file)
    return lambda images: session.run(["logits"], {"image": images})[0]


def load_program(file, info):
    """Return a function that runs model.pt2 with torch."""
    import torch

    return wrap_model(torch.export.load(file).module())


def load_weights(file, info):
    """Return a function that runs the network with the weights of model.safetensors."""
    return wrap_model(load_model(file, info["network"], len(info["classes"])))


def wrap_model(model):
    """Return a function that runs a model on NumPy arrays, without gradients."""
    import torch

    @torch.no_grad()
    def forward(images):
        return model(torch.from_numpy(images)).numpy()

    return forward


LOADERS = {"model.onnx": load_onnx, "model.pt2": load_program, "model.safetensors": load_weights}


def load_model(file, network, classes):
    """Build the network with the library that defines it, and load its weights."""
    from safetensors.torch import load_file

    model = (
        build_ensemble(network["members"], classes)
        if "members" in network
        else build_model(network, classes)
    )
    # The model's own dictionary holds the layers' versions, which a file of tensors lacks.
    state = model.state_dict()
    state.update(load_file(file))
    model.load_state_dict(state)
    return model.eval()


def build_model(network, classes):
    """Build one network without loading its weights."""
    from torch import nn

    if "features_from" in network:
        sys.exit(
            f"This network ends after {network['features_from']}, so its structure is in no "
            "library. Export it as ONNX or torch.export to run it with this file, or name images "
            "with Thaw: python -m finetune_core predict FOLDER IMAGE…"
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


def build_ensemble(members, classes):
    """Build an ensemble, whose output is the logarithm of the mean of the probabilities.

    Each network gets images with the normalisation of its own training.
    """
    import torch
    from torch import nn

    class Ensemble(nn.Module):
        def __init__(self):
            super().__init__()
            self.members = nn.ModuleList(build_model(one, classes) for one in members)
            for index, one in enumerate(members):
                if (one["mean"], one["std"]) != (members[0]["mean"], members[0]["std"]):
                    self.register_buffer(f"scale_{index}", torch.ones(3, 1, 1))
                    self.register_buffer(f"shift_{index}", torch.zeros(3, 1, 1))

        def forward(self, images):
            answers = []
            for index, member in enumerate(self.members):
                inputs = images * getattr(self, f"scale_{index}", 1) + getattr(
                    self, f"shift_{index}", 0
                )
                answers.append(member(inputs).log_softmax(dim=1))
            return torch.stack(answers).logsumexp(dim=0) - np.log(len(answers))

    return Ensemble()


def main():
    """Print one JSON object per image. Return 1 if an image could not be read, otherwise 0."""
    info = json.loads((FOLDER / "model.json").read_text(encoding="utf-8"))
    forward = load(info)
    status = 0
    for path in sys.argv[1:]:
        try:
            if not Path(path).is_file():  # opening a FIFO would block
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

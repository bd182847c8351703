"""The training loop of the classic tutorial, against which Thaw is measured.

    python -m benchmarks.plain_loop FOLDER STRATEGY EPOCHS

Nothing here is Thaw's.
"""

import argparse
import json
import sys
import time
from contextlib import nullcontext
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

# network -> strategy -> prefixes of the names of trained parameters
TRAINED = {
    "resnet18": {"feature_extraction": ("fc",), "last_block": ("layer4", "fc"), "full": ("",)},
    "efficientnet_lite0": {
        "feature_extraction": ("classifier",),
        "last_block": ("blocks.6", "conv_head", "bn2", "classifier"),
        "full": ("",),
    },
    "vit_b_16": {
        "feature_extraction": ("heads",),
        "last_block": ("encoder.layers.encoder_layer_11", "encoder.ln", "heads"),
        "full": ("",),
    },
}


def build_model(network: str, strategy: str, classes: int) -> nn.Module:
    """Build a network with random weights, and freeze the parameters that do not train."""
    if network == "efficientnet_lite0":
        model: nn.Module = timm.create_model("tf_efficientnet_lite0", num_classes=classes)
    else:
        model = models.get_model(network, weights=None, num_classes=classes)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(TRAINED[network][strategy])
    return model


def make_loaders(options: argparse.Namespace) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return the loaders of training images and of validation images."""
    transform = transforms.Compose(
        [
            transforms.Resize((options.image_size, options.image_size)),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    train = datasets.ImageFolder(f"{options.folder}/train", transform)
    val = datasets.ImageFolder(f"{options.folder}/val", transform)
    size, workers = options.batch, options.workers
    return (
        DataLoader(train, batch_size=size, shuffle=True, num_workers=workers),
        DataLoader(val, batch_size=size, num_workers=workers),
    )


def train_step(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    autocast: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take a training step on one batch, and return loss and outputs."""
    optimizer.zero_grad()
    with torch.autocast(images.device.type, torch.bfloat16) if autocast else nullcontext():
        outputs = model(images)
        loss = nn.functional.cross_entropy(outputs, labels)
    loss.backward()
    optimizer.step()
    return loss, outputs


def main(options: argparse.Namespace) -> None:
    """Train, and print the seconds at the end of each epoch as JSON."""
    train_loader, val_loader = make_loaders(options)
    device = torch.device(options.device)
    classes = len(train_loader.dataset.classes)  # type: ignore[attr-defined]
    model = build_model(options.network, options.strategy, classes=classes).to(device)
    optimizer = torch.optim.Adam(filter(lambda p: p.requires_grad, model.parameters()), lr=1e-4)
    train_size, val_size = len(train_loader.dataset), len(val_loader.dataset)  # type: ignore[arg-type]

    start_time, ends = time.perf_counter(), []
    for epoch in range(options.epochs):
        model.train()
        loss_sum, correct = 0.0, 0
        for images, labels in train_loader:
            images, labels = images.to(device), labels.to(device)
            loss, outputs = train_step(model, images, labels, optimizer, options.autocast)
            loss_sum += loss.item() * images.size(0)
            correct += (outputs.argmax(1) == labels).sum().item()
        model.eval()
        val_correct = 0
        with (
            torch.no_grad(),
            torch.autocast(device.type, torch.bfloat16) if options.autocast else nullcontext(),
        ):
            for images, labels in val_loader:
                images, labels = images.to(device), labels.to(device)
                val_correct += (model(images).argmax(1) == labels).sum().item()
        print(
            f"epoch {epoch + 1}: loss {loss_sum / train_size:.4f}, accuracy "
            f"{correct / train_size:.4f}, validation accuracy {val_correct / val_size:.4f}",
            file=sys.stderr,
        )
        ends.append(time.perf_counter() - start_time)
    print(
        json.dumps(
            {"ends": ends, "trained": sum(p.numel() for p in model.parameters() if p.requires_grad)}
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="holds train/ and val/, each with one subfolder per class")
    parser.add_argument("strategy", choices=TRAINED["resnet18"])
    parser.add_argument("epochs", type=int)
    parser.add_argument("--network", choices=TRAINED, default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that decode; 0 is DataLoader's default"
    )
    parser.add_argument(
        "--autocast", action="store_true", help="compute in bf16 where autocast does"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    main(parser.parse_args())

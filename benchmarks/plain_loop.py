"""The classic tutorial's loop, written plainly: the side that Thaw is measured against. Nothing here is Thaw's.

python -m benchmarks.plain_loop FOLDER STRATEGY EPOCHS
"""

import argparse
import json
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

STRATEGIES = {"feature_extraction": ["fc"], "last_block": ["layer4", "fc"], "full": [""]}


def main(folder: str, strategy: str, epochs: int) -> None:
    transform = transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    train = datasets.ImageFolder(f"{folder}/train", transform)
    val = datasets.ImageFolder(f"{folder}/val", transform)
    train_loader = DataLoader(train, batch_size=32, shuffle=True)
    val_loader = DataLoader(val, batch_size=32)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    model = models.resnet18(weights=None)
    model.fc = nn.Linear(model.fc.in_features, len(train.classes))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = any(name.startswith(prefix) for prefix in STRATEGIES[strategy])
    model = model.to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(filter(lambda p: p.requires_grad, model.parameters()), lr=1e-4)

    began = time.perf_counter()
    for epoch in range(epochs):
        model.train()
        loss_sum, correct = 0.0, 0
        for images, labels in train_loader:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            outputs = model(images)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * images.size(0)
            correct += (outputs.argmax(1) == labels).sum().item()
        model.eval()
        val_correct = 0
        with torch.no_grad():
            for images, labels in val_loader:
                images, labels = images.to(device), labels.to(device)
                val_correct += (model(images).argmax(1) == labels).sum().item()
        print(
            f"epoch {epoch + 1}: loss {loss_sum / len(train):.4f}, accuracy {correct / len(train):.4f}, "
            f"validation accuracy {val_correct / len(val):.4f}",
            file=sys.stderr,
        )
    print(json.dumps({"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="holds train/ and val/, each with one subfolder per class")
    parser.add_argument("strategy", choices=STRATEGIES)
    parser.add_argument("epochs", type=int)
    options = parser.parse_args()
    main(options.folder, options.strategy, options.epochs)

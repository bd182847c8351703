"""The job of ``plain_loop.py`` on ResNet-18 with Lightning, Hugging Face's Trainer or fastai.

    python -m benchmarks.peers LIBRARY FOLDER STRATEGY EPOCHS

Each side follows the documentation of its library: data loading with one process per core, training
loop, validation and checkpoints. Nothing here is Thaw's.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torchvision import datasets, models, transforms

BATCH, RATE, WORKERS = 32, 1e-4, os.cpu_count() or 1
TRANSFORM = transforms.Compose(
    [
        transforms.Resize((224, 224)),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)

Fit = Callable[[], object]
Mark = Callable[..., None]  # called at the end of each epoch's validation


def _freeze_others(model: nn.Module, prefixes: tuple[str, ...]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(prefixes)


def prepare_lightning(folder: str, strategy: str, epochs: int, mark: Mark) -> tuple[nn.Module, Fit]:
    """Return a model and a function that trains it with Lightning."""
    import lightning as L
    from lightning.pytorch.callbacks import LambdaCallback
    from torch.utils.data import DataLoader

    class Classifier(L.LightningModule):  # type: ignore[misc]
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.model = models.resnet18(num_classes=classes)
            prefixes = {
                "feature_extraction": ("fc",),
                "last_block": ("layer4", "fc"),
                "full": ("",),
            }
            _freeze_others(self.model, prefixes[strategy])

        def training_step(
            self, batch: tuple[torch.Tensor, torch.Tensor], _index: int
        ) -> torch.Tensor:
            images, labels = batch
            logits = self.model(images)
            loss = nn.functional.cross_entropy(logits, labels)
            self.log("train_loss", loss)
            self.log(
                "train_accuracy",
                (logits.argmax(1) == labels).float().mean(),
                on_step=False,
                on_epoch=True,
            )
            return loss

        def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], _index: int) -> None:
            images, labels = batch
            self.log(
                "val_accuracy",
                (self.model(images).argmax(1) == labels).float().mean(),
                prog_bar=True,
            )

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=RATE)

    train, val = (
        datasets.ImageFolder(f"{folder}/{split}", TRANSFORM) for split in ("train", "val")
    )
    train_loader = DataLoader(
        train, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True
    )
    val_loader = DataLoader(val, BATCH, num_workers=WORKERS, persistent_workers=True)
    model = Classifier(len(train.classes))
    trainer = L.Trainer(max_epochs=epochs, callbacks=[LambdaCallback(on_validation_epoch_end=mark)])
    return model, lambda: trainer.fit(model, train_loader, val_loader)


def prepare_transformers(
    folder: str, strategy: str, epochs: int, mark: Mark
) -> tuple[nn.Module, Fit]:
    """Return a model and a function that trains it with Hugging Face's Trainer."""
    from datasets import load_dataset
    from transformers import (
        ResNetConfig,
        ResNetForImageClassification,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    class MarkEpochs(TrainerCallback):  # type: ignore[misc]
        def on_evaluate(self, *_: object, **__: object) -> None:
            mark()

    def prepare(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {
            "pixel_values": [TRANSFORM(image.convert("RGB")) for image in rows["image"]],
            "labels": rows["label"],
        }

    images = load_dataset("imagefolder", data_dir=folder, cache_dir=os.getcwd()).with_transform(
        prepare
    )
    # ResNet-18 in transformers
    config = ResNetConfig(
        hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=4
    )
    model: nn.Module = ResNetForImageClassification(config)
    last = "resnet.encoder.stages.3"
    _freeze_others(
        model,
        {"feature_extraction": ("classifier",), "last_block": (last, "classifier"), "full": ("",)}[
            strategy
        ],
    )
    arguments = TrainingArguments(
        output_dir="trainer",
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        learning_rate=RATE,
        eval_strategy="epoch",
        save_strategy="epoch",
        remove_unused_columns=False,
        dataloader_num_workers=WORKERS,
        dataloader_persistent_workers=True,
        report_to="none",
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=images["train"],
        eval_dataset=images["validation"],
        compute_metrics=lambda output: {
            "accuracy": float((output.predictions.argmax(1) == output.label_ids).mean())
        },
        callbacks=[MarkEpochs()],
    )
    return model, trainer.train


def prepare_fastai(folder: str, strategy: str, epochs: int, mark: Mark) -> tuple[nn.Module, Fit]:
    """Return a model and a function that trains it with fastai."""
    from fastai.vision.all import (
        Callback,
        CrossEntropyLossFlat,
        ImageDataLoaders,
        Learner,
        Normalize,
        Resize,
        ResizeMethod,
        accuracy,
        imagenet_stats,
        params,
    )

    def split_groups(model: nn.Module) -> list[Any]:
        *first, last, pooling, head = model.children()
        return [params(nn.Sequential(*first)), params(nn.Sequential(last, pooling)), params(head)]

    images = ImageDataLoaders.from_folder(
        folder,
        valid="val",
        bs=BATCH,
        item_tfms=Resize(224, method=ResizeMethod.Squish),
        batch_tfms=Normalize.from_stats(*imagenet_stats),
        num_workers=WORKERS,
    )
    model = models.resnet18(num_classes=images.c)
    # train_bn=False freezes the BatchNorm layers of frozen groups, as on the other sides. fastai's
    # default trains them.
    learner = Learner(
        images,
        model,
        loss_func=CrossEntropyLossFlat(),
        metrics=accuracy,
        splitter=split_groups,
        train_bn=False,
        wd=0.0,
    )
    learner.freeze_to({"feature_extraction": -1, "last_block": -2, "full": 0}[strategy])
    return model, lambda: learner.fit(epochs, RATE, cbs=Callback(after_epoch=mark))


# library -> (packages that it needs here, function that prepares the training)
PEERS = {
    "Lightning": (("lightning",), prepare_lightning),
    "HF Trainer": (("transformers", "accelerate", "datasets"), prepare_transformers),
    "fastai": (("fastai",), prepare_fastai),
}


def find_missing(library: str) -> list[str]:
    """Return the packages that a library needs here and that are not installed."""
    return [package for package in PEERS[library][0] if find_spec(package) is None]


def main(library: str, folder: str, strategy: str, epochs: int) -> None:
    """Train with a library and print the seconds at the end of each epoch as JSON."""
    ends: list[float] = []
    with redirect_stdout(sys.stderr):
        model, fit = PEERS[library][1](
            folder, strategy, epochs, lambda *_: ends.append(time.perf_counter() - start_time)
        )
        start_time = time.perf_counter()
        fit()
        seconds = time.perf_counter() - start_time
    # Lightning validates once before the first epoch. Some libraries write a checkpoint at the end.
    ends = [*ends[-epochs:-1], seconds]
    print(
        json.dumps(
            {"ends": ends, "trained": sum(p.numel() for p in model.parameters() if p.requires_grad)}
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("library", choices=PEERS)
    parser.add_argument("folder", help="holds train/ and val/, each with one subfolder per class")
    parser.add_argument("strategy", choices=("feature_extraction", "last_block", "full"))
    parser.add_argument("epochs", type=int)
    options = parser.parse_args()
    main(options.library, options.folder, options.strategy, options.epochs)

"""Twenty planted tasks with a known answer: which stage is worth training, or none.

A small network is trained on clean images. A profile starts from that run and keeps its head.

- same: other images of the same task. No stage can gain.
- noise: two classes of noise with random labels. No stage can gain.
- labels: classes renamed in a circle. Only the head has to change, or the last stage with it.
- cut: zero weights behind one stage's output, so that the output is the same for every image. No
  other stage can restore what is lost there.
- changed: images inverted or blurred, or gratings instead of digits. The stage that gains most is
  measured, by training each stage alone at full length with three seeds.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps

from benchmarks.image_sets import SIDE, write_set
from finetune_core.training.checkpoints.files import BEST, load_checkpoint, save_checkpoint

BACKBONE = "timm/test_resnet"
LAST = "layer4"
# Stages whose whole output comes from these convolutions, so that it can be cut.
OUTPUTS = {
    "conv1": ("conv1.6",),
    "layer2": ("layer2.0.conv2", "layer2.0.downsample.1"),
    "layer3": ("layer3.0.conv3", "layer3.0.downsample.1"),
    "layer4": ("layer4.0.conv2", "layer4.0.downsample.1"),
}
NOTHING = "nothing"
CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "inverted": ImageOps.invert,
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(3)),
}


@dataclass(frozen=True)
class Task:
    """One planted task.

    Attributes:
        kind: kind of the task.
        clean: the image set that the network is trained on first.
        images: the image set of the profile.
        right: the right answers, which are names of stages or ``nothing``. Empty if the answer is
            measured.
        change: change of the images. For a cut, the stage.
        draw: seed of the profile's images.
    """

    kind: str
    clean: str
    images: str
    right: tuple[str, ...] = ()
    change: str = ""
    draw: int = 1

    @property
    def name(self) -> str:
        """Name of the task, for files and results."""
        return "-".join(filter(None, (self.kind, self.images, self.change, str(self.draw))))


def plan_tasks() -> list[Task]:
    """Return the 20 tasks, one of each kind in turn."""
    kinds = [
        [Task("same", name, name, (NOTHING,)) for name in ("digits", "glyphs", "textures")],
        [Task("noise", "digits", "noise", (NOTHING,), draw=draw) for draw in (1, 2, 3)],
        [Task("labels", name, name, (NOTHING, LAST), "rename") for name in ("digits", "glyphs")],
        [
            Task("cut", name, name, (stage,), stage)
            for name in ("digits", "glyphs")
            for stage in OUTPUTS
        ],
        [
            Task("changed", "digits", "digits", change="inverted"),
            Task("changed", "textures", "textures", change="blurred"),
            Task("changed", "glyphs", "glyphs", change="inverted"),
            Task("changed", "digits", "textures"),
        ],
    ]
    ordered = []
    while any(kinds):
        ordered += [kind.pop(0) for kind in kinds if kind]
    return ordered


def write_images(task: Task, num_train: int, root: Path) -> Path:
    """Write the profile's images and return their folder, below ``root``."""
    if task.images == "noise":
        return write_noise(num_train, root / f"noise-{num_train}-{task.draw}", task.draw)
    plain = write_set(task.images, num_train, root, task.draw)
    if task.kind == "cut" or not task.change:
        return plain
    folder = plain.with_name(f"{plain.name}-{task.change}")
    if not folder.exists():
        partial = folder.with_suffix(".part")
        shutil.rmtree(partial, ignore_errors=True)
        change_images(task.change, plain, partial)
        partial.rename(folder)
    return folder


def write_noise(num_train: int, folder: Path, seed: int) -> Path:
    """Write noise with random labels."""
    if folder.exists():
        return folder
    partial = folder.with_suffix(".part")
    shutil.rmtree(partial, ignore_errors=True)
    random = np.random.default_rng(seed)
    for part, count in (("train", num_train), ("val", num_train // 5), ("test", num_train)):
        for number in range(count):
            pixels = random.normal(128, 40, (SIDE, SIDE, 3))
            target = partial / part / f"class {random.integers(2)}"
            target.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(np.uint8(np.clip(pixels, 0, 255)))
            picture.save(target / f"{number:05d}.png")
    partial.rename(folder)
    return folder


def change_images(change: str, plain: Path, folder: Path) -> None:
    """Write all images of a set, changed, or in the folder of the next class."""
    for part in plain.iterdir():
        classes = sorted(path.name for path in part.iterdir())
        following = dict(zip(classes, classes[1:] + classes[:1], strict=True))
        for file in part.glob("*/*.png"):
            name = following[file.parent.name] if change == "rename" else file.parent.name
            target = folder / part.name / name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if change == "rename":
                shutil.copy(file, target)
            else:
                CHANGES[change](Image.open(file).convert("RGB")).save(target)


def cut_stage(run_dir: Path, stage: str, folder: Path) -> Path:
    """Copy a run with zero weights behind a stage's output, and return the copy."""
    copy = folder / f"{run_dir.name}-{stage}"
    if copy.exists():
        return copy
    shutil.copytree(run_dir, copy)
    tensors, info = load_checkpoint(copy, BEST)
    for convolution in OUTPUTS[stage]:
        (name,) = [name for name in tensors if name.endswith(f"{convolution}.weight")]
        tensors[name] = torch.zeros_like(tensors[name])
    save_checkpoint(copy, BEST, tensors, info)
    return copy


def find_right_answers(alone: dict[str, float], probe: float) -> list[str]:
    """Return the stages within a point of the best stage.

    ``nothing`` is added if the best stage gains less than two points.

    Args:
        alone: mean test accuracy of each stage, trained alone.
        probe: test accuracy of the linear probe.
    """
    best = max(alone.values())
    near = [stage for stage, accuracy in alone.items() if accuracy >= best - 0.01]
    return [*near, NOTHING] if best - probe < 0.02 else near

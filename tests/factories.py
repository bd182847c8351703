"""Factories of tests: image folders, configs, and finished runs that are trained once per session.

The first test process that needs ``shared_images`` or ``trained_run`` creates it. Copy a run
(``copy_run``) before you change it.
"""

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

HUES = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 60, 200)}
NASTY = '<b>x$1$"[a](b)'  # a class name with special characters of HTML, Markdown, TeX and CSV

# The smallest convolutional network of timm: five stages and a head, 0.4 million parameters. A run
# takes a tenth of the time of a ResNet-18 run at 32 px.
TINY_BACKBONE = "timm/test_resnet"


class Shared:
    """The folder that all test processes of a session share, set by ``tests/conftest.py``."""

    folder = Path()


def image_folder(
    root: Path,
    layout: Mapping[str, int],
    size: tuple[int, int] = (40, 32),
    suffix: str = ".png",
) -> Path:
    """Write noisy images whose class can be learned from colour.

    Args:
        layout: class folder -> number of images; ``"train/red"`` makes a split.
        size: width and height in pixels.

    Returns:
        ``root``.
    """
    for folder, count in layout.items():
        target = Path(root, folder)
        target.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(folder.encode()).digest()
        hue = np.array(HUES.get(target.name, tuple(digest[:3])))
        random = np.random.default_rng(int.from_bytes(digest[:4], "little"))
        for number in range(count):
            noise = random.normal(0, 25, (size[1], size[0], 3))
            pixels = np.uint8(np.clip(hue + noise, 0, 255))
            Image.fromarray(pixels).save(target / f"{number:03d}{suffix}")
    return Path(root)


def _make_once(name: str, make: Callable[[Path], object]) -> Path:
    """Return ``Shared.folder / name``, which ``make`` fills unless another process has."""
    target = Shared.folder / name
    complete = Shared.folder / f"{name}.complete"
    with FileLock(Shared.folder / f"{name}.lock"):
        if not complete.exists():
            if target.is_dir():
                shutil.rmtree(target)
            make(target)
            complete.touch()
    return target


@functools.cache
def shared_images(**layout: int) -> Path:
    """Return an image folder of ``layout`` that no test may change: 14 of each colour, if empty."""
    layout = layout or dict.fromkeys(HUES, 14)
    name = hashlib.sha256(json.dumps(layout, sort_keys=True).encode()).hexdigest()[:12]
    return _make_once(f"images-{name}", lambda target: image_folder(target, layout))


@functools.cache
def tiny_weights() -> Path:
    """Return a file of random weights for ``TINY_BACKBONE``."""

    def make(target: Path) -> None:
        import timm
        import torch
        from safetensors.torch import save_file

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            # Residual branches that end in zeros would have no gradient.
            network = timm.create_model(TINY_BACKBONE.removeprefix("timm/"), zero_init_last=False)
        save_file(network.state_dict(), target)

    return _make_once("tiny.safetensors", make)


@functools.cache
def tiny_folder(architecture: str = "test_resnet") -> str:
    """Return a backbone: a tiny network of timm in a folder of its own, ready as if downloaded."""

    def make(target: Path) -> None:
        import timm
        from safetensors.torch import save_file

        target.mkdir()
        described = {"architecture": architecture, "pretrained_cfg": {"input_size": [3, 160, 160]}}
        (target / "config.json").write_text(json.dumps(described))
        network = timm.create_model(architecture)
        save_file(network.state_dict(), target / "model.safetensors")

    return f"local-dir:{_make_once(f'folder-{architecture}', make)}"


def tiny_config(data: Path | str | None = None, **changes):
    """Return a config of two short epochs of the tiny network on ``data``.

    Args:
        data: an image folder; ``shared_images()`` unless given.
        changes: settings in the place of the usual ones. Another ``backbone`` has its own weights.
    """
    from finetune_core.config import make_config

    usual = {
        "data": str(data or shared_images()),
        "image_size": 32,
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "precision": "fp32",
    }
    if "backbone" not in changes:
        usual["backbone"] = TINY_BACKBONE
        if "from_run" not in changes:
            usual["weights"] = str(tiny_weights())
    return make_config(usual | changes)


def train(config, runs_dir: Path):
    """Train ``config`` below ``runs_dir`` and return the finished run."""
    from finetune_core.runs.record import create_run, execute
    from finetune_core.runs.store import RunStore

    reservation = create_run(config, runs_dir)
    list(execute(reservation))
    return RunStore(runs_dir).get_run(reservation.run_dir.name)


def trained_run(config=None, **changes):
    """Return a finished run of ``config`` (``tiny_config(**changes)``), trained once a session."""
    from finetune_core.runs.store import RunStore

    config = config or tiny_config(**changes)
    content = config.model_dump_json()
    name = hashlib.sha256(content.encode()).hexdigest()[:12]
    runs = _make_once(f"runs-{name}", lambda target: train(config, target))
    (run_dir,) = (path for path in runs.iterdir() if path.is_dir())
    return RunStore(runs).get_run(run_dir.name)


def copy_run(run_dir: Path, runs_dir: Path) -> Path:
    """Copy a run directory below ``runs_dir`` and return the copy, which a test may change."""
    return Path(shutil.copytree(run_dir, runs_dir / run_dir.name))

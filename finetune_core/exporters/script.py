"""Export of a run as one plain PyTorch file that repeats the run without Thaw.

The split is written beside the script, as a table.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from finetune_core.config import RunConfig, all_settings
from finetune_core.data.dataset import Dataset, load_dataset
from finetune_core.data.decode import PAD, PADDING
from finetune_core.data.splits import TEST, TRAIN
from finetune_core.errors import ExportError
from finetune_core.exporters.source import Source
from finetune_core.exporters.template import fill_template
from finetune_core.files import is_file, write_bytes
from finetune_core.formatting import accuracy_name, format_percent, pluralize
from finetune_core.models.catalogue import build_recipe, packages
from finetune_core.models.stages import Stage
from finetune_core.models.timm_networks import TIMM
from finetune_core.models.weights import PRETRAINED, RANDOM
from finetune_core.training.checkpoints.networks import build_initial_network, load_initial_head
from finetune_core.training.data_pipeline.batches import sample_keys, take_subset
from finetune_core.training.strategies.catalogue import count_epochs, has_fitted_initial_head
from finetune_core.training.strategies.stage_plan import StagePlan, Strategy, plan_strategy

SCRIPT, SPLIT, START_FILE = "train.py", "split.csv", "start.safetensors"
_TEMPLATE = Path(__file__).with_name("standalone") / "train.template"
_WIDE_MODES = ("I", "F")
_NO_ALPHA = {"JPEG", "BMP", "PPM"}

_DTYPES = {"bf16": "torch.bfloat16", "fp16": "torch.float16"}
_STOPPING_METRICS = {  # higher is better
    "off": "",
    "val_accuracy": "accuracy",
    "val_loss": "-loss",
    "val_balanced_accuracy": "score",
    "val_macro_f1": "score",
}


def write_script(source: Source, folder: Path) -> dict[str, Any]:
    """Write ``train.py``, ``split.csv`` and, if needed, ``start.safetensors``.

    ``start.safetensors`` is written unless the run started from published weights and a random
    head.

    Raises:
        ExportError: if the run has a setting that the script does not support or has not finished,
            or if its images have changed.
        RunError: if the run directory lacks the tensors that the run started from.
    """
    if problems := find_unrepeatable(source):
        raise ExportError(f"A script cannot repeat this run: {'; '.join(problems)}.")
    dataset, rows = _load_used_images(source)
    write_bytes(folder / SPLIT, _format_split(dataset, rows).encode("utf-8", "surrogateescape"))
    write_bytes(folder / SCRIPT, build_script(source, dataset, rows).encode())
    if _needs_start(source):
        write_bytes(folder / START_FILE, save(_collect_start_tensors(source, dataset)))
    return {}


def _needs_start(source: Source) -> bool:
    """Return whether the run started from tensors that a script cannot create."""
    return source.run.config.earlier_run is not None or _has_fitted_head(source)


def _has_fitted_head(source: Source) -> bool:
    head_kept = bool((source.run.history.started or {}).get("head_kept"))
    return has_fitted_initial_head(source.run.config, head_kept=head_kept)


def _collect_start_tensors(source: Source, dataset: Dataset) -> dict[str, torch.Tensor]:
    """Return the tensors that the run started from: an earlier run's, and a fitted head's."""
    config, run_dir = source.run.config, source.run.run_dir
    tensors: dict[str, torch.Tensor] = {}
    if config.earlier_run:
        tensors |= build_initial_network(
            config, dataset.classes, run_dir
        ).network.model.state_dict()
    if _has_fitted_head(source):
        tensors |= load_initial_head(source.network, run_dir)
    return {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}


def find_unrepeatable(source: Source) -> list[str]:
    """Return the reasons why a script cannot repeat the run, each with its setting's name."""
    run, config = source.run, source.run.config
    if source.network.members:
        return ["averaged: an ensemble trains nothing that could be repeated; export its runs"]
    problems = [
        f"the setting {name} has no counterpart there"
        for name, one in all_settings().items()
        if one.in_script == "missing" and getattr(config, name) != one.default
    ]
    if config.averaged is None and not count_epochs(config):
        problems.append(
            "strategy: its head was fitted without epochs, and the script repeats training "
            "by epochs"
        )
    if run.status != "finished":
        problems.append(f"the run is {run.status}, not finished (resume it first)")
    if (
        not config.earlier_run
        and config.initial_weights not in (PRETRAINED, RANDOM)
        and config.backbone.startswith("densenet")
    ):
        problems.append(
            "weights: a file for a DenseNet may carry names of an earlier torchvision, which "
            "only Thaw translates"
        )
    if (
        len(
            {
                each.batchnorm
                for each, stage in _plan_stages(source)
                if not each.frozen and stage.batchnorms
            }
        )
        > 1
    ):
        problems.append(
            "batchnorm: its BatchNorm layers are treated differently from stage to stage"
        )
    return problems


def build_script(source: Source, dataset: Dataset, rows: np.ndarray) -> str:
    """Return the text of ``train.py``."""
    facts = _collect_facts(source, dataset, rows)
    texts = {
        "constants": "\n".join(_format_constants(source, facts)),
        "loss": _format_loss_arguments(source.run.config, facts),
        "dtype": _DTYPES.get((source.run.history.started or {}).get("precision", ""), ""),
        "version": _format_version(source),
        "package": _format_package_import(source),
        "evaluated": "average" if "EMA" in facts else "model",
        "watched": _STOPPING_METRICS[source.run.config.early_stopping],
        "first_seed": "SEED" if source.run.config.head_seed is None else "HEAD_SEED",
        "score_words": "mean of the classes' " + ("recalls" if "STOP_BALANCED" in facts else "F1"),
        "mixes": ", ".join(
            f"{way}(alpha={alpha!r}, num_classes=len(classes))"
            for way, alpha in (
                ("MixUp", source.run.config.mixup),
                ("CutMix", source.run.config.cutmix),
            )
            if alpha
        ),
    }
    return f'"""{_format_docstring(source)}"""\n\n' + fill_template(
        _TEMPLATE.read_text(encoding="utf-8"), facts, texts
    )


def _load_used_images(source: Source) -> tuple[Dataset, np.ndarray]:
    """Load the run's data set, and the rows of it that the run used.

    Raises:
        ExportError: if the data set has changed since the run was trained.
    """
    config, started = source.run.config, source.run.history.started or {}
    dataset = load_dataset(config.data, **config.split_settings, edits=config.edits)
    if dataset.fingerprint != started.get("fingerprint"):
        raise ExportError(
            f"The images in {config.data}, their labels or their split have changed since "
            f"{source.run.run_id} was trained, so a "
            "script could not repeat it. Train it again, then export it."
        )
    table = dataset.table
    split, labels = table["split"].to_numpy(), table["label"].to_numpy()
    training = take_subset(
        np.flatnonzero(split == TRAIN),
        labels,
        sample_keys(table["id"]),
        config.train_fraction,
        config.seed,
    )
    rows = np.sort(np.concatenate([training, np.flatnonzero(split != TRAIN)]))
    counts = {
        str(name): int(count) for name, count in table["split"].iloc[rows].value_counts().items()
    }
    if counts != started.get("counts"):
        raise ExportError(
            f"{source.run.run_id} left out images that could not be read while it trained; a "
            "script would stop at them. Exclude them (Dataset page), train again, then export."
        )
    return dataset, rows


def _format_split(dataset: Dataset, rows: np.ndarray) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["path", "label", "split"])
    writer.writerows(dataset.table[["id", "class", "split"]].iloc[rows].itertuples(index=False))
    return buffer.getvalue()


def _plan_stages(source: Source) -> Sequence[tuple[StagePlan, Stage]]:
    strategy: Strategy = plan_strategy(source.run.config, source.network.stages)
    return list(zip(strategy, source.network.stages, strict=True))


def _collect_facts(source: Source, dataset: Dataset, rows: np.ndarray) -> set[str]:
    """Return the names of the conditions in the template that hold for this run."""
    config, model, plans = source.run.config, source.network.model, _plan_stages(source)
    used = dataset.table.iloc[rows]
    training = int((used["split"] == TRAIN).sum())
    trained = [(each, stage) for each, stage in plans if not each.frozen]
    parts = {each.part for each, _ in trained}
    modes = {each.batchnorm for each, stage in trained if stage.batchnorms}
    started = source.run.history.started or {}
    recipe, info = build_recipe(config.backbone, config.image_size), source.network.info
    mixes = bool(config.mixup or config.cutmix)
    truths = {
        "TIMM": recipe["library"] == "timm",
        "TORCHVISION": recipe["library"] == "torchvision",
        "OPTIONS": bool(recipe["options"]),
        "PACKAGED_WEIGHTS": info.source == "packaged" and config.initial_weights == PRETRAINED,
        "HUB_WEIGHTS": info.source == "timm" and config.initial_weights == PRETRAINED,
        "RANDOM": config.initial_weights == RANDOM,
        "START": _needs_start(source),
        "FILE": not config.earlier_run and config.initial_weights not in (PRETRAINED, RANDOM),
        "SAFETENSORS": is_file(config.initial_weights)
        and config.initial_weights.endswith(".safetensors"),
        "LINEAR_HEAD": isinstance(source.network.head_layers[0], nn.Linear),
        "JPEG": bool((used["format"] == "JPEG").any()),
        "ALPHA": not set(used["format"]) <= _NO_ALPHA,
        "WIDE": bool((used["mode"].str.startswith("I;16") | used["mode"].isin(_WIDE_MODES)).any()),
        "PADDED": config.fit == PAD,
        "AUGMENTED": config.augmentation != "none",
        "CROPS": config.augmentation == "random_resized_crop",
        "LAST_IS_ONE": training > config.batch_size > 1 and training % config.batch_size == 1,
        "BALANCED_SAMPLING": config.sampling == "balanced",
        "PARTS": parts != {"all"},
        "NORMS": bool(parts & {"norms", "lora_norms"}),
        "BIASES": "biases" in parts,
        "LORA": bool(parts & {"lora", "lora_norms"}),
        "LORA_ONLY": "lora" in parts,
        "FIXED_STATISTICS": modes == {"frozen"},
        "FIXED_AFFINE": parts == {"all"} and bool(modes & {"frozen", "statistics"}),
        "DECAY": config.weight_decay > 0,
        "SGD": config.optimizer == "sgd",
        "ADAM": config.optimizer == "adam",
        "ADAMW": config.optimizer == "adamw",
        "SCHEDULE": config.schedule != "constant",
        "ONE_CYCLE": config.schedule == "one_cycle",
        "COSINE": config.schedule == "cosine",
        "EMA": config.ema > 0,
        "BALANCED": config.class_weights == "balanced",
        "L2_SP": config.l2_sp > 0,
        "CLIP": config.clip_norm > 0,
        "MIX": mixes,
        "DROPOUT": mixes or any(_is_random(module) for module in model.modules()),
        # With soft labels and class weights, torch's mean reduction divides by something else.
        "MICRO": config.micro_batch is not None or (mixes and config.class_weights == "balanced"),
        "AUTOCAST": started.get("precision") in _DTYPES,
        "FP16": started.get("precision") == "fp16",
        "STOPS": config.early_stopping != "off",
        "STOP_SCORE": config.early_stopping in ("val_balanced_accuracy", "val_macro_f1"),
        "STOP_BALANCED": config.early_stopping == "val_balanced_accuracy",
        "TESTED": bool((used["split"] == TEST).any()),
    }
    facts = {name for name, true in truths.items() if true}
    together = {
        "READS_SAFETENSORS": ("SAFETENSORS", "START"),
        "PICKED": ("NORMS", "BIASES", "FIXED_AFFINE", "LORA"),
        "COUNTS_STEPS": ("SCHEDULE", "EMA", "DROPOUT"),
        "NUMBERS_STEPS": ("EMA", "DROPOUT"),
    }
    return facts | {name for name, needed in together.items() if facts.intersection(needed)}


def _is_random(module: nn.Module) -> bool:
    """Return whether a module is dropout or stochastic depth, of any library."""
    kind = type(module).__name__
    strength = getattr(module, "p", getattr(module, "drop_prob", 0.0))
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout > 0)
    return (
        ("Drop" in kind or kind == "StochasticDepth")
        and isinstance(strength, float)
        and strength > 0
    )


def _format_constants(source: Source, facts: set[str]) -> list[str]:
    config, network = source.run.config, source.network
    recipe = build_recipe(config.backbone, config.image_size)
    name = config.backbone.removeprefix(TIMM) if "HUB_WEIGHTS" in facts else recipe["name"]
    constants: dict[str, Any] = {"BACKBONE": name}
    if "TORCHVISION" in facts:
        constants["WEIGHTS"] = "DEFAULT" if config.initial_weights == PRETRAINED else None
    if facts & {"OPTIONS", "TIMM"}:
        constants["OPTIONS"] = recipe["options"]
    constants |= {
        "HEADS": list(network.heads),
        "IMAGE_SIZE": config.image_size,
        "STORED_SIDE": network.info.compute_resize_size(config.image_size),
    }
    constants["INTERPOLATION"] = network.info.interpolation.upper()
    if "PADDED" in facts:
        constants["PADDING"] = PADDING
    constants |= {"MEAN": list(network.info.mean), "STD": list(network.info.std)}
    constants |= {
        "EPOCHS": config.epochs,
        "BATCH_SIZE": config.batch_size,
        "LEARNING_RATE": config.learning_rate,
    }
    optional = {
        "LORA": ("LORA_RANK", config.lora_rank),
        "DECAY": ("WEIGHT_DECAY", config.weight_decay),
        "MICRO": ("MICRO_BATCH", config.micro_batch or 2 * config.batch_size),
        "L2_SP": ("L2_SP", config.l2_sp),
        "CLIP": ("CLIP_NORM", config.clip_norm),
        "EMA": ("EMA", config.ema),
        "STOPS": ("PATIENCE", config.patience),
    }
    constants |= dict(value for fact, value in optional.items() if fact in facts)
    if "LORA" in facts:
        constants["LORA_SCALE"] = config.lora_alpha / config.lora_rank
    if config.schedule in ("cosine", "step"):
        constants["WARMUP_EPOCHS"] = config.warmup_epochs
    constants["SEED"] = config.seed
    if config.head_seed is not None:
        constants["HEAD_SEED"] = config.head_seed
    lines = [
        f"{name} = {value!r}".replace("'", '"')
        for name, value in constants.items()
        if name != "WEIGHTS_FILE"
    ]
    if "FILE" in facts:
        quoted = repr(config.initial_weights)
        if '"' not in quoted:
            quoted = quoted.replace("'", '"')
        lines.append(f"WEIGHTS_FILE = {quoted}")
        lines.append('HEAD_TENSORS = tuple(f"{path}." for path in HEADS)')
    if facts & {"FIXED_STATISTICS", "FIXED_AFFINE"}:
        lines.append("BATCHNORM = nn.modules.batchnorm._BatchNorm")
    if "NORMS" in facts:
        lines.append("NORM_LAYERS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)")
    return [*lines, *_format_stages(source, facts)]


def _format_stages(source: Source, facts: set[str]) -> list[str]:
    """Return the lines of the table of stages.

    Each row holds the name, the modules, the learning rate relative to the head's, and the first
    epoch that trains.
    """
    parts = "PARTS" in facts
    comment = ", which of its weights train" if parts else ""
    lines = [
        "STAGES = [  # name, modules, share of the learning rate (0: frozen), first epoch "
        f"that trains{comment}"
    ]
    for each, stage in _plan_stages(source):
        loose = [
            name
            for name in (*stage.parameters, *stage.buffers)
            if not _is_inside(name, stage.modules)
        ]
        rate = 0.0 if each.frozen else each.rate
        row = (
            stage.name,
            [*loose, *stage.modules],
            rate,
            each.thaw_epoch,
            *([each.part] if parts else []),
        )
        lines.append(f"    ({', '.join(json.dumps(value) for value in row)}),")
    return [*lines, "]"]


def _is_inside(name: str, paths: Sequence[str]) -> bool:
    return any(name.startswith(f"{path}.") for path in paths)


def _format_loss_arguments(config: RunConfig, facts: set[str]) -> str:
    arguments = {
        "weight": "weights" if "BALANCED" in facts else "",
        "label_smoothing": repr(config.label_smoothing) if config.label_smoothing else "",
        "reduction": '"sum"' if "MICRO" in facts else "",
    }
    return ", ".join(f"{name}={value}" for name, value in arguments.items() if value)


def _format_version(source: Source) -> str:
    views = ((source.run.history.started or {}).get("cache") or {}).get("views", 0)
    return (
        f"(epoch - 1) % {views}  # as many versions of each image as the run had"
        if views
        else "epoch - 1"
    )


def _format_docstring(source: Source) -> str:
    summary, evaluation = source.summary, source.evaluation
    data, run = _sanitize(source.data_name), _sanitize(source.run.run_id)
    return (
        f"Fine-tunes {summary['backbone']} on {data}: repeats the run {run} without Thaw.\n\n"
        f"    python {SCRIPT} DATA\n\n"
        f"DATA is the folder that the paths in {SPLIT}, beside this file, are relative to. "
        "The run reached\n"
        f"{accuracy_name(evaluation.split).lower()} {format_percent(evaluation.accuracy)} on "
        f"{pluralize(evaluation.images, 'image')}. Needs torch, torchvision, numpy, "
        f"pillow{_list_timm_requirements(source)}"
        f"{', safetensors' if _needs_start(source) else ''}.\n"
    )


def _sanitize(text: str) -> str:
    """Remove characters that could end a docstring, and break argparse's ``%(prog)`` formats."""
    return "".join(
        letter for letter in text if letter.isprintable() and letter not in '"\\'
    ).replace("%(", "% (")


def _list_timm_requirements(source: Source) -> str:
    if source.network.info.source == "torchvision":
        return ""
    return f", timm, {source.network.info.package}" if _is_packaged(source) else ", timm"


def _is_packaged(source: Source) -> bool:
    return (
        source.network.info.package is not None and source.run.config.initial_weights == PRETRAINED
    )


def _format_package_import(source: Source) -> str:
    if not _is_packaged(source):
        return ""
    package = packages()[source.run.config.backbone]
    return f"from {package.module} import {package.locator} as PretrainedFile"

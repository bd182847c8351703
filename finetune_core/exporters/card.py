"""Model cards (Mitchell et al. 2019) in Markdown, with Hugging Face's metadata at the top."""

import math
import re
from collections.abc import Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune_core.config import all_settings
from finetune_core.evaluation.reference_points import reference_points
from finetune_core.evaluation.single_run.evaluate import (
    HELD_OUT,
    evaluation_precision,
    is_held_out,
    precision_note,
    score_evaluation,
)
from finetune_core.evaluation.single_run.scores import NAMES, format_range, format_value
from finetune_core.exporters.catalogue import FORMATS
from finetune_core.exporters.measure import Measurement
from finetune_core.exporters.sidecar import describe_preprocessing
from finetune_core.exporters.source import Source
from finetune_core.files import write_bytes
from finetune_core.formatting import (
    SPLIT_TITLES,
    accuracy_name,
    format_duration,
    format_interval,
    format_learning_rate,
    format_number,
    format_percent,
    pluralize,
)
from finetune_core.models.catalogue import BackboneInfo
from finetune_core.models.licences import licence_name
from finetune_core.models.network import Network
from finetune_core.models.timm_networks import portable_name
from finetune_core.models.weights import PRETRAINED, RANDOM
from finetune_core.runs.log import (
    describe_average,
    describe_fit,
    describe_initial_head,
    describe_lineage,
    describe_precision,
    name_devices,
)
from finetune_core.training.strategies.catalogue import count_epochs, describe_run_kind

CARD = "README.md"
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+\-!|~&])")
_MAX_CLASSES = 200  # rows of the table
_SCORE_NAMES = (
    "balanced_accuracy",
    "precision_macro",
    "f1_macro",
    "matthews_corrcoef",
    "cohen_kappa",
    "roc_auc",
    "average_precision",
    "log_loss",
    "brier",
    "ece",
)


def write_card(
    source: Source, folder: Path, format: str = "card", measured: Measurement | None = None
) -> dict[str, Any]:
    """Write ``README.md``, the model card, with instructions for the files beside it."""
    write_bytes(folder / CARD, build_card(source, format, measured).encode("utf-8", "replace"))
    return {}


def build_card(source: Source, format: str = "card", measured: Measurement | None = None) -> str:
    """Return the text of a run's model card.

    Args:
        source: the run.
        format: the export format, whose usage is described.
        measured: measurement of the exported file beside the card. If given, the scores are those
            of the file instead of the run.
    """
    origin = (
        f"{_describe_measurement(source, measured)} {precision_note(source.run).replace('*', '')}"
    ).strip()
    if measured and measured.evaluation:
        source = replace(source, evaluation=measured.evaluation)
    parts = [
        _format_metadata(source),
        _format_heading(source),
        _format_usage(source, format),
        _format_data(source),
        _format_recipe(source),
        _format_results(source, origin),
    ]
    return (
        "\n\n".join(
            [*(part for part in parts if part), _format_limits(source), _format_licence(source)]
        )
        + "\n"
    )


def _format_metadata(source: Source) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    evaluation = source.evaluation
    data = source.data_name.encode("utf-8", "replace").decode()
    values = {"accuracy": evaluation.accuracy, "f1": evaluation.per_class["f1"].mean()}
    card = ModelCardData(
        model_name=_get_title(source),
        library_name="torchvision" if source.network.info.source == "torchvision" else "timm",
        base_model=_find_base_model(source),
        pipeline_tag="image-classification",
        tags=["image-classification", "fine-tuning", *source.backbones.split(", ")],
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=re.sub(r"[^A-Za-z0-9._-]+", "-", data) or "data",
                dataset_name=data,
                dataset_split=SPLIT_TITLES[evaluation.split].lower(),
                metric_type=name,
                metric_value=round(float(value), 4),
            )
            for name, value in values.items()
            if not math.isnan(value)
        ],
    )
    return f"---\n{card.to_yaml()}\n---"


def _find_base_model(source: Source) -> str | list[str] | None:
    """Return the Hub repository of the pretrained weights, or None if there is none.

    An ensemble may have several.
    """
    if source.first_weights != PRETRAINED:
        return None
    repositories = [
        network.info.repository.partition("@")[0]
        for network in source.networks
        if network.info.repository
    ]
    unique = list(dict.fromkeys(repositories))
    return unique if len(unique) > 1 else next(iter(unique), None)


def _get_title(source: Source) -> str:
    name = source.run.name or f"{source.backbones} on {source.data_name}"
    return name.encode("utf-8", "replace").decode()


def _format_heading(source: Source) -> str:
    evaluation = source.evaluation
    return (
        f"# {_escape_markdown(_get_title(source))}\n\n"
        f"Classifies images into {pluralize(len(source.classes), 'class', 'classes')}: "
        f"{accuracy_name(evaluation.split).lower()} {format_percent(evaluation.accuracy)} on "
        f"{pluralize(evaluation.images, 'image')} "
        f"(95 % interval {format_interval(evaluation.low, evaluation.high)}). "
        f"{_describe_origin(source)}, fine-tuned with Thaw."
    )


def _describe_origin(source: Source) -> str:
    name, lineage = source.backbones, (source.run.history.started or {}).get("lineage", ())
    earlier = f", fine-tuned in {pluralize(len(lineage), 'run')} before" if lineage else ""
    if source.first_weights == RANDOM:
        return f"The architecture of {name} with random weights, not pretrained{earlier}"
    if source.first_weights == PRETRAINED:
        # timm also publishes weights from other data sets.
        where = "" if source.network.info.source == "timm" else " on ImageNet"
        return f"{name}, pretrained{where}{earlier}"
    return f"{name}, started from a file of weights whose training Thaw does not know{earlier}"


def _format_usage(source: Source, format: str) -> str:
    usage = FORMATS[format].usage.format(size=source.image_size)
    if not usage:
        return ""
    if format == "safetensors" and any(network.features_from for network in source.networks):
        return (
            f"## Use\n\n{usage} The network ends after a stage, so its structure is in no "
            "library: only Thaw can read these weights."
        )
    return f"## Use\n\n    python predict.py IMAGE…\n\n{usage} Neither needs Thaw."


def _format_data(source: Source) -> str:
    started = source.run.history.started or {}
    counts = ", ".join(
        f"{format_number(count)} {SPLIT_TITLES[split].lower()}"
        for split, count in started.get("counts", {}).items()
    )
    skipped = source.summary["skipped_images"]
    changes = len(source.run.config.edits)
    sentences = [
        f"{_escape_markdown(source.data_name)}: {counts} images (fingerprint "
        f"`{started.get('fingerprint', '')}`).",
        f"{pluralize(skipped, 'image')} could not be read and "
        f"{'was' if skipped == 1 else 'were'} left out."
        if skipped
        else "",
        f"{pluralize(changes, 'change')} had been made to the data set (images left out, moved "
        "or relabelled)."
        if changes
        else "",
        "Where the images come from, who is in them and under which terms they may be used, "
        "Thaw does not know: say so here.",
    ]
    steps = describe_preprocessing(source.network.info, source.image_size)
    return (
        f"## Data\n\n{' '.join(filter(None, sentences))}\n\n"
        f"Preprocessing: {steps['decode']}; {steps['resize']} (resize_to "
        f"{steps['resize_to']}, {steps['interpolation']}); centre crop to "
        f"{source.image_size} pixels; divided by 255; mean {_format_numbers(steps['mean'])}, "
        f"standard deviation {_format_numbers(steps['std'])}."
    )


def _format_recipe(source: Source) -> str:
    config, summary, started = source.run.config, source.summary, source.run.history.started or {}
    default = type(config).model_fields
    changed = {name for name in default if getattr(config, name) != default[name].default}
    changed -= (
        set()
        if count_epochs(config)
        else {name for name, one in all_settings().items() if one.stepwise}
    )
    rows = {
        "Backbone": f"{source.backbones}{_describe_ending(source.network)}",
        **({"Lineage": lineage} if (lineage := describe_lineage(started)) else {}),
        "Strategy": describe_run_kind(config)
        if config.is_ensemble
        else f"{describe_run_kind(config)}: {_describe_stages(source)}",
        "Trained": f"{summary['trainable_parameters']:,} of "
        f"{summary['total_parameters']:,} weights",
        **_describe_training(source),
        "Image size": f"{config.image_size} pixels",
        "Arithmetic": f"trained in {describe_precision(started)} on {name_devices(started)}"
        if started
        else "unknown",
        "Time": format_duration(summary["seconds"])
        if summary["seconds"] is not None
        else "unknown",
    }
    hidden = {
        "data",
        "backbone",
        "from_run",
        "strategy",
        "optimizer",
        "learning_rate",
        "schedule",
        "initial_head",
        "epochs",
        "batch_size",
        "image_size",
        "edits",
        "auto",
        "averaged",
        "precision",
        "device",
    }
    rows |= {
        name: _format_setting(name, getattr(config, name))
        for name in default
        if name in changed - hidden
    }
    return "## Recipe\n\n| | |\n|---|---|\n" + "\n".join(
        f"| {_escape_markdown(key)} | {_escape_markdown(str(value))} |"
        for key, value in rows.items()
    )


def _describe_ending(network: Network) -> str:
    return (
        f", up to {network.features_from}, its features averaged over the image"
        if network.features_from
        else ""
    )


def _describe_training(source: Source) -> dict[str, str]:
    config, fitted = source.run.config, source.run.history.fitted
    if fitted:
        return {"Fit": describe_fit(fitted)}
    if averaged := source.run.history.averaged:
        return {"Averaged": describe_average(averaged)}
    initialized = source.run.history.head_initialized
    return {
        "Optimizer": f"{config.optimizer}, "
        f"learning rate {format_learning_rate(config.learning_rate)}, {config.schedule} schedule",
        **({"Initial head": describe_initial_head(initialized)} if initialized else {}),
        "Length": f"{source.summary['epochs']} epochs of batches of {config.batch_size}; "
        f"the best was epoch {source.epoch}",
    }


def _format_setting(name: str, value: Any) -> str:
    if isinstance(value, tuple):
        return _format_numbers(list(value))
    return str(value).replace("\\", "/").rpartition("/")[2] if name == "weights" else str(value)


def _describe_stages(source: Source) -> str:
    stages = (source.run.history.started or {}).get("stages", [])
    rates = " at {:g} times the rate" if count_epochs(source.run.config) else ""
    verb = "averaged " if source.run.config.averaged else "trained " if rates else "fitted "
    trained = [
        f"{stage['name']}{rates.format(stage['rate'])}" for stage in stages if stage["trains"]
    ]
    frozen = [stage["name"] for stage in stages if not stage["trains"]]
    return verb + ", ".join(trained) + ("; frozen " + ", ".join(frozen) if frozen else "")


def _describe_measurement(source: Source, measured: Measurement | None) -> str:
    """Return a sentence on the origin of the scores."""
    if measured:
        return _escape_markdown(measured.to_text())
    precision = evaluation_precision(source.run)
    return (
        "The numbers are those of the run's best "
        f"checkpoint{f', computed in {precision}' if precision else ''}."
    )


def _format_results(source: Source, origin: str) -> str:
    evaluation = source.evaluation
    rows = evaluation.per_class.head(_MAX_CLASSES)
    table = "\n".join(
        f"| {_escape_markdown(str(row['class']))} | {_format_share(row['precision'])} | "
        f"{_format_recall(row)} | {_format_share(row['f1'])} | {format_number(row['images'])} |"
        for row in rows.to_dict(orient="records")
    )
    omitted = len(evaluation.per_class) - len(rows)
    return (
        f"## Results\n\n{accuracy_name(evaluation.split)} {format_percent(evaluation.accuracy)} on "
        f"{pluralize(evaluation.images, 'image')} "
        f"(95 % interval {format_interval(evaluation.low, evaluation.high)}, Wilson). "
        f"{origin}{_describe_references(source)}\n\n"
        f"{_format_scores(source)}\n\n"
        "| Class | Precision | Recall (95 % interval) | F1 | Images "
        f"|\n|---|---|---|---|---|\n{table}"
        + (
            f"\n\n{format_number(omitted)} more classes are left out of this table."
            if omitted
            else ""
        )
    )


def _describe_references(source: Source) -> str:
    text = reference_points(source.run, split=source.evaluation.split).to_sentence()
    return f"\n\n{_escape_markdown(text)}" if text else ""


def _format_scores(source: Source) -> str:
    scores = score_evaluation(source.evaluation)
    rows = scores.table[scores.table["name"].isin(_SCORE_NAMES)].dropna()
    return "| | Value | 95 % interval (bootstrap over images) |\n|---|---|---|\n" + "\n".join(
        f"| {NAMES[row['name']]} | {format_value(row['name'], row['value'])} "
        f"| {format_range(row['name'], row['low'], row['high'])} |"
        for row in rows.to_dict(orient="records")
    )


def _format_limits(source: Source) -> str:
    evaluation = source.evaluation
    few = [
        str(row["class"])
        for row in evaluation.per_class.to_dict(orient="records")
        if row["images"] < 10
    ]
    points = [
        f"These images were {HELD_OUT}."
        if is_held_out(source.run, evaluation.split)
        else "There was no test split: the best epoch was chosen on these images, so the numbers "
        "are a little optimistic.",
        f"The run has not converged: {source.run.convergence.reason}."
        if source.run.convergence.converged is False
        else "",
        "The numbers hold for images like these. For another camera, place or time they have "
        "to be measured again.",
        "It predicts one of its classes for every image, even if it shows something else.",
        "Its probabilities were not calibrated; the expected calibration error (ECE) above "
        "says how far off they are.",
        "Fewer than ten such images of "
        f"{', '.join(map(_escape_markdown, few[:20]))}{' and others' if len(few) > 20 else ''}: "
        "their metrics are uncertain."
        if few
        else "",
        "It was not tested for fairness between groups of people, nor against images made to "
        "mislead it.",
    ]
    return "## Limits\n\n" + "\n".join(f"- {point}" for point in points if point)


def _format_licence(source: Source) -> str:
    warning = (
        "**For research only**: the licence of the pretrained weights rules commercial use out.\n\n"
    )
    research = (
        any(network.info.is_research_only for network in source.networks)
        and source.first_weights == PRETRAINED
    )
    terms = " ".join(
        dict.fromkeys(_describe_terms(source, network.info) for network in source.networks)
    )
    return (
        f"## Licence\n\n{warning if research else ''}{terms}\n\n"
        "The licence of this fine-tuned network is for whoever trained it to choose, within those "
        "terms and those of the images that it was trained on; Thaw does not know the latter."
    )


def _describe_terms(source: Source, info: BackboneInfo) -> str:
    """Return what is known about the licence of a network's code and weights."""
    if source.first_weights == RANDOM:
        code = "torchvision, BSD-3-Clause." if info.source == "torchvision" else "timm, Apache-2.0."
        return (
            "The network started from random weights, so no one else's weights are in it. The "
            f"code of {_escape_markdown(portable_name(info.name))}: {code}"
        )
    if source.first_weights != PRETRAINED:
        return (
            "It was started from a file of weights: their licence is not known to Thaw, and "
            "holds for this network, too."
        )
    if info.source == "packaged":
        return (
            f"The pretrained weights (the package {info.package}) are Apache-2.0, so is "
            "timm's code. They were trained on ImageNet, whose images are for non-commercial "
            "research; what follows for weights is not settled."
        )
    if info.source == "timm":
        stated = (
            f"are under {_escape_markdown(info.licence)}" if info.licence else "state no licence"
        )
        where = f" (<{info.page}>)" if info.page else ""
        return (
            "timm's code is Apache-2.0. The pretrained weights of "
            f"{_escape_markdown(portable_name(info.name))}{where} {stated}; its terms hold for "
            "this network, too."
        )
    if info.licence:
        return (
            "torchvision's code is BSD-3-Clause. These pretrained weights are under "
            f"{licence_name(info.licence)}: <{info.licence}>."
        )
    return (
        "torchvision's code is BSD-3-Clause. Its pretrained weights carry no licence of "
        "their own; torchvision says that terms of the data that they were trained on "
        "(ImageNet: non-commercial research; some sets of weights: others) may hold for them."
    )


def _format_recall(row: Mapping[Hashable, Any]) -> str:
    if math.isnan(row["recall"]):
        return "–"
    return (
        f"{format_percent(row['recall'])} "
        f"({format_interval(row['recall_low'], row['recall_high'])})"
    )


def _format_share(value: float) -> str:
    return "–" if math.isnan(value) else format_percent(value)


def _format_numbers(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _escape_markdown(text: str) -> str:
    """Escape text supplied by a person or a directory, so that Markdown shows it unchanged."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))

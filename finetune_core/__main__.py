"""The command line: the same capabilities without a browser. Results go to stdout, progress and problems to stderr."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from finetune_core import paths
from finetune_core.compare_command import (
    found_rates,
    numbers,
    print_comparison,
    said_of_training,
    train_all,
    with_weights,
    write_report,
)
from finetune_core.config import SPLIT_FIELDS, RunConfig, bounds, make_config, read_config
from finetune_core.data.dataset import Dataset, index_dataset
from finetune_core.data.edits import edits_in_words, effective, load_edits
from finetune_core.data.entry import load_split
from finetune_core.data.findings import Finding, unanswered
from finetune_core.data.public import PUBLIC_SETS, fetch_public, is_fetched
from finetune_core.data.sources import resolve_data
from finetune_core.errors import ConfigError, DataError, FinetuneError, TrainingError
from finetune_core.evaluate_command import judge, judgement_json, print_judgement
from finetune_core.evaluation.comparison import compare_runs
from finetune_core.evaluation.exact import can_be_evaluated, evaluate_in_fp32
from finetune_core.export.formats import FORMATS, exporting
from finetune_core.export.mlflow import report_to_mlflow
from finetune_core.inspection.deep import DeepReport, inspect_deeply
from finetune_core.models.catalogue import PACKAGED, backbone_info, backbone_names, default_backbone
from finetune_core.predict_command import named_by, prediction_json, print_named, write_table
from finetune_core.runs.design import design
from finetune_core.runs.record import Reservation, create_run, execute, reopen_run
from finetune_core.runs.store import RunStore, is_run_folder, summary
from finetune_core.terminal import (
    err,
    interrupts_stop,
    opened,
    out,
    print_inspection,
    print_json,
    progress_bar,
    result_in_words,
    show_phases,
    show_training,
    shown,
)
from finetune_core.training.hyperrule import rule_of
from finetune_core.words import size

app = typer.Typer(
    help="Fine-tune pretrained image classifiers, and find out which layers were worth training.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout, and nothing else.")]
DATA_HELP = (
    "A folder with one subfolder of images for each class, an archive of such a folder (.zip, .tar, .tar.gz, …), a manifest (.csv or "
    ".parquet with columns path and label), the word 'digits', or the name of a fetched public set."
)
Data = Annotated[str, typer.Argument(help=DATA_HELP)]
AsIs = Annotated[
    bool,
    typer.Option(
        "--as-is",
        help="Leave out what was set for this data set in the app: the changes to it, and how it is split where no option says so.",
    ),
]
RunFolder = Annotated[Path, typer.Argument(help="The folder of a run.")]

# What the command line calls differently from the config.
_OPTIONS = {"learning_rate": "lr", "augmentation": "augment"}


def _setting(field: str, metavar: str) -> Any:
    """A string option for a config field: the config itself checks it, all of them at once."""
    return typer.Option(f"--{_option(field)}", metavar=metavar, help=bounds(field)["help"])


def _option(field: str) -> str:
    return _OPTIONS.get(field, field).replace("_", "-")


@app.command()
def backbones(as_json: AsJson = False) -> None:
    """List the pretrained networks, where their weights are, and whether they are ready."""
    infos = [backbone_info(name) for name in backbone_names()]
    rows = [
        {
            "name": info.name,
            "parameters": info.parameters,
            "source": info.source,
            "weights": str(info.file) if info.ready else info.url,
            "ready": info.ready,
            "imagenet_top1": info.top1,
        }
        for info in infos
    ]
    if as_json:
        print_json({"backbones": rows})
        return
    table = Table("Name", "Parameters", "ImageNet top-1", "Ready", Column("Weights", overflow="fold"), box=None)
    for row in rows:
        top1 = f"{row['imagenet_top1']:.1f} %" if row["imagenet_top1"] else "–"
        ready = "yes" if row["ready"] else "downloads"
        table.add_row(row["name"], f"{row['parameters'] / 1e6:.1f} M", top1, ready, escape(row["weights"] or "package missing"))
    out.print(table)


@app.command()
def inspect(
    data: Data,
    deep: Annotated[
        bool, typer.Option(help="Also compute features: wrong labels, outliers, splits that differ, where transfer ends.")
    ] = False,
    backbone: Annotated[str, typer.Option(metavar="NAME", help="Whose features, with --deep.")] = PACKAGED,
    val_fraction: Annotated[str | None, _setting("val_fraction", "X")] = None,
    test_fraction: Annotated[str | None, _setting("test_fraction", "X")] = None,
    split_seed: Annotated[str | None, _setting("split_seed", "N")] = None,
    groups: Annotated[str | None, _setting("groups", "PATTERN")] = None,
    near_duplicates: Annotated[str | None, _setting("near_duplicates", "NAME")] = None,
    as_is: AsIs = False,
    as_json: AsJson = False,
) -> None:
    """Look at a data set: classes, splits, sizes, and everything that looks wrong."""
    settings = {name: value for name, value in locals().items() if name in SPLIT_FIELDS and value is not None}
    with _errors():
        resolved = _resolved(data)
        config = make_config(_kept_split(resolved, as_is) | settings | {"data": resolved})
        edits = () if as_is else load_edits(resolved)
        with progress_bar() as bar:
            dataset = shown(bar, "Looking at images", index_dataset(resolved, **config.split_settings, edits=edits))
            report = show_phases(bar, inspect_deeply(dataset, backbone)) if deep else None
    findings = unanswered([*dataset.findings, *(report.findings if report else ())], edits)
    if as_json:
        print_json(_inspection_json(dataset, findings, report))
    else:
        print_inspection(dataset, findings, report)


@app.command()
def fetch(
    name: Annotated[str | None, typer.Argument(help="The set to download; without one, all are listed.")] = None,
    as_json: AsJson = False,
) -> None:
    """Download a well-known public data set, or list them with sizes and licences."""
    if name is None:
        rows = [{**asdict(one), "fetched": is_fetched(one.name)} for one in PUBLIC_SETS.values()]
        if as_json:
            print_json({"public_sets": rows})
            return
        table = Table("Name", "Images", "Classes", "Download", "On disk", "Here", Column("Licence", overflow="fold"), box=None)
        for one in PUBLIC_SETS.values():
            here = "yes" if is_fetched(one.name) else "no"
            numbers = (f"{one.images:,}", f"{one.classes:,}", size(one.download_bytes), size(one.disk_bytes))
            table.add_row(one.name, *numbers, here, escape(one.licence))
        out.print(table)
        return
    with _errors():
        if name not in PUBLIC_SETS:
            raise DataError(f"There is no public set {name!r}; `python -m finetune_core fetch` lists them.")
        with progress_bar() as bar:
            folder = shown(bar, PUBLIC_SETS[name].title, fetch_public(name))
    if as_json:
        print_json({"name": name, "data": str(folder)})
    else:
        out.print(
            f"{escape(PUBLIC_SETS[name].title)} is in {escape(str(folder))}. Licence: {escape(PUBLIC_SETS[name].licence)}"
        )


@app.command()
def train(
    data: Annotated[str | None, typer.Argument(help=f"{DATA_HELP} Not needed with --config.")] = None,
    config: Annotated[Path | None, typer.Option(help="The config.json of an earlier run; other options change it.")] = None,
    backbone: Annotated[str | None, _setting("backbone", "NAME")] = None,
    weights: Annotated[str | None, _setting("weights", "FILE")] = None,
    strategy: Annotated[str | None, _setting("strategy", "NAME")] = None,
    cut: Annotated[str | None, _setting("cut", "STAGE")] = None,
    thaw_every: Annotated[str | None, _setting("thaw_every", "N")] = None,
    layer_decay: Annotated[str | None, _setting("layer_decay", "X")] = None,
    batchnorm: Annotated[str | None, _setting("batchnorm", "NAME")] = None,
    l2_sp: Annotated[str | None, _setting("l2_sp", "X")] = None,
    epochs: Annotated[str | None, _setting("epochs", "N")] = None,
    batch_size: Annotated[str | None, _setting("batch_size", "N")] = None,
    learning_rate: Annotated[str | None, _setting("learning_rate", "X")] = None,
    optimizer: Annotated[str | None, _setting("optimizer", "NAME")] = None,
    weight_decay: Annotated[str | None, _setting("weight_decay", "X")] = None,
    schedule: Annotated[str | None, _setting("schedule", "NAME")] = None,
    warmup_epochs: Annotated[str | None, _setting("warmup_epochs", "X")] = None,
    stage_rates: Annotated[str | None, _setting("stage_rates", "STAGE=X,…")] = None,
    label_smoothing: Annotated[str | None, _setting("label_smoothing", "X")] = None,
    class_weights: Annotated[str | None, _setting("class_weights", "NAME")] = None,
    sampling: Annotated[str | None, _setting("sampling", "NAME")] = None,
    train_fraction: Annotated[str | None, _setting("train_fraction", "X")] = None,
    mixup: Annotated[str | None, _setting("mixup", "X")] = None,
    cutmix: Annotated[str | None, _setting("cutmix", "X")] = None,
    clip_norm: Annotated[str | None, _setting("clip_norm", "X")] = None,
    micro_batch: Annotated[str | None, _setting("micro_batch", "N")] = None,
    ema: Annotated[str | None, _setting("ema", "X")] = None,
    early_stopping: Annotated[str | None, _setting("early_stopping", "NAME")] = None,
    patience: Annotated[str | None, _setting("patience", "N")] = None,
    augmentation: Annotated[str | None, _setting("augmentation", "NAME")] = None,
    views: Annotated[str | None, _setting("views", "N")] = None,
    cache: Annotated[str | None, _setting("cache", "NAME")] = None,
    image_size: Annotated[str | None, _setting("image_size", "N")] = None,
    val_fraction: Annotated[str | None, _setting("val_fraction", "X")] = None,
    test_fraction: Annotated[str | None, _setting("test_fraction", "X")] = None,
    split_seed: Annotated[str | None, _setting("split_seed", "N")] = None,
    groups: Annotated[str | None, _setting("groups", "PATTERN")] = None,
    near_duplicates: Annotated[str | None, _setting("near_duplicates", "NAME")] = None,
    by_size: Annotated[
        bool,
        typer.Option(
            "--by-size",
            help="Length, image size, optimizer and rate by the size of the data (BiT's HyperRule); other options win.",
        ),
    ] = False,
    as_is: AsIs = False,
    skip_limit: Annotated[str | None, _setting("skip_limit", "X")] = None,
    precision: Annotated[str | None, _setting("precision", "NAME")] = None,
    device: Annotated[str | None, _setting("device", "NAME")] = None,
    seed: Annotated[str | None, _setting("seed", "N")] = None,
    runs_dir: Annotated[Path | None, typer.Option(help="Where the run's folder goes.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a backbone. Ctrl-C stops in good order and keeps the best epoch."""
    given = {
        name: value for name, value in locals().items() if name not in ("config", "runs_dir", "as_json", "as_is", "by_size")
    }
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    with _errors():
        if stage_rates is not None:
            settings["stage_rates"] = _rates(stage_rates)
        if config is None:
            settings.setdefault("backbone", default_backbone())
        if data is not None:
            settings["data"] = _resolved(data)
            settings["edits"] = effective(load_edits(settings["data"]))
        if as_is:
            settings["edits"] = ()
        if data is not None and settings["edits"]:
            told = edits_in_words(settings["edits"])
            err.print(f"With the changes made to this data set (--as-is leaves them out): {told}")
        base = _settings_of(config) if config else _kept_split(settings.get("data"), as_is)
        if by_size:
            base |= _by_size(make_config(base | settings))
        wanted = make_config(base | settings)
        with_weights([wanted])
        reservation = create_run(wanted, (runs_dir or paths.runs_dir()).resolve())
    _train_to_the_end(reservation, as_json)


def _kept_split(data: str | None, as_is: bool) -> dict[str, Any]:
    """How the data set is split in the app, where a person has said so there."""
    if data is None or as_is:
        return {}
    kept = {name: value for name, value in load_split(data).items() if value != RunConfig.model_fields[name].default}
    if kept:
        told = ", ".join(f"--{_option(name)} {value}" for name, value in kept.items())
        err.print(escape(f"Split as it was set in the app (--as-is leaves that out, an option goes before it): {told}"))
    return kept


def _by_size(config: RunConfig) -> dict[str, Any]:
    with progress_bar() as bar:
        looking = index_dataset(config.data, **config.split_settings, edits=config.edits)
        rule = rule_of(shown(bar, "Looking at images", looking), config.train_fraction)
    err.print(rule.reason)
    return rule.settings


def _train_to_the_end(reservation: Reservation, as_json: bool) -> None:
    with _errors():
        try:
            with interrupts_stop(reservation.run_dir), progress_bar() as bar:
                show_training(bar, execute(reservation))
        finally:
            if warning := report_to_mlflow(reservation.run_dir):
                err.print(escape(warning))
        run = RunStore(reservation.run_dir.parent).read(reservation.run_dir)
    result = summary(run)
    if as_json:
        print_json(result)
    else:
        out.print(result_in_words(result))
    if run.status != "finished":
        raise typer.Exit(1)


@app.command()
def resume(run_dir: RunFolder, as_json: AsJson = False) -> None:
    """Go on with a run that was stopped, failed, or cut off, from its last checkpoint."""
    with _errors():
        reservation = reopen_run(opened(run_dir).run_dir)
    _train_to_the_end(reservation, as_json)


@app.command()
def evaluate(
    run_dir: RunFolder,
    split: Annotated[str | None, typer.Option(help="test or val; the test images where there are some.")] = None,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Also name the images blurred, noisy, compressed, brighter and turned.")
    ] = False,
    fp32: Annotated[
        bool,
        typer.Option(
            "--fp32", help="Of a run that was stopped in bf16: first have its best epoch evaluated in fp32, and keep that."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Judge a run on images it did not train on."""
    with _errors():
        run = opened(run_dir)
        if fp32 and can_be_evaluated(run):
            with progress_bar() as bar:
                show_phases(bar, evaluate_in_fp32(run))
        judgement = judge(run, split, corrupt=robustness)
    if as_json:
        print_json(judgement_json(judgement))
    else:
        print_judgement(judgement)


@app.command()
def compare(
    targets: Annotated[list[str], typer.Argument(help=f"Folders of runs, to judge them; or data to train on. {DATA_HELP}")],
    strategies: Annotated[
        str, typer.Option(metavar="NAME,…", help="Strategies to train; from:STAGE trains everything from that stage on.")
    ] = "feature_extraction,last_block,full",
    seeds: Annotated[str, typer.Option(metavar="N,…", help="Each strategy is trained once with each.")] = "0,1,2",
    backbones: Annotated[str, typer.Option(metavar="NAME,…", help="Networks to start from.")] = "",
    fractions: Annotated[str, typer.Option(metavar="X,…", help="Shares of the training images to train on.")] = "",
    find_rates: Annotated[
        bool,
        typer.Option("--find-rates", help="Search a learning rate for each strategy first: one rate favours one strategy."),
    ] = False,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Take finished runs with the same settings instead of training anew.")
    ] = False,
    report: Annotated[Path | None, typer.Option(help="Write the comparison to this HTML file.")] = None,
    config: Annotated[Path | None, typer.Option(help="The config.json of a run, for all other settings.")] = None,
    weights: Annotated[str | None, _setting("weights", "FILE")] = None,
    epochs: Annotated[str | None, _setting("epochs", "N")] = None,
    batch_size: Annotated[str | None, _setting("batch_size", "N")] = None,
    learning_rate: Annotated[str | None, _setting("learning_rate", "X")] = None,
    optimizer: Annotated[str | None, _setting("optimizer", "NAME")] = None,
    weight_decay: Annotated[str | None, _setting("weight_decay", "X")] = None,
    schedule: Annotated[str | None, _setting("schedule", "NAME")] = None,
    augmentation: Annotated[str | None, _setting("augmentation", "NAME")] = None,
    cache: Annotated[str | None, _setting("cache", "NAME")] = None,
    image_size: Annotated[str | None, _setting("image_size", "N")] = None,
    val_fraction: Annotated[str | None, _setting("val_fraction", "X")] = None,
    test_fraction: Annotated[str | None, _setting("test_fraction", "X")] = None,
    split_seed: Annotated[str | None, _setting("split_seed", "N")] = None,
    groups: Annotated[str | None, _setting("groups", "PATTERN")] = None,
    near_duplicates: Annotated[str | None, _setting("near_duplicates", "NAME")] = None,
    as_is: AsIs = False,
    precision: Annotated[str | None, _setting("precision", "NAME")] = None,
    device: Annotated[str | None, _setting("device", "NAME")] = None,
    runs_dir: Annotated[Path | None, typer.Option(help="Where the runs' folders go.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train strategies against each other on the same images, or take runs that are there, and say which one to use."""
    settings = {name: value for name, value in locals().items() if name in RunConfig.model_fields and value is not None}
    trained = None
    with _errors():
        if is_run_folder(Path(targets[0])):
            runs = [opened(Path(target)) for target in targets]
        else:
            if len(targets) > 1:
                raise ConfigError({"data": f"one data set at a time; {targets[0]} is no folder of a run"})
            settings["data"] = _resolved(targets[0])
            settings["edits"] = () if as_is else effective(load_edits(settings["data"]))
            usual = {"backbone": default_backbone()} | _kept_split(settings["data"], as_is)
            base = make_config((_settings_of(config) if config else usual) | settings)
            configs = design(
                base,
                [name.strip() for name in strategies.split(",") if name.strip()],
                numbers("seeds", seeds, int),
                [name.strip() for name in backbones.split(",") if name.strip()],
                numbers("fractions", fractions, float),
            )
            with_weights(configs)
            trained = train_all(
                found_rates(configs) if find_rates else configs, (runs_dir or paths.runs_dir()).resolve(), reuse=reuse
            )
            said_of_training(trained, len(configs))
            runs = trained.runs
        if trained and not runs:
            raise typer.Exit(1)
        comparison = compare_runs(runs)
        if report:
            write_report(comparison, report)
    broken = {"failed": trained.failed, "stopped": trained.stopped} if trained else {}
    if as_json:
        print_json(comparison.to_json() | broken)
    else:
        print_comparison(comparison)
    if trained and (trained.failed or trained.stopped):
        raise typer.Exit(1)


@app.command()
def predict(
    run_dir: Annotated[Path, typer.Argument(help="The folder of a run, or one that was exported as safetensors.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, folders of them, or ZIP and TAR archives of them.")],
    csv: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what each image is taken for, with all probabilities, to this file."),
    ] = None,
    unlike: Annotated[
        bool,
        typer.Option("--unlike", help="Also tell what is unlike anything in training: looks through the training images once."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Name images with a trained run. Files that cannot be read are reported; the others are still named."""
    with _errors():
        classes, named = named_by(run_dir, images, look_at_training=unlike)
        if csv:
            write_table(csv, named, classes)
    told = prediction_json(named, classes)
    if as_json:
        print_json({"run_id": run_dir.resolve().name} | told)
    elif not csv:
        print_named(told)
    for skipped in told["skipped"]:
        err.print(escape(skipped["problem"]))
    if told["skipped"]:
        raise typer.Exit(2)


@app.command()
def export(
    run_dir: RunFolder,
    format: Annotated[str, typer.Option(metavar="NAME", help=f"What to make: {', '.join(FORMATS)}.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="A new folder for it; in the run's own folder when not given."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a run into something that works without Thaw: weights, ONNX, a training script, a model card, curves for TensorBoard."""
    with _errors(), progress_bar() as bar:
        made = show_phases(bar, exporting(opened(run_dir), format, output))
    if as_json:
        told = {"run_id": run_dir.resolve().name, "format": format, "folder": str(made.folder), "files": list(made.files)}
        print_json(told | {"checked": made.checked} | ({"measured": made.measured.to_json()} if made.measured else {}))
        return
    out.print(escape(f"{FORMATS[format].title} in {made.folder}: {', '.join(made.files)}"))
    if "largest_difference" in made.checked:
        batches = ", ".join(map(str, made.checked["batches"]))
        out.print(
            f"Checked with {made.checked['with']} at batch sizes {batches}: logits differ by at most "
            f"{made.checked['largest_difference']:.1g} of the largest ({made.checked['tolerance']:g} is allowed)."
        )
    if made.measured:
        out.print(escape(made.measured.in_words()))


def _settings_of(config: Path) -> dict[str, Any]:
    """Of a ``config.json`` that a person names, which may be a link.

    Raises:
        ConfigError: when it cannot be read.
    """
    try:
        return read_config(Path(os.path.realpath(config)))
    except ValueError:
        raise ConfigError({"config": f"{str(config)!r} cannot be the name of a file"}) from None


def _resolved(data: str) -> str:
    with progress_bar() as bar:
        return shown(bar, "Unpacking", resolve_data(data))


def _inspection_json(dataset: Dataset, findings: list[Finding], report: DeepReport | None) -> dict[str, Any]:
    widths, heights = dataset.table["width"], dataset.table["height"]
    told = {
        "data": str(dataset.root),
        "images": len(dataset.table),
        "classes": list(dataset.classes),
        "counts": {name: row.to_dict() for name, row in dataset.counts().iterrows()},
        "splits": dataset.table["split"].value_counts().to_dict(),
        "given_splits": dataset.given_splits,
        "width": [int(widths.min()), int(widths.max())],
        "height": [int(heights.min()), int(heights.max())],
        "fingerprint": dataset.fingerprint,
        "edits": [edit.model_dump() for edit in dataset.edits],
        "findings": [finding.to_json() for finding in findings],
    }
    return told | ({"deep": report.to_json()} if report else {})


def _rates(text: str) -> dict[str, str]:
    """``layer3=0.1,head=1`` -> stage -> rate, which the config then checks.

    Raises:
        ConfigError: when it is written otherwise.
    """
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name and rate for name, _, rate in pairs):
        raise ConfigError({"stage_rates": f"must be written STAGE=X,STAGE=X, not {text!r}"})
    return {name.strip(): rate for name, _, rate in pairs}


@contextmanager
def _errors() -> Iterator[None]:
    """A wrong request ends with status 2, a run that broke with 1; both in words. A bug keeps its traceback."""
    try:
        yield
    except ConfigError as error:
        for field, problem in error.problems.items():
            err.print(escape(f"{'DATA' if field == 'data' else '--' + _option(field)}: {problem}"))
        raise typer.Exit(2) from None
    except FinetuneError as error:
        err.print(escape(str(error)))
        raise typer.Exit(1 if isinstance(error, TrainingError) else 2) from None


if __name__ == "__main__":
    app(prog_name="python -m finetune_core")

"""The command line: everything that the app does, without a browser.

Results go to stdout, progress and problems to stderr. Each command imports its code when it runs:
torch alone takes seconds to import, and ``--help`` does not need it.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from finetune_core import paths
from finetune_core.commands.app import start_app
from finetune_core.commands.options import (
    ADVISED,
    COMPARED,
    DATA_HELP,
    PROFILED,
    AsIs,
    AsJson,
    Data,
    Devices,
    Executor,
    RayAddress,
    Recipe,
    RunFolder,
    RunsDir,
    add_setting_options,
    refuse_torchrun,
    report_errors,
)
from finetune_core.commands.terminal import (
    abort_on_first_interrupt,
    err,
    escape_line,
    out,
    print_json,
    print_table,
    progress_bar,
    show_work,
)
from finetune_core.config import setting_names
from finetune_core.config.metadata import SECTIONS, SPLIT
from finetune_core.errors import ConfigError, DataError, OutOfMemory, is_out_of_memory
from finetune_core.evaluation.comparison.measures import ACCURACY, MEASURES, get_measure
from finetune_core.exporters.catalogue import FORMATS
from finetune_core.files import check_output
from finetune_core.formatting import format_bytes
from finetune_core.standard_streams import with_safe_streams
from finetune_core.version import __version__

app = typer.Typer(
    help="Fine-tune pretrained image classifiers, and find out which layers were worth training.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        out.print(f"thaw {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _check_launch(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    refuse_torchrun(context.invoked_subcommand)


@app.command("app", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def dashboard(
    context: typer.Context,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="The port; by default 8501, or the next free one."),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Whether a browser is opened.")
    ] = True,
) -> None:
    """Start the dashboard.

    Other options are Streamlit's: --server.headless true, --server.address 0.0.0.0, …
    """
    with report_errors():
        start_app(port, browser, context.args)


@app.command()
def backbones(
    word: Annotated[
        str,
        typer.Argument(
            metavar="[WORD]",
            help="Only those with this in their name; or hf-hub:USER/MODEL, local-dir:FOLDER.",
        ),
    ] = "",
    ready: Annotated[
        bool, typer.Option("--ready", help="Only those whose weights are on this machine.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the pretrained networks: size, licence, and whether weights are on this machine."""
    from finetune_core.commands.backbones import list_backbones, print_backbones

    with report_errors():
        rows = list_backbones(word, ready=ready)
    if as_json:
        print_json({"backbones": rows})
    else:
        print_backbones(rows)


@app.command()
@add_setting_options(setting_names(SPLIT))
def inspect(
    data: Data,
    settings: dict[str, str],
    deep: Annotated[
        bool,
        typer.Option(
            help="Also analyze with embeddings: label errors, outliers, shift between splits, "
            "linear probe by layer."
        ),
    ] = False,
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The backbone whose embeddings --deep uses; by default the packaged "
            "EfficientNet-Lite0.",
        ),
    ] = None,
    fit: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How images become squares for --deep: crop keeps the centre, pad the whole "
            "image.",
        ),
    ] = "crop",
    as_is: AsIs = False,
    as_json: AsJson = False,
) -> None:
    """Inspect a data set: classes, splits, sizes, and possible problems."""
    from finetune_core.commands.inspect import inspect_data, print_inspection

    with report_errors():
        found = inspect_data(data, settings, deep=deep, backbone=backbone, fit=fit, as_is=as_is)
    if as_json:
        print_json(found.to_json())
    else:
        print_inspection(found)


@app.command()
@add_setting_options(
    ADVISED,
    {
        "backbone": "The networks to probe, with commas between them; by default all whose weights "
        "are on this machine."
    },
)
def advise(
    data: Data,
    settings: dict[str, str],
    images: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Training images to probe with at most, of each class its share (20 to 5,000).",
        ),
    ] = 2000,
    budget: Annotated[
        float, typer.Option(metavar="MIN", help="Minutes that fine-tuning one network may take.")
    ] = 30,
    as_is: AsIs = False,
    as_json: AsJson = False,
) -> None:
    """Probe networks at every stage, forecast their training, and propose two to fine-tune."""
    from finetune_core.commands.advise import build_advice, print_advice
    from finetune_core.commands.input import parse_names

    with report_errors():
        backbones = parse_names(settings.pop("backbone", ""))
        advice = build_advice(data, backbones, settings, images, budget, as_is=as_is)
    if as_json:
        print_json(advice.to_json())
    else:
        print_advice(advice)
    if not advice.candidates:
        raise typer.Exit(1)


@app.command()
def label(
    data: Data,
    add: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="Add the images of this folder or archive, unlabelled."
        ),
    ] = None,
    set_aside: Annotated[
        bool,
        typer.Option(help="With --add: label a random tenth first, as test images."),
    ] = False,
    answer: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep these answers first: CSV or JSON lines with path and label, or action skip, "
            "none or undo.",
        ),
    ] = None,
    order: Annotated[
        str,
        typer.Option(
            metavar="ORDER",
            help="uncertain: most uncertain and diverse first; similar: like one image; probable: "
            "probably one class.",
        ),
    ] = "uncertain",
    of: Annotated[
        str,
        typer.Option(
            "--of", metavar="IMAGE|CLASS", help="For similar an image, for probable a class."
        ),
    ] = "",
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Whose features; by default the packaged EfficientNet-Lite0."
        ),
    ] = None,
    most: Annotated[
        int | None, typer.Option("--most", min=1, metavar="N", help="List so many images at most.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the images of a data set that wait for a label, in the order to label them in."""
    from finetune_core.commands.label import label_queue, print_queue

    with report_errors():
        queue = label_queue(
            data,
            add=add,
            set_aside=set_aside,
            answer=answer,
            order=order,
            of=of,
            backbone=backbone,
            most=most,
        )
    if as_json:
        print_json(queue.to_json())
    else:
        print_queue(queue)


@app.command()
def fetch(
    name: Annotated[
        str | None, typer.Argument(help="The data set to download; without one, all are listed.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download a well-known public data set, or list them with sizes and licences."""
    from finetune_core.data.public import PUBLIC_SETS, fetch_public, is_fetched

    if name is None:
        rows = [{**asdict(one), "fetched": is_fetched(one.name)} for one in PUBLIC_SETS.values()]
        if as_json:
            print_json({"public_sets": rows})
            return
        print_table(
            ["Name", "Images", "Classes", "Download", "On disk", "Here", "Licence"],
            [
                [
                    one.name,
                    f"{one.images:,}",
                    f"{one.classes:,}",
                    format_bytes(one.download_bytes),
                    format_bytes(one.disk_bytes),
                    "yes" if is_fetched(one.name) else "no",
                    one.licence,
                ]
                for one in PUBLIC_SETS.values()
            ],
            prose=["Licence"],
        )
        return
    with report_errors():
        if name not in PUBLIC_SETS:
            raise DataError(
                f"There is no public set {name!r}; `python -m finetune_core fetch` lists them."
            )
        with progress_bar() as bar:
            folder = show_work(bar, fetch_public(name), PUBLIC_SETS[name].title)
    if as_json:
        print_json({"name": name, "data": str(folder)})
    else:
        out.print(
            f"{escape(PUBLIC_SETS[name].title)} is in {escape(str(folder))}. Licence: "
            f"{escape(PUBLIC_SETS[name].licence)}"
        )


@app.command()
@add_setting_options(setting_names(*SECTIONS))
def train(
    settings: dict[str, str],
    data: Annotated[
        str | None, typer.Argument(help=f"{DATA_HELP} Not needed with --config.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="The config.json of an earlier run; other options change it."),
    ] = None,
    recipe: Recipe = "auto",
    as_is: AsIs = False,
    devices: Devices = 1,
    executor: Executor = "here",
    ray_address: RayAddress = None,
    runs_dir: RunsDir = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a backbone. Ctrl-C stops cleanly and keeps the best epoch."""
    from finetune_core.commands.executor import open_executor
    from finetune_core.commands.input import read_settings_file
    from finetune_core.commands.train import (
        ReservedRun,
        build_config,
        reserve_run,
        train_on_devices,
    )
    from finetune_core.training.devices.ranks import Ranks
    from finetune_core.training.prepare import check_shared

    @contextmanager
    def reserve(ranks: Ranks) -> Iterator[ReservedRun]:
        earlier = read_settings_file(config) if config else None
        wanted = build_config(settings, data, earlier, as_is=as_is, recipe=recipe)
        check_shared(wanted, ranks.world_size)
        with open_executor(executor, ray_address, ranks) as trainer:
            yield reserve_run(wanted, runs_dir or paths.runs_dir(), trainer, devices), trainer

    train_on_devices(reserve, devices, as_json)


@app.command()
def resume(
    run_dir: RunFolder,
    epochs: Annotated[
        int | None,
        typer.Option(help="Train a finished run further, as a new run of so many epochs in all."),
    ] = None,
    devices: Devices = 1,
    executor: Executor = "here",
    ray_address: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Resume a run that was stopped, failed, or was interrupted, from its last checkpoint.

    With --epochs, train a finished run further.
    """
    from finetune_core.commands.executor import open_executor
    from finetune_core.commands.runs import open_run
    from finetune_core.commands.train import ReservedRun, train_on_devices
    from finetune_core.runs.extend import extend_run
    from finetune_core.runs.record import reopen_run
    from finetune_core.training.devices.ranks import Ranks
    from finetune_core.training.prepare import check_shared

    @contextmanager
    def reserve(ranks: Ranks) -> Iterator[ReservedRun]:
        run = open_run(run_dir)
        check_shared(run.config, ranks.world_size)
        with open_executor(executor, ray_address, ranks) as trainer:
            trainer.check(run.config, devices)
            folder = run.run_dir
            if epochs is not None:
                folder = folder.with_name(extend_run(run, epochs, remote=trainer.remote))
            yield reopen_run(folder, remote=trainer.remote, devices=devices), trainer

    train_on_devices(reserve, devices, as_json)


@app.command()
def average(
    run_dirs: Annotated[
        list[str], typer.Argument(metavar="RUN_DIR…", help="Folders or ids of runs.")
    ],
    how: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="soup: the mean of all weights; greedy_soup: of those that do not lower the "
            "validation accuracy (Model soups); wise: between one run and what it started "
            "from (WiSE-FT); ensemble: the mean of the probabilities, of any networks.",
        ),
    ],
    runs_dir: RunsDir = None,
    as_json: AsJson = False,
) -> None:
    """Average the weights or the probabilities of runs into a new one: nothing trains."""
    from finetune_core.commands.average import build_average_config
    from finetune_core.commands.train import reserve_run, train_and_report

    with report_errors():
        reservation = reserve_run(build_average_config(run_dirs, how), runs_dir or paths.runs_dir())
    train_and_report(reservation, as_json)


@app.command()
def evaluate(
    run_dir: RunFolder,
    split: Annotated[
        str | None, typer.Option(help="test or val; by default the test images, if there are any.")
    ] = None,
    robustness: Annotated[
        bool,
        typer.Option(
            "--robustness",
            help="Also evaluate on corrupted images: blur, noise, JPEG, brightness, rotation.",
        ),
    ] = False,
    fp32: Annotated[
        bool,
        typer.Option(
            "--fp32",
            help="If the run was stopped in bf16: first evaluate its best epoch in fp32, and keep "
            "those predictions.",
        ),
    ] = False,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Evaluate on all images of another data set with the same classes, beside the "
            f"run's own. {DATA_HELP}",
        ),
    ] = None,
    tta: Annotated[
        str | None,
        typer.Option(
            metavar="flips",
            help="Test-time augmentation: also evaluate the mean probabilities of each image and "
            "its mirror image, with a paired test.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a run on images it did not train on."""
    from finetune_core.commands.evaluate import (
        evaluate_on_shifted,
        evaluate_own_images,
        evaluation_json,
        measure_tta,
        print_evaluation,
    )
    from finetune_core.commands.runs import open_run
    from finetune_core.evaluation.single_run.fp32 import can_evaluate_in_fp32, evaluate_in_fp32

    with report_errors():
        run = open_run(run_dir)
        if fp32 and can_evaluate_in_fp32(run):
            with progress_bar() as bar:
                show_work(bar, evaluate_in_fp32(run))
        if tta is not None:
            measure_tta(run, tta)
        result = (
            evaluate_on_shifted(run, on, split, corrupt=robustness)
            if on
            else evaluate_own_images(run, split, corrupt=robustness)
        )
    if as_json:
        print_json(evaluation_json(result))
    else:
        print_evaluation(result)


@app.command()
@add_setting_options(setting_names(*SECTIONS), {name: help for name, (_, help) in COMPARED.items()})
def compare(
    targets: Annotated[
        list[str],
        typer.Argument(help=f"Folders or ids of runs to compare; or data to train on. {DATA_HELP}"),
    ],
    settings: dict[str, str],
    find_rates: Annotated[
        bool,
        typer.Option(
            "--find-rates",
            help="Run a learning-rate range test for each strategy first. The recipe auto has a "
            "rate for each already; a rate that you set for all favours one of them.",
        ),
    ] = False,
    baseline: Annotated[
        bool,
        typer.Option(
            "--baseline",
            help="Also fit a linear probe, the baseline that training has to beat: it takes "
            "seconds.",
        ),
    ] = False,
    reuse: Annotated[
        bool,
        typer.Option(
            "--reuse", help="Reuse finished runs with the same settings instead of training again."
        ),
    ] = False,
    measure: Annotated[
        str, typer.Option(metavar="NAME", help=f"The metric to compare by: {', '.join(MEASURES)}.")
    ] = ACCURACY.name,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Also compare on all images of another data set with the same classes; runs that "
            f"have not predicted it do so first. {DATA_HELP}",
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write the comparison to this HTML file.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="The config.json of a run, for all other settings.")
    ] = None,
    recipe: Recipe = "auto",
    as_is: AsIs = False,
    devices: Devices = 1,
    executor: Executor = "here",
    ray_address: RayAddress = None,
    runs_dir: Annotated[
        Path | None, typer.Option(help="The folder in which the runs' folders are created.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare strategies on the same images, and say which one to take.

    The strategies are trained, or finished runs are used.
    """
    from finetune_core.commands.compare import (
        advise_next,
        compare_on_shifted,
        design_comparison,
        print_comparison,
        print_next,
        print_shifted,
        search_rates,
        write_report,
    )
    from finetune_core.commands.executor import open_executor
    from finetune_core.commands.input import unpack_data
    from finetune_core.commands.runs import open_run
    from finetune_core.commands.train_all import report_missing, train_all
    from finetune_core.data.listing import list_data
    from finetune_core.evaluation.comparison.compare import compare_runs
    from finetune_core.evaluation.comparison.experiment import experiment_json
    from finetune_core.runs.store import is_run_dir, resolve_run_dir

    trained = None
    with report_errors():
        get_measure(measure)  # rejects an unknown metric before anything trains
        if report:
            check_output(report, "report")
        if on:
            list_data(unpack_data(on))
        if is_run_dir(resolve_run_dir(targets[0])):
            runs = [open_run(target) for target in targets]
        else:
            if len(targets) > 1:
                raise ConfigError(
                    {
                        "data": f"one data set at a time; {targets[0]} is neither the folder nor "
                        "the id of a run"
                    }
                )
            with open_executor(executor, ray_address) as trainer:
                configs = design_comparison(
                    settings,
                    targets[0],
                    config,
                    as_is=as_is,
                    recipe=recipe,
                    baseline=baseline,
                    remote=trainer.remote,
                )
                trained = train_all(
                    search_rates(configs) if find_rates else configs,
                    (runs_dir or paths.runs_dir()).resolve(),
                    reuse=reuse,
                    executor=trainer,
                    devices=devices,
                )
            report_missing(trained, len(configs))
            runs = trained.runs
        if trained and not runs:
            raise typer.Exit(1)
        comparison = compare_runs(runs, measure)
        shifted = compare_on_shifted(runs, on, measure) if on else None
        following, takes, none = advise_next(comparison, shifted, timed=trained is not None)
        if report:
            write_report(comparison, report, shifted)
    broken = {"failed": trained.failed, "stopped": trained.stopped} if trained else {}
    if as_json:
        on_other = {"shifted": shifted.to_json()} if shifted else {}
        print_json(
            comparison.to_json()
            | on_other
            | {"next": experiment_json(following, takes), "no_next_reason": none or None}
            | broken
        )
    else:
        print_comparison(comparison)
        if shifted:
            print_shifted(shifted)
        print_next(following, takes, none)
    if trained and (trained.failed or trained.stopped):
        raise typer.Exit(1)


@app.command()
@add_setting_options(
    PROFILED, {"seed": "Seeds of each arm; the first is that of the short round (default 0,1)."}
)
def profile(
    data: Data,
    settings: dict[str, str],
    stages: Annotated[
        str,
        typer.Option(metavar="STAGE,…", help="The stages that may train; by default all."),
    ] = "",
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES",
            help="How long it may take. What does not fit is left out: third seeds, then the "
            "second seed of full fine-tuning, adding further stages, second seeds.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="The config.json of a run, for all other settings.")
    ] = None,
    recipe: Recipe = "auto",
    as_is: AsIs = False,
    devices: Devices = 1,
    executor: Executor = "here",
    ray_address: RayAddress = None,
    runs_dir: RunsDir = None,
    as_json: AsJson = False,
) -> None:
    """Profile a backbone: train each stage alone, and say which ones gain over a linear probe.

    Its runs are ordinary runs. The same command goes on with a profile that was interrupted.
    """
    from finetune_core.commands.executor import open_executor
    from finetune_core.commands.input import parse_names
    from finetune_core.commands.profile import prepare_profile, print_profile, train_profile

    with report_errors(), open_executor(executor, ray_address) as trainer:
        asked = prepare_profile(
            settings,
            data,
            config,
            stages=parse_names(stages),
            budget=budget,
            as_is=as_is,
            recipe=recipe,
            remote=trainer.remote,
        )
        folder = (runs_dir or paths.runs_dir()).resolve()
        found = train_profile(asked, folder, executor=trainer, devices=devices)
    if as_json:
        print_json(found.to_json())
    else:
        print_profile(found)


@app.command()
def predict(
    run_dir: Annotated[
        Path, typer.Argument(help="The folder of a run, or one that was exported as safetensors.")
    ],
    images: Annotated[
        list[Path],
        typer.Argument(help="Image files, folders of them, or ZIP and TAR archives of them."),
    ],
    csv: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write each image's predicted class and all probabilities to this file.",
        ),
    ] = None,
    unlike: Annotated[
        bool,
        typer.Option(
            "--unlike",
            help="Also flag images unlike anything in training: embeds the training images once.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Classify images with a trained run.

    Files that cannot be read are reported; the others are still classified.
    """
    from finetune_core.commands.predict import (
        predict_targets,
        prediction_json,
        print_predictions,
        write_table,
    )

    with report_errors():
        if csv:
            check_output(csv, "csv")
        classes, predictions = predict_targets(run_dir, images, look_at_training=unlike)
        if csv:
            write_table(csv, predictions, classes)
    result = prediction_json(predictions, classes)
    if as_json:
        print_json({"run_id": run_dir.resolve().name} | result)
    elif not csv:
        print_predictions(result)
    for skipped in result["skipped"]:
        err.print(escape(escape_line(skipped["problem"])))
    if result["skipped"]:
        raise typer.Exit(2)


@app.command()
def export(
    run_dir: RunFolder,
    format: Annotated[str, typer.Option(metavar="NAME", help=f"The format: {', '.join(FORMATS)}.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="DIR",
            help="A new folder for the export; by default inside the run's folder.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export a run for use without Thaw."""
    from finetune_core.commands.runs import open_run
    from finetune_core.exporters.formats import export_in_steps

    with report_errors(), progress_bar() as bar:
        made = show_work(bar, export_in_steps(open_run(run_dir), format, output))
    if as_json:
        result = {
            "run_id": run_dir.resolve().name,
            "format": format,
            "folder": str(made.folder),
            "files": list(made.files),
        }
        print_json(
            result
            | {"checked": made.checked}
            | ({"measured": made.measured.to_json()} if made.measured else {})
        )
        return
    for line in made.to_lines():
        out.print(escape(line))


def main(program: str = "thaw") -> None:
    """Run the command line under the given program name."""
    abort_on_first_interrupt()
    try:
        with_safe_streams(lambda: _run(program))
    finally:
        # An interrupt during the exit handlers of libraries would end in a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(program: str) -> None:
    try:
        app(prog_name=program)
    except KeyboardInterrupt:
        # Typer handles interrupts only while a command runs, not while it reads the signatures.
        raise SystemExit(130) from None
    except (MemoryError, RuntimeError, OSError, ImportError) as error:
        if not is_out_of_memory(error):
            raise
        # Commands import torch when they run, so memory can also run out outside of their work.
        # Rich, which imports modules when it prints, may then find too little memory.
        sys.stderr.write(f"{OutOfMemory()}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main("python -m finetune_core")

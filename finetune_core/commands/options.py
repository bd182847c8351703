"""Shared parts of the commands: arguments, options, and one option per setting of the config."""

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer
from rich.markup import escape

from finetune_core.commands.terminal import err, escape_line
from finetune_core.config import get_setting, setting_names
from finetune_core.config.metadata import HARDWARE, SECTIONS, SPLIT, TRAINING, Setting
from finetune_core.errors import ConfigError, FinetuneError, OutOfMemory, TrainingError
from finetune_core.training.strategies.catalogue import STRATEGIES

DATA_HELP = (
    "A folder with one subfolder of images per class, an archive of such a folder (.zip, .tar, "
    ".tar.gz, …), a manifest (.csv or .parquet with columns path and label), the word 'digits', or "
    "the name of a fetched public set."
)
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object to stdout, and nothing else.")
]
AsIs = Annotated[
    bool,
    typer.Option(
        "--as-is",
        help="Ignore what was set for this data set in the app: its changes, and the split "
        "settings that no option gives.",
    ),
]
Recipe = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="auto: what has no option follows from the number of training images and the "
        "strategy; tutorial: the classic numbers, Adam at 0.0001 for 10 epochs. Options win.",
    ),
]
Data = Annotated[str, typer.Argument(help=DATA_HELP)]
RunsDir = Annotated[
    Path | None, typer.Option(help="The folder in which the run's folder is created.")
]
Executor = Annotated[
    str,
    typer.Option(
        "--executor",
        metavar="NAME",
        help="Who trains: here, this process; or ray, tasks of Ray on this machine's devices or a "
        "cluster's (needs ray>=2.60).",
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="HOST:PORT",
        help="The head of a Ray cluster, for --executor ray; without one, a Ray of this machine's "
        "own is started.",
    ),
]
Devices = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=1,
        help="Train each run on so many GPUs, or parts of the processor, of one machine, as "
        "torchrun would; the same run, to rounding.",
    ),
]
RunFolder = Annotated[Path, typer.Argument(help="The folder of a run.")]

Command = Callable[..., Any]

# Settings that a comparison takes several values of -> (default values, help text).
COMPARED = {
    "strategy": (
        "feature_extraction,last_block,full",
        "Strategies to train; from:STAGE trains everything from that stage on (default "
        "feature_extraction,last_block,full, and custom where --cut or --stage-rates describe it).",
    ),
    "seed": ("0,1,2", "Each strategy is trained once with each (default 0,1,2)."),
    "backbone": ("", "Networks to start from."),
    "train_fraction": ("", "Fractions of the training images to train on."),
}

# Settings of ``advise``, for its probes and for the forecast runs.
ADVISED = ("backbone", *setting_names(TRAINING, HARDWARE, SPLIT))

# Settings of ``profile``: all except those that select the stages to train.
PROFILED = tuple(
    name
    for name in setting_names(*SECTIONS)
    if name not in ("strategy", "initial_head")
    and not any(name in strategy.settings for strategy in STRATEGIES.values())
)

_ARGUMENTS = {"data": "DATA", "averaged": "RUN_DIR"}  # fields that are arguments, not options
# Options that the help lists after the settings.
_LAST_OPTIONS = ("executor", "ray_address", "runs_dir", "as_json")


def add_setting_options(
    names: Iterable[str], several: Mapping[str, str] = MappingProxyType({})
) -> Callable[[Command], Command]:
    """Give a command one option per setting.

    The command receives the given options as ``settings``: name -> text. The text is unchecked,
    because the config checks all settings at once.

    Args:
        names: the settings.
        several: settings that take several values -> help text of their option. Such an option has
            two names.
    """
    settings = [get_setting(name) for name in names]

    def decorate(command: Command) -> Command:
        parameters = [
            one for one in inspect.signature(command).parameters.values() if one.name != "settings"
        ]

        @wraps(command)
        def with_settings(**given: Any) -> Any:
            values = {one.name: given.pop(one.name) for one in settings}
            return command(
                **given, settings={name: text for name, text in values.items() if text is not None}
            )

        options = [_build_parameter(one, several.get(one.name, "")) for one in settings]
        first = [one for one in parameters if one.name not in _LAST_OPTIONS]
        last = [one for one in parameters if one.name in _LAST_OPTIONS]
        signature = inspect.Signature(
            [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*first, *options, *last)]
        )
        vars(with_settings)["__signature__"] = signature
        with_settings.__annotations__ = {
            one.name: one.annotation for one in signature.parameters.values()
        }
        return with_settings

    return decorate


def option_name(field: str) -> str:
    """Return the command-line name of a field.

    Fields that are no settings are options as well.
    """
    if field in _ARGUMENTS:
        return _ARGUMENTS[field]
    try:
        return f"--{get_setting(field).option}"
    except KeyError:
        return f"--{field.replace('_', '-')}"


@contextmanager
def report_errors() -> Iterator[None]:
    """Report errors as messages and exit with a status.

    The status is 2 for invalid requests, and 1 for failed or oversized work. A bug keeps its
    traceback.
    """
    try:
        yield
    except ConfigError as error:
        for field, problem in error.problems.items():
            err.print(escape(escape_line(f"{option_name(field)}: {problem}")))
        raise typer.Exit(2) from None
    except FinetuneError as error:
        err.print(escape(escape_line(str(error))))
        raise typer.Exit(1 if isinstance(error, (TrainingError, OutOfMemory)) else 2) from None


def refuse_torchrun(command: str | None) -> None:
    """Exit if torchrun has started a command that does not train.

    torchrun starts one process per device. Commands that train share one run. Any other command
    would be executed once per process.

    Raises:
        typer.Exit: in every process unless there is only one. Rank 0 prints the reason.
    """
    if (
        command in ("train", "resume")
        or "TORCHELASTIC_RUN_ID" not in os.environ
        or os.environ.get("WORLD_SIZE", "1") == "1"
    ):
        return
    if os.environ.get("RANK", "0") == "0":
        err.print(f"torchrun is for train and resume: start {command} without it.")
    raise typer.Exit(2)


def _build_parameter(one: Setting, several: str) -> inspect.Parameter:
    names = [f"--{name}" for name in ((one.option, one.several) if several else (one.option,))]
    option = typer.Option(
        *names,
        metavar=f"{one.metavar},…" if several else one.metavar,
        help=several or _build_help(one),
        rich_help_panel=one.section,
    )
    return inspect.Parameter(
        one.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[str | None, option],
    )


def _build_help(one: Setting) -> str:
    usual = "auto" if one.follows else one.default
    default = "" if usual in (None, "") else f"default {usual}"
    details = "; ".join(filter(None, (one.allowed_values_text, default)))
    return one.help + (f" ({details})" if details else "")

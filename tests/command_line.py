"""The command line in this process, because a new process takes seconds to start."""

import functools
import json
from typing import Any, NamedTuple
from unittest.mock import patch

import typer.main
from typer.testing import CliRunner

from finetune_core.__main__ import app
from finetune_core.config import RunConfig
from finetune_core.errors import TrainingError
from tests.factories import TINY_BACKBONE, tiny_weights

_command = functools.cache(lambda: typer.main.get_command(app))  # takes longer than many commands


class Done(NamedTuple):
    """Status and output of a command. ``words`` is stderr on one line."""

    returncode: int
    stdout: str
    stderr: str
    words: str


def thaw(*arguments: object) -> Done:
    """Call the command line. Exceptions other than the command's exit are raised."""
    with patch("typer.testing._get_command", lambda _: _command()):
        result = CliRunner().invoke(app, [*map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    words = " ".join(result.stderr.split())
    return Done(result.exit_code, result.stdout, result.stderr, words)


def thaw_json(*arguments: object) -> dict[str, Any]:
    """Return the JSON object that a command prints on one line."""
    done = thaw(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def tiny_options(**changes: object) -> list[str]:
    """Return the options of one short epoch of the tiny network."""
    usual = {
        "backbone": TINY_BACKBONE,
        "weights": tiny_weights(),
        "image_size": 32,
        "epochs": 1,
        "batch_size": 16,
        "lr": 1e-3,
        "precision": "fp32",
    }
    options = (usual | changes).items()
    return [part for name, value in options for part in (f"--{name.replace('_', '-')}", str(value))]


def config_of(*arguments: object) -> tuple[RunConfig, str]:
    """Return the config that ``thaw train`` would train, and its messages before training."""
    found = []

    def refuse(config, *_, **__):
        found.append(config)
        raise TrainingError("that is enough")

    with patch("finetune_core.commands.train.reserve_run", refuse):
        done = thaw("train", *arguments)
    assert done.words.endswith("that is enough"), done.stderr
    return found[0], done.words.removesuffix("that is enough").strip()

"""The ``average`` command: build the settings of a run that averages other runs."""

from collections.abc import Sequence
from pathlib import Path

from finetune_core.commands.runs import open_run
from finetune_core.config import RunConfig
from finetune_core.errors import ConfigError, FinetuneError
from finetune_core.training.checkpoints.parents import make_averaged_config, why_not_averaged


def build_average_config(named: Sequence[str], how: str) -> RunConfig:
    """Return the config of a run that averages the named runs.

    Args:
        named: folders or ids of the runs.
        how: the averaging method.

    Raises:
        ConfigError: if a name is no run, a run is still active, or the runs cannot be averaged. All
            reasons are reported at once.
    """
    folders: list[Path] = []
    problems: list[str] = []
    for name in named:
        try:
            run = open_run(name)
        except FinetuneError as error:
            problems.append(str(error).rstrip("."))
            continue
        if run.is_active:
            problems.append(f"{run.run_id}: it is going on; wait until it ends, or stop it")
        else:
            folders.append(run.run_dir)
    if problems:
        raise ConfigError({"averaged": "; ".join([*problems, *why_not_averaged(how, folders)])})
    return make_averaged_config(how, folders)

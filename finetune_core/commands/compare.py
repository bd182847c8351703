"""The ``compare`` command: train the runs of a comparison, evaluate them, print the result."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.markup import escape

from finetune_core.commands.input import (
    load_app_split,
    parse_fractions,
    parse_integers,
    parse_names,
    parse_rates,
    read_settings_file,
    unpack_data,
)
from finetune_core.commands.options import COMPARED
from finetune_core.commands.runs import (
    download_weights,
    fetch_descriptions,
    settings_from_run,
    use_backbone_size,
)
from finetune_core.commands.terminal import err, out, print_table, progress_bar, show_work
from finetune_core.commands.train import count_training_images, fill_recipe
from finetune_core.config import RunConfig
from finetune_core.config.run_config import FITTED
from finetune_core.data.dataset import index_dataset
from finetune_core.data.edits import load_edits, select_effective_edits
from finetune_core.errors import ConfigError, FinetuneError
from finetune_core.evaluation.comparison.compare import Comparison
from finetune_core.evaluation.comparison.experiment import (
    Experiment,
    describe_forecast,
    forecast_experiment,
)
from finetune_core.evaluation.comparison.next_experiment import (
    collect_evidence,
    explain_none,
    next_experiment,
)
from finetune_core.evaluation.comparison.pair_text import CLAIMS, describe_pair
from finetune_core.evaluation.comparison.shift import ShiftComparison, compare_shift
from finetune_core.evaluation.single_run.shift import predict_shifted
from finetune_core.files import write_output
from finetune_core.formatting import pluralize
from finetune_core.models.catalogue import default_backbone
from finetune_core.reports.build import build_report
from finetune_core.reports.html import arms_table, detail_lines, footnotes
from finetune_core.runs.design import design_runs, group_by_arm, set_rates
from finetune_core.runs.store import Run
from finetune_core.training.devices.speed_book import SpeedBook
from finetune_core.training.forecast.forecast import Forecast
from finetune_core.training.forecast.lr_finder import find_rate
from finetune_core.training.forecast.timing import calibrate
from finetune_core.training.strategies.catalogue import BASELINE, count_epochs
from finetune_core.training.strategies.recipes import AUTO


def design_comparison(
    given: Mapping[str, str],
    data: str,
    config: Path | None,
    *,
    as_is: bool,
    recipe: str = AUTO,
    baseline: bool = False,
    remote: bool = False,
) -> list[RunConfig]:
    """Return the configs of a comparison, after downloading the initial weights.

    Args:
        given: settings as typed, with several values for the settings that are compared.
        data: the data set, as a person names it.
        config: config file of a run, for all other settings.
        as_is: leave out the changes and the split made for this data set in the app.
        recipe: ``auto`` or ``tutorial``. With ``config``, that run's choice wins.
        baseline: also compare with a linear probe.
        remote: whether the runs may train on other machines with other devices.

    Raises:
        FinetuneError: if the settings cannot be used, or data or weights are not available.
    """
    compared = {name: given.get(name, defaults) for name, (defaults, _) in COMPARED.items()}
    strategies = parse_names(compared["strategy"])
    settings: dict[str, Any] = {name: text for name, text in given.items() if name not in COMPARED}
    if "stage_rates" in settings:
        settings["stage_rates"] = parse_rates(settings["stage_rates"])
    # Only the custom strategy has these settings.
    if custom_settings := settings.keys() & {"cut", "stage_rates"}:
        settings["strategy"] = "custom"
        if "strategy" not in given:
            strategies.append("custom")
        elif "custom" not in strategies:
            raise ConfigError(
                dict.fromkeys(
                    custom_settings,
                    "describes the strategy custom: name that among the strategies, too",
                )
            )
    # These settings are dropped from the other strategies.
    for name, owners in (("features_from", FITTED), ("lora_from", ("lora",))):
        if name in settings and (named_owners := [one for one in strategies if one in owners]):
            settings.setdefault("strategy", named_owners[0])
    if baseline and BASELINE not in strategies:
        strategies.append(BASELINE)
    settings["data"] = unpack_data(data)
    settings["edits"] = () if as_is else select_effective_edits(load_edits(settings["data"]))
    backbones = parse_names(compared["backbone"])
    named = settings.pop("from_run", None)
    inherited = settings_from_run(named, backbones) if named else {}
    defaults = {"backbone": default_backbone()} | load_app_split(settings["data"], as_is)
    fetch_descriptions(backbones)
    base = fill_recipe(
        (read_settings_file(config) if config else defaults) | inherited, settings, recipe
    )
    # Several backbones are compared at one size.
    if len(backbones) == 1 and not inherited and config is None and "image_size" not in settings:
        base = use_backbone_size(base.model_copy(update={"backbone": backbones[0]}))
    configs = design_runs(
        base,
        strategies,
        parse_integers("seed", compared["seed"]),
        backbones,
        parse_fractions("train_fraction", compared["train_fraction"]),
        count_training_images(base) if base.auto else None,
    )
    download_weights(configs, remote=remote)
    return configs


def search_rates(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """Return the configs with a suitable learning rate for each arm.

    The rate is searched with the arm's first seed.
    """
    rates = {}
    for arm, group in group_by_arm(configs).items():
        if not count_epochs(group[0]):
            continue
        with progress_bar() as bar:
            rates[arm] = show_work(bar, find_rate(group[0])).suggestion
        rate = f"{rates[arm]:g}" if rates[arm] else f"none found, {group[0].learning_rate:g} stays"
        err.print(f"{group[0].backbone}, {group[0].strategy}: learning rate {rate}")
    return set_rates(configs, rates)


def print_verdict(comparison: Comparison) -> None:
    """Print the answer, its size, and the recommendation, one line each."""
    answer, *others = comparison.verdict.lines
    out.print(f"[bold]{escape(answer)}[/bold]")
    for line in others:
        out.print(escape(line))


def print_comparison(comparison: Comparison) -> None:
    """Print the verdict, the arms in a table, and the details."""
    print_verdict(comparison)
    columns, rows = arms_table(comparison)
    shown = (
        "Strategy",
        comparison.measure.title_on(comparison.split),
        "95 % interval",
        "Over seeds",
        "Ensemble of the seeds",
        "Time",
    )
    columns_shown = [name for name in shown if name in columns]
    print_table(
        columns_shown, [[row[columns.index(name)] for name in columns_shown] for row in rows]
    )
    for footnote in footnotes(comparison):
        out.print(escape(footnote))
    for pair in comparison.pairs:
        text = describe_pair(comparison.arms, pair)
        for claim, title in CLAIMS.items():
            out.print(escape(f"{title}: {getattr(text, claim)}"))
    for line in detail_lines(comparison):
        out.print(escape(line))


def advise_next(
    comparison: Comparison, shift: ShiftComparison | None, *, timed: bool
) -> tuple[Experiment | None, Forecast | None, str]:
    """Return the next experiment, its forecast, and the reason if there is none.

    The reason is empty if there is an experiment. The forecast needs known speeds and the data.

    Args:
        comparison: the finished comparison.
        shift: the same runs on another data set.
        timed: time a few steps of the experiment if its speed is not known.
    """
    evidence, book = collect_evidence(comparison, shift), SpeedBook()
    experiment = next_experiment(evidence)
    if experiment is None:
        return None, None, explain_none(evidence)
    if not (experiment.configs and (timed or book.get_speed(experiment.configs[0]))):
        return experiment, None, ""
    config = experiment.configs[0]
    # An experiment that cannot be timed stands without a forecast.
    with suppress(FinetuneError), progress_bar() as bar:
        dataset = show_work(
            bar, index_dataset(config.data, **config.split_settings, edits=config.edits)
        )
        if timed:
            show_work(bar, calibrate([config], dataset, book), "Timing a few steps")
        return experiment, forecast_experiment(experiment, dataset, book), ""
    return experiment, None, ""


def print_next(experiment: Experiment | None, found: Forecast | None, none: str) -> None:
    """Print the next experiment with its reason and forecast, or the reason why there is none."""
    if experiment is None:
        out.print(escape(f"\nNext experiment: {none}"))
        return
    takes = f" Forecast: {describe_forecast(found)}." if found else ""
    out.print(escape(f"\nNext experiment: {experiment.what}. {experiment.reason}{takes}"))


def compare_on_shifted(runs: Sequence[Run], data: str, measure: str) -> ShiftComparison:
    """Compare runs on another data set as well. Runs without predictions for it predict first.

    Raises:
        FinetuneError: if the data set cannot be used, or the runs did not predict the same images.
    """
    with progress_bar() as bar:
        fingerprint = show_work(bar, predict_shifted(runs, data))
    return compare_shift(runs, fingerprint, measure)


def print_shifted(found: ShiftComparison) -> None:
    """Print the verdict on the other images, and both axes in a table."""
    shifted = found.shifted
    out.print(
        escape(f"\nOn {pluralize(shifted.images, 'shifted image')} of {found.other.described}:")
    )
    print_verdict(shifted)
    print_table(*found.to_rows())
    for line in found.describe_left_out():
        out.print(escape(line))


def write_report(comparison: Comparison, file: Path, shift: ShiftComparison | None = None) -> None:
    """Write the comparison as one HTML file.

    Args:
        comparison: the comparison.
        file: path of the report.
        shift: the same runs on another data set.

    Raises:
        ConfigError: if the file cannot be written.
    """
    write_output(file, build_report(comparison, shift=shift).encode(), "report")
    err.print(escape(f"The report is in {file}."))

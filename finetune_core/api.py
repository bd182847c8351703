"""Thaw in a notebook or a script: the commands as functions, with results that display themselves.

``import finetune_core as thaw`` does not import torch. The functions are loaded on first use.
"""

import inspect as introspection
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, overload

import pandas as pd

from finetune_core import paths
from finetune_core.commands.advise import build_advice
from finetune_core.commands.average import build_average_config
from finetune_core.commands.compare import compare_on_shifted, write_report
from finetune_core.commands.evaluate import evaluate_on_shifted, evaluate_own_images, measure_tta
from finetune_core.commands.input import load_earlier_settings
from finetune_core.commands.inspect import inspect_data
from finetune_core.commands.label import LabelQueue, label_queue
from finetune_core.commands.options import ADVISED, PROFILED
from finetune_core.commands.predict import predict_targets
from finetune_core.commands.profile import prepare_profile, train_profile
from finetune_core.commands.runs import open_run
from finetune_core.commands.terminal import progress_bar, show_progress, show_work
from finetune_core.commands.train import build_config, reserve_run, train_reserved
from finetune_core.config import RunConfig, get_setting, setting_names
from finetune_core.config.metadata import SECTIONS, SPLIT
from finetune_core.errors import ConfigError
from finetune_core.evaluation.advice.advise import BUDGET, IMAGES, Advice
from finetune_core.evaluation.comparison.compare import Comparison, compare_runs
from finetune_core.evaluation.comparison.measures import ACCURACY, MEASURES
from finetune_core.evaluation.comparison.shift import ShiftComparison
from finetune_core.evaluation.comparison.tta import FlipEvaluation, evaluate_flips
from finetune_core.evaluation.prediction.batch import to_frame
from finetune_core.evaluation.single_run.fp32 import can_evaluate_in_fp32, evaluate_in_fp32
from finetune_core.evaluation.single_run.run_evaluation import RunEvaluation
from finetune_core.evaluation.single_run.tta import FLIPS
from finetune_core.exporters.catalogue import FORMATS
from finetune_core.exporters.formats import ExportResult, export_in_steps
from finetune_core.files import check_output
from finetune_core.inspection.report import Inspection
from finetune_core.labelling.session import ORDERS
from finetune_core.models.catalogue import PACKAGED
from finetune_core.profiling.result import Profile
from finetune_core.profiling.settings import SEEDS
from finetune_core.reports.notebook import show_comparison, show_shift
from finetune_core.runs.extend import extend_run
from finetune_core.runs.record import reopen_run
from finetune_core.runs.store import Run, resolve_run_dir
from finetune_core.training.strategies.recipes import AUTO

# ``advise`` has its own argument for the networks.
_ADVISED = tuple(name for name in ADVISED if name != "backbone")
_PROFILED = tuple(name for name in PROFILED if name != "seed")

AnyPath = str | os.PathLike[str]
AnyRun = Run | AnyPath  # a returned run, a run id, or a folder
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _add_settings(names: Iterable[str]) -> Callable[[_Function], _Function]:
    """Add these settings to a function's signature and docstring."""
    names = list(names)

    def decorate(function: _Function) -> _Function:
        signature = introspection.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        fields = RunConfig.model_fields
        settings = [
            introspection.Parameter(
                name,
                introspection.Parameter.KEYWORD_ONLY,
                default=get_setting(name).default,
                annotation=fields[name].annotation,
            )
            for name in names
        ]
        vars(function)["__signature__"] = signature.replace(parameters=[*own, *settings])
        listed = "\n".join(f"        {name}: {get_setting(name).help}" for name in names)
        function.__doc__ = (
            f"{introspection.cleandoc(function.__doc__ or '')}\n\n"
            f"Settings:\n{introspection.cleandoc(listed)}"
        )
        return function

    return decorate


def _fill_docstring(**names: Iterable[str]) -> Callable[[_Function], _Function]:
    """Put lists of names into a function's docstring: ``{formats}`` with ``formats=FORMATS``."""

    def decorate(function: _Function) -> _Function:
        for name, values in names.items():
            listed = ", ".join(f"``{value}``" for value in values)
            function.__doc__ = (function.__doc__ or "").replace(f"{{{name}}}", listed)
        return function

    return decorate


@_add_settings(setting_names(*SECTIONS))
def train(
    data: AnyPath | None = None,
    *,
    config: RunConfig | AnyPath | None = None,
    recipe: str = AUTO,
    as_is: bool = False,
    devices: int = 1,
    runs_dir: AnyPath | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> Run:
    """Fine-tune a backbone.

    An interrupt stops the run cleanly and keeps the best epoch. ``resume`` continues from there.

    Args:
        data: a folder, archive or manifest, ``digits``, or the name of a fetched public set. None:
            the data of ``config``.
        config: settings of an earlier run (``run.config``, or its config.json), overridden by the
            settings given here.
        recipe: ``auto``: length, learning rate and schedule follow from the number of training
            images and the strategy; ``tutorial``: the classic numbers. Given settings win.
        as_is: leave out the changes and the split made for this data set in the app.
        devices: number of devices of this machine that train the run together, each in a process of
            its own.
        runs_dir: folder in which the run directory is created.
        progress: show bars and messages. None: show them where somebody watches.
        **settings: settings of the run, as listed below.

    Raises:
        ConfigError: if settings cannot be used, naming every one.
        FinetuneError: if data or weights are not available, or the run cannot continue.
    """
    with show_progress(progress):
        earlier = load_earlier_settings(config)
        wanted = build_config(
            settings,
            None if data is None else os.fspath(data),
            earlier,
            as_is=as_is,
            recipe=recipe,
        )
        return train_reserved(
            reserve_run(wanted, Path(runs_dir) if runs_dir else paths.runs_dir(), devices=devices)
        )


def resume(
    run: AnyRun, *, epochs: int | None = None, devices: int = 1, progress: bool | None = None
) -> Run:
    """Continue a run that was stopped, failed or interrupted, from its last checkpoint.

    Args:
        run: the run.
        epochs: train a finished run further, as a new run of this many epochs in total.
        devices: as for ``train``. The number may differ from before.
        progress: as for ``train``.

    Raises:
        FinetuneError: if the run is finished and ``epochs`` is None, or it cannot continue.
    """
    with show_progress(progress):
        run_now = _read_run(run)
        folder = run_now.run_dir
        if epochs is not None:
            folder = folder.with_name(extend_run(run_now, epochs))
        return train_reserved(reopen_run(folder, devices=devices))


def average(
    runs: Iterable[AnyRun],
    how: str,
    *,
    runs_dir: AnyPath | None = None,
    progress: bool | None = None,
) -> Run:
    """Average runs into a new one, without training.

    Args:
        runs: the runs.
        how: the method. ``soup``, ``greedy_soup`` and ``wise`` (one run and its initial weights)
            average weights; ``ensemble`` averages stored probabilities.
        runs_dir: folder in which the new run directory is created.
        progress: as for ``train``.

    Raises:
        ConfigError: if the runs cannot be averaged, naming each run and the reason.
        FinetuneError: if the data or weights are not available.
    """
    with show_progress(progress):
        wanted = build_average_config(
            [os.fspath(one.run_dir if isinstance(one, Run) else one) for one in runs], how
        )
        return train_reserved(reserve_run(wanted, Path(runs_dir) if runs_dir else paths.runs_dir()))


def evaluate(
    run: AnyRun,
    split: str | None = None,
    *,
    robustness: bool = False,
    fp32: bool = False,
    on: AnyPath | None = None,
    progress: bool | None = None,
) -> RunEvaluation:
    """Evaluate a run on images it did not train on.

    Args:
        run: the run.
        split: ``test`` or ``val``. None: the test images if there are any.
        robustness: also classify the images blurred, noisy, compressed, brighter and rotated.
        fp32: if the run was stopped in bf16, first evaluate its best epoch in fp32, and keep that.
        on: another data set with the same classes, in any form that ``train`` accepts. The result
            is then a ``ShiftedEvaluation`` with the run's own images as ``own``. Both count only
            images of the classes that both data sets have (``shared``).
        progress: as for ``train``.

    Raises:
        RunError: if the run has no predictions for the split.
        DataError: if the other data set cannot be used.
    """
    with show_progress(progress):
        found = _read_run(run)
        if fp32 and can_evaluate_in_fp32(found):
            with progress_bar() as bar:
                show_work(bar, evaluate_in_fp32(found))
        if on is not None:
            return evaluate_on_shifted(found, os.fspath(on), split, corrupt=robustness)
        return evaluate_own_images(found, split, corrupt=robustness)


def tta(run: AnyRun, how: str = FLIPS, *, progress: bool | None = None) -> list[FlipEvaluation]:
    """Compare a run with and without test-time augmentation, measured once, in fp32.

    The augmented prediction is the mean over each image and its mirror image.

    Returns:
        One result per predicted split, the test images first: both evaluations, their paired
        difference and McNemar's p.

    Raises:
        ConfigError: if there is no such augmentation.
        FinetuneError: if there is no network, or no images to measure with.
    """
    with show_progress(progress):
        found = _read_run(run)
        measure_tta(found, how)
        return evaluate_flips(found)


def predict(
    run: AnyRun,
    images: AnyPath | Iterable[AnyPath],
    *,
    unlike: bool = False,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Classify images with a trained run, or with a folder that was exported as safetensors.

    Args:
        run: the run, or the exported folder.
        images: files, folders of images, or ZIP or TAR archives of images.
        unlike: also flag images unlike anything in training. This embeds the training images once.
        progress: as for ``train``.

    Returns:
        One row per image: ``file, class, probability, unlike, problem``, then ``p(class)`` of each
        class. ``problem`` says why a file could not be read. The other columns of that row are
        empty.

    Raises:
        FinetuneError: if there is no network, or a folder or archive cannot be used.
    """
    targets = [images] if isinstance(images, str | os.PathLike) else images
    folder = run.run_dir if isinstance(run, Run) else resolve_run_dir(run)
    with show_progress(progress):
        classes, predictions = predict_targets(
            folder, [Path(target) for target in targets], look_at_training=unlike
        )
    return to_frame(predictions, classes)


@overload
def compare(
    runs: Iterable[AnyRun],
    *,
    measure: str = ...,
    on: None = None,
    report: AnyPath | None = None,
    progress: bool | None = None,
) -> Comparison: ...


@overload
def compare(
    runs: Iterable[AnyRun],
    *,
    measure: str = ...,
    on: AnyPath,
    report: AnyPath | None = None,
    progress: bool | None = None,
) -> ShiftComparison: ...


@_fill_docstring(measures=MEASURES)
def compare(
    runs: Iterable[AnyRun],
    *,
    measure: str = ACCURACY.name,
    on: AnyPath | None = None,
    report: AnyPath | None = None,
    progress: bool | None = None,
) -> Comparison | ShiftComparison:
    """Compare runs on the same images, and say which strategy to use.

    Args:
        runs: the runs.
        measure: the metric of the verdict: {measures}. The ``difference`` of a pair is its first
            arm minus its second, so a negative difference of log loss favours the first.
        on: also compare on another data set with the same classes, in any form that ``train``
            accepts. Runs without predictions for that data set predict it first. The result is then
            a ``ShiftComparison``: the ``Comparison`` on the runs' own images as ``own``, that on
            the other images as ``shifted``, and the losses of each strategy on the shared classes
            as ``drops``.
        report: write the comparison to this HTML file.
        progress: as for ``train``.

    Raises:
        FinetuneError: if there is no such measure, the runs were not evaluated on the same images,
            or the other data set cannot be used.
    """
    if report is not None:
        check_output(Path(report), "report")
    with show_progress(progress):
        opened_runs = [_read_run(run) for run in runs]
        shift = None if on is None else compare_on_shifted(opened_runs, os.fspath(on), measure)
        comparison = shift.own if shift else compare_runs(opened_runs, measure)
        if report is not None:
            write_report(comparison, Path(report), shift)
        return show_shift(shift) if shift else show_comparison(comparison)


@_fill_docstring(formats=FORMATS)
def export(
    run: AnyRun, format: str, output: AnyPath | None = None, *, progress: bool | None = None
) -> ExportResult:
    """Export a run for use without Thaw.

    Args:
        run: the run.
        format: one of {formats}.
        output: a new folder for the export. None: a folder in the run directory.
        progress: as for ``train``.

    Raises:
        FinetuneError: if the run cannot be exported in this format, or the folder cannot be
            written.
    """
    with show_progress(progress), progress_bar() as bar:
        return show_work(
            bar, export_in_steps(_read_run(run), format, None if output is None else Path(output))
        )


@_add_settings(setting_names(SPLIT))
def inspect(
    data: AnyPath,
    *,
    deep: bool = False,
    backbone: str = PACKAGED,
    fit: str = "crop",
    as_is: bool = False,
    progress: bool | None = None,
    **settings: Any,
) -> Inspection:
    """Inspect a data set: classes, splits, sizes, and possible problems.

    Args:
        data: the data set, in any form that ``train`` accepts.
        deep: also analyze with embeddings: label errors, outliers, shift between splits, a linear
            probe by layer.
        backbone: backbone of the embeddings, with ``deep``.
        fit: how images become squares for the backbone, ``crop`` or ``pad``.
        as_is: leave out the changes and the split made for this data set in the app.
        progress: as for ``train``.
        **settings: settings of the split, as listed below.

    Raises:
        FinetuneError: if the data set cannot be read or split.
    """
    with show_progress(progress):
        if others := settings.keys() - setting_names(SPLIT):
            raise ConfigError(
                dict.fromkeys(sorted(others), "says nothing about how a data set is split")
            )
        return inspect_data(
            os.fspath(data), settings, deep=deep, backbone=backbone, fit=fit, as_is=as_is
        )


@_fill_docstring(orders=ORDERS)
def label(
    data: AnyPath,
    *,
    add: AnyPath | None = None,
    set_aside: bool = False,
    answer: AnyPath | None = None,
    order: str = "uncertain",
    of: str = "",
    backbone: str = PACKAGED,
    most: int | None = None,
    progress: bool | None = None,
) -> LabelQueue:
    """List the images of a data set that wait for a label, in the order to label them in.

    Args:
        data: the data set, in any form that ``train`` accepts.
        add: a folder or an archive of unlabelled images to add first. A folder's files stay where
            they are.
        set_aside: with ``add``: label a random tenth first, as test images.
        answer: a file of answers to store first: CSV with the columns path, label and action, or
            JSON lines. Instead of a label, the action can be skip, none (of these classes) or undo.
        order: one of {orders}.
        of: for ``similar`` the id of an unlabelled image, for ``probable`` a class.
        backbone: backbone of the embeddings.
        most: maximum number of listed images.
        progress: as for ``train``.

    Raises:
        FinetuneError: if data or weights are not available, nothing is left to label, or an answer
            is invalid. In that case no answer is stored.
    """
    with show_progress(progress):
        return label_queue(
            os.fspath(data),
            add=None if add is None else os.fspath(add),
            set_aside=set_aside,
            answer=None if answer is None else Path(answer),
            order=order,
            of=of,
            backbone=backbone,
            most=most,
        )


@_add_settings(_ADVISED)
def advise(
    data: AnyPath,
    backbones: Iterable[str] = (),
    *,
    images: int = IMAGES,
    budget: float = BUDGET,
    as_is: bool = False,
    progress: bool | None = None,
    **settings: Any,
) -> Advice:
    """Probe networks at every stage, forecast their training, and propose two to fine-tune.

    Args:
        data: the data set, in any form that ``train`` accepts.
        backbones: the networks to probe. Empty: all whose weights are on this machine.
        images: maximum number of training images to probe with, in proportion to the classes.
        budget: minutes that fine-tuning one network may take.
        as_is: leave out the changes and the split made for this data set in the app.
        progress: as for ``train``.
        **settings: settings of the probes and forecasts, as listed below.

    Raises:
        FinetuneError: if the data or a setting cannot be used. A network that cannot be probed is
            listed in the result's ``failed``.
    """
    with show_progress(progress):
        if others := settings.keys() - set(_ADVISED):
            raise ConfigError(dict.fromkeys(sorted(others), "changes neither probes nor forecasts"))
        return build_advice(os.fspath(data), list(backbones), settings, images, budget, as_is=as_is)


@_add_settings(_PROFILED)
def profile(
    data: AnyPath,
    *,
    stages: Iterable[str] = (),
    seeds: Iterable[int] = SEEDS,
    budget: float | None = None,
    config: RunConfig | AnyPath | None = None,
    recipe: str = AUTO,
    as_is: bool = False,
    devices: int = 1,
    runs_dir: AnyPath | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> Profile:
    """Train each stage of a backbone alone, and say which ones gain over a linear probe.

    The runs of a profile are ordinary runs, and finished ones are used again: the same call
    continues an interrupted profile.

    Args:
        data: the data set, in any form that ``train`` accepts.
        stages: stages that may train. Empty: all stages.
        seeds: seeds of each arm.
        budget: minutes that the profile may take. Seeds and further stages that do not fit are left
            out, and the result says so.
        config: as for ``train``.
        recipe: as for ``train``.
        as_is: as for ``train``.
        devices: number of devices of this machine for each run that takes steps.
        runs_dir: as for ``train``.
        progress: as for ``train``.
        **settings: settings of all runs of the profile, as listed below.

    Raises:
        ConfigError: if settings cannot be used, naming every one.
        FinetuneError: if data or weights are not available, or an interrupt has stopped a run.
    """
    with show_progress(progress):
        if others := settings.keys() - set(_PROFILED):
            raise ConfigError(dict.fromkeys(sorted(others), "is decided by the profile itself"))
        asked = prepare_profile(
            {**settings, "seed": seeds},
            os.fspath(data),
            config,
            stages=list(stages),
            budget=budget,
            as_is=as_is,
            recipe=recipe,
        )
        folder = Path(runs_dir) if runs_dir else paths.runs_dir()
        return train_profile(asked, folder.resolve(), devices=devices)


def _read_run(run: AnyRun) -> Run:
    """Return the run as it is on disk now, not as it was read earlier."""
    return open_run(run.run_dir if isinstance(run, Run) else run)

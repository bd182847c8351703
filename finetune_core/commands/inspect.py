"""The ``inspect`` command: look at a data set and report its contents and problems."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from finetune_core.commands.input import load_app_split, unpack_data
from finetune_core.commands.terminal import escape_line, out, print_table, progress_bar, show_work
from finetune_core.config import make_config
from finetune_core.data.dataset import Dataset, index_dataset
from finetune_core.data.edits import load_edits
from finetune_core.data.findings import select_open_findings
from finetune_core.inspection.report import Inspection
from finetune_core.work import Work, with_phase

if TYPE_CHECKING:
    from finetune_core.inspection.deep import DeepReport


def inspect_data(
    data: str, split: Mapping[str, Any], *, deep: bool, backbone: str | None, fit: str, as_is: bool
) -> Inspection:
    """Return the data set, its findings, and with ``deep`` the analysis of a backbone's features.

    Args:
        data: the data set, as a person names it.
        split: split settings.
        deep: also analyze with embeddings.
        backbone: backbone of the embeddings. None: the packaged one. Missing weights are
            downloaded.
        fit: how images become squares for the backbone, ``crop`` or ``pad``.
        as_is: leave out the changes and the split made for this data set in the app.

    Raises:
        FinetuneError: if the data cannot be read or split, or the weights are not available.
    """
    folder = unpack_data(data)
    config = make_config(load_app_split(folder, as_is) | dict(split) | {"data": folder, "fit": fit})
    edits = () if as_is else load_edits(folder)
    with progress_bar() as bar:
        indexing = index_dataset(folder, **config.split_settings, edits=edits)
        dataset = show_work(bar, with_phase("index", indexing))
        report = show_work(bar, _inspect_deeply(dataset, backbone, config.fit)) if deep else None
    findings = select_open_findings(
        [*dataset.findings, *(report.findings if report else ())], edits
    )
    return Inspection(dataset, tuple(findings), report)


def _inspect_deeply(dataset: Dataset, backbone: str | None, fit: str) -> "Work[DeepReport]":
    # Imported here, because no other inspection needs torch.
    from finetune_core.inspection.deep import inspect_deeply
    from finetune_core.models.catalogue import PACKAGED, backbone_info, default_image_size
    from finetune_core.models.weights import download, fetch_description

    name = backbone or PACKAGED
    yield from with_phase("download", fetch_description(name))
    if not (info := backbone_info(name)).is_ready:
        yield from with_phase("download", download(info))
    size = default_image_size(name)
    return (yield from inspect_deeply(dataset, name, size, fit, map_too=False))


def print_inspection(inspection: Inspection) -> None:
    """Print a data set, its findings, and the linear probe by layer."""
    out.print(inspection.to_text())
    if changes := inspection.describe_edits():
        out.print(escape(changes))
    print_table(*inspection.class_rows())
    for severity, message in inspection.finding_rows():
        out.print(f"[bold]{severity}[/bold]: {escape(escape_line(message))}")
    if not inspection.findings:
        out.print("Nothing looks wrong.")
    if inspection.deep and inspection.deep.probes:
        print_table(*inspection.probe_rows())
        out.print(escape(inspection.describe_advice()))
    for line in inspection.describe_shifts():
        out.print(line)

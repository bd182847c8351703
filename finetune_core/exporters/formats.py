"""Export of a run to a directory: complete or not at all."""

import io
import os
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_core.errors import ExportError, is_out_of_memory
from finetune_core.exporters.apart import export_in_subprocess
from finetune_core.exporters.card import write_card
from finetune_core.exporters.catalogue import FORMATS, Format
from finetune_core.exporters.measure import Measurement
from finetune_core.exporters.source import load_source
from finetune_core.files import copy_folder_mode, is_link, staging_folder, stat_regular
from finetune_core.markup import paragraphs
from finetune_core.models.nearest import NearestNeighbours
from finetune_core.runs.record import EVENTS_FILE
from finetune_core.runs.store import Run
from finetune_core.training.checkpoints.files import BEST, checkpoint_path
from finetune_core.work import Work, finish

_PREDICT_SCRIPT = Path(__file__).with_name("standalone") / "predict.py"


@dataclass(frozen=True)
class ExportResult:
    """An export on disk.

    Attributes:
        format: one of ``FORMATS``.
        folder: directory of the export.
        files: names of the files in ``folder``.
        checked: result of the comparison with the original network. Empty if none is needed.
        measured: scores of the exported file. None if the export holds no network.
    """

    format: str
    folder: Path
    files: tuple[str, ...]
    checked: dict[str, Any]
    measured: Measurement | None = None

    def to_lines(self) -> list[str]:
        """Return one line each on the files, the check and the scores of the export."""
        lines = [f"{FORMATS[self.format].title} in {self.folder}: {', '.join(self.files)}"]
        if "largest_difference" in self.checked:
            batches = ", ".join(map(str, self.checked["batches"]))
            lines.append(
                f"Checked with {self.checked['with']} at batch sizes {batches}: logits differ by "
                f"at most {self.checked['largest_difference']:.1g} of the largest "
                f"({self.checked['tolerance']:g} is allowed)."
            )
        return [*lines, *([self.measured.to_text()] if self.measured else [])]

    def __repr__(self) -> str:
        return f"<Exported: {self.to_lines()[0]}>"

    def _repr_html_(self) -> str:
        return paragraphs(*self.to_lines())


def export_run(run: Run, format: str, out: Path | None = None) -> ExportResult:
    """Export a run, without progress.

    Raises:
        FinetuneError: as ``export_in_steps``.
    """
    return finish(export_in_steps(run, format, out))


def export_in_steps(
    run: Run, format: str, out: Path | None = None, roots: Sequence[Path] = ()
) -> Work[ExportResult]:
    """Export a run to a directory, step by step. A failed export leaves nothing behind.

    An exported network is read back and evaluated on the images of the run's own evaluation.

    Args:
        run: the run to export.
        format: one of ``FORMATS``.
        out: a new or empty directory. None means the run's own directory, where an earlier export
            of the same format is replaced.
        roots: directories whose images may be read. Empty means all.

    Returns:
        The finished export.

    Raises:
        FinetuneError: if the run cannot be exported in this format or the directory cannot be
            written.
    """
    export_format = _get_format(format)
    target = _resolve_own_folder(run, format) if out is None else _resolve_new_folder(out)
    source = None if export_format.events else load_source(run, roots)
    if (
        source
        and export_format.has_network
        and any(isinstance(module, NearestNeighbours) for module in source.network.model.modules())
    ):
        network_name = "one of its networks" if source.network.members else "it"
        raise ExportError(
            f"{run.run_id} cannot be exported as a plain network: {network_name} classifies by its "
            "nearest training images. A linear probe can."
        )
    measured: Measurement | None = None
    try:
        with staging_folder(target.parent, "export") as staging:
            new_folder = staging / "new"
            new_folder.mkdir()
            checked = export_format.load_writer()(source or run, new_folder)
            if source and export_format.has_network:
                checked, measured = yield from checked
                write_card(source, new_folder, format, measured)
                shutil.copyfile(_PREDICT_SCRIPT, new_folder / _PREDICT_SCRIPT.name)
            if target.is_dir():
                copy_folder_mode(target, new_folder)
            if os.path.lexists(target):
                target.rename(staging / "old")
            new_folder.rename(target)
    except OSError as error:
        if is_out_of_memory(error):
            raise
        raise ExportError(f"The export cannot be written to {target}: {error}") from None
    files = tuple(file.relative_to(target).as_posix() for file in _list_files(target))
    return ExportResult(format, target, files, checked, measured)


def export_from_app(run: Run, format: str, roots: Sequence[Path]) -> Work[None]:
    """Export into the run's own directory from a process that may be training.

    A format with ``apart`` is exported in a subprocess.

    Raises:
        FinetuneError: as ``export_in_steps``.
    """
    if _get_format(format).apart:
        yield from export_in_subprocess(run, format, roots)
    else:
        yield from export_in_steps(run, format, roots=roots)


def export_path(run: Run, format: str) -> Path:
    """Return the directory of a run's export, unless the caller names another one."""
    return run.run_dir / "export" / format


def find_export(run: Run, format: str) -> Path | None:
    """Return the directory of a finished export, or None.

    An export counts only if it is newer than the weights or events that it was made from.
    """
    folder = export_path(run, format)
    if _find_link(folder) or not folder.is_dir():
        return None
    origin = (
        run.run_dir / EVENTS_FILE if FORMATS[format].events else checkpoint_path(run.run_dir, BEST)
    )
    status = stat_regular(origin)
    return folder if status and folder.stat().st_mtime_ns >= status.st_mtime_ns else None


def zip_folder(folder: Path, name: str) -> bytes:
    """Return a ZIP archive of a directory's files, below a folder ``name``.

    The files are stored uncompressed, because weights hardly get smaller.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in _list_files(folder):
            archive.write(file, f"{name}/{file.relative_to(folder).as_posix()}")
    return buffer.getvalue()


def _list_files(folder: Path) -> list[Path]:
    """List the files below a directory, without following links."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def _resolve_new_folder(out: Path) -> Path:
    try:
        target, is_linked = out.expanduser().resolve(), is_link(out.expanduser())
        is_taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    except (OSError, RuntimeError, ValueError) as error:
        raise ExportError(f"{out} cannot be written to: {error}.") from None
    if is_linked:
        raise ExportError(f"{out} is a link, which is not followed: name the folder itself.")
    if is_taken:
        raise ExportError(f"{target} is there already and is not empty: name a new folder.")
    return target


def _resolve_own_folder(run: Run, format: str) -> Path:
    folder = export_path(run, format).absolute()
    if link := _find_link(folder):
        raise ExportError(
            f"{link} is a link, and what it leads to is not Thaw's to replace. Remove the "
            "link, or name another folder."
        )
    return folder


def _find_link(folder: Path) -> Path | None:
    """Return a link on the path from a run directory to an export, or None.

    A copied or shared run directory may contain links that lead anywhere.
    """
    return next((one for one in (folder.parent, folder) if one.is_symlink()), None)


def _get_format(name: str) -> Format:
    if name not in FORMATS:
        raise ExportError(f"There is no format {name!r}; there are {', '.join(FORMATS)}.")
    return FORMATS[name]

"""How a run is exported: whole or not at all."""

import io
import os
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_core.errors import ExportError, is_out_of_memory
from finetune_core.exporters.apart import export_apart
from finetune_core.exporters.card import write_card
from finetune_core.exporters.catalogue import FORMATS, Format
from finetune_core.exporters.measure import Measured
from finetune_core.exporters.source import load_source
from finetune_core.files import copy_folder_mode, is_link, regular_file, staging_folder
from finetune_core.markup import paragraphs
from finetune_core.runs.record import EVENTS_FILE
from finetune_core.runs.store import Run
from finetune_core.training.checkpoints import BEST, checkpoint_path
from finetune_core.training.nearest import NearestNeighbours
from finetune_core.work import Work, finish

_EXAMPLE = Path(__file__).with_name("standalone") / "predict.py"


@dataclass(frozen=True)
class Exported:
    """An export on disk.

    Attributes:
        files: names in the folder.
        checked: what was compared before it was handed over; empty where nothing has to be.
        measured: what the exported file is worth; None where it holds no network.
    """

    format: str
    folder: Path
    files: tuple[str, ...]
    checked: dict[str, Any]
    measured: Measured | None = None

    def in_words(self) -> list[str]:
        """What was made and where, what was checked, what the file is worth: a line each."""
        lines = [f"{FORMATS[self.format].title} in {self.folder}: {', '.join(self.files)}"]
        if "largest_difference" in self.checked:
            batches = ", ".join(map(str, self.checked["batches"]))
            lines.append(
                f"Checked with {self.checked['with']} at batch sizes {batches}: logits differ by at most "
                f"{self.checked['largest_difference']:.1g} of the largest ({self.checked['tolerance']:g} is allowed)."
            )
        return [*lines, *([self.measured.in_words()] if self.measured else [])]

    def __repr__(self) -> str:
        return f"<Exported: {self.in_words()[0]}>"

    def _repr_html_(self) -> str:
        return paragraphs(*self.in_words())


def export_run(run: Run, format: str, out: Path | None = None) -> Exported:
    """``exporting`` to its end.

    Raises:
        FinetuneError: as ``exporting``.
    """
    return finish(exporting(run, format, out))


def exporting(
    run: Run, format: str, out: Path | None = None, roots: Sequence[Path] = ()
) -> Work[Exported]:
    """Export a run into a folder: all of it, or nothing. A network is read back and asked about the images that the run was evaluated on.

    Args:
        format: one of ``FORMATS``.
        out: a new or empty folder; in the run's own when None, where an earlier export is replaced.
        roots: when given, images that lie elsewhere are not read.

    Raises:
        FinetuneError: when the run cannot be exported in this form, or the folder cannot be written.
    """
    chosen = _format(format)
    target = _own_folder(run, format) if out is None else _new_folder(out)
    source = None if chosen.events else load_source(run, roots)
    if (
        source
        and chosen.network
        and any(isinstance(module, NearestNeighbours) for module in source.network.model.modules())
    ):
        which = "one of its networks" if source.network.members else "it"
        raise ExportError(
            f"{run.run_id} cannot be exported as a plain network: {which} classifies by its nearest training images. A linear probe can."
        )
    measured: Measured | None = None
    try:
        with staging_folder(target.parent, "export") as staging:
            made = staging / "new"
            made.mkdir()
            checked = chosen.load_writer()(source or run, made)
            if source and chosen.network:
                checked, measured = yield from checked
                write_card(source, made, format, measured)
                shutil.copyfile(_EXAMPLE, made / _EXAMPLE.name)
            if target.is_dir():
                copy_folder_mode(target, made)
            if os.path.lexists(target):
                target.rename(staging / "old")
            made.rename(target)
    except OSError as error:
        if is_out_of_memory(error):
            raise
        raise ExportError(f"The export cannot be written to {target}: {error}") from None
    files = tuple(file.relative_to(target).as_posix() for file in _files(target))
    return Exported(format, target, files, checked, measured)


def export_from_app(run: Run, format: str, roots: Sequence[Path]) -> Work[None]:
    """``exporting`` into the run's own folder, from a process that trains meanwhile: where it has to be, in another process.

    Raises:
        FinetuneError: as ``exporting``.
    """
    if _format(format).apart:
        yield from export_apart(run, format, roots)
    else:
        yield from exporting(run, format, roots=roots)


def export_folder(run: Run, format: str) -> Path:
    """Where a run's export goes unless another folder is named."""
    return run.run_dir / "export" / format


def finished_export(run: Run, format: str) -> Path | None:
    """The folder of an export that is there and was made from the weights or events that the run has now, else None."""
    folder = export_folder(run, format)
    if _link_to(folder) or not folder.is_dir():
        return None
    origin = (
        run.run_dir / EVENTS_FILE if FORMATS[format].events else checkpoint_path(run.run_dir, BEST)
    )
    trained = regular_file(origin)
    return folder if trained and folder.stat().st_mtime_ns >= trained.st_mtime_ns else None


def zipped(folder: Path, name: str) -> bytes:
    """A ZIP of a folder's files, below a folder ``name``. Weights hardly get smaller, so nothing is compressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in _files(folder):
            archive.write(file, f"{name}/{file.relative_to(folder).as_posix()}")
    return buffer.getvalue()


def _files(folder: Path) -> list[Path]:
    """The files in a folder; none that a link leads to."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def _new_folder(out: Path) -> Path:
    try:
        target, linked = out.expanduser().resolve(), is_link(out.expanduser())
        taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    except (OSError, RuntimeError, ValueError) as error:
        raise ExportError(f"{out} cannot be written to: {error}.") from None
    if linked:
        raise ExportError(f"{out} is a link, which is not followed: name the folder itself.")
    if taken:
        raise ExportError(f"{target} is there already and is not empty: name a new folder.")
    return target


def _own_folder(run: Run, format: str) -> Path:
    folder = export_folder(run, format).absolute()
    if link := _link_to(folder):
        raise ExportError(
            f"{link} is a link, and what it leads to is not Thaw's to replace. Remove the link, or name another folder."
        )
    return folder


def _link_to(folder: Path) -> Path | None:
    """The link on the way from a run's folder to that of an export, if there is one: a copied or shared run's may lead anywhere."""
    return next((one for one in (folder.parent, folder) if one.is_symlink()), None)


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise ExportError(f"There is no format {name!r}; there are {', '.join(FORMATS)}.")
    return FORMATS[name]

"""The table that every metric, gallery and comparison is computed from.

It has one row per image that the run did not train on.
"""

import io
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from finetune_core.data.splits import TEST, VAL
from finetune_core.errors import RunError
from finetune_core.files import describe_problem, open_regular, stat_regular, write_bytes

PREDICTIONS_FILE = "predictions.parquet"
# Precision of a run's final predictions: what is evaluated is what ships.
FINAL_PRECISION: Final = "fp32"
# Nanoseconds, as ``predictions_mtime`` returns.
Moment = Annotated[int, Field(ge=0, lt=2**63)]
_COLUMNS = ["id", "split", "label", "logits"]
# Of the file, and of its decompressed content.
_MOST_BYTES = 2**32
_MOST_LOGITS = 2**29
_LONGEST_ID, _LONGEST_SPLIT = 4096, 16  # bytes
# The codecs that are written. Files of others can be tiny and decompress to an enormous size.
_CODECS = {"SNAPPY", "UNCOMPRESSED"}
_PRECISION = b"thaw.precision"  # key in the file's metadata
_PRECISIONS = ("fp32", "bf16", "fp16")


def prediction_table(
    ids: pd.Series, split: str | np.ndarray, labels: np.ndarray, logits: np.ndarray
) -> pd.DataFrame:
    """Return a table ``id, split, label, logits`` (float32 ``[classes]`` a row)."""
    return pd.DataFrame(
        {
            "id": ids.to_numpy(),
            "split": split,
            "label": labels,
            "logits": list(logits.astype(np.float32)),
        }
    )


def save_predictions(run_dir: Path, table: pd.DataFrame, precision: str) -> None:
    """Write the table and the precision of its logits, completely or not at all.

    Args:
        run_dir: The run directory.
        table: Columns ``id, split, label, logits``, as of ``prediction_table``.
        precision: ``fp32``, ``bf16`` or ``fp16``.
    """
    write_table(run_dir / PREDICTIONS_FILE, table, {_PRECISION: precision.encode()})


def write_table(path: Path, table: pd.DataFrame, facts: Mapping[bytes, bytes]) -> None:
    """Write a table of predictions with metadata, completely or not at all.

    Args:
        path: The file to write.
        table: The table of predictions.
        facts: Metadata by key.

    Raises:
        OSError: If it cannot be written.
    """
    stored = pa.Table.from_pandas(table, preserve_index=False)
    stored = stored.replace_schema_metadata({**stored.schema.metadata, **facts})
    buffer = io.BytesIO()
    pq.write_table(stored, buffer, write_page_checksum=True)
    write_bytes(path, buffer.getvalue(), make_folder=False)


def remove_predictions(run_dir: Path) -> None:
    """Remove the predictions of a run that starts again, if there are any."""
    (run_dir / PREDICTIONS_FILE).unlink(missing_ok=True)


def predictions_mtime(run_dir: Path) -> int:
    """Return when the run's predictions were written, in nanoseconds, or 0 if there are none."""
    status = stat_regular(run_dir / PREDICTIONS_FILE)
    return status.st_mtime_ns if status else 0


def predictions_precision(run_dir: Path) -> str | None:
    """Return the precision that the run's logits were computed in.

    It is None where the file does not say so: earlier versions did not.
    """
    try:
        value = read_fact(run_dir / PREDICTIONS_FILE, _PRECISION)
    except (OSError, ValueError):
        # Missing or damaged. Reading the table reports that.
        return None
    return next((precision for precision in _PRECISIONS if value == precision.encode()), None)


def read_fact(path: Path, key: bytes) -> bytes:
    """Return a file's metadata under a key of ``write_table``, without reading its rows.

    It is empty where the file has none.

    Raises:
        OSError: If the file is missing, cannot be read, or is damaged.
        ValueError: If the file is damaged.
    """
    with open(open_regular(path), "rb") as file:
        try:
            value: bytes = (pq.read_metadata(file).metadata or {}).get(key, b"")
        except pa.ArrowException as error:
            raise ValueError(str(error)) from None
    return value


def load_predictions(run_dir: Path, classes: int | None = None) -> pd.DataFrame:
    """Load the predictions of a run.

    Args:
        run_dir: The run directory.
        classes: Number of classes, if known. There must be as many logits.

    Raises:
        RunError: If the run has none, or they are damaged.
    """
    try:
        return read_table(run_dir / PREDICTIONS_FILE, (VAL, TEST), classes)
    except FileNotFoundError:
        raise RunError(
            f"{run_dir} has nothing to evaluate: the run has not ended, or it ended before its "
            "first epoch did."
        ) from None


def read_table(path: Path, splits: Collection[str], classes: int | None = None) -> pd.DataFrame:
    """Read ``id, split, label, logits`` from a file of predictions in a run directory.

    Args:
        path: The file to read.
        splits: Splits that the file may name.
        classes: Number of logits per image, if known.

    Raises:
        FileNotFoundError: If there is none.
        RunError: If it is damaged.
    """
    try:
        with open(open_regular(path), "rb") as file:
            found = pq.ParquetFile(
                file, read_dictionary=["id", "split"], page_checksum_verification=True
            )
            return _read_checked(found, splits, classes)
    except FileNotFoundError:
        raise
    except (
        OSError,
        pa.ArrowException,
        ValueError,
        LookupError,
        TypeError,
        OverflowError,
        MemoryError,
    ) as error:
        raise RunError(f"{path.parent}: {describe_problem(path, error)}.") from None


def _read_checked(
    file: pq.ParquetFile, splits: Collection[str], classes: int | None
) -> pd.DataFrame:
    """Read a table of predictions and check its columns and values.

    Raises:
        ValueError: If it is no table of predictions.
    """
    width = _check_width(file.metadata, classes)
    table = file.read(columns=_COLUMNS, use_threads=False, use_pandas_metadata=False)
    table.validate(full=True)
    if table.schema.names != _COLUMNS or any(column.null_count for column in table.columns):
        raise ValueError(f"it has no columns {', '.join(_COLUMNS)}, or some are not filled")
    ids, split, labels, logits = table.columns
    if not pa.types.is_integer(labels.type) or not pa.types.is_list(logits.type):
        raise ValueError("its labels or logits are of another kind")
    values = logits.combine_chunks().flatten()
    if values.type not in (pa.float32(), pa.float64()) or values.null_count:
        raise ValueError("its logits are no numbers")
    if pc.any(pc.not_equal(pc.list_value_length(logits), width)).as_py():
        raise ValueError("its rows do not have a logit for each class")
    frame = pd.DataFrame(
        {
            "id": _decode_texts(ids, _LONGEST_ID),
            "split": _decode_texts(split, _LONGEST_SPLIT),
            "label": labels.to_numpy().astype(np.int64),
        }
    )
    matrix = values.to_numpy().astype(np.float32, copy=False).reshape(-1, width)
    _check_values(frame, matrix, splits)
    return frame.assign(logits=list(matrix))


def _check_width(metadata: pq.FileMetaData, classes: int | None) -> int:
    """Return the number of logits per row, from the file's metadata.

    It is checked before anything large is read.
    """
    rows, groups = (
        metadata.num_rows,
        [metadata.row_group(index) for index in range(metadata.num_row_groups)],
    )
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    if not rows:
        raise ValueError("it has no rows")
    if sum(column.total_uncompressed_size for column in columns) > _MOST_BYTES:
        raise ValueError("it is larger than can be")
    if any(column.compression not in _CODECS for column in columns):
        raise ValueError("it is compressed in another way")
    logits = sum(
        column.num_values
        for column in columns
        if column.path_in_schema.partition(".")[0] == "logits"
    )
    width: int = logits // rows
    if logits > _MOST_LOGITS or width < 1 or logits != rows * width:
        raise ValueError(f"it has {logits} logits for {rows} images")
    if classes is not None and width != classes:
        raise ValueError(f"it has {width} logits per image, and the run has {classes} classes")
    return width


def _decode_texts(column: pa.ChunkedArray, longest: int) -> pd.Series:
    """Return a column of texts, checked as a dictionary first.

    A long text may be repeated without end.
    """
    chunks = [
        chunk.dictionary_encode() if not pa.types.is_dictionary(chunk.type) else chunk
        for chunk in column.chunks
    ]
    for chunk in chunks:
        if chunk.dictionary.type not in (pa.string(), pa.large_string()):
            raise ValueError("its images or splits have no names")
        if len(chunk) and (pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0) > longest:
            raise ValueError("a name in it is too long")
    texts: pd.Series = pa.chunked_array(
        [chunk.dictionary_decode() for chunk in chunks], pa.string()
    ).to_pandas()
    return texts


def _check_values(found: pd.DataFrame, logits: np.ndarray, splits: Collection[str]) -> None:
    if not set(found["split"]) <= set(splits):
        raise ValueError("it names splits that are not evaluated")
    if found.duplicated(["split", "id"]).any():
        raise ValueError("an image is in it twice")
    if any("\0" in name or not name or ".." in PurePosixPath(name).parts for name in found["id"]):
        raise ValueError("an image's name leads out of its folder")
    if found["label"].min() < 0 or found["label"].max() >= logits.shape[1]:
        raise ValueError("a label in it is no class")
    if not np.isfinite(logits).all():
        raise ValueError("a logit in it is no finite number")

"""The rows of tables as objects: CSV and TSV, Parquet and Arrow. Every cell of a CSV file is the text that is there."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from lora_retriever.errors import one_line_of

if TYPE_CHECKING:
    import pyarrow


COLUMN_FIELDS = ("inputs", "targets", "task", "domain", "metric", "options")
"""The fields of rows that may have other names in a table: `columns` of a profile, and `--columns`."""
DEFAULT_FIELDS = ("task", "domain", "metric")
"""The fields that may have one value for all rows: `defaults` of a profile, and `--defaults`."""
SEPARATORS = ("\t", ",", ";")
"""The characters that may stand between two cells of a CSV file.

The separator that gives the first line most cells is used.
"""
PARQUET, ARROW, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
BEGINNINGS = (PARQUET, ARROW, ARROW_STREAM)
"""The first bytes of a Parquet file, of an Arrow file, and of an Arrow stream, which `save_to_disk` writes."""
BATCH_ROWS = 1024
"""Number of rows of a Parquet file that are unpacked at once."""


class WrittenFloat(float):
    """A number with a fraction or an exponent, and the `text` of the number in its file."""

    text: str

    @staticmethod
    def of(text: str) -> WrittenFloat:
        """The number that a text writes."""
        number = WrittenFloat(text)
        number.text = text
        return number


def separator_of(text: str) -> str | None:
    """The separator of a CSV or TSV file, by its first line. None: the text is not a table."""
    first = text.lstrip(" \r\n\ufeff")
    if first.startswith(("[", "{", "<")):
        return None
    line = io.StringIO(first[:65536].replace("\0", ""), newline=None).readline()
    cells = {separator: len(next(csv.reader([line], delimiter=separator), [])) for separator in SEPARATORS}
    best = max(SEPARATORS, key=lambda separator: cells[separator])
    return best if cells[best] > 1 else None


def csv_objects(text: str, separator: str) -> Iterator[dict[str, Any]]:
    """The rows of a CSV file as objects of texts, by the names in the file's first row.

    Columns without a name and empty lines are left out.

    Raises:
        ValueError: a name is there twice, a row has another number of cells than the first row, or a quoted cell is not
            closed. The message names the line.
    """
    before = csv.field_size_limit(len(text) + 1)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        rows = (row for row in reader if row)
        names = [name.strip() for name in next(rows)]
        _check_names(names)
        for number, row in enumerate(rows, start=1):
            if len(row) != len(names):
                raise ValueError(
                    f"row {number}, which ends in line {reader.line_num}: {len(row)} cells, but the first row has "
                    f"{len(names)}; quote a cell that has {separator!r} in it"
                )
            yield {name: cell for name, cell in zip(names, row, strict=True) if name}
    except csv.Error as error:
        reason = "a quotation mark is opened and not closed" if "unexpected end" in str(error) else str(error)
        raise ValueError(f"line {reader.line_num}: not valid CSV ({reason})") from error
    finally:
        csv.field_size_limit(before)


def arrow_objects(content: bytes, at_most: int) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, an Arrow file or an Arrow stream as objects.

    A column of class labels of `datasets` has the names of the labels in place of their numbers.

    Args:
        at_most: maximum size of the unpacked rows, in bytes.

    Raises:
        ValueError: the file is damaged or too large, a column's name is there twice, or a number is NaN or infinite.
    """
    import pyarrow

    number, size = 0, 0
    try:
        schema, batches = _open(content)
        _check_names(schema.names)
        labels = _labels(schema)
        short = {field.name: text for field in schema if (text := _short_float(field.type)) is not None}
        for batch in batches:
            size += batch.nbytes
            if size > at_most:
                raise ValueError(f"larger than {at_most >> 20} MiB unpacked, the maximum; divide the file")
            for row in batch.to_pylist():
                number += 1
                for name, value in row.items():
                    if not _is_finite(value):
                        raise ValueError(f"row {number}: column {name!r}: {value} is no finite number")
                    if name in short and value is not None:
                        row[name] = _written(value, short[name])
                    if name in labels and isinstance(value, int):
                        row[name] = labels[name][value] if 0 <= value < len(labels[name]) else None
                yield row
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"damaged ({one_line_of(error)}); copy the file again") from error


def _open(content: bytes) -> tuple[pyarrow.Schema, Iterable[pyarrow.RecordBatch]]:
    """The columns and the rows of a file."""
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    buffer = pyarrow.BufferReader(content)
    if content.startswith(PARQUET):
        file = pyarrow.parquet.ParquetFile(buffer)
        return file.schema_arrow, file.iter_batches(BATCH_ROWS)
    if content.startswith(ARROW):
        file = pyarrow.ipc.open_file(buffer)
        return file.schema, (file.get_batch(place) for place in range(file.num_record_batches))
    stream = pyarrow.ipc.open_stream(buffer)
    return stream.schema, stream


def _labels(schema: pyarrow.Schema) -> dict[str, list[str]]:
    """The names of class labels, by the column's name. `datasets` keeps these names beside the columns."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {
            name: [str(label) for label in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):  # a file that datasets did not write
        return {}


def _short_float(kind: pyarrow.DataType) -> Callable[[float], str] | None:
    """The shortest text of a number of a column of 16 or 32 bits, or of lists of such numbers. None: another column.

    Python reads such a number into 64 bits: 0.1 becomes 0.10000000149011612.
    """
    import numpy as np
    import pyarrow

    while pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind):
        kind = kind.value_type
    if pyarrow.types.is_float32(kind):
        return lambda value: str(np.float32(value))
    if pyarrow.types.is_float16(kind):
        return lambda value: str(np.float16(value))
    return None


def _written(value: Any, text: Callable[[float], str]) -> Any:
    if isinstance(value, list):
        return [_written(part, text) for part in value]
    return value if value is None else WrittenFloat.of(text(value))


def _check_names(names: list[str]) -> None:
    named = [name for name in names if name]
    for name in named:
        if named.count(name) > 1:
            raise ValueError(f"the column {name[:60]!r} is there more than once; rename one")


def _is_finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)

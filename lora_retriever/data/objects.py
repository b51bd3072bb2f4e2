"""The objects of a user's file, checked before any other code reads them.

A file is one JSON list of objects, one JSON object with such a list (`{"data": […]}`), JSON lines, or a table: CSV,
TSV, Parquet or Arrow (`tables`). Texts are in UTF-8 with or without a byte order mark. Every file may be packed by
gzip. Any other file is refused with one message: the kind of the file, the place of the mistake, and what to do.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from gzip import GzipFile
from pathlib import Path
from typing import Any, cast

from lora_retriever.data.tables import (
    ARROW,
    ARROW_STREAM,
    BEGINNINGS,
    PARQUET,
    WrittenFloat,
    arrow_objects,
    csv_objects,
    separator_of,
)
from lora_retriever.errors import UserError
from lora_retriever.escaping import for_shell, one_line
from lora_retriever.files import read_bytes

MAX_FILE_BYTES = 256 << 20
"""Maximum size of a file, unpacked, in bytes."""
MAX_DIGITS = 1000
"""Maximum number of digits of a number. Python itself refuses integers of more than 4,300 digits."""
ROW_FIELDS = frozenset({"inputs", "targets", "task", "domain", "metric", "model_name", "sample", "predicted_answer"})
"""Fields that show that an object is a row or a pool entry, and not a wrapper around a list of such objects."""

# A byte order mark may stand within a file: the file may have been made of several files that each begin with a mark.
_SPACE = re.compile("[ \t\r\n\ufeff]*")
_WRAPPED = re.compile(r'\{\s*"([^"\\]*)"\s*:\s*(?=\[)')  # an object whose first field is a list
_NO_TABLE = "the cells of a first line must stand apart by tab, comma or semicolon"
_UNREAD = "; unpack the file"
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (PARQUET, "a Parquet file, and not a text"),
    (ARROW, "an Arrow file, and not a text"),
    (ARROW_STREAM, "an Arrow stream, and not a text"),
    (b"BZh", "packed by bzip2" + _UNREAD),
    (b"\xfd7zXZ\x00", "packed by xz" + _UNREAD),
    (b"\x28\xb5\x2f\xfd", "packed by zstd" + _UNREAD),
    (b"\x1f\x8b", "packed by gzip twice" + _UNREAD),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive" + _UNREAD),
    (b"SQLite format 3\x00", "an SQLite database; write its rows as JSON lines"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word file; save the table as CSV"),
    (b"\x80\x04", "a pickle, which can run code; write its rows as JSON lines"),
    (b"\x80\x05", "a pickle, which can run code; write its rows as JSON lines"),
    (b"\x93NUMPY", "a numpy array; write its rows as JSON lines"),
    (b"%PDF", "a PDF"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself; run: git lfs pull"),
)


def read_objects(path: Path, may_have_nan: bool = False) -> list[dict[str, Any]]:
    """The objects of a file, in the file's order.

    Fractions of JSON are `WrittenFloat`s. Every cell of a CSV file is a text. Texts are unchanged. `plain_text` later
    refuses texts that other programs cannot read.

    Args:
        may_have_nan: whether NaN and Infinity are read as numbers, which JSON does not have. Python writes these
            numbers into results.

    Raises:
        UserError: the file cannot be read, is another kind of file, is empty or too large, or has a line or a row that
            is wrong: no JSON, no object, a key twice, NaN or Infinity, too many digits, too many levels, too few cells.
    """
    content = _content(path)
    try:
        if content.startswith(BEGINNINGS):
            return _some(path, arrow_objects(content, MAX_FILE_BYTES))
        text = _text(path, content)
        separator = separator_of(text)
        if separator is not None:
            return _some(path, csv_objects(text, separator))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    if text.lstrip(" \t\r\n\ufeff").startswith("<"):
        raise UserError(
            f"{path}: this is HTML or XML, perhaps a page about the file instead of the file; download the file itself"
        )
    objects = []
    for number, value in enumerate(_values(path, text, _LENIENT if may_have_nan else _STRICT), start=1):
        if not isinstance(value, dict):
            raise UserError(f"{path}: row {number}: expected an object, found {_kind(value)}")
        objects.append(value)
    return _some(path, objects)


def read_text(path: Path) -> str:
    """The text of a file, unpacked, without its byte order mark.

    Raises:
        UserError: the file cannot be read, is another kind of file, is empty or too large.
    """
    return _text(path, _content(path))


def _some(path: Path, objects: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The list of objects, which is not empty."""
    found = list(objects)
    if not found:
        raise UserError(f"{path}: the file holds no rows")
    return found


def _text(path: Path, content: bytes) -> str:
    """The text of a file's unpacked bytes."""
    kind = _kind_of_file(path, content)
    if kind:
        raise UserError(f"{path}: this is {kind}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: line {line}: not UTF-8 (byte 0x{content[error.start]:02x}); if the file is from Windows, convert "
            f"it: iconv -f WINDOWS-1252 -t UTF-8 {for_shell(str(path))} > NEW_FILE"
        ) from error
    if not text.strip(" \t\r\n\ufeff"):
        raise UserError(f"{path}: the file is empty")
    return text


def _content(path: Path) -> bytes:
    """The bytes of a file, unpacked if gzip packed them."""
    too_large = f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB, the maximum; divide the file"
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(too_large)
        content = read_bytes(path, MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL, or half of a surrogate pair, in the path
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if content.startswith(b"\x1f\x8b"):
        try:
            content = GzipFile(fileobj=io.BytesIO(content)).read(MAX_FILE_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: packed by gzip and damaged ({error}); pack or copy the file again") from error
    if len(content) > MAX_FILE_BYTES:
        raise UserError(too_large)
    return content


def _kind_of_file(path: Path, content: bytes) -> str | None:
    """The kind of a file that is not UTF-8 text, and what to do. None: its first bytes are of no known kind."""
    name = for_shell(str(path))
    if content[:64].count(0) == min(len(content), 64) > 0:
        return "damaged: the file begins with NUL bytes, as after a crash; copy the file again"
    if content.startswith(b"PK\x03\x04"):
        return _kind_of_zip(content)
    for beginning, kind in _BEGINNINGS:
        if content.startswith(beginning):
            return kind
    if content[257:262] == b"ustar":
        return "a tar archive" + _UNREAD
    if encoding := _wide_encoding(content[:4]):
        return f"{encoding}, not UTF-8; convert it: iconv -f {encoding} -t UTF-8 {name} > NEW_FILE"
    return None


def _wide_encoding(first: bytes) -> str | None:
    """The encoding of a text whose first four bytes these are, if two or four bytes make a character."""
    if first in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        return "UTF-32"
    if first.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    if b"\0" not in first:
        return None
    return ("UTF-32" if first.count(0) > 2 else "UTF-16") + ("BE" if first[0] == 0 else "LE")


def _kind_of_zip(content: bytes) -> str:
    try:
        names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        names = []
    if any(name.startswith("xl/") for name in names):
        return "an Excel file; save the table as CSV"
    if names and all(name.endswith(".npy") for name in names):
        return "a file of numpy arrays; write its rows as JSON lines"
    return "a zip archive" + _UNREAD


def _values(path: Path, text: str, decoder: json.JSONDecoder) -> Iterable[Any]:
    """The values of a list, of the only list in an object, or of lines."""
    start = _skip_space(text, 0)
    if text[start] == "[":
        values, end = _list(path, text, decoder, start)
        if (end := _skip_space(text, end)) < len(text):
            raise UserError(f"{path}: line {_line(text, end)}: not valid JSON (more after the list's end)")
        return values
    wrapped = _WRAPPED.match(text, start)
    if wrapped and wrapped.group(1) not in ROW_FIELDS:  # read here, so that an error names the row within the list
        values, end = _list(path, text, decoder, wrapped.end())
        end = _skip_space(text, end)
        if _are_rows(values) and text[end : end + 1] == "}" and _skip_space(text, end + 1) == len(text):
            return values
    first, end = _value(path, text, decoder, start, "row 1")
    if isinstance(first, dict) and _skip_space(text, end) == len(text) and not ROW_FIELDS & first.keys():
        lists = [name for name, value in first.items() if isinstance(value, list) and _are_rows(value)]
        if len(lists) > 1:
            listed = ", ".join(map(_shown, lists[:8]))
            raise UserError(f"{path}: one object with several lists: {listed}; write the list of rows to its own file")
        if lists:
            return cast("list[Any]", first[lists[0]])
    return _lines(path, text, decoder, first, end)


def _are_rows(values: list[Any]) -> bool:
    """Whether a list in an object can be the list of the file's rows, and not a list of texts or numbers of one row."""
    return not values or isinstance(values[0], dict)


def _lines(path: Path, text: str, decoder: json.JSONDecoder, first: Any, end: int) -> Iterator[Any]:
    """The value `first`, which ends at `end`, and the values on the lines after it."""
    yield first
    number = 1
    while (start := _skip_space(text, end)) < len(text):
        number += 1
        if "\n" not in text[end:start] and "\r" not in text[end:start]:
            raise UserError(f"{path}: line {_line(text, start)}: not valid JSON (more after the object's end)")
        value, end = _value(path, text, decoder, start, f"row {number}")
        yield value


def _list(path: Path, text: str, decoder: json.JSONDecoder, start: int) -> tuple[list[Any], int]:
    """The values of the list that begins at `start`, and the position after the list."""
    values: list[Any] = []
    position = _skip_space(text, start + 1)
    if text[position : position + 1] == "]":
        return values, position + 1
    while True:
        value, end = _value(path, text, decoder, position, f"row {len(values) + 1}")
        values.append(value)
        position = _skip_space(text, end)
        if text[position : position + 1] == "]":
            return values, position + 1
        if text[position : position + 1] != ",":
            reason = "expected , or ] after a row" if position < len(text) else "the list has no end"
            raise UserError(f"{path}: line {_line(text, position)}: not valid JSON ({reason})")
        position = _skip_space(text, position + 1)


def _value(path: Path, text: str, decoder: json.JSONDecoder, start: int, where: str) -> tuple[Any, int]:
    """The JSON value that begins at `start`, and the position after it."""
    try:
        return decoder.raw_decode(text, start)
    except json.JSONDecodeError as error:
        no_table = "" if text[:start].strip() or text[start : start + 1] in "[{" else f", and no table: {_NO_TABLE}"
        raise UserError(f"{path}: line {error.lineno}: not valid JSON ({error.msg}){no_table}") from error
    except RecursionError as error:
        raise UserError(f"{path}: {where}: objects or lists in one another, too many levels deep") from error
    except ValueError as error:
        raise UserError(f"{path}: {where}: {error}") from error


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these fields, for `object_pairs_hook` of Python's JSON.

    Raises:
        ValueError: a field is there more than once.
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        repeated = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"field {_shown(repeated)} is there more than once; keep one")
    return content


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON; write null, a number or a text")


def bounded_integer(text: str) -> int:
    """The whole number of this text, for `parse_int` of Python's JSON.

    Raises:
        ValueError: the number has more than `MAX_DIGITS` digits.
    """
    return int(_bounded(text))


def _fraction(text: str) -> WrittenFloat:
    return WrittenFloat.of(_bounded(text))


def _bounded(text: str) -> str:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits, more than {MAX_DIGITS:,}; write it as a text")
    return text


_STRICT = json.JSONDecoder(
    object_pairs_hook=without_repeats, parse_constant=_constant, parse_int=bounded_integer, parse_float=_fraction
)
_LENIENT = json.JSONDecoder(object_pairs_hook=without_repeats, parse_int=bounded_integer, parse_float=_fraction)


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None  # the pattern matches the empty text
    return match.end()


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _shown(name: str) -> str:
    return repr(one_line(name if len(name) <= 60 else f"{name[:60]}…"))


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__

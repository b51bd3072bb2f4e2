"""Embeddings that another program computed, for `lora-retriever retrieval --embeddings FILE.npz`.

A file holds four arrays: `names` [n] of the adapters, `pool` [n, m, d] of their samples' embeddings, `tasks` [q] of the
rows, `queries` [q, d] of their inputs' embeddings. No pickle is read, so a file cannot bring code. Sizes are read from
the headers and compared with the file before any array is read, so a small file cannot take much memory.
"""

from __future__ import annotations

import math
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lora_retriever.analysis.retrieval.rankings import RetrievalData, describe
from lora_retriever.data.official import official_name
from lora_retriever.data.rows import PoolEntry, Row
from lora_retriever.errors import UserError
from lora_retriever.escaping import quoted
from lora_retriever.retrieval.encoders import Embeddings

ARRAYS = {"names": 1, "pool": 3, "tasks": 1, "queries": 2}
"""The arrays of a file and their numbers of dimensions."""
COMPRESSION = 100
"""Maximum size of an array, in multiples of its compressed size, beyond `SMALL`."""
SMALL = 64 << 20
"""Maximum size, in bytes, of an array that may be compressed by any factor."""


def read_embeddings(path: Path) -> RetrievalData:
    """The embeddings of a file; texts and domains are not known.

    Raises:
        UserError: the file is not readable, an array is missing, not finite, or of a wrong shape or type, an adapter is
            named twice, or a row's task has no adapter.
    """
    arrays = _read(path)
    for name, dimensions in ARRAYS.items():
        if name not in arrays:
            raise UserError(f"{path}: array {name!r} is missing (needed: {', '.join(ARRAYS)})")
        if arrays[name].ndim != dimensions or not arrays[name].size:
            raise UserError(
                f"{path}: array {name!r} has shape {arrays[name].shape}; it must have {dimensions} dimensions, none "
                "of them empty"
            )
    names, tasks = _texts(arrays["names"], "names", path), _texts(arrays["tasks"], "tasks", path)
    pool, queries = _vectors(arrays["pool"], "pool", path), _vectors(arrays["queries"], "queries", path)
    for array, others, letter in (("pool", "names", "n"), ("queries", "tasks", "q")):
        if len(arrays[array]) != len(arrays[others]):
            raise UserError(
                f"{path}: array {array!r} has {len(arrays[array])} entries and {others!r} {len(arrays[others])}; "
                f"the numbers must be equal ({letter})"
            )
    if pool.shape[2] != queries.shape[1]:
        raise UserError(f"{path}: 'pool' has dimension {pool.shape[2]} and 'queries' {queries.shape[1]}")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{path}: adapter {quoted(twice[0])} is in 'names' more than once")
    known = set(names)
    if unknown := [(row, task) for row, task in enumerate(tasks) if task not in known]:
        row, task = unknown[0]
        raise UserError(f"{path}: row {row} of 'tasks' is of task {quoted(task)}, of which 'names' has no adapter")
    for what, finite in (("adapter", np.isfinite(pool).all(axis=(1, 2))), ("row", np.isfinite(queries).all(axis=1))):
        if not finite.all():
            index = int(np.argmin(finite))
            named = repr(names[index]) if what == "adapter" else index
            raise UserError(f"{path}: {what} {named}: NaN or infinite values")
    return RetrievalData(names, tuple(pool), tasks, queries)


def with_texts(data: RetrievalData, pool: Sequence[PoolEntry], rows: Sequence[Row], path: Path) -> RetrievalData:
    """The same embeddings with the texts and domains of the pool and the rows that were embedded.

    Raises:
        UserError: the pool and the rows differ from the pool and the rows of the file, or their order differs.
    """
    _check_same("adapter", [*data.names], [entry.model_name for entry in pool], path)
    _check_same("row of task", [*data.tasks], [row.task for row in rows], path)
    for name, samples, entry in zip(data.names, data.pool, pool, strict=True):
        if len(samples) != len(entry.sample):
            raise UserError(
                f"{path}: adapter {name!r} has {len(samples)} samples, but {len(entry.sample)} in the pool file"
            )
    return replace(data, described=describe(pool, rows))


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """The needed arrays that the file has.

    Raises:
        UserError: the file is not readable, or holds something other than plain arrays of the stated sizes.
    """
    try:
        if not path.is_file():  # a device or a pipe could be read without end
            raise FileNotFoundError("there is no such file")
        with zipfile.ZipFile(path) as file:
            members = Counter(member.filename for member in file.infolist())
            return {name: _read_array(file, f"{name}.npy", members) for name in ARRAYS if f"{name}.npy" in members}
    except Exception as error:  # zipfile and numpy raise many kinds, such as RuntimeError for an encrypted array
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: no readable file of numpy arrays (.npz, nothing pickled): {reason}") from error


def _read_array(file: zipfile.ZipFile, name: str, members: Counter[str]) -> NDArray[Any]:
    """One array of a file.

    Raises:
        ValueError: the array is there twice, holds objects, or is not of the size that its header states.
    """
    if members[name] > 1:
        raise ValueError(f"{name} is in the file {members[name]} times")
    size, compressed = file.getinfo(name).file_size, file.getinfo(name).compress_size
    if size > max(SMALL, COMPRESSION * compressed):
        raise ValueError(f"{name} has {size} bytes, compressed to {compressed}: no embeddings compress like this")
    with file.open(name) as content:
        shape, dtype = _header(content)
        stated = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or min(shape, default=0) < 0 or stated > size:
            raise ValueError(f"{name} is {stated} bytes of type {dtype} by its header, but the file has {size} bytes")
    with file.open(name) as content:
        return np.lib.format.read_array(content, allow_pickle=False)


def _header(content: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The shape and the type that an array's header states."""
    version = np.lib.format.read_magic(content)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(content)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(content)
    return shape, dtype


def _texts(array: NDArray[Any], name: str, path: Path) -> tuple[str, ...]:
    """The names of an array; tasks of the official benchmark, and their adapters, get the official names."""
    if array.dtype.kind != "U":
        raise UserError(f"{path}: array {name!r} is of type {array.dtype}; it must hold texts")
    return tuple(map(official_name, array.tolist()))


def _vectors(array: NDArray[Any], name: str, path: Path) -> Embeddings:
    if array.dtype.kind != "f":
        raise UserError(f"{path}: array {name!r} is of type {array.dtype}; it must hold floating-point numbers")
    with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, which `read_embeddings` names
        return array.astype(np.float32)


def _check_same(what: str, embedded: list[str], named: list[str], path: Path) -> None:
    """Check that the adapters or tasks of the embeddings equal the names in the pool file or benchmark file."""
    for position, (here, there) in enumerate(zip_longest(embedded, named)):
        if here != there:
            raise UserError(
                f"{path}: {what} {quoted(here)} at position {position}, where the file named beside it has "
                f"{quoted(there)}; both must hold the same in the same order"
            )

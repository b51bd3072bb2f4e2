"""Embeddings that another program computed, as `lora-retriever retrieval --embeddings FILE.npz` reads them.

A file holds four arrays: `names` [n] of the adapters, `pool` [n, m, d] of their samples' embeddings, `tasks` [q] of the
rows, `queries` [q, d] of their inputs' embeddings. It is data, not code: nothing pickled is read.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_retriever.analysis.retrieval.rankings import RetrievalData, describe
from lora_retriever.data.rows import PoolEntry, Row
from lora_retriever.errors import UserError
from lora_retriever.retrieval.encoders import Embeddings

ARRAYS = {"names": 1, "pool": 3, "tasks": 1, "queries": 2}
"""The arrays of a file and their dimensions."""


def read_embeddings(path: Path) -> RetrievalData:
    """The embeddings of a file; texts and domains are not known.

    Raises:
        UserError: the file is no such file, an array is missing, of a wrong shape or kind, or not finite, an adapter is
            named twice, or a row's task has no adapter.
    """
    arrays = _read(path)
    names, tasks = _texts(arrays["names"], "names", path), _texts(arrays["tasks"], "tasks", path)
    pool, queries = _vectors(arrays["pool"], "pool", path), _vectors(arrays["queries"], "queries", path)
    for array, others, letter in (("pool", "names", "n"), ("queries", "tasks", "q")):
        if len(arrays[array]) != len(arrays[others]):
            raise UserError(
                f"{path}: array {array!r} has {len(arrays[array])} entries and {others!r} {len(arrays[others])}; "
                f"they must be as many ({letter})"
            )
    if pool.shape[2] != queries.shape[1]:
        raise UserError(f"{path}: 'pool' has dimension {pool.shape[2]} and 'queries' {queries.shape[1]}")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{path}: adapter {twice[0]!r} is in 'names' more than once")
    if unknown := [(row, task) for row, task in enumerate(tasks) if task not in names]:
        row, task = unknown[0]
        raise UserError(f"{path}: row {row} of 'tasks' is of task {task!r}, of which 'names' has no adapter")
    for what, finite in (("adapter", np.isfinite(pool).all(axis=(1, 2))), ("row", np.isfinite(queries).all(axis=1))):
        if not finite.all():
            place = int(np.argmin(finite))
            named = repr(names[place]) if what == "adapter" else place
            raise UserError(f"{path}: {what} {named}: NaN or infinite values")
    return RetrievalData(names, tuple(pool), tasks, queries)


def with_texts(data: RetrievalData, pool: Sequence[PoolEntry], rows: Sequence[Row], path: Path) -> RetrievalData:
    """The same with the texts and domains of the pool and the rows that were embedded.

    Raises:
        UserError: these are not the pool and the rows that the file holds, in its order.
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
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS if name in file}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: no readable file of numpy arrays (.npz, nothing pickled): {error}") from error
    for name, dimensions in ARRAYS.items():
        if name not in arrays:
            raise UserError(f"{path}: array {name!r} is missing (needed: {', '.join(ARRAYS)})")
        if arrays[name].ndim != dimensions or not arrays[name].size:
            raise UserError(
                f"{path}: array {name!r} has shape {arrays[name].shape}; it must have {dimensions} dimensions, none "
                "of them empty"
            )
    return arrays


def _texts(array: NDArray[Any], name: str, path: Path) -> tuple[str, ...]:
    if array.dtype.kind != "U":
        raise UserError(f"{path}: array {name!r} is of type {array.dtype}; it must hold texts")
    return tuple(array.tolist())


def _vectors(array: NDArray[Any], name: str, path: Path) -> Embeddings:
    if array.dtype.kind != "f":
        raise UserError(f"{path}: array {name!r} is of type {array.dtype}; it must hold floating-point numbers")
    return array.astype(np.float32)


def _check_same(what: str, embedded: list[str], named: list[str], path: Path) -> None:
    """That the file's adapters or tasks are those of the pool or benchmark file."""
    for place, (here, there) in enumerate(zip_longest(embedded, named)):
        if here != there:
            raise UserError(
                f"{path}: {what} {here!r} at place {place}, where the file named beside it has {there!r}; both must "
                "hold the same in the same order"
            )

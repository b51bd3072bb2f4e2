"""The file of an index: its parts, and checks that the parts can be an index. No pickle is involved."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from lora_retriever.retrieval.scorers import Array, Positions

LARGEST_VALUE = 1e15
"""Maximum absolute value in an embedding: the squares of larger values overflow."""
MOST_SAMPLES = 1 << 31
"""Maximum number of samples that a file may state for an adapter."""
TENSORS = {
    "samples": ({"F16", "F32", "F64"}, 2),
    "means": ({"F16", "F32", "F64"}, 2),
    "counts": ({"I32", "I64"}, 1),
    "scatter": ({"F32", "F64"}, 2),
    "texts": ({"U8"}, 1),
}
"""The tensors of an index file: safetensors' names of the types that are read, and the number of dimensions."""


def float32(values: Any, what: str) -> NDArray[np.float32]:
    """Values as float32; too large values become infinite.

    Raises:
        ValueError: the values are not numbers, or their rows differ in length.
    """
    try:
        with np.errstate(over="ignore"):
            return np.array(values, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{what}: embeddings must be rows of numbers ({error})") from error


def check_values(vectors: Array, what: str) -> None:
    if not np.isfinite(vectors).all():
        raise ValueError(f"{what}: NaN or infinite values")
    if vectors.size and np.abs(vectors).max() > LARGEST_VALUE:
        raise ValueError(f"{what}: values beyond {LARGEST_VALUE:g}")


def read_parts(path: Path) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """The metadata and the tensors of an index file, of the types and dimensions in `TENSORS`."""
    if not path.is_file():  # a device or a pipe could be read without end
        raise FileNotFoundError("there is no such file")
    with safe_open(path, framework="numpy") as file:
        metadata, tensors = file.metadata() or {}, {}
        for name in TENSORS.keys() & set(file.keys()):
            part = file.get_slice(name)
            types, dimensions = TENSORS[name]
            if part.get_dtype() not in types or len(part.get_shape()) != dimensions:
                raise ValueError(f"{name} is of type {part.get_dtype()} and shape {part.get_shape()}")
            tensors[name] = file.get_tensor(name)
    return metadata, tensors


def list_of_texts(text: str, what: str) -> list[str]:
    found = json.loads(text)
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ValueError(f"{what}: not a list of texts")
    return found


def constants_of(text: str) -> dict[str, float]:
    """The constants of a private index: numbers, and a temperature that may be None."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("constants: not an object")
    for name, value in found.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number and (name, value) != ("temperature", None):
            raise ValueError(f"constants: {name} is not a finite number")
    temperature, shrinkage = found.get("temperature"), found.get("shrinkage", 0)
    if temperature is not None and temperature <= 0:
        raise ValueError(f"constants: temperature {temperature} is not positive")
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"constants: shrinkage {shrinkage} is not between 0 and 1")
    return found


def check_scatter(scatter: NDArray[np.float64], means: Array, counts: Positions) -> None:
    """Check that a matrix can be a sum of outer products xx': finite, symmetric, without negative eigenvalues."""
    dim = means.shape[1]
    if scatter.shape != (dim, dim):
        raise ValueError(f"scatter has shape {scatter.shape}, but the means have dimension {dim}")
    if not np.isfinite(scatter).all() or np.abs(scatter).max() > LARGEST_VALUE**2:
        raise ValueError("scatter: NaN, infinite or too large values")
    # Eigenvalues below these are rounding, as in `scorers.discriminant`.
    rounding = 1e-6 * np.trace(scatter) / dim + 1e-9 * counts.sum() * float((means.astype(np.float64) ** 2).mean())
    if not np.allclose(scatter, scatter.T, rtol=1e-6, atol=max(rounding, 0)):
        raise ValueError("scatter is not symmetric")
    try:
        np.linalg.cholesky(scatter + (rounding + np.finfo(float).tiny) * np.eye(dim))
    except np.linalg.LinAlgError as error:
        raise ValueError("scatter has a negative eigenvalue") from error

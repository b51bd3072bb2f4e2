"""The files of a PEFT checkpoint in a folder: finding the files, and naming other things that lie there instead.

A file is opened only if it is a regular file: a pipe or a device could be read without end. The header of the
safetensors file is read without the tensors. Tensors are read from safetensors only, because unpickling a file runs the
code in the file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from peft_composition.errors import AdapterError, quoted, reason_of

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"
CONVERSION = (
    'python -c "import torch; from safetensors.torch import save_file; '
    f"save_file({{k: v.contiguous() for k, v in torch.load('{PICKLED_FILE}', weights_only=True).items()}}, "
    f"'{WEIGHTS_FILE}')\""
)
"""The shell command that makes the safetensors file of a pickled file. torch runs no code of the file."""

LARGEST_HEADER = 16 * 2**20
"""Maximum size of the header of adapter_model.safetensors, in bytes. A hundred thousand tensors need about 12 MB."""

MOST_ENTRIES = 1000
"""Maximum number of entries of a folder that are read for better advice."""

# The first bytes of files that are not what their names say, with the kind of the file and what to do.
_LOOKALIKES = {
    b"version https://git-lfs.github.com/spec/": "a Git LFS pointer, not the file; run 'git lfs pull' where it is from",
    b"<!DOCTYPE": "a web page, not the file; download the file again",
    b"<html": "a web page, not the file; download the file again",
    b"PK\x03\x04": "a zip archive or pickled weights under another name; save the adapter as safetensors",
    b"GGUF": "a GGUF file; use the adapter's safetensors",
}


@dataclass(frozen=True)
class TensorInfo:
    """The header's entry for one tensor."""

    shape: tuple[int, ...]
    dtype: str  # as safetensors names it: "F32", "BF16"


def checked_file(folder: Path, name: str, adapter: str) -> Path:
    """Return the path of a file of a checkpoint after checking that the file exists, is regular and of the right kind.

    Raises `AdapterError`, which names what lies in the folder instead.
    """
    file = folder / name
    try:
        status = file.stat()
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise AdapterError(adapter, _missing(folder, name)) from error
        raise AdapterError(adapter, f"'{file}' cannot be read: {reason_of(error)}") from error
    if not stat.S_ISREG(status.st_mode):
        raise AdapterError(adapter, f"'{file}' is not a regular file; give the folder of a PEFT checkpoint")
    if status.st_size == 0:
        raise AdapterError(adapter, f"'{file}' is not readable: it is empty; copy or save the adapter again")
    try:
        with file.open("rb") as opened:
            begin = opened.read(64).lstrip()
    except OSError as error:
        raise AdapterError(adapter, f"'{file}' cannot be read: {reason_of(error)}") from error
    for sign, what in _LOOKALIKES.items():
        if begin.startswith(sign):
            raise AdapterError(adapter, f"'{file}' is {what}")
    return file


def read_header(folder: Path, adapter: str) -> dict[str, TensorInfo]:
    """Read shape and dtype of every tensor of the checkpoint, by its name in the file, without the tensors.

    Raises `AdapterError` for a file that is missing or no safetensors file.
    """
    file = checked_file(folder, WEIGHTS_FILE, adapter)
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
        if length > LARGEST_HEADER:
            raise SafetensorError(f"its header would be {length} bytes long; at most {LARGEST_HEADER} are read")
        with safe_open(file, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 (the opened file is no mapping)
            return {key: TensorInfo(tuple(part.get_shape()), str(part.get_dtype())) for key, part in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        reason = f"'{file}' is not a readable safetensors file: {reason_of(error)}"
        raise AdapterError(adapter, f"{reason}; copy or save the adapter again") from error


def read_tensors(folder: Path, adapter: str, keys: Iterable[str]) -> dict[str, Tensor]:
    """Read some tensors of the checkpoint by their names in the file. Raises `AdapterError` if that fails."""
    file = checked_file(folder, WEIGHTS_FILE, adapter)
    try:
        with safe_open(file, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in keys}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise AdapterError(adapter, f"'{file}' is not a readable safetensors file: {reason_of(error)}") from error


def stamp(folder: Path, adapter: str) -> tuple[int, int]:
    """Return when the safetensors file was last written, in nanoseconds, and its size in bytes."""
    status = checked_file(folder, WEIGHTS_FILE, adapter).stat()
    return status.st_mtime_ns, status.st_size


def _missing(folder: Path, name: str) -> str:
    """Return the reason for a missing file, by what lies in the folder."""
    reason = f"'{folder}' holds no {name}"
    names, checkpoints = _look_into(folder)
    pickles = [entry for entry in names if entry.endswith((".bin", ".pt", ".pth"))]
    if name == WEIGHTS_FILE and pickles:
        # A command is named for PEFT's own file name only: another name may hold anything, also for a shell.
        how = f", by this command in that folder: {CONVERSION}" if pickles[0] == PICKLED_FILE else ""
        return (
            f"{reason} ({pickles[0]} is pickled, and pickled weights are never read); save the adapter as safetensors"
            f"{how}"
        )
    if name == CONFIG_FILE and checkpoints:
        others = f" (or one of {len(checkpoints) - 1} others beside it)" if len(checkpoints) > 1 else ""
        return f"{reason}, and its sub-folder {quoted(checkpoints[-1])} does; give that folder{others}"
    if name == CONFIG_FILE and {"config.json", "model.safetensors"} <= set(names):
        return f"{reason}: it holds a whole model; give the folder of a PEFT checkpoint"
    if name == CONFIG_FILE:
        return f"{reason}; give the folder of a PEFT checkpoint"
    weights = [entry for entry in names if entry.endswith(".safetensors")]
    if weights:
        return f"{reason}, and {quoted(weights[0])} is not read; rename it, or save the adapter as one file"
    return f"{reason}; save the adapter as safetensors"


def _look_into(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names in a folder, and the names of its sub-folders that hold an adapter, both in natural order."""
    names, checkpoints = [], []
    try:
        with os.scandir(folder) as entries:
            for entry, _ in zip(entries, range(MOST_ENTRIES), strict=False):
                names.append(entry.name)
                if entry.is_dir() and os.path.isfile(os.path.join(entry.path, CONFIG_FILE)):
                    checkpoints.append(entry.name)
    except OSError:
        pass  # the reason without this advice is still true
    return sorted(names), sorted(checkpoints, key=_natural)


def _natural(name: str) -> tuple[str, int, str]:
    """The key by which checkpoint-900 comes before checkpoint-1000."""
    head = name.rstrip("0123456789")
    return head, int(name[len(head) :][:18] or 0), name

"""One PEFT LoRA checkpoint, read from a folder or the Hub and verified against a base model.

`inspect_adapter` checks all that can be known from adapter_config.json and the header of the safetensors file, in
milliseconds; `read_adapter` makes the same checks and then reads the tensors. The result is an `AdapterHeader` or a
`LoraAdapter`. A checkpoint that cannot be used raises `AdapterError`, which names the module and the problem. This file
composes nothing and never changes the base.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor
from transformers import PreTrainedModel

from peft_composition.configuration import read_config
from peft_composition.errors import AdapterError, AdapterWarning, quoted, reason_of
from peft_composition.files import CONFIG_FILE, WEIGHTS_FILE, read_header, read_tensors, stamp
from peft_composition.fit import (
    ModuleHeader,
    copies_of_base,
    copies_of_some_base,
    modules_of_base,
    modules_of_file,
)
from peft_composition.names import base_parameter, named_tensors, other_module


@dataclass(frozen=True)
class LoraModule:
    """The tensors of an adapter for one module: the update is y = Wx + scaling · B A x."""

    down: Tensor  # A: [r, d_in]
    up: Tensor  # B: [d_out, r]


@dataclass(frozen=True)
class AdapterHeader:
    """A verified adapter without its tensors: everything that is needed to read the tensors."""

    name: str
    folder: Path
    stamp: tuple[int, int]  # when the safetensors file was last written, in nanoseconds, and its size in bytes
    modules: dict[str, ModuleHeader]  # by the module's name in the base
    base_model_name_or_path: str | None
    task_type: str | None
    notes: tuple[str, ...]  # what a user should know though the adapter loads, one sentence each
    copies: tuple[str, ...]  # the names in the file of tensors that must be copies of the base's parameters

    def warn(self) -> None:
        """Warn of every note. The warning points to the line of the caller's caller."""
        for note in self.notes:
            warnings.warn(f"adapter {quoted(self.name)}: {note}", AdapterWarning, stacklevel=3)


@dataclass(frozen=True)
class LoraAdapter:
    """A verified adapter: plain LoRA, complete, finite, and of the base's shapes."""

    header: AdapterHeader
    modules: dict[str, LoraModule]  # by the module's name in the base

    def folded(self, module: str, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return A [r, d_in] and, with the scaling folded in, (s B)^T [r, d_out] of a module, on `device` in `dtype`.

        Raises `AdapterError` if their values overflow in that dtype.
        """
        part = self.modules[module]
        down = part.down.to(device, dtype)  # [r, d_in]
        exact = part.up.to(torch.promote_types(torch.promote_types(part.up.dtype, torch.float32), dtype))  # [d_out, r]
        up = (self.header.modules[module].scaling * exact).T.to(device, dtype)  # [r, d_out]
        if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
            raise AdapterError(self.header.name, f"its values overflow in {dtype}; use a base in bfloat16", module)
        return down, up


def inspect_adapter(
    path_or_repo_id: str | Path, name: str, base: PreTrainedModel | None = None, revision: str | None = None
) -> AdapterHeader:
    """Check the PEFT checkpoint in a folder, or on the Hub at `revision`, without reading its tensors.

    `base` may lie on torch's meta device, which holds no model weights: only names and shapes of modules are read. With
    `base`, the adapter's modules are compared with the base's modules. Without `base`, the modules have the names that
    the file gives. The notes of the result say what a user should know, such as that every `lora_B` is zero. For this
    note the tensors are read up to the first number that is not zero. Raises `AdapterError`, as
    `ComposableModel.load_adapter` does, for every problem except problems that only the numbers show: NaN, an overflow,
    and parameters of the base that were trained together with the adapter.
    """
    header = _verified(path_or_repo_id, name, base, revision)
    for module in header.modules.values():
        if all(bool(tensor.any()) for tensor in read_tensors(header.folder, name, module.keys).values()):
            return header
    return replace(header, notes=(*header.notes, _ADDS_NOTHING))


def read_adapter(
    path_or_repo_id: str | Path, name: str, base: PreTrainedModel, revision: str | None = None
) -> LoraAdapter:
    """Read the PEFT checkpoint in a folder, or on the Hub at `revision`, and verify it against `base`.

    Raises `AdapterError` for every adapter that cannot be composed exactly; the package's README has the list.
    """
    header = _verified(path_or_repo_id, name, base, revision)
    adapter = read_again(header)
    for key, tensor in read_tensors(header.folder, name, header.copies).items():
        if not _is_copy_of_base(key, tensor, base):
            raise _unlike_base(key, name, base)
    if any(bool(module.up.any()) and bool(module.down.any()) for module in adapter.modules.values()):
        return adapter
    return replace(adapter, header=replace(header, notes=(*header.notes, _ADDS_NOTHING)))


def read_again(header: AdapterHeader) -> LoraAdapter:
    """Read the tensors of an adapter that was verified before, each with its numbers checked.

    Raises `AdapterError` if the adapter's file does not exist any more, was changed, or holds NaN or infinity.
    """
    _check_unchanged(header)
    tensors = read_tensors(header.folder, header.name, [key for part in header.modules.values() for key in part.keys])
    _check_unchanged(header)
    for name, module in header.modules.items():
        for half, key in zip(("lora_A", "lora_B"), module.keys, strict=True):
            if not torch.isfinite(tensors[key]).all():
                raise AdapterError(header.name, f"its {half} holds NaN or infinity; the checkpoint is damaged", name)
    modules = {name: LoraModule(*(tensors[key] for key in module.keys)) for name, module in header.modules.items()}
    return LoraAdapter(header, modules)


_ADDS_NOTHING = (
    "it adds nothing to the base: its lora_A or its lora_B is zero in every module, as before training; "
    "train it, or save it again"
)


def _verified(
    path_or_repo_id: str | Path, name: str, base: PreTrainedModel | None, revision: str | None
) -> AdapterHeader:
    """Make every check that needs only the configuration, the header of the safetensors file and the base's modules."""
    folder = _find_folder(path_or_repo_id, name, revision)
    config, notes = read_config(folder, name)
    written = stamp(folder, name)
    info = read_header(folder, name)
    if base is None:
        tensors = named_tensors(info, config, name, None)
        modules = modules_of_file(config, name, tensors, info)
        copies = copies_of_some_base(tensors, name)
    else:
        tensors = named_tensors(info, config, name, base)
        modules, more = modules_of_base(config, name, tensors, info, base)
        copies = copies_of_base(tensors, name, info, base)
        notes += more
    task_type = None if config.task_type is None else str(getattr(config.task_type, "value", config.task_type))
    base_name = config.base_model_name_or_path
    return AdapterHeader(name, folder, written, modules, base_name, task_type, tuple(notes), tuple(copies))


def _check_unchanged(header: AdapterHeader) -> None:
    if stamp(header.folder, header.name) != header.stamp:
        reason = f"'{header.folder / WEIGHTS_FILE}' has changed since it was loaded; unload it and load it again"
        raise AdapterError(header.name, reason)


def _find_folder(path_or_repo_id: str | Path, name: str, revision: str | None) -> Path:
    """Return the local folder of a checkpoint, downloading it first if a Hub id is given."""
    repo_id = str(path_or_repo_id)
    try:
        # Absolute, because the files may be read again after a change of directory.
        folder = Path(path_or_repo_id).expanduser().absolute()
        if repo_id and folder.is_dir():
            return folder
        exists = folder.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL byte, the home of an unknown user
        reason = f"{quoted(repo_id)} is not a usable path ({reason_of(error)}); give the folder of a PEFT checkpoint"
        raise AdapterError(name, reason) from error
    if repo_id and exists:
        reason = f"{quoted(repo_id)} is no folder; give the folder of a PEFT checkpoint"
        raise AdapterError(name, f"{reason}, such as {quoted(str(folder.parent))}" if folder.is_file() else reason)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", repo_id):
        reason = f"{quoted(repo_id)} is neither a folder nor a Hub id; give the folder of a PEFT checkpoint"
        raise AdapterError(name, reason)
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = f"there is no folder {quoted(repo_id)}, and the Hub did not give a repository of that name"
        raise AdapterError(name, f"{reason}: {reason_of(error)}") from error


def _is_copy_of_base(key: str, tensor: Tensor, base: PreTrainedModel) -> bool:
    """True for a frozen parameter of the base, which PEFT saves too when the output embedding is targeted."""
    weight = base_parameter(key, base)
    if weight is None or weight.is_meta:
        return False
    tensor = tensor.to(weight.device)
    # Either the file or the base may hold the rounded numbers.
    return torch.equal(tensor.to(weight.dtype), weight) or torch.equal(weight.to(tensor.dtype), tensor)


def _unlike_base(key: str, name: str, base: PreTrainedModel) -> AdapterError:
    """Return the error for a tensor that has the name of a base's parameter, but other numbers."""
    weight = base_parameter(key, base)
    if weight is not None and weight.is_meta:
        reason = f"it holds {quoted(key)}, which cannot be compared with a base that is not in memory"
        return AdapterError(name, f"{reason}; remove it from the file")
    reason = f"it holds {quoted(key)}, whose numbers are not the base's: it was trained along, or is of another base"
    return AdapterError(name, f"{reason}; use an adapter that trains LoRA alone", other_module(key))

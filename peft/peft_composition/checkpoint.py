"""One PEFT LoRA checkpoint, read from a folder or the Hub and verified against a base model.

Reading only: what comes out is a `LoraAdapter`, or an `AdapterError` that says what is wrong with which module. Knows
PEFT's file format; knows nothing of composition, and never changes the base. Weights are read from safetensors only,
since unpickling a stranger's file runs the stranger's code.
"""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from peft_composition.errors import AdapterError
from peft_composition.exactness import rank_and_scaling, refusal
from peft_composition.layers import COMPUTE_DTYPES, linear_shape, names_in_parents

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
KEY_PREFIX = "base_model.model."  # PEFT saves its wrapper's names, and the base sits at this place in the wrapper


@dataclass(frozen=True)
class LoraModule:
    """What an adapter holds for one module: the update is y = Wx + scaling · B A x."""

    down: Tensor  # A: [r, d_in]
    up: Tensor  # B: [d_out, r]


@dataclass(frozen=True)
class ModuleHeader:
    """What is known of an adapter's part for one module without its tensors."""

    d_in: int
    d_out: int
    rank: int
    scaling: float


@dataclass(frozen=True)
class AdapterHeader:
    """A verified adapter without its tensors: what it takes to read them again."""

    name: str
    folder: Path
    stamp: tuple[int, int]  # when the file of its weights was last written [ns], and its size
    modules: dict[str, ModuleHeader]  # by the module's name in the base
    base_model_name_or_path: str | None
    task_type: str | None


@dataclass(frozen=True)
class LoraAdapter:
    """A verified adapter: plain LoRA, complete, finite, and of the base's shapes."""

    header: AdapterHeader
    modules: dict[str, LoraModule]  # by the module's name in the base

    def folded(self, module: str, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return A [r, d_in] and, scaling folded in, (s B)^T [r, d_out] of one module, on a device and in a dtype.

        Raises `AdapterError` if their values overflow in that dtype.
        """
        part = self.modules[module]
        down = part.down.to(device, dtype)  # [r, d_in]
        exact = part.up.to(torch.promote_types(torch.promote_types(part.up.dtype, torch.float32), dtype))  # [d_out, r]
        up = (self.header.modules[module].scaling * exact).T.to(device, dtype)  # [r, d_out]
        if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
            raise AdapterError(self.header.name, f"its values overflow in {dtype}; use a base in bfloat16", module)
        return down, up


def read_adapter(
    path_or_repo_id: str | Path, name: str, base: PreTrainedModel, revision: str | None = None
) -> LoraAdapter:
    """Read the PEFT checkpoint in a folder, or on the Hub at `revision`, and verify it against `base`.

    Raises `AdapterError` for whatever could not be composed exactly; see the package's README for the list.
    """
    folder = _find_folder(path_or_repo_id, name, revision)
    config = _read_config(folder, name)
    tensors = _read_tensors(folder, name)
    modules = {}
    for module_name, (d_in, d_out) in _targeted_shapes(config, name, base).items():
        try:
            modules[module_name] = ModuleHeader(d_in, d_out, *rank_and_scaling(config, module_name))
        except (ValueError, re.error) as error:
            raise AdapterError(name, str(error), module_name) from error
    task_type = None if config.task_type is None else str(getattr(config.task_type, "value", config.task_type))
    header = AdapterHeader(name, folder, _stamp(folder), modules, config.base_model_name_or_path, task_type)
    present = dict(base.named_modules())
    foreign = [key for key in sorted(tensors) if _module_of(key) not in present]
    if foreign:
        # Of another base, something will be missing too; this tells more.
        reason = f"it holds '{foreign[0]}', and this base has no such module; the adapter belongs to another base"
        raise AdapterError(name, reason, _module_of(foreign[0]))
    adapter = _take_all(tensors, header)
    for key in sorted(tensors):
        if not _is_copy_of_base(key, tensors[key], base):
            raise _unexpected_tensor(key, name, base)
    return adapter


def read_again(header: AdapterHeader) -> LoraAdapter:
    """Read the tensors of an adapter that was verified before.

    Raises `AdapterError` if its file is not there any more, or was written since.
    """
    tensors = _read_tensors(header.folder, header.name)
    if _stamp(header.folder) != header.stamp:
        reason = f"'{header.folder / WEIGHTS_FILE}' has changed since it was loaded; unload it and load it again"
        raise AdapterError(header.name, reason)
    return _take_all(tensors, header)


def _stamp(folder: Path) -> tuple[int, int]:
    status = (folder / WEIGHTS_FILE).stat()
    return status.st_mtime_ns, status.st_size


def _find_folder(path_or_repo_id: str | Path, name: str, revision: str | None) -> Path:
    """Return the local folder of a checkpoint, downloading it first if a Hub id is given."""
    folder = Path(path_or_repo_id).expanduser().absolute()  # it may be read again after a change of directory
    if folder.is_dir():
        return folder
    repo_id = str(path_or_repo_id)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", repo_id) or folder.exists():
        raise AdapterError(name, f"'{repo_id}' is neither a folder nor a Hub id; give the folder of a PEFT checkpoint")
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = f"there is no folder '{repo_id}', and the Hub did not give a repository of that name: {error}"
        raise AdapterError(name, reason) from error


def _read_config(folder: Path, name: str) -> LoraConfig:
    """Read adapter_config.json as PEFT reads it, and refuse what cannot be composed exactly."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise AdapterError(name, f"'{folder}' holds no {CONFIG_FILE}; give the folder of a PEFT checkpoint")
    try:
        written: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(name, f"'{file}' is not readable JSON: {error}") from error
    if not isinstance(written, dict):
        raise AdapterError(name, f"'{file}' must hold a JSON object")
    if written.get("peft_type") != "LORA":
        raise AdapterError(name, f"its peft_type is {written.get('peft_type')!r}, and only 'LORA' can be composed")
    try:
        # PEFT warns of settings it does not know; `refusal` judges them itself.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = LoraConfig.from_peft_type(**{k: v for k, v in written.items() if k != "runtime_config"})
        reason = refusal(config, written)
    except (TypeError, ValueError, KeyError, AttributeError, ImportError) as error:
        raise AdapterError(name, f"PEFT cannot use '{file}': {error}") from error
    if reason is not None:
        raise AdapterError(name, reason, _modules_in_words(config))
    return config


def _modules_in_words(config: LoraConfig) -> str:
    """The modules that a configuration speaks of, for a refusal that concerns all of them."""
    concerned = config.modules_to_save or config.target_parameters or config.target_modules or "all"
    return concerned if isinstance(concerned, str) else ", ".join(sorted(concerned))


def _read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Read all tensors of the checkpoint, by their names in the file."""
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        found = f" ({', '.join(pickles)} is pickled, and pickled weights are never read)" if pickles else ""
        raise AdapterError(name, f"'{folder}' holds no {WEIGHTS_FILE}{found}; save the adapter as safetensors")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise AdapterError(name, f"'{file}' is not a readable safetensors file: {error}") from error


def _targeted_shapes(config: LoraConfig, name: str, base: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Return (d_in, d_out) of every module of `base` that the configuration targets, matched as PEFT matches."""
    targets = config.target_modules
    every_linear = isinstance(targets, str) and targets.lower() == "all-linear"
    head = base.get_output_embeddings()
    held_as = names_in_parents(base)
    shapes = {}
    try:
        for module_name, module in base.named_modules():
            shape = linear_shape(module)
            if every_linear:
                # PEFT's own reading of this word: every linear module but the output embedding.
                targeted = shape is not None and module is not head
            else:
                targeted = bool(module_name) and bool(check_target_module_exists(config, module_name))
            if targeted and shape is None:
                kind = type(module).__name__
                raise AdapterError(name, f"it adapts a {kind}, and only linear modules can be composed", module_name)
            if targeted and shape is not None:
                if len(held_as[module]) > 1:
                    # PEFT wraps one place and leaves the others; added to the module, the update would act in all.
                    places = "' and '".join(held_as[module])
                    raise AdapterError(name, f"this base shares it between '{places}'; give each its own", module_name)
                shapes[module_name] = shape
    except (re.error, TypeError) as error:
        raise AdapterError(name, f"its target_modules {targets!r} cannot be matched: {error}") from error
    if not shapes:
        wanted = _modules_in_words(config)
        raise AdapterError(name, "this base has no such module; the adapter belongs to another base", wanted)
    return shapes


def _take_all(tensors: dict[str, Tensor], header: AdapterHeader) -> LoraAdapter:
    """Take the tensors that a header speaks of out of the file's, each verified."""
    modules = {}
    for name, module in header.modules.items():
        down = _take(tensors, header.name, name, "lora_A", (module.rank, module.d_in))
        up = _take(tensors, header.name, name, "lora_B", (module.d_out, module.rank))
        modules[name] = LoraModule(down, up)
    return LoraAdapter(header, modules)


def _take(tensors: dict[str, Tensor], name: str, module: str, half: str, shape: tuple[int, int]) -> Tensor:
    """Take one tensor out of the file's, verified: present, of the expected shape, floating and finite."""
    tensor = tensors.pop(f"{KEY_PREFIX}{module}.{half}.weight", None)
    if tensor is None:
        raise AdapterError(name, f"its {half} is missing, though adapter_config.json targets this module", module)
    if tuple(tensor.shape) != shape:
        reason = f"its {half} has shape {list(tensor.shape)}, and rank and base ask for {list(shape)}"
        raise AdapterError(name, f"{reason}; is the adapter for another base?", module)
    if tensor.dtype not in COMPUTE_DTYPES:
        raise AdapterError(name, f"its {half} has dtype {tensor.dtype}; save it as float32 or bfloat16", module)
    if not torch.isfinite(tensor).all():
        raise AdapterError(name, f"its {half} holds NaN or infinity; the checkpoint is damaged", module)
    return tensor


def _is_copy_of_base(key: str, tensor: Tensor, base: PreTrainedModel) -> bool:
    """True for a frozen weight of the base, which PEFT saves along when the output embedding is targeted."""
    weight = _base_parameter(key, base)
    if weight is None or weight.is_meta:
        return False
    tensor = tensor.to(weight.device)
    # Either side may be the rounded one.
    return torch.equal(tensor.to(weight.dtype), weight) or torch.equal(weight.to(tensor.dtype), tensor)


def _base_parameter(key: str, base: PreTrainedModel) -> Tensor | None:
    """The parameter of the base that a tensor of the file would be a copy of."""
    try:
        return base.get_parameter(key.removeprefix(KEY_PREFIX).replace(".base_layer.", "."))
    except AttributeError:
        return None


def _unexpected_tensor(key: str, name: str, base: PreTrainedModel) -> AdapterError:
    """Return the error for a tensor that no targeted module accounts for, and that would be dropped in silence."""
    weight = _base_parameter(key, base)
    if weight is not None and weight.is_meta:
        reason = (
            f"it holds '{key}', which cannot be compared with a base that is not in memory; remove it from the file"
        )
        return AdapterError(name, reason)
    if ".lora_magnitude_vector" in key:
        reason = f"it holds '{key}': DoRA is not a low-rank update; use an adapter trained without it"
    else:
        reason = f"it holds '{key}', which is no part of the plain LoRA that adapter_config.json describes"
    return AdapterError(name, reason, _module_of(key))


def _module_of(key: str) -> str:
    """The module, by its name in the base, that a tensor of the file belongs to."""
    module, _, parameter = key.removeprefix(KEY_PREFIX).partition(".lora_")
    return module if parameter else module.rpartition(".")[0].removesuffix(".base_layer")

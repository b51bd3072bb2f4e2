"""`lora-retriever doctor --measure`: exactness, speed and memory of composing and answering on this device.

The base and the adapters are loaded in the same way as by a run. Rows are answered as a mixture of three adapters: the
own adapter of the row and two others. So no encoder is needed, and nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora_retriever.backends.base import Outcome
from lora_retriever.backends.local import LocalBackend
from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import Benchmark, model_source
from lora_retriever.experiment.profile import BALANCED, Profile
from lora_retriever.generation.batches import Request
from lora_retriever.generation.composition import Composition
from lora_retriever.generation.generator import Generator, make_prompts
from lora_retriever.generation.heap import give_back_freed_memory
from lora_retriever.generation.loading import load_generator
from peft_composition import inspect_adapter

MODULES = 3
"""Number of modules that are compared with dense matrices: the first, the middle and the last that adapters target."""
BATCHES = 2
"""Number of whole batches of rows that are answered, if the benchmark has as many: so rows join a full batch."""
ROWS = 48
"""Minimum number of rows that are answered, if the benchmark has as many."""
ALONE = 48
"""Maximum number of rows that are answered alone as well."""
TOKENS = 16
"""Length of the inputs on which modules are compared, in tokens."""
K = 3
"""Number of adapters of a row."""
CLEAR_REFS = Path("/proc/self/clear_refs")
NEW_PEAK = "5"
"""The text that tells Linux to begin a new peak of a process's memory."""


@dataclass(frozen=True)
class ModuleError:
    """How far one module's outputs are from dense float64 matrices, as shares of the outputs' norm.

    Attributes:
        composed: of the composed module.
        base: of the base's own product on the same inputs, which is the rounding of the dtype.
    """

    module: str
    mode: str
    composed: float
    base: float


@dataclass(frozen=True)
class Measured:
    """The figures that were measured on the device.

    Attributes:
        device: the GPU's name, or the device.
        rows: number of rows that were answered.
        alone: number of these rows that were answered alone as well.
        differing: number of rows whose answer differs when the row is answered alone.
        read_tokens_per_second: prompt tokens, with padding.
        decoded_tokens_per_second: new tokens.
        rows_per_second: of a whole batch.
        longest: length of the longest prompt that was read, in tokens.
        peak_bytes: peak of the memory while the rows were answered, with the model, in bytes. None: not known on this
            system.
        run_seconds: expected time of the profile's runs, without loading, encoding, and what methods learn.
    """

    device: str
    dtype: str
    modules: list[ModuleError]
    rows: int
    alone: int
    differing: list[int]
    read_tokens_per_second: float
    decoded_tokens_per_second: float
    rows_per_second: float
    longest: int
    peak_bytes: int | None
    run_seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The figures in the form of JSON."""
        return asdict(self)


def measure(profile: Profile, benchmark: Benchmark, runs: int) -> Measured:
    """Load the base and the adapters of a profile, and measure.

    Args:
        runs: number of runs of the profile, for the expected time.

    Raises:
        UserError: the model cannot be loaded, there is no adapter, or a row could not be answered.
    """
    before = _memory_now(profile.torch_device)
    generator = load_generator(model_source(profile, benchmark))
    if len(benchmark.adapters) < K:
        raise UserError(f"the pool has {len(benchmark.adapters)} adapters; {K} are needed to measure mixtures")
    modules = module_errors(generator, benchmark.adapters)
    requests = some_requests(generator, benchmark)
    backend = LocalBackend(generator)
    backend.answer(requests[:2], "mixture")  # a device's first passes are slower
    _begin_peak(profile.torch_device)  # memory that only loading needed is no part of the peak
    with Clock(generator) as clock:
        started = time.perf_counter()
        together = backend_answers(backend, requests)
        seconds = time.perf_counter() - started
    peak = _peak(profile.torch_device, before)
    alone = Outcome()
    for request in requests[:: -(-len(requests) // ALONE)]:
        alone |= backend.answer([request], "mixture")
    for outcome in (together, alone):
        for id, reason in outcome.failures.items():
            raise UserError(f"row {id} could not be answered: {reason}")
    differing = [id for id, answer in alone.answers.items() if together.answers[id].text != answer.text]
    return Measured(
        device=device_name(profile.torch_device),
        dtype=profile.dtype,
        modules=modules,
        rows=len(requests),
        alone=len(alone.answers),
        differing=sorted(differing),
        read_tokens_per_second=clock.read_tokens / max(clock.reading, 1e-9),
        decoded_tokens_per_second=clock.decoded_tokens / max(clock.decoding, 1e-9),
        rows_per_second=len(requests) / seconds,
        longest=max(len(request.prompt.token_ids) for request in requests),
        peak_bytes=peak,
        run_seconds=runs * len(benchmark.rows) * seconds / len(requests),
    )


def some_requests(generator: Generator, benchmark: Benchmark) -> list[Request]:
    """Rows from the whole benchmark, each as a mixture of its own adapter, if there is one, and of other adapters."""
    most = max(ROWS, BATCHES * generator.settings.batch_size)
    rows = benchmark.rows[:: max(1, len(benchmark.rows) // most)][:most]
    prompts = make_prompts([row.inputs for row in rows], generator.tokenizer, generator.settings)
    names = list(benchmark.adapters)
    requests = []
    for place, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        others = [names[(place * K + step) % len(names)] for step in range(K + 1)]
        own = [row.task] if row.task in benchmark.adapters else []
        chosen = (own + [name for name in others if name != row.task])[:K]
        requests.append(Request(row.id, prompt, Composition(dict.fromkeys(chosen, 1 / K))))
    return requests


def backend_answers(backend: LocalBackend, requests: Sequence[Request]) -> Outcome:
    """The outcomes of requests, answered as a run answers its rows."""
    outcome = Outcome()
    for part in backend.answers(requests, "mixture", ()):
        outcome |= part
    return outcome


class Clock:
    """Counts the seconds and the tokens of the model's passes while it is open, prompts and decoded tokens apart."""

    def __init__(self, generator: Generator) -> None:
        self._base = generator.model.base
        self.reading = self.decoding = 0.0
        self.read_tokens = self.decoded_tokens = 0
        self._handles: list[Any] = []
        self._started = 0.0

    def __enter__(self) -> Clock:
        self._handles = [
            self._base.register_forward_pre_hook(self._begin, with_kwargs=True),
            self._base.register_forward_hook(self._end, with_kwargs=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _begin(self, *_: Any) -> None:
        synchronize(self._base.device)
        self._started = time.perf_counter()

    def _end(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        synchronize(self._base.device)
        seconds = time.perf_counter() - self._started
        rows, length = kwargs["input_ids"].shape
        if length > 1:
            self.reading += seconds
            self.read_tokens += rows * length
        else:
            self.decoding += seconds
            self.decoded_tokens += rows


@torch.inference_mode()
def module_errors(generator: Generator, adapters: Mapping[str, Path]) -> list[ModuleError]:
    """How exact a mixture and a fusion are in some modules, beside dense matrices in float64 on the CPU.

    The dense update is multiplied out from the files of the adapters: Σ w s B A for a mixture, and (Σ w s B)(Σ w A) for
    a fusion, padded with zeros where ranks differ.
    """
    names = list(adapters)[:K]
    headers = {name: inspect_adapter(adapters[name], name, generator.model.base) for name in names}
    targeted = sorted({module for header in headers.values() for module in header.modules})
    chosen = dict.fromkeys(targeted[round(place * (len(targeted) - 1) / (MODULES - 1))] for place in range(MODULES))
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(1, generator.limits.vocabulary, (2, TOKENS), generator=draw).to(generator.model.device)
    weights = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, -0.5]])  # [2, K]
    errors = []
    for mode in ("mixture", "fusion"):
        calls: dict[str, tuple[Tensor, Tensor]] = {}
        with generator.model.composed(names, weights, mode):
            modules = {module: generator.model.base.get_submodule(module) for module in chosen}
            handles = [modules[name].register_forward_hook(_noting(calls, name)) for name in modules]
            try:
                generator.model(input_ids=ids)
            finally:
                for handle in handles:
                    handle.remove()
        for name, (x, y) in calls.items():
            tensors = [_parts(adapters[adapter], name, headers[adapter].modules) for adapter in names]
            own = modules[name](x.to(generator.model.device)).double().cpu()
            dense = _dense(modules[name], x)
            wanted = dense + torch.stack(
                [x[row].double() @ _update(tensors, weights[row].tolist(), mode).T for row in range(len(x))]
            )
            errors.append(ModuleError(name, mode, _distance(y.double(), wanted), _distance(own, dense)))
    return errors


def _noting(calls: dict[str, tuple[Tensor, Tensor]], name: str) -> Any:
    def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        calls[name] = (args[0].detach().cpu().clone(), output.detach().cpu().clone())

    return hook


def _parts(folder: Path, module: str, modules: Mapping[str, Any]) -> tuple[Tensor, Tensor, float] | None:
    """A, B and the scaling of an adapter at a module in float64, by its file. None: the module is no target."""
    if module not in modules:
        return None
    tensors = load_file(folder / "adapter_model.safetensors")
    halves = []
    for half in ("lora_A", "lora_B"):
        found = [key for key in tensors if f".{module}.{half}." in f".{key.removeprefix('base_model.model.')}"]
        if len(found) != 1:
            raise UserError(f"{folder}: the tensors of {module} are not named as PEFT names them, so not measured")
        halves.append(tensors[found[0]].double())
    return halves[0], halves[1], float(modules[module].scaling)


def _update(parts: Sequence[tuple[Tensor, Tensor, float] | None], weights: Sequence[float], mode: str) -> Tensor:
    """The dense update of one row, float64 [d_out, d_in]."""
    present = [(*part, weight) for part, weight in zip(parts, weights, strict=True) if part is not None]
    a, b, *_ = present[0]
    if mode == "mixture":
        return sum((w * s * (b @ a) for a, b, s, w in present), torch.zeros(b.shape[0], a.shape[1]).double())
    rank = max(len(a) for a, *_ in present)
    down, up = torch.zeros(rank, a.shape[1]).double(), torch.zeros(b.shape[0], rank).double()
    for a, b, s, w in present:
        down[: len(a)] += w * a
        up[:, : len(a)] += w * s * b
    return up @ down


def _dense(module: nn.Module, x: Tensor) -> Tensor:
    """The output of the base's own module, computed in float64 on the CPU."""
    weight: Any = module.weight
    matrix = weight.detach().double().cpu()
    bias: Any = getattr(module, "bias", None)
    y = x.double() @ (matrix if isinstance(module, Conv1D) else matrix.T)
    return y if bias is None else y + bias.detach().double().cpu()


def _distance(y: Tensor, wanted: Tensor) -> float:
    return float((y - wanted).norm() / wanted.norm())


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: str) -> str:
    """The name of a GPU, or the device."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def _memory_now(device: str) -> int:
    """The memory that this process takes now, before the model is loaded, in bytes. On a GPU, nothing counts yet."""
    if device.startswith("cuda") or device == BALANCED:
        return 0
    # Otherwise memory that a check of the tokenizer has freed would count here, and the model would reuse this memory.
    give_back_freed_memory()
    return _status("VmRSS") or 0


def _begin_peak(device: str) -> None:
    """Begin a new peak of the memory. Where the system offers no such thing, the peak counts from the start."""
    if device == "cpu":
        with suppress(OSError):
            CLEAR_REFS.write_text(NEW_PEAK, encoding="ascii")
    elif torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)


def _peak(device: str, before: int) -> int | None:
    """The peak of the memory above `before`, in bytes: reserved on a GPU, resident on a CPU. None: not known."""
    if device == BALANCED:
        return sum(torch.cuda.max_memory_reserved(index) for index in range(torch.cuda.device_count()))
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_reserved(device))
    peak = _status("VmHWM")
    return None if peak is None else peak - before


def _status(field: str) -> int | None:
    """A field of this process's status in bytes. None: the system has no such file."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith(f"{field}:")), None)
    return None if found is None else 1024 * int(found.split()[1])

"""How much does composing cost? `python scripts/composition/bench_composition.py [--quick] [--json FILE]`

On a random Llama with random adapters, four implementations take turns in every round, so that other work on the
machine slows all of them equally. Each implementation is compared with the base model of the same round. Medians are
printed:

- base: the model alone;
- ours: `peft_composition`;
- einsum: the original's formulas, as hooks on the same base (`original_composition.py`);
- peft: the nearest that upstream PEFT offers. One `add_weighted_adapter` for each distinct composition in the batch,
  then mixed-batch inference by `adapter_names`. "cat" is exactly the mixture. "linear" multiplies both factors by
  √(w·s), so "linear" is exactly the fusion if the weights are squared and all scalings and ranks are equal, as here.
  PEFT replaces modules of its base, so PEFT has a copy of the base with the same model weights.

All implementations compute the same up to rounding; `tests/test_bench_composition.py` compares them with dense
matrices.

Times are of forward calls: the prefill, and single tokens with a cache after it. "Pairs" is the work that is done once
for a batch before the prefill, in units of the base's prefill: entering `composed` for ours, making the weighted
adapters for peft, and nothing for einsum, which gets its adapters already stacked. So a prompt costs the sum of prefill
and pairs. Memory is the peak while pairs are made and one prefill and one step are computed, above the memory that was
in use before: models and resident adapters do not count.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import LlamaConfig, LlamaForCausalLM

from lora_retriever.files import write_json, write_text
from lora_retriever.tables import Table, terminal
from peft_composition import ComposableModel
from peft_composition.pairs import product_dtype

sys.path.append(str(Path(__file__).resolve().parent.parent / "running"))  # where `original_composition` is
from original_composition import StackedLoras, original_composition

RANK, SCALING = 8, 2.0
VOCABULARY = 2048  # small, so that the output layer weighs no more than in a large model
IMPLEMENTATIONS = ("ours", "einsum", "peft")
# One adapter of weight 1 is its own fusion.
FORMULAS = {"mixture": "mixture", "fusion": "fusion", "selection": "fusion"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
TARGETS = {
    "qv": ("q_proj", "v_proj"),
    "all": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
QUICK = {
    "hidden": 256, "layers": 2, "length": 64, "steps": 4, "batch": [8], "resident": [8, 24], "dtype": ["fp32"],
}  # fmt: skip

Forward = Callable[..., Any]


@dataclass(frozen=True)
class Cell:
    """One cell of the grid of settings. Within a cell, all implementations take turns."""

    dtype: str
    targets: str
    resident: int
    batch: int

    def __str__(self) -> str:
        return f"{self.dtype}, {self.targets}, batch {self.batch}, {self.resident} resident"


@dataclass(frozen=True)
class Composition:
    """The composition of a batch: row i is composed with row i of `weights` [batch, len(adapters)]."""

    adapters: list[int]  # the union: every adapter that some row uses
    weights: Tensor

    @property
    def names(self) -> list[str]:
        """The adapters' names."""
        return [str(number) for number in self.adapters]


@dataclass(frozen=True)
class Way:
    """An implementation of a mode, made ready for a batch by entering `opened`, which gives a forward call."""

    impl: str
    mode: str | None
    opened: Callable[[], AbstractContextManager[Forward]]
    union: int = 0
    makes_pairs: bool = False
    pairs_bytes: int | None = None


@dataclass(frozen=True)
class Seconds:
    """One round of one implementation."""

    pairs: float
    prefill: float
    step: float


def main() -> None:
    """Measure, print, write."""
    args = arguments()
    torch.set_num_threads(args.threads)
    # a warning of transformers about PEFT, which would interrupt the progress bar
    warnings.filterwarnings("ignore", category=FutureWarning)
    # By ascending number of adapters, so that a pool only ever grows.
    grid = [
        (dtype, targets, [Cell(dtype, targets, *rest) for rest in product(sorted(args.resident), args.batch)])
        for dtype, targets in product(args.dtype, args.targets)
    ]
    records: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    # The time left is estimated from the last half hour, as one round may take minutes.
    with torch.no_grad(), Progress(*columns, speed_estimate_period=1800) as progress:
        rows = sum(cell.batch for *_, cells in grid for cell in cells)
        task = progress.add_task("", total=rows * (args.rounds + 2))
        for dtype, targets, cells in grid:
            base = random_llama(args.hidden, args.layers, args.seed).to(args.device, DTYPES[dtype])
            pool = Pool(base, targets, args.seed, args.peft_resident_max if "peft" in args.impl else 0)
            for cell in cells:
                progress.update(task, description=f"{cell}: loading adapters")
                pool.grow(cell.resident)
                progress.update(task, description=str(cell))
                if args.profile and not records:
                    write_profiles(args.profile, pool, cell, args)
                found = measured(pool, cell, args, partial(progress.advance, task, cell.batch))
                progress.console.print(terminal(table(found)), soft_wrap=True, markup=False, highlight=False)
                if cell.resident > args.peft_resident_max and "peft" in args.impl:
                    progress.console.print(f"peft left out: more than {args.peft_resident_max} adapters\n")
                records += found
                if args.json:
                    write_json(args.json, records)


def arguments() -> argparse.Namespace:
    """The arguments of the command line. `--quick` replaces only the arguments that are not given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small grid on a small model, in about a minute")
    parser.add_argument("--impl", nargs="+", choices=IMPLEMENTATIONS, default=list(IMPLEMENTATIONS))
    parser.add_argument("--mode", nargs="+", choices=FORMULAS, default=list(FORMULAS))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--batch", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--resident", nargs="+", type=int, default=[8, 24, 48, 1000], help="adapters in memory")
    parser.add_argument(
        "--union", type=int, default=24, help="number of adapters in one batch (at most the resident ones)"
    )
    parser.add_argument("--k", type=int, default=3, help="adapters of a row, for mixture and fusion")
    parser.add_argument("--hidden", type=int, default=1024, help="the model's width, a multiple of 64")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--length", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--steps", type=int, default=16, help="single tokens after it")
    parser.add_argument("--rounds", type=int, default=7, help="those that count, after one that does not")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="torch's on a CPU (default: 1)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu leaves other processes' work out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peft-resident-max", type=int, default=48, help="leave peft out where more are resident")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file, after every cell")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write torch's profile of the first cell")
    args = parser.parse_args()
    if args.quick:
        parser.set_defaults(**QUICK)
        args = parser.parse_args()
    if args.hidden % 64:
        parser.error(f"--hidden {args.hidden} is no multiple of 64")
    if args.clock == "cpu" and torch.device(args.device).type == "cuda":
        parser.error("--clock cpu does not see what a GPU does")
    if args.k > min(args.union, *args.resident):
        parser.error(f"--k {args.k} is more than --union or --resident has adapters")
    return args


def random_llama(hidden: int, layers: int, seed: int) -> LlamaForCausalLM:
    """A Llama of Llama 2's proportions."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=hidden * 43 // 16, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, max_position_embeddings=4096,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


class Pool:
    """Random adapters, the same for all implementations, resident in ours and, up to a number, in upstream PEFT."""

    def __init__(self, base: LlamaForCausalLM, targets: str, seed: int, peft_max: int) -> None:
        self.base = base
        self.targets = TARGETS[targets]
        self.seed = seed
        self.peft_max = peft_max
        self.ours = ComposableModel(base)
        self.peft: PeftModel | None = None
        # By name: (d_in, d_out).
        self.modules = {
            name: (module.in_features, module.out_features)
            for name, module in base.named_modules()
            if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in self.targets
        }

    def grow(self, adapters: int) -> None:
        """Load adapters up to this number."""
        for number in range(len(self.ours.adapters), adapters):
            # Each adapter has a folder, which is removed after reading: a thousand folders together may fill a disk.
            with tempfile.TemporaryDirectory() as folder:
                self.write(number, Path(folder))
                self.ours.load_adapter(folder, str(number))
                if adapters > self.peft_max:
                    continue
                # Otherwise the adapters of a bfloat16 model would be float32, and on a GPU if the machine has a GPU.
                kept: dict[str, Any] = {"autocast_adapter_dtype": False, "torch_device": str(self.base.device)}
                if self.peft is None:
                    self.peft = PeftModel.from_pretrained(deepcopy(self.base), folder, str(number), **kept).eval()
                else:
                    self.peft.load_adapter(folder, str(number), **kept)

    def adapter(self, number: int) -> dict[str, tuple[Tensor, Tensor]]:
        """A [r, d_in] and B [d_out, r] of one adapter, by module, in the base's dtype; made anew at every call."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(self.base.dtype) / shape[1] ** 0.5

        return {name: (normal(RANK, d_in), normal(d_out, RANK)) for name, (d_in, d_out) in self.modules.items()}

    def stacks(self, adapters: Sequence[int]) -> dict[str, StackedLoras]:
        """Some adapters in the form of the original's formulas."""
        made = [self.adapter(number) for number in adapters]
        device = self.base.device
        return {
            name: StackedLoras(
                torch.stack([adapter[name][0] for adapter in made]).to(device),
                torch.stack([adapter[name][1] for adapter in made]).to(device),
                torch.full((len(made),), SCALING, dtype=self.base.dtype, device=device),
            )
            for name in self.modules
        }

    def pairs_bytes(self, batch: int, rank: int) -> int:
        """The size of one low-rank pair of this rank for each row and module."""
        value_bytes = product_dtype(self.base.device, self.base.dtype).itemsize
        return batch * rank * value_bytes * sum(d_in + d_out for d_in, d_out in self.modules.values())

    def write(self, number: int, folder: Path) -> None:
        """Write an adapter as a PEFT checkpoint."""
        config = LoraConfig(r=RANK, lora_alpha=int(SCALING * RANK), target_modules=list(self.targets))
        config.save_pretrained(str(folder))
        tensors = {}
        for name, halves in self.adapter(number).items():
            for half, tensor in zip("AB", halves, strict=True):
                tensors[f"base_model.model.{name}.lora_{half}.weight"] = tensor
        save_file(tensors, folder / "adapter_model.safetensors")


def drawn(cell: Cell, mode: str, k: int, union: int, seed: int) -> Composition:
    """Random adapters for every row, with equal weights.

    The rows together use `union` adapters, or as many as possible.
    """
    generator = torch.Generator().manual_seed(seed)
    k = 1 if mode == "selection" else k
    union = min(union, cell.resident, cell.batch * k)
    adapters = torch.randperm(cell.resident, generator=generator)[:union].tolist()
    weights = torch.zeros(cell.batch, union)
    for row in range(cell.batch):
        # The first rows deal out the whole union, and the other rows draw from the union.
        dealt = torch.arange(row * k, row * k + k) % union
        weights[row, dealt if row * k < union else torch.randperm(union, generator=generator)[:k]] = 1 / k
    return Composition(adapters, weights)


def ways(pool: Pool, cell: Cell, args: argparse.Namespace) -> list[Way]:
    """The implementations that are compared.

    The first implementation is the base model, with which the other implementations are compared.
    """
    found = [Way("base", None, lambda: nullcontext(pool.base))]
    for mode, impl in product(args.mode, args.impl):
        asked = drawn(cell, mode, args.k, args.union, args.seed)
        opened: Callable[[], AbstractContextManager[Forward]]
        if impl == "ours":
            opened = partial(pool.ours.composed, asked.names, asked.weights, FORMULAS[mode])
            size = pool.pairs_bytes(cell.batch, RANK * args.k if mode == "mixture" else RANK)
            found.append(Way(impl, mode, opened, len(asked.adapters), makes_pairs=True, pairs_bytes=size))
        elif impl == "einsum":
            stacks = pool.stacks(asked.adapters)
            opened = partial(original_composition, pool.base, stacks, asked.weights, FORMULAS[mode])
            found.append(Way(impl, mode, opened, len(asked.adapters)))
        elif pool.peft is not None and cell.resident <= pool.peft_max:
            opened = partial(weighted_adapters, pool.peft, asked, mode)
            found.append(Way(impl, mode, opened, len(asked.adapters), makes_pairs=True))
    return found


@contextmanager
def weighted_adapters(model: PeftModel, asked: Composition, mode: str) -> Iterator[Forward]:
    """The nearest that upstream PEFT offers: each distinct composition of the batch is an adapter, which all rows with
    this composition use."""
    lora: Any = model.base_model
    kind, power = ("cat", 1) if mode == "mixture" else ("linear", 2)
    made: dict[tuple[float, ...], str] = {}
    by_row: list[str] = []
    try:
        for row in asked.weights.tolist():
            used = {name: weight**power for name, weight in zip(asked.names, row, strict=True) if weight}
            if mode == "selection":
                by_row.extend(used)  # one name, of an adapter that is there already
                continue
            if tuple(row) not in made:
                made[tuple(row)] = f"composed{len(made)}"
                lora.add_weighted_adapter([*used], [*used.values()], made[tuple(row)], combination_type=kind)
            by_row.append(made[tuple(row)])
        yield partial(model, adapter_names=by_row)
    finally:
        for name in made.values():
            model.delete_adapter(name)


def measured(
    pool: Pool, cell: Cell, args: argparse.Namespace, advance: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """One record for each implementation and mode; `advance` is called after every round."""
    compared, ids = ways(pool, cell, args), token_ids(cell, args)
    for way in compared:  # memory that is taken once, such as the workspaces of a GPU, counts for no implementation
        run_once(way, ids, args.length)
    advance()
    peaks = [peak_bytes(partial(run_once, way, ids[:, : args.length + 1], args.length), ids.device) for way in compared]
    advance()
    rounds: list[list[Seconds]] = []
    for number in range(args.rounds):
        # Every round begins with another implementation, so that changing load of the machine favours none of them.
        first = number % len(compared)
        order = [*range(first, len(compared)), *range(first)]
        taken = {place: run_once(compared[place], ids, args.length, CLOCKS[args.clock]) for place in order}
        rounds.append([taken[place] for place in range(len(compared))])
        advance()
    base = [seconds[0] for seconds in rounds]
    settings = ("hidden", "layers", "length", "k", "steps", "rounds", "device", "threads", "clock")
    shared = {
        **{name: getattr(cell, name) for name in ("dtype", "targets", "batch", "resident")},
        **{name: getattr(args, name) for name in settings},
        "rank": RANK,
        "base_prefill_seconds": median(own.prefill for own in base),
        "base_step_seconds": median(own.step for own in base),
    }
    records = []
    for place, way in enumerate(compared):
        mine = [seconds[place] for seconds in rounds]
        pairs = median(m.pairs / b.prefill for m, b in zip(mine, base, strict=True))
        records.append(
            {
                "impl": way.impl,
                "mode": way.mode,
                "union": way.union,
                "prefill_ratio": median(m.prefill / b.prefill for m, b in zip(mine, base, strict=True)),
                "decode_ratio": median(m.step / b.step for m, b in zip(mine, base, strict=True)),
                "pairs_ratio": pairs if way.makes_pairs else None,
                "peak_bytes": peaks[place],
                "peak_above_base_bytes": peaks[place] - peaks[0],
                "pairs_bytes": way.pairs_bytes,
                **shared,
            }
        )
    return records


def token_ids(cell: Cell, args: argparse.Namespace) -> Tensor:
    """Prompts and the tokens of the steps, [batch, length + steps]. All implementations decode these same tokens."""
    generator = torch.Generator().manual_seed(args.seed)
    return torch.randint(VOCABULARY, (cell.batch, args.length + args.steps), generator=generator).to(args.device)


def run_once(way: Way, ids: Tensor, length: int, clock: Callable[[], float] = time.perf_counter) -> Seconds:
    """Make pairs, read the first `length` of `ids` [batch, length + steps] as the prompt, then read token by token."""
    steps = ids.shape[1] - length

    def now() -> float:
        if ids.is_cuda:
            torch.cuda.synchronize(ids.device)  # the device may still be computing
        return clock()

    begun = now()
    with way.opened() as forward:
        paired = now()
        # As `generate` does, only the last position's logits are computed.
        cache = forward(input_ids=ids[:, :length], use_cache=True, logits_to_keep=1).past_key_values
        prefilled = now()
        for place in range(length, length + steps):
            forward(input_ids=ids[:, place : place + 1], past_key_values=cache, use_cache=True, logits_to_keep=1)
        decoded = now()
    return Seconds(paired - begun, prefilled - paired, (decoded - prefilled) / steps)


def peak_bytes(action: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that `action` held at once on the device, minus the bytes that were held before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    # Torch has no such count for a CPU. But torch's profiler notes every allocation, and every release as a negative
    # number.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        action()
    assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def write_profiles(file: Path, pool: Pool, cell: Cell, args: argparse.Namespace) -> None:
    """Write the profile of the base model and of each mode of this project: pairs, prefill and steps together.

    The line "python" is the time outside of torch's operations.
    """
    ids = token_ids(cell, args)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ids.device.type == "cuda" else [])]
    parts = [str(cell)]
    for way in ways(pool, cell, args):
        if way.impl not in ("base", "ours"):
            continue
        run_once(way, ids, args.length)  # a first run, so that no one-time work is measured
        with profile(activities=activities) as profiled, record_function("python"):
            run_once(way, ids, args.length)
        parts += [f"{way.impl} {way.mode or ''}", profiled.key_averages().table("self_cpu_time_total", row_limit=30)]
    write_text(file, "\n".join(parts) + "\n")


def table(records: Sequence[dict[str, Any]]) -> Table:
    """The records of one cell, with the base model's own times in the note."""
    first = records[0]
    rows: list[tuple[str, list[Any]]] = [
        (
            " ".join(filter(None, (record["impl"], record["mode"]))),
            [
                str(record["union"] or "–"),
                f"{record['prefill_ratio']:.3f}",
                f"{record['decode_ratio']:.3f}",
                "–" if record["pairs_ratio"] is None else f"{record['pairs_ratio']:.3f}",
                *(
                    "–" if record[name] is None else f"{record[name] / 2**20:.1f}"
                    for name in ("peak_bytes", "peak_above_base_bytes", "pairs_bytes")
                ),
            ],
        )
        for record in records
    ]
    note = (
        f"{first['dtype']}, LoRA on {first['targets']}, batch {first['batch']}, {first['resident']} resident. "
        f"Times as ratios to the base model's: prefill {first['base_prefill_seconds']:.4f} s, "
        f"one token {first['base_step_seconds']:.4f} s ({first['clock']} time). Median of {first['rounds']} rounds, "
        f"{first['device']}, {first['threads']} threads, {first['layers']} layers of {first['hidden']}."
    )
    columns = ["union", "prefill", "decode", "making pairs", "peak MiB", "above base", "our pairs"]
    return Table(columns, rows, [note])


if __name__ == "__main__":
    main()

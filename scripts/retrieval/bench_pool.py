"""What does a pool larger than its memory cost? `python scripts/retrieval/bench_pool.py [--adapters 2000] [--room 200]`

Two models answer the same random batches, in which every row is a mixture of adapters drawn from the whole pool. The
first model holds all adapters. The memory of the second model has room for some adapters, and the model reads the other
adapters from their files while the batch before is computed. (The files were just written, so the system still has the
files in memory.) The two models take turns, batch by batch. Random draws are the worst case: in a benchmark, rows that
follow each other share adapters. The model weights are random, because only the times and the equality of the tokens
matter.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from rich.progress import track
from torch import Tensor

from lora_retriever.files import write_json
from lora_retriever.tables import Table, terminal
from peft_composition import ComposableModel

sys.path.append(str(Path(__file__).resolve().parent.parent / "composition"))  # where `bench_composition` is
from bench_composition import RANK, VOCABULARY, Pool, random_llama


@dataclass(frozen=True)
class Batch:
    """A batch: the adapters in use, their weights [rows, adapters], and the prompts' tokens."""

    names: list[str]
    weights: Tensor
    prompts: list[list[int]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--adapters", type=int, default=2000)
    parser.add_argument("--room", type=int, default=200, help="adapters that fit into the memory (default: 200)")
    parser.add_argument("--batches", type=int, default=15, help="those that count, after two that do not")
    parser.add_argument("--batch", type=int, default=8, help="rows in a batch (default: 8)")
    parser.add_argument("--k", type=int, default=3, help="adapters of a row (default: 3)")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(args, Path(folder))
    print(terminal(table(figures)))
    if args.json:
        write_json(args.json, figures)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """The seconds a batch of both models, and the number of rows with equal tokens."""
    base = random_llama(args.hidden, args.layers, seed=0)
    pool = Pool(base, "qv", seed=0, peft_max=0)
    for number in track(range(args.adapters), description="writing"):
        pool.write(number, folder / str(number))
    adapter_bytes = pool.pairs_bytes(batch=1, rank=RANK)
    everything, some = ComposableModel(base), ComposableModel(base, (args.room + 1) * adapter_bytes)
    for number in track(range(args.adapters), description="loading"):
        for model in (everything, some):
            model.load_adapter(folder / str(number), name=str(number))
    generator = torch.Generator().manual_seed(0)
    drawn = [draw(args, generator) for _ in range(args.batches + 3)]
    seconds: list[tuple[float, float]] = []
    equal = read = 0
    for place, (batch, following) in enumerate(pairwise(track(drawn, description="answering"))):
        read += len(set(batch.names) - set(some.resident_adapters))
        turns = [everything, some] if place % 2 else [some, everything]
        taken, tokens = {}, {}
        for model in turns:
            started = time.perf_counter()
            model.prefetch([*batch.names, *following.names])
            with model.composed(batch.names, batch.weights):
                made = model.generate(
                    input_ids=torch.tensor(batch.prompts),
                    max_new_tokens=args.new_tokens,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                )
                tokens[model] = made.tolist()
            model.wait_for_prefetch()  # otherwise the rest of the reading would slow the turn of the other model
            taken[model] = time.perf_counter() - started
        seconds.append((taken[everything], taken[some]))
        equal += sum(mine == its for mine, its in zip(tokens[everything], tokens[some], strict=True))
    counted = seconds[2:]
    return {
        "adapters": args.adapters,
        "room": args.room,
        "rows": len(seconds) * args.batch,
        "equal_rows": equal,
        "read_per_batch": round(read / len(seconds), 1),
        "everything_seconds": round(median(mine for mine, _ in counted), 4),
        "some_seconds": round(median(its for _, its in counted), 4),
        "throughput_ratio": round(median(mine / its for mine, its in counted), 4),
    }


def draw(args: argparse.Namespace, generator: torch.Generator) -> Batch:
    """Rows that each have `k` adapters of the pool, equally weighted, and a prompt of random tokens."""
    chosen = [torch.randperm(args.adapters, generator=generator)[: args.k].tolist() for _ in range(args.batch)]
    union = sorted({number for row in chosen for number in row})
    weights = torch.zeros(args.batch, len(union))
    for row, numbers in enumerate(chosen):
        weights[row, [union.index(number) for number in numbers]] = 1 / args.k
    prompts = torch.randint(1, VOCABULARY, (args.batch, args.length), generator=generator).tolist()
    return Batch([str(number) for number in union], weights, prompts)


def table(figures: dict[str, float]) -> Table:
    """The figures, both models a line."""
    all_in, some_in = figures["everything_seconds"], figures["some_seconds"]
    note = (
        f"{figures['equal_rows']} of {figures['rows']} rows have equal tokens; "
        f"{figures['read_per_batch']} adapters a batch were read."
    )
    return Table(
        ["seconds a batch", "throughput"],
        [
            (f"all {figures['adapters']} in memory", [f"{all_in:.3f}", "1"]),
            (f"room for {figures['room']}", [f"{some_in:.3f}", f"{figures['throughput_ratio']:.3f}"]),
        ],
        notes=[note],
    )


if __name__ == "__main__":
    main()

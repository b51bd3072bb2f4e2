"""How fast is an evaluation, beside the original's loop? `python scripts/running/bench_eval.py [--profile NAME|FILE]`

Ours is the command a user types, `lora-retriever run`, in a process of its own, from its start to its end, with empty
caches and an empty results folder. The original's loop is written here from its description, with its faults mended so
that the loop composes rightly: rows in the order of the file in batches of 8, one query encoded at a time, the adapters
of every batch read from disk and composed by the original's formulas (`original_composition.py`), and every row decoded
until the last row of its batch has ended. The loop gets what favours it: the models are loaded once for all runs, the
tensors of adapters are only read, not injected into the model, and queries are encoded once.

Ours answers no prompt twice under one composition, also across runs; the column "reused" counts the answers that were
taken from another row or run. Both answer the same rows; the last column counts the equal answers. Both may take turns
several times; medians are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from original_composition import StackedLoras, original_composition
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig

from lora_retriever.data.rows import Row
from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import Benchmark, model_source, open_benchmark
from lora_retriever.experiment.profile import Profile, load_profile
from lora_retriever.files import write_json
from lora_retriever.generation.composition import weight_matrix
from lora_retriever.generation.generator import Generator, answer_of, make_prompts
from lora_retriever.generation.loading import load_tokenizer
from lora_retriever.generation.prompt import Prompt
from lora_retriever.methods import Composition, Method
from lora_retriever.methods.context import Context, Resources
from lora_retriever.methods.paper import METHODS as PAPER
from lora_retriever.retrieval.encoders import Embeddings, load_encoder
from lora_retriever.retrieval.index import AdapterIndex
from lora_retriever.running.run_file import read_lines
from lora_retriever.tables import Table, terminal

BATCH = 8  # the original's
METHODS = {method.name: method for method in PAPER}  # what the original evaluates


@dataclass(frozen=True)
class Measured:
    """One implementation's evaluation: seconds in all and for each configuration, and its answers by row.

    Attributes:
        reused: how many answers of each configuration were taken from another.
    """

    total: float
    seconds: dict[str, float]
    answers: dict[str, dict[int, str]]
    reused: dict[str, int]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", default="tiny", help="a bundled profile's name, or a YAML file (default: tiny)")
    parser.add_argument("--limit", type=int, help="rows per task (default: all)")
    parser.add_argument("--only", default=",".join(METHODS), help="methods, separated by commas (default: all eight)")
    parser.add_argument("--rounds", type=int, default=1, help="so often both take turns (default: once)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")
    args = parser.parse_args()
    names = args.only.split(",")
    ours, original = [], []
    for _ in range(args.rounds):
        ours.append(run_ours(args.profile, args.limit, names))
        original.append(run_original(load_profile(args.profile), args.limit, names))
    figures = compared(ours, original, names)
    print(terminal(table(figures, args.profile)))
    if args.json:
        write_json(args.json, {"profile": args.profile, "limit": args.limit, "rounds": args.rounds, **figures})


def run_ours(profile: str, limit: int | None, names: Sequence[str]) -> Measured:
    """`lora-retriever run` on empty folders; what it says goes to this process's standard error."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        command = [sys.executable, "-m", "lora_retriever", "run", "--profile", profile, "--results", str(results)]
        command += ["--only", ",".join(names), *([] if limit is None else ["--limit", str(limit)])]
        started = time.perf_counter()
        subprocess.run(command, check=True, env={**os.environ, "LORA_RETRIEVER_CACHE": folder})
        total = time.perf_counter() - started
        metas = {name: json.loads((results / f"{name}.meta.json").read_text(encoding="utf-8")) for name in names}
        answers = {
            name: {id: line["predicted_answer"] for id, line in read_lines(results, name).items()} for name in names
        }
    timings = {name: metas[name]["timings"] for name in names}
    seconds, reused = ({name: timings[name][what] for name in names} for what in ("seconds", "reused"))
    return Measured(total, seconds, answers, reused)


def run_original(profile: Profile, limit: int | None, names: Sequence[str]) -> Measured:
    """The original's loop in this process, timed from the loading of the models on."""
    if profile.threads is not None:
        torch.set_num_threads(profile.threads)
    benchmark = open_benchmark(profile, limit)
    started = time.perf_counter()
    loop = OriginalLoop(profile, benchmark)
    seconds, answers = {}, {}
    for name in names:
        clock = time.perf_counter()
        answers[name] = dict(loop.answers(METHODS[name]))
        seconds[name] = time.perf_counter() - clock
    return Measured(time.perf_counter() - started, seconds, answers, dict.fromkeys(names, 0))


class OriginalLoop:
    """The original's evaluation of a benchmark, one configuration at a time."""

    def __init__(self, profile: Profile, benchmark: Benchmark) -> None:
        self.profile = profile
        self.benchmark = benchmark
        self.tokenizer = load_tokenizer(benchmark.base)
        self.dtype = model_source(profile, benchmark).torch_dtype
        model = AutoModelForCausalLM.from_pretrained(
            benchmark.base, dtype=self.dtype, use_safetensors=True, device_map=profile.torch_device
        )
        self.model: Any = model.eval()
        self.prompts = make_prompts([row.inputs for row in benchmark.rows], self.tokenizer, profile.generation)
        self.resources = Resources(profile, benchmark, Path("unused"), Console(stderr=True), no_generator)
        self.resources.embeddings = self._retrieval()
        self.decoding = GenerationConfig(
            do_sample=False,
            max_new_tokens=profile.generation.max_new_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.model.generation_config.eos_token_id,
        )

    def answers(self, method: Method) -> Iterator[tuple[int, str]]:
        """The answer of every row, by its id."""
        rows = self.benchmark.rows
        compositions = method.router.route(Context(self.resources, self.profile, method.declaration))
        batches = [slice(start, start + BATCH) for start in range(0, len(rows), BATCH)]
        for batch in track(batches, description=f"original's {method.name}"):
            yield from self._batch(rows[batch], self.prompts[batch], compositions[batch], str(method.mode))

    @torch.inference_mode()
    def _batch(
        self, rows: Sequence[Row], prompts: Sequence[Prompt], compositions: Sequence[Composition], mode: str
    ) -> Iterator[tuple[int, str]]:
        ids = [prompt.token_ids for prompt in prompts]
        longest = max(map(len, ids))
        pad = [[0] * (longest - len(row)) for row in ids]
        device = self.model.device
        inputs = torch.tensor([p + row for p, row in zip(pad, ids, strict=True)], device=device)  # [batch, longest]
        mask = torch.tensor([p + [1] * len(row) for p, row in zip(pad, ids, strict=True)], device=device)
        names, mapping = weight_matrix(compositions)
        stacks = self._read(names)
        with original_composition(self.model, stacks, mapping, mode) if names else nullcontext():
            tokens = self.model.generate(input_ids=inputs, attention_mask=mask, generation_config=self.decoding)
        for row, generated in zip(rows, tokens[:, longest:].tolist(), strict=True):
            yield row.id, answer_of(generated, self.tokenizer).text

    def _read(self, names: Sequence[str]) -> dict[str, StackedLoras]:
        """The adapters of a batch, from disk."""
        configs, tensors = [], []
        for name in names:
            folder = self.benchmark.adapters[name]
            configs.append(json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")))
            tensors.append(load_file(folder / "adapter_model.safetensors"))
        stacks = {}
        for key in tensors[0] if tensors else ():
            if not key.endswith("lora_A.weight"):
                continue
            down = torch.stack([adapter[key] for adapter in tensors])  # [adapters, r, d_in]
            up = torch.stack([adapter[key.replace("lora_A", "lora_B")] for adapter in tensors])  # [adapters, d_out, r]
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            scalings = torch.tensor([config["lora_alpha"] / config["r"] for config in configs])
            place = self.model.device, self.dtype
            stacks[module] = StackedLoras(down.to(*place), up.to(*place), scalings.to(*place))
        return stacks

    def _retrieval(self) -> tuple[AdapterIndex, Embeddings]:
        """The pool's index and the queries' embeddings, one query at a time."""
        settings, folder, device = self.profile.encoder, self.benchmark.encoder, self.profile.torch_device
        if settings is None or folder is None:
            raise UserError(f"profile {self.profile.name}: encoder: the original's loop needs a folder or a Hub id")
        encoder = load_encoder(folder, settings.layout, settings.instruction, settings.batch_size, device)
        index = AdapterIndex.from_texts(self.benchmark.pool, encoder, "cosine")
        rows = track(self.benchmark.rows, description="original's queries")
        return index, np.concatenate([encoder.encode([row.inputs]) for row in rows])


def no_generator() -> Generator:
    """In place of the composable model: the paper's methods do not look into it, and the original has none."""
    raise AssertionError("the original's loop has no composable model")


def compared(ours: Sequence[Measured], original: Sequence[Measured], names: Sequence[str]) -> dict[str, Any]:
    """Rows per second of both, their ratio, and how many answers are equal, in all and for each configuration."""

    def figures(mine: Sequence[float], its: Sequence[float], only: Sequence[str]) -> dict[str, Any]:
        rows = sum(len(ours[0].answers[name]) for name in only)
        pairs = [(text, original[0].answers[name][id]) for name in only for id, text in ours[0].answers[name].items()]
        return {
            "rows": rows,
            "ours_seconds": round(median(mine), 2),
            "original_seconds": round(median(its), 2),
            "ours_rows_per_second": round(rows / median(mine), 2),
            "original_rows_per_second": round(rows / median(its), 2),
            "ratio": round(median(i / m for m, i in zip(mine, its, strict=True)), 2),
            "reused": sum(ours[0].reused[name] for name in only),
            "equal_answers": sum(first == second for first, second in pairs),
        }

    return {
        "all": figures([one.total for one in ours], [one.total for one in original], names),
        "configurations": {
            name: figures([one.seconds[name] for one in ours], [one.seconds[name] for one in original], [name])
            for name in names
        },
    }


def table(figures: dict[str, Any], profile: str) -> Table:
    """The figures, a configuration a line."""
    lines = {**figures["configurations"], "all, start to end": figures["all"]}
    return Table(
        ["ours, rows/s", "original's, rows/s", "times faster", "reused", "equal answers"],
        [
            (
                name,
                [
                    f"{its['ours_rows_per_second']:.2f}",
                    f"{its['original_rows_per_second']:.2f}",
                    f"{its['ratio']:.2f}",
                    str(its["reused"]),
                    f"{its['equal_answers']} of {its['rows']}",
                ],
            )
            for name, its in lines.items()
        ],
        notes=[f"Profile {profile}, {torch.get_num_threads()} threads."],
    )


if __name__ == "__main__":
    main()

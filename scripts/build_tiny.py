"""Build the bundled miniature benchmark: data, base model, one LoRA per task, sentence encoder, and a check of it all.

    python scripts/build_tiny.py --out data/tiny

Everything follows from the seed. Finished stages are left out, so an interrupted build continues where it stopped.
Delete the folder for a new build. `record.json` says how each part was made, and what the check measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from tiny_benchmark.check import failures, measure
from tiny_benchmark.corpus import documents
from tiny_benchmark.encoder import build_encoder, train_encoder
from tiny_benchmark.models import base_config, build_tokenizer, train_base, vocabulary_of
from tiny_benchmark.readme import readme
from tiny_benchmark.tasks import TASKS, Rows, task_rows
from tiny_benchmark.world import build_world
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

from lora_retriever.data.rows import Sample, read_rows
from lora_retriever.experiment.profile import INSTRUCTION
from lora_retriever.files import write_json, write_text
from lora_retriever.generation.prompt import ALPACA
from lora_retriever.training.adapter import train_adapter
from lora_retriever.training.curve import PLOT
from lora_retriever.training.lora import TrainingOptions

TRAIN_ROWS = 800
TEST_ROWS = 30
POOL_SAMPLES = 20
BASE_STEPS = 3000
ENCODER_STEPS = 40
# The share of the tasks that the encoder is trained on: 8 of 19, as the paper trains on 40 %.
ENCODER_TASKS = (
    "people_qa", "city_qa", "movie_review", "meal_review", "to_velan", "to_orrin", "passive", "synonyms"
)  # fmt: skip
LORA = TrainingOptions(
    rank=8,
    alpha=16,
    targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    dropout=0.0,
    epochs=2,
    learning_rate=1.5e-3,
    batch_size=16,
)
# The adapter from which all other adapters go on.
START_ROWS = 160  # number of rows of every task
START = LORA.model_copy(update={"epochs": 5, "learning_rate": 3e-3})
PACKAGES = ("torch", "transformers", "peft", "sentence-transformers", "tokenizers")


class Build:
    """One build: its folder, its seed, and the record of the stages done."""

    def __init__(self, folder: Path, seed: int) -> None:
        """Raises `SystemExit` if the folder holds a build of another seed."""
        self.folder = folder
        self.seed = seed
        self.path = folder / "record.json"
        self.record: dict[str, Any] = {
            "seed": seed,
            "machine": {"processor": _processor(), "cores": os.cpu_count()},
            "versions": {package: version(package) for package in PACKAGES},
            "stages": {},
        }
        if self.path.exists():
            self.record = json.loads(self.path.read_text(encoding="utf-8"))
            if self.record["seed"] != seed:
                raise SystemExit(
                    f"{folder} was built with seed {self.record['seed']}; choose another --out, or delete it"
                )
        self.world = build_world(seed)
        self.rows: dict[str, tuple[Rows, Rows]] = {
            task.name: task_rows(task, self.world, seed, TRAIN_ROWS, TEST_ROWS) for task in TASKS
        }

    def stage(self, name: str, make: Callable[[], dict[str, Any]]) -> None:
        """Do a stage unless the record says it is done, and put into the record what it returns, with its seconds."""
        if name in self.record["stages"]:
            print(f"{name}: done already")
            return
        print(f"{name}:", flush=True)
        started = time.perf_counter()
        facts = make()
        self.record["stages"][name] = {**facts, "seconds": round(time.perf_counter() - started)}
        write_json(self.path, self.record)

    def vocabulary(self) -> tuple[list[str], list[str]]:
        """The words of all prompts, and the whole vocabulary: these, the marks, and the words of the base's text."""
        rows = [row for parts in self.rows.values() for part in parts for row in part]
        prompts = vocabulary_of([ALPACA, INSTRUCTION, *(f"{row['inputs']} {row['targets']}" for row in rows)])
        prompt_words = [word for word in prompts if word[0].isalpha()]
        text = islice(documents(self.world, prompt_words, self.seed), 20_000)
        return prompt_words, sorted({*prompts, *vocabulary_of(text)})

    def make_data(self) -> dict[str, Any]:
        """Write `test.json` and `pool.json`; pool samples are drawn from the training rows."""
        rng = Random(f"pool/{self.seed}")
        test = [row for task in TASKS for row in self.rows[task.name][1]]
        pool = [
            {
                "model_name": task.name,
                "domain": task.domain,
                "sample": [
                    {"inputs": row["inputs"], "targets": row["targets"]}
                    for row in rng.sample(self.rows[task.name][0], POOL_SAMPLES)
                ],
            }
            for task in TASKS
        ]
        write_json(self.folder / "test.json", test)
        write_json(self.folder / "pool.json", pool)
        return {"tasks": len(TASKS), "test_rows": len(test), "pool_samples": POOL_SAMPLES}

    def make_base(self) -> dict[str, Any]:
        """Train the base model and write it with its tokenizer."""
        prompt_words, vocabulary = self.vocabulary()
        tokenizer = build_tokenizer(vocabulary)
        config = base_config(tokenizer, hidden=128, layers=4)
        model, loss = train_base(
            config, tokenizer, documents(self.world, prompt_words, self.seed), self.seed, BASE_STEPS
        )
        model.save_pretrained(self.folder / "base")
        tokenizer.save_pretrained(self.folder / "base")
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return {"parameters": parameters, "vocabulary": len(tokenizer), "steps": BASE_STEPS, "loss": round(loss, 3)}

    def make_adapters(self) -> dict[str, Any]:
        """Train one adapter for each task. Adapters that exist already are kept.

        The training of every adapter starts from one adapter that was briefly trained on a few rows of every task. So
        all adapters have learned the common parts of all tasks: a short answer, and an end. A mixture of three adapters
        weakens only the differences between the adapters.
        """
        tokenizer = AutoTokenizer.from_pretrained(self.folder / "base")
        base = AutoModelForCausalLM.from_pretrained(self.folder / "base", dtype=torch.float32)
        base.config.name_or_path = base.name_or_path = "data/tiny/base"  # the base that the adapters name
        common, own = (options.model_copy(update={"seed": self.seed}) for options in (START, LORA))
        with tempfile.TemporaryDirectory() as scratch:
            start = Path(scratch) / "start"
            mixed = [sample for task in TASKS for sample in self.samples(task.name, START_ROWS)]
            made = train_adapter(base, tokenizer, mixed, common, start)
            print(f"  common start: {_summary(made)}", flush=True)
            for number, task in enumerate(TASKS, start=1):
                out = self.folder / "adapters" / task.name
                if out.exists():
                    continue
                made = train_adapter(base, tokenizer, self.samples(task.name, TRAIN_ROWS), own, out, initial=start)
                (out / PLOT).unlink(missing_ok=True)  # a picture of each training is too much for a miniature
                print(f"  adapter {number}/{len(TASKS)}: {task.name}: {_summary(made)}", flush=True)
        return {
            "start_rows": START_ROWS * len(TASKS),
            "start": common.model_dump(),
            "train_rows": TRAIN_ROWS,
            "options": own.model_dump(),
        }

    def samples(self, task: str, count: int) -> list[Sample]:
        """The first training rows of a task, repeated where it has fewer than `count`."""
        rows = islice(cycle(self.rows[task][0]), count)
        return [Sample(inputs=row["inputs"], targets=row["targets"]) for row in rows]

    def make_encoder(self) -> dict[str, Any]:
        """Train the sentence encoder on the training inputs of its share of the tasks, and write it."""
        encoder = build_encoder(self.vocabulary()[1], self.seed)
        samples = {name: [row["inputs"] for row in self.rows[name][0]] for name in ENCODER_TASKS}
        losses = train_encoder(encoder, samples, self.seed, ENCODER_STEPS)
        encoder.save(str(self.folder / "encoder"), create_model_card=False)
        return {"tasks": ENCODER_TASKS, "steps": ENCODER_STEPS, "loss": round(losses[-1], 3)}

    def make_check(self) -> dict[str, Any]:
        """Measure the finished miniature. The figures complete the record, from which the README is written."""
        measured = measure(self.folder)
        return {**measured, "unmet": failures(read_rows(self.folder / "test.json"), measured)}


def _summary(made: dict[str, Any]) -> str:
    losses = " ".join(f"{loss:.3f}" for loss in made["losses"])
    return f"{made['steps']} steps, {made['seconds']:.0f} s, loss by epoch {losses}"


def _processor() -> str:
    """The processor's name if the system tells the name, else its architecture."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main(arguments: list[str] | None = None) -> int:
    """Build, and return 0 if the result meets all conditions, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/tiny"), help="folder of the miniature")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # between transformers and PEFT
    torch.set_num_threads(1)  # the order of sums, and so the result, depends on this number

    build = Build(args.out, args.seed)
    build.stage("data", build.make_data)
    build.stage("base", build.make_base)
    build.stage("adapters", build.make_adapters)
    build.stage("encoder", build.make_encoder)
    build.stage("check", build.make_check)
    write_text(args.out / "README.md", readme(build.record))
    unmet = build.record["stages"]["check"]["unmet"]
    for condition in unmet:
        print(f"not met: {condition}", file=sys.stderr)
    return 1 if unmet else 0


if __name__ == "__main__":
    sys.exit(main())

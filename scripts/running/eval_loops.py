"""Other implementations of an evaluation, for comparison: the original's loop, and `generate` of upstream PEFT.

Three conditions favour both: the models are loaded once for all runs, queries are encoded once, and no pool is larger
than the memory.

- The original's loop is written from its description, without its faults, so that the loop composes correctly: rows in
  the order of the file in batches of 8, one query encoded at a time, the adapters of every batch read from disk and
  composed by the original's formulas (`original_composition.py`), and every row decoded until the last row of its batch
  has ended. The tensors of adapters are only read, not injected into the model.
- Upstream PEFT answers rows of several adapters in one batch by `generate(..., adapter_names=[...])`, one adapter a
  row. So the loop knows only methods that give every row one adapter, or none. The longest prompts come first, which
  keeps padding small. All adapters are loaded before the first row.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from original_composition import StackedLoras, original_composition
from peft import PeftModel
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig

from lora_retriever.data.rows import Row
from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import Benchmark, model_source
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.composition import weight_matrix
from lora_retriever.generation.generator import Generator, answer_of, make_prompts
from lora_retriever.generation.loading import load_tokenizer
from lora_retriever.generation.passes import left_padded
from lora_retriever.generation.prompt import Prompt
from lora_retriever.methods import Composition, Method
from lora_retriever.methods.context import Context, Resources
from lora_retriever.retrieval.encoders import Embeddings, load_encoder
from lora_retriever.retrieval.index import AdapterIndex

ORIGINALS_BATCH = 8
"""Number of rows in a batch of the original."""
BASE = "__base__"
"""PEFT's name of the base model among adapters."""


class EvalLoop(ABC):
    """A benchmark with its model, its prompts and its queries, answered by one method after the other."""

    name = ""
    """The loop's name in progress bars."""

    def __init__(self, profile: Profile, benchmark: Benchmark, batch: int) -> None:
        """Load the models and encode the queries. `batch`: number of rows in a batch."""
        self.profile = profile
        self.benchmark = benchmark
        self.batch = batch
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

    def order(self) -> list[int]:
        """The places of the rows, in the order in which the rows are answered."""
        return list(range(len(self.prompts)))

    @abstractmethod
    def tokens(self, prompts: Sequence[Prompt], compositions: Sequence[Composition], mode: str) -> list[list[int]]:
        """The new tokens of a batch."""

    @torch.inference_mode()
    def answers(self, method: Method) -> Iterator[tuple[int, str]]:
        """The answer of every row, by its id."""
        compositions = method.router.route(Context(self.resources, self.profile, method.declaration))
        order = self.order()
        batches = [order[start : start + self.batch] for start in range(0, len(order), self.batch)]
        for batch in track(batches, description=f"{self.name}: {method.name}"):
            rows: list[Row] = [self.benchmark.rows[place] for place in batch]
            prompts, chosen = [self.prompts[place] for place in batch], [compositions[place] for place in batch]
            for row, tokens in zip(rows, self.tokens(prompts, chosen, str(method.mode)), strict=True):
                yield row.id, answer_of(tokens, self.tokenizer).text

    def generated(self, prompts: Sequence[Prompt], **options: Any) -> list[list[int]]:
        """The new tokens of `generate`, for prompts that are padded on the left."""
        ids = [prompt.token_ids for prompt in prompts]
        device = self.model.device
        inputs = left_padded(ids, 0).to(device)  # [batch, longest]
        mask = left_padded([[1] * len(row) for row in ids], 0).to(device)
        made = self.model.generate(input_ids=inputs, attention_mask=mask, generation_config=self.decoding, **options)
        tokens: list[list[int]] = made[:, inputs.shape[1] :].tolist()
        return tokens

    def _retrieval(self) -> tuple[AdapterIndex, Embeddings]:
        """The pool's index and the queries' embeddings, one query at a time."""
        settings, folder, device = self.profile.encoder, self.benchmark.encoder, self.profile.torch_device
        if settings is None or folder is None:
            raise UserError(f"profile {self.profile.name}: encoder: a comparison needs a folder or a Hub id")
        encoder = load_encoder(folder, settings.layout, settings.instruction, settings.batch_size, device)
        index = AdapterIndex.from_texts(self.benchmark.pool, encoder, "cosine")
        rows = track(self.benchmark.rows, description=f"{self.name}: queries")
        return index, np.concatenate([encoder.encode([row.inputs]) for row in rows])


class OriginalLoop(EvalLoop):
    """The original's evaluation."""

    name = "the original"

    def __init__(self, profile: Profile, benchmark: Benchmark) -> None:
        super().__init__(profile, benchmark, ORIGINALS_BATCH)

    def tokens(self, prompts: Sequence[Prompt], compositions: Sequence[Composition], mode: str) -> list[list[int]]:
        """The new tokens of a batch, composed by the original's formulas."""
        names, mapping = weight_matrix(compositions)
        stacks = self._read(names)
        with original_composition(self.model, stacks, mapping, mode) if names else nullcontext():
            return self.generated(prompts)

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


class UpstreamLoop(EvalLoop):
    """Upstream PEFT's own way: `generate` with the name of an adapter for each row."""

    name = "upstream PEFT"

    def __init__(self, profile: Profile, benchmark: Benchmark, batch: int) -> None:
        super().__init__(profile, benchmark, batch)
        adapters = iter(benchmark.adapters.items())
        name, folder = next(adapters)
        model = PeftModel.from_pretrained(self.model, folder, name)
        for name, folder in adapters:
            model.load_adapter(folder, name)
        self.model = model.eval()

    def order(self) -> list[int]:
        """The longest prompts first."""
        return sorted(super().order(), key=lambda place: -len(self.prompts[place].token_ids))

    def tokens(self, prompts: Sequence[Prompt], compositions: Sequence[Composition], mode: str) -> list[list[int]]:
        """The new tokens of a batch of rows with one adapter of weight 1 each, or without adapter."""
        for composition in compositions:
            assert list(composition.weights.values()) in ([], [1.0]), "PEFT gives a row one adapter or none"
        return self.generated(prompts, adapter_names=[next(iter(one.adapters), BASE) for one in compositions])


def no_generator() -> Generator:
    """A stand-in for the composable model.

    The loops have no such model, and the paper's methods do not look into the model.
    """
    raise AssertionError("these loops have no composable model")

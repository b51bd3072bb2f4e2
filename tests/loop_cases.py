"""Helpers of tests of decoding: a generator without a tokenizer, tiny hybrids, and transformers' greedy answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from composition_cases import write_adapter
from model_families import Family, InDouble, left_padded
from transformers import AutoConfig, AutoModelForCausalLM

from lora_retriever.generation.composition import Composition
from lora_retriever.generation.jobs import Job
from lora_retriever.generation.limits import limits_of
from lora_retriever.generation.loop import continued
from lora_retriever.generation.sampling import Sampling
from lora_retriever.generation.settings import GenerationSection
from peft_composition import ComposableModel, Gate

NAMES = ["usual", "full"]
"""The adapters of `adapted`: one targets the modules that people adapt, the other targets all linear modules."""
HYBRIDS: dict[str, dict[str, Any]] = {
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
}


class Toy:
    """A generator with the parts that the loop needs, and with a vocabulary of letters."""

    def __init__(self, model: ComposableModel, eos_ids: Sequence[int] = (), **settings: Any) -> None:
        self.model = model
        self.limits = limits_of(model.base)
        self.eos_ids = list(eos_ids)
        self.pad_id = 0
        self.settings = GenerationSection(**{"batch_size": 4, **settings})
        self.tokenizer = self

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool) -> str:
        return "".join(chr(ord("0") + token) for token in tokens)


def generator_of(model: ComposableModel, eos_ids: Sequence[int] = (), **settings: Any) -> Any:
    return Toy(model, eos_ids, **settings)


def adapted(family: Family, folder: Path) -> ComposableModel:
    """A model of one family with two adapters."""
    base = family.build()
    model = ComposableModel(base)
    conv = {"fan_in_fan_out": family.model_type == "gpt2"}
    for seed, (name, targets) in enumerate(zip(NAMES, (list(family.targets), "all-linear"), strict=True)):
        model.load_adapter(write_adapter(folder / name, base, seed=seed, target_modules=targets, **conv), name)
    return model


def hybrid(model_type: str) -> Any:
    """A tiny random hybrid, whose state cannot be divided by row."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type, vocab_size=48, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, initializer_range=0.3, eos_token_id=None, pad_token_id=0,
        tie_word_embeddings=False, **HYBRIDS[model_type],
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def continued_together(
    model: ComposableModel,
    prompts: Sequence[Sequence[int]],
    eos_ids: Sequence[int],
    new_tokens: int,
    compositions: Sequence[Composition] | None = None,
    mode: str = "mixture",
    gate: Gate | None = None,
) -> list[list[int]]:
    """The loop's greedy continuation of each prompt, all of them in one batch."""
    chosen = compositions or [Composition()] * len(prompts)
    sampling = Sampling(new_tokens)
    jobs = [Job(prompt, one, mode, sampling, gate) for prompt, one in zip(prompts, chosen, strict=True)]
    events = continued(generator_of(model, eos_ids), jobs)
    return [[token.id for token in event.tokens] for event in events]


def generated(
    model: ComposableModel, prompts: Sequence[Sequence[int]], eos_ids: Sequence[int], new_tokens: int
) -> list[list[int]]:
    """The continuation of each prompt by transformers' greedy `generate`, with the first EOS token."""
    ids, mask = left_padded(prompts)
    tokens = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        **({"eos_token_id": list(eos_ids)} if eos_ids else {}),
    )
    return [cut(row, eos_ids) for row in tokens[:, ids.shape[1] :].tolist()]


def alone(model: ComposableModel, job: Job) -> list[int]:
    """The greedy continuation of a prompt in a batch of its own, without an EOS token, by transformers' `generate`."""
    weights = job.composition.weights
    composed = model.composed(list(weights), [list(weights.values())], job.mode, job.gate) if weights else nullcontext()
    with InDouble(), composed:
        return generated(model, [job.prompt], [], job.sampling.max_new_tokens)[0]


def rare(answers: Sequence[Sequence[int]]) -> list[int]:
    """The rarest tokens of some answers. With these as EOS tokens, some rows end early, some late, some never."""
    tokens = [token for answer in answers for token in answer]
    return sorted(set(tokens), key=lambda token: (tokens.count(token), token))[:4]


def cut(answer: Sequence[int], eos_ids: Sequence[int]) -> list[int]:
    """An answer up to its EOS token, with the EOS token."""
    ends = [place for place, token in enumerate(answer) if token in eos_ids]
    return list(answer[: ends[0] + 1] if ends else answer)

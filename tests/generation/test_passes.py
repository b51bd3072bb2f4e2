"""Prompts are read in parts of similar length, and a model that would lose its state is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composition_cases import tiny_llama, write_adapter
from loop_cases import hybrid
from model_families import prompts_of
from transformers import AutoConfig, AutoModelForCausalLM

from lora_retriever.errors import UserError
from lora_retriever.generation.generator import Generator
from lora_retriever.generation.passes import read_prompts, reading_parts
from lora_retriever.generation.settings import GenerationSection
from peft_composition import ComposableModel, Offered, Tokens


def test_prompts_of_like_length_are_read_together():
    lengths = [12, 10, 9, 8, 8, 3]
    assert list(reading_parts(lengths, separable=True)) == [slice(0, 3), slice(3, 5), slice(5, 6)]
    assert list(reading_parts([5], separable=True)) == [slice(0, 1)]
    assert list(reading_parts(lengths, separable=False)) == [slice(0, 6)]


class Noting:
    """A gate that weighs nothing, and notes the real tokens of every row."""

    def __init__(self) -> None:
        self.tokens: dict[int, int] = {}

    def prepare(self, offered: Offered) -> str:
        return offered.module

    def weights(self, module: str, tokens: Tokens) -> torch.Tensor:
        if module.endswith("layers.0.self_attn.q_proj"):
            for row, real in zip(tokens.rows.tolist(), tokens.real.sum(dim=1).tolist(), strict=True):
                self.tokens[row] = self.tokens.get(row, 0) + real
        return torch.zeros(*tokens.inner.shape[:3])


@pytest.mark.slow
def test_a_gate_sees_every_token_of_the_prompts_once(tmp_path: Path) -> None:
    base = tiny_llama()
    model = ComposableModel(base)
    model.load_adapter(write_adapter(tmp_path / "one", base, 0, target_modules=["q_proj"]), "one")
    lengths, gate = (12, 11, 6, 5, 5, 1), Noting()
    with model.composed(["one"], [[1.0]] * len(lengths), gate=gate):
        read_prompts(model, prompts_of(lengths), 0)
    assert gate.tokens == dict(enumerate(lengths))


def test_a_model_whose_state_would_be_lost_from_token_to_token_is_refused_when_it_is_loaded() -> None:
    config = AutoConfig.for_model(
        "mamba", vocab_size=48, hidden_size=16, num_hidden_layers=1, state_size=4, expand=2, time_step_rank=2
    )
    model = ComposableModel(AutoModelForCausalLM.from_config(config).eval())
    tokenizer: Any = None
    with pytest.raises(UserError, match=r"MambaForCausalLM cannot be decoded here: .* no past_key_values"):
        Generator(model, tokenizer, GenerationSection())


def test_the_prompts_of_a_hybrid_are_read_in_one_pass() -> None:
    model, shapes = ComposableModel(hybrid("lfm2")), []
    handle = model.base.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        read_prompts(model, prompts_of((12, 3, 1)), 0)
    finally:
        handle.remove()
    assert shapes == [(3, 12)]

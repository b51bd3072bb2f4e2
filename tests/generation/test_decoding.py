"""The decoding loop gives the tokens of transformers' own greedy `generate`, in every family, padded or not."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from composition_cases import tiny_llama, write_adapter
from model_families import DECODERS, InDouble, left_padded, prompts_of
from transformers import AutoConfig, AutoModelForCausalLM

from lora_retriever.errors import UserError
from lora_retriever.generation.decoding import LEAVE, PADDED, decode, parts_of
from lora_retriever.generation.generator import Generator
from lora_retriever.generation.settings import GenerationSection
from peft_composition import ComposableModel

NEW_TOKENS = 12
NAMES = ["usual", "full"]
LENGTHS = {
    "unequal": (9, 3, 6, 11, 1, 6, 9, 2, 7), "sorted": (11, 9, 9, 7, 6, 6, 3, 2, 1), "equal": (7,) * 9, "one row": (8,),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ComposableModel:
    """A model of one family with two adapters."""
    family, folder = DECODERS[request.param], tmp_path_factory.mktemp(request.param)
    base = family.build()
    model = ComposableModel(base)
    conv = {"fan_in_fan_out": family.model_type == "gpt2"}
    for seed, (name, targets) in enumerate(zip(NAMES, (list(family.targets), "all-linear"), strict=True)):
        model.load_adapter(write_adapter(folder / name, base, seed=seed, target_modules=targets, **conv), name)
    return model


def generated(model: ComposableModel, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
    """The new tokens of every row by transformers' `generate`."""
    ids, mask = left_padded(prompts)
    tokens = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, **options
    )
    return tokens[:, ids.shape[1] :].tolist()


def ends_at_different_times(answers: Sequence[Sequence[int]]) -> list[int]:
    """EOS tokens that some rows meet early, some late, some never: the rarest tokens of the answers."""
    tokens = [token for answer in answers for token in answer]
    return sorted(set(tokens), key=lambda token: (tokens.count(token), token))[:4]


def cut(answer: Sequence[int], eos_ids: Sequence[int]) -> list[int]:
    """An answer up to and with its EOS token."""
    ends = [i for i, token in enumerate(answer) if token in eos_ids]
    return list(answer[: ends[0] + 1] if ends else answer)


@pytest.mark.slow
@pytest.mark.parametrize("composed", [False, True], ids=["base", "composed"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("model", DECODERS, indirect=True)
def test_tokens_are_those_of_generate(model, lengths, composed):
    prompts = prompts_of(lengths, seed=5)
    weights = torch.tensor([[0.5, 0.25], [1.0, 0.0], [0.0, 0.0]]).repeat(3, 1)[: len(prompts)]
    with InDouble(), model.composed(NAMES, weights) if composed else nullcontext():
        eos_ids = ends_at_different_times(generated(model, prompts))
        expected = generated(model, prompts, eos_token_id=eos_ids)
        answers = decode(model, prompts, eos_ids, pad_id=0, max_new_tokens=NEW_TOKENS)
    assert answers == [cut(answer, eos_ids) for answer in expected]
    assert len(prompts) == 1 or len(set(map(len, answers))) > 1, "rows end at different times"


def test_prompts_of_like_length_are_read_together():
    assert list(parts_of([12, 10, 9, 8, 8, 3])) == [slice(0, 3), slice(3, 5), slice(5, 6)]
    assert list(parts_of([5])) == [slice(0, 1)]


def test_a_batch_costs_what_its_rows_need(monkeypatch):
    base, shapes = tiny_llama(), []
    forward = base.forward

    def watched(input_ids, **options):
        shapes.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **options)

    watched.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(base, "forward", watched)
    prompts = prompts_of(sorted([20, 19, 18, 15, 9, 8, 8, 7, 7, 3, 2, 2], reverse=True), seed=1)
    eos_ids = ends_at_different_times(decode(ComposableModel(base), prompts, [], 0, NEW_TOKENS))
    shapes.clear()
    answers = decode(ComposableModel(base), prompts, eos_ids, 0, NEW_TOKENS)
    parts = list(parts_of([len(prompt) for prompt in prompts]))
    assert shapes[: len(parts)] == [(part.stop - part.start, len(prompts[part.start])) for part in parts]
    assert all(len(prompts[part.stop - 1]) >= PADDED * len(prompts[part.start]) for part in parts)
    for step, (rows, new) in enumerate(shapes[len(parts) :], start=1):
        going_on = sum(len(answer) > step for answer in answers)
        assert new == 1
        assert going_on <= rows < going_on / (1 - LEAVE) + 1e-9 or rows == going_on
    assert len(shapes) == len(parts) + max(map(len, answers)) - 1


HYBRID = {
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", HYBRID)
def test_models_with_other_states_than_keys_and_values_keep_their_batches_whole(model_type):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type, vocab_size=48, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, initializer_range=0.3, eos_token_id=None, pad_token_id=0,
        tie_word_embeddings=False, **HYBRID[model_type],
    )  # fmt: skip
    model = ComposableModel(AutoModelForCausalLM.from_config(config).eval())
    prompts = prompts_of((12, 12, 4, 4), seed=2)
    eos_ids = ends_at_different_times(generated(model, prompts))
    expected = generated(model, prompts, eos_token_id=eos_ids)
    answers = decode(model, prompts, eos_ids, pad_id=0, max_new_tokens=NEW_TOKENS)
    assert answers == [cut(answer, eos_ids) for answer in expected]


def test_a_model_whose_state_would_be_lost_from_token_to_token_is_refused_when_it_is_loaded():
    config = AutoConfig.for_model(
        "mamba", vocab_size=48, hidden_size=16, num_hidden_layers=1, state_size=4, expand=2, time_step_rank=2
    )
    model = ComposableModel(AutoModelForCausalLM.from_config(config).eval())
    tokenizer: Any = None
    with pytest.raises(UserError, match=r"MambaForCausalLM cannot be decoded here: .* no past_key_values"):
        Generator(model, tokenizer, GenerationSection())
    with pytest.raises(UserError, match="MambaForCausalLM"):
        decode(model, [[5, 6, 7]], [], pad_id=0, max_new_tokens=2)

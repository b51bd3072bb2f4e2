"""The limits of a base come from its modules: positions, vocabulary, windows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from places import TINY
from transformers import (
    AutoModelForCausalLM,
    BioGptConfig,
    BloomConfig,
    CodeGenConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    OpenAIGPTConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

from lora_retriever.errors import UserError
from lora_retriever.generation.limits import (
    Limits,
    check_settings,
    check_text,
    check_tokens,
    length_warnings,
    limits_of,
)
from lora_retriever.generation.loading import skeleton
from lora_retriever.generation.settings import GenerationSection
from lora_retriever.generation.shape import shape_of

TABLED: list[tuple[PretrainedConfig, int]] = [
    (GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=12), 12),
    (OpenAIGPTConfig(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=12), 12),
    (OPTConfig(vocab_size=50, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
               max_position_embeddings=12, word_embed_proj_dim=16), 12),
    (GPTNeoConfig(vocab_size=50, hidden_size=16, num_layers=1, num_heads=2, max_position_embeddings=12,
                  attention_types=[[["global"], 1]]), 12),
    (BioGptConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                  max_position_embeddings=12), 12),
    (GPTJConfig(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=12, rotary_dim=4), 12),
    (CodeGenConfig(vocab_size=50, n_embd=16, n_layer=1, n_head=4, n_positions=12, rotary_dim=4), 12),
    (RobertaConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                   max_position_embeddings=14, is_decoder=True), 12),
    (MptConfig(vocab_size=50, d_model=16, n_layers=1, n_heads=2, max_seq_len=12), 12),
]  # fmt: skip


def built(config: PretrainedConfig) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    return model


@pytest.mark.parametrize(("config", "positions"), TABLED, ids=[config.model_type for config, _ in TABLED])
def test_a_table_of_positions_is_found_and_is_what_the_model_can_read(config: PretrainedConfig, positions: int) -> None:
    model = built(config)
    limits = limits_of(model)
    assert (limits.table, limits.vocabulary) == (positions, 50)
    with torch.inference_mode():
        model(torch.full((1, positions), 3))  # token 1 is Roberta's padding, which takes no position
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, positions + 1), 3))


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                    max_position_embeddings=12),
        BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2),
    ],
    ids=["llama", "bloom"],
)  # fmt: skip
def test_rotary_and_alibi_models_read_longer_texts(config: PretrainedConfig) -> None:
    model = built(config)
    assert limits_of(model).table is None
    with torch.inference_mode():
        model(torch.full((1, 40), 3))


def test_the_length_is_refused_or_warned_of() -> None:
    settings = GenerationSection(max_prompt_tokens=128, max_new_tokens=24)
    with pytest.raises(UserError) as error:
        check_settings(Limits(566, 48, 48, None), settings)
    assert str(error.value) == (
        "generation.max_prompt_tokens + generation.max_new_tokens = 128 + 24 = 152, and the base has 48 positions; "
        "lower one of the two"
    )
    check_settings(Limits(566, 152, 152, None), settings)
    check_settings(Limits(566, None, 48, None), settings)
    (trained,) = length_warnings(Limits(566, None, 48, None), settings)
    assert "may have 152 tokens, and the base was trained for 48 positions" in trained
    (window,) = length_warnings(Limits(566, None, 4096, 100), settings)
    assert "attends to the last 100 tokens only" in window
    assert length_warnings(Limits(566, None, 152, 152), settings) == []
    assert length_warnings(Limits(566, 200, 200, None), settings) == []


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        (None, 64),
        ({"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}, 64),
    ],
)
def test_scaled_rotary_embeddings_reach_further(rope: dict[str, object] | None, positions: int) -> None:
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, rope_parameters=rope,
    )  # fmt: skip
    assert limits_of(built(config)).trained == positions


def test_a_window_counts_where_every_layer_has_it() -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    mistral = MistralConfig(**sizes, num_key_value_heads=2, num_hidden_layers=2, sliding_window=8)
    assert limits_of(built(mistral)).window == 8
    mixed = Gemma3TextConfig(
        **sizes, num_key_value_heads=2, num_hidden_layers=2, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    assert limits_of(built(mixed)).window is None


@pytest.mark.slow
def test_a_skeleton_has_the_limits_of_the_model_with_its_weights() -> None:
    without = skeleton(TINY / "base")
    assert all(parameter.is_meta for parameter in without.parameters())
    assert limits_of(without) == limits_of(AutoModelForCausalLM.from_pretrained(TINY / "base"))
    assert limits_of(without) == Limits(566, None, 512, None)


def test_a_token_outside_the_vocabulary_is_named() -> None:
    check_tokens([0, 565], 566)
    with pytest.raises(UserError, match="token 566 is outside the base's vocabulary of 566"):
        check_tokens([0, 566], 566)
    with pytest.raises(UserError, match="token -1 is outside"):
        check_tokens([-1], 566)


def test_shapes_have_llamas_names_whatever_the_family_calls_them() -> None:
    gpt2 = shape_of(GPT2Config(vocab_size=50, n_embd=16, n_layer=3, n_head=2))
    assert gpt2 == {
        "num_hidden_layers": 3, "hidden_size": 16, "intermediate_size": 64, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 50,
    }  # fmt: skip
    opt = shape_of(OPTConfig(vocab_size=50, hidden_size=16, ffn_dim=40, num_hidden_layers=1, num_attention_heads=2))
    assert (opt["intermediate_size"], opt["num_hidden_layers"]) == (40, 1)
    neo = shape_of(GPTNeoConfig(hidden_size=16, num_layers=2, num_heads=4, attention_types=[[["global"], 2]]))
    assert (neo["num_hidden_layers"], neo["num_attention_heads"], neo["intermediate_size"]) == (2, 4, 64)
    llama = shape_of(LlamaConfig(hidden_size=16, num_attention_heads=4, num_key_value_heads=2, head_dim=6))
    assert (llama["num_key_value_heads"], llama["head_dim"]) == (2, 6)


@pytest.mark.parametrize("wrong", [0, -3])
def test_a_shape_of_nothing_is_refused(wrong: int) -> None:
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=3, n_head=2)
    config.n_head = wrong
    with pytest.raises(UserError, match=f"the configuration says num_attention_heads = {wrong}; it must be at least 1"):
        shape_of(config)


def test_a_whole_text_must_fit_into_vocabulary_and_positions() -> None:
    limits = Limits(vocabulary=10, table=3, trained=3, window=None)
    check_text([1, 2, 9], limits)
    check_text([1] * 9, Limits(10, None, 3, 2))
    with pytest.raises(UserError, match="token 10 is outside the base's vocabulary of 10"):
        check_text([1, 10], limits)
    with pytest.raises(UserError, match="4 tokens of prompt and answer are more than the 3 positions of the base"):
        check_text([1] * 4, limits)

"""Every difference between a base model and its tokenizer is named in one line."""

from __future__ import annotations

import pytest
from places import TINY
from tokenizers_made import byte_level, unigram
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, GPT2Config, LlamaConfig, PretrainedConfig

from lora_retriever.generation.compatibility import differences
from lora_retriever.generation.special_tokens import eos_token_ids, pad_token_id


def tiny_parts() -> tuple[PretrainedConfig, GenerationConfig]:
    return AutoConfig.from_pretrained(TINY / "base"), GenerationConfig.from_pretrained(TINY / "base")


def test_the_miniature_has_no_differences() -> None:
    assert differences(*tiny_parts(), AutoTokenizer.from_pretrained(TINY / "base")) == []


@pytest.mark.parametrize(("named", "said"), [(3, "the base names 3 ('<unk>')"), (None, "the base names none")])
def test_another_eos_token_of_the_base_is_said(named: int | None, said: str) -> None:
    config, generation = tiny_parts()
    config.eos_token_id = generation.eos_token_id = named
    (line,) = differences(config, generation, AutoTokenizer.from_pretrained(TINY / "base"))
    assert line == f"EOS tokens differ: {said}, the tokenizer 2 ('</s>'); answers end at each of these tokens"


def test_more_eos_tokens_of_the_base_are_no_difference() -> None:
    config, generation = tiny_parts()
    generation.eos_token_id = [2, 3]
    assert differences(config, generation, AutoTokenizer.from_pretrained(TINY / "base")) == []


def test_a_token_outside_the_vocabulary_is_said_with_the_padding_that_is_used_instead() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY / "base")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    outside, padding = differences(*tiny_parts(), tokenizer)
    assert outside.startswith("the tokenizer has 1 tokens outside the base's vocabulary of 566: 566 ('[PAD]')")
    assert padding.startswith("the padding token 566 ('[PAD]') is outside the base's vocabulary of 566; short rows are")
    assert padding.endswith("padded with 2 ('</s>')")


def test_what_the_tokenizer_puts_behind_a_text_and_a_missing_bos_token_are_said() -> None:
    tokenizer = unigram()  # `</s>` behind every text, and no `<s>` before the text
    config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2)
    ending, bos = differences(config, None, tokenizer)
    assert ending == "the tokenizer puts 2 ('</s>') behind every text; prompts are made without this ending"
    assert bos.startswith("the base and the tokenizer name the BOS token 1 ('<s>'), and the tokenizer puts none before")


def test_another_bos_token_is_said() -> None:
    tokenizer = byte_level()
    config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=3, eos_token_id=2)
    (line,) = differences(config, None, tokenizer)
    assert line.startswith("BOS tokens differ: the base names 3 ('<pad>'), the tokenizer 1 ('<s>')")


def test_a_family_without_a_bos_token_before_texts_is_no_difference() -> None:
    tokenizer = byte_level()
    tokenizer.bos_token = tokenizer.eos_token  # as in GPT-2
    tokenizer.backend_tokenizer.post_processor = None
    config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=2, eos_token_id=2)
    assert differences(config, None, tokenizer) == []


def test_ids_that_no_tokenizer_can_have_are_shown_as_numbers() -> None:
    config, generation = tiny_parts()
    config.eos_token_id = generation.eos_token_id = [-1, 10**9]
    (line,) = differences(config, generation, AutoTokenizer.from_pretrained(TINY / "base"))
    assert "the base names -1 and 1000000000, the tokenizer 2 ('</s>')" in line


def test_answers_end_at_every_eos_token_that_the_base_or_the_tokenizer_names() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY / "base")
    config, generation = tiny_parts()
    config.eos_token_id, generation.eos_token_id = [5], [7, 9]
    assert eos_token_ids(generation, tokenizer, config) == [2, 5, 7, 9]
    assert eos_token_ids(None, tokenizer) == [2]
    tokenizer.eos_token = None
    assert eos_token_ids(None, tokenizer, config) == [5]


def test_padding_is_a_token_that_the_base_has() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY / "base")
    assert pad_token_id(tokenizer, 566) == 0
    assert pad_token_id(tokenizer, 566, configured=5) == 5
    assert pad_token_id(tokenizer, 566, configured=566) == 0
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert pad_token_id(tokenizer, 566) == 2
    assert pad_token_id(tokenizer, 2) == 0

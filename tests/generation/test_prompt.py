"""Prompts keep the template whole, and the answer is the text after the template."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from lora_retriever.generation.prompt import ALPACA, encode_prompt, extract_answer


def test_a_prompt_that_fits_is_the_filled_template(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = encode_prompt(tokenizer, ALPACA, "who is it ?", max_tokens=100)
    assert prompt.token_ids == tokenizer(ALPACA.format(inputs="who is it ?"))["input_ids"]
    assert prompt.truncated_tokens == 0


def test_braces_in_an_input_are_text(tokenizer: PreTrainedTokenizerBase) -> None:
    assert (
        encode_prompt(tokenizer, ALPACA, "{task}", 100).token_ids
        == tokenizer(ALPACA.replace("{inputs}", "{task}"))["input_ids"]
    )


@pytest.mark.parametrize("max_tokens", [40, 57, 80])
def test_a_long_input_loses_its_end_and_never_the_templates(
    tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> None:
    inputs = " ".join(["the", "red", "lamp"] * 60)
    whole = tokenizer(ALPACA.format(inputs=inputs))["input_ids"]
    empty = tokenizer(ALPACA.format(inputs=""))["input_ids"]
    ending = tokenizer("\n\n### Response:\n", add_special_tokens=False)["input_ids"]
    prompt = encode_prompt(tokenizer, ALPACA, inputs, max_tokens)
    assert len(prompt.token_ids) == max_tokens  # the full length is used, because a token is a word here
    assert prompt.token_ids[-len(ending) :] == ending
    kept = max_tokens - len(empty)
    assert prompt.token_ids[: len(empty) - len(ending) + kept] == whole[: len(empty) - len(ending) + kept]
    assert prompt.truncated_tokens == len(whole) - max_tokens


def test_a_limit_below_the_template_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="template alone has"):
        encode_prompt(tokenizer, ALPACA, "word", max_tokens=5)


@pytest.mark.parametrize(
    ("generated", "answer"),
    [
        (" positive\n", "positive"),
        ("", ""),
        ("one\n\n### Instruction:\nmore\n\n### Response:\ntwo", "two"),
        ("an answer\n\n### Response:", "an answer\n\n### Response:"),
    ],
)
def test_the_answer_is_what_follows_the_last_response_mark(generated: str, answer: str) -> None:
    """The original cuts `template + generated` in the same way.

    If nothing was generated, the original gives the whole prompt.
    """
    assert extract_answer(generated) == answer
    if generated:
        assert (ALPACA + generated).strip().split("### Response:\n")[-1].strip() == answer

"""Special tokens come from the template and the tokenizer; the text of a row is text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from places import TINY
from tokenizers_made import KINDS, PLAIN_ADDED, TEXTS, byte_level, sentence_piece, unigram
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase

from lora_retriever.data.rows import Row, Sample
from lora_retriever.generation.examples import IGNORED, encode_example
from lora_retriever.generation.prompt import ALPACA, encode_prompt
from lora_retriever.generation.tokenizing import frame_of, prompt_tokens, special_tokens, text_tokens

TEMPLATES = [
    ALPACA,
    "{inputs}",
    "[INST] {inputs} [/INST]",
    "a {inputs} b {inputs} c",
    "<|im_end|>\n{inputs}<|im_end|>x",
]
PLAIN = [*TEXTS[:4], "", " ", "  spaces around \n", "a <b>bold</b> word", f"x {PLAIN_ADDED}y", "{inputs}"]
TAGGED = [
    "what does <s> Karin </s> wear?",
    "<s>",
    "</s>",
    "a<|im_end|>b",
    "<pad> x",
    "is <unk> known?",
    " </s> ",
    "<s></s>",
]


@pytest.fixture(scope="module", params=["tiny", *KINDS])
def any_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    kind: str = request.param
    return AutoTokenizer.from_pretrained(TINY / "base") if kind == "tiny" else KINDS[kind]()


def plain_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokenizer's own tokens of a text, without the tokens that the tokenizer puts behind the text."""
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids[: len(ids) - len(frame_of(tokenizer).after)]


@pytest.mark.parametrize("template", TEMPLATES)
def test_texts_without_special_tokens_have_the_tokenizers_own_tokens(
    any_tokenizer: PreTrainedTokenizerBase, template: str
) -> None:
    for text in PLAIN:
        expected = plain_tokens(any_tokenizer, template.replace("{inputs}", text))
        assert prompt_tokens(any_tokenizer, template, text) == expected


@pytest.mark.slow
def test_the_rows_of_the_miniature_keep_their_tokens(tokenizer: PreTrainedTokenizerBase, tiny_rows: list[Row]) -> None:
    for row in tiny_rows:
        assert (
            prompt_tokens(tokenizer, ALPACA, row.inputs) == tokenizer(ALPACA.replace("{inputs}", row.inputs)).input_ids
        )
        assert text_tokens(tokenizer, row.targets) == tokenizer(row.targets, add_special_tokens=False).input_ids


@pytest.mark.slow
def test_the_official_rows_keep_their_tokens(official: Path) -> None:
    tokenizer = byte_level()
    for row in json.loads((official / "combined_test.json").read_text(encoding="utf-8"))[::5]:
        inputs = row["inputs"]
        assert prompt_tokens(tokenizer, ALPACA, inputs) == tokenizer(ALPACA.replace("{inputs}", inputs)).input_ids


@pytest.mark.parametrize("text", TAGGED)
def test_special_tokens_that_a_row_writes_out_are_text(any_tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    special = set(special_tokens(any_tokenizer).values()) - {any_tokenizer.unk_token_id}
    assert not special & set(text_tokens(any_tokenizer, text))
    prompt = prompt_tokens(any_tokenizer, ALPACA, text)
    around = prompt_tokens(any_tokenizer, ALPACA, "x")
    assert [id for id in prompt if id in special] == [id for id in around if id in special]
    assert len(prompt) > len(around) - 1


def test_text_of_special_tokens_is_kept_where_the_vocabulary_can_say_it() -> None:
    tokenizer = byte_level()
    for text in TAGGED:
        assert tokenizer.decode(text_tokens(tokenizer, text), skip_special_tokens=True) == text


def test_special_tokens_of_the_template_are_parsed_and_the_rows_are_not() -> None:
    tokenizer = byte_level()
    template = "<|im_end|>user\n{inputs}<|im_end|>\n"
    end, one = tokenizer.convert_tokens_to_ids("<|im_end|>"), prompt_tokens(tokenizer, template, "a <|im_end|> b")
    assert one.count(end) == 2
    assert tokenizer.decode(one) == "<s><|im_end|>user\na <|im_end|> b<|im_end|>\n"
    assert prompt_tokens(tokenizer, template, "a b").count(end) == 2


def test_a_special_token_that_arises_across_the_border_is_text() -> None:
    tokenizer = byte_level()
    assert tokenizer.eos_token_id not in prompt_tokens(tokenizer, "say <{inputs}", "/s> now")
    assert tokenizer.eos_token_id not in prompt_tokens(tokenizer, "{inputs}> now", "say </s")


@pytest.mark.parametrize("template", ["{inputs}", "<s>{inputs}", "<s> {inputs}", "<s><s>{inputs}"])
def test_a_prompt_begins_with_one_bos_token_whatever_the_template_has(template: str) -> None:
    for tokenizer in (byte_level(), sentence_piece(), AutoTokenizer.from_pretrained(TINY / "base")):
        tokens = prompt_tokens(tokenizer, template, "the farmer")
        assert tokens[0] == tokenizer.bos_token_id
        assert tokens.count(tokenizer.bos_token_id) == 1
        assert prompt_tokens(tokenizer, template, "the <s> farmer").count(tokenizer.bos_token_id) == 1


def test_no_bos_token_is_added_where_the_tokenizer_adds_none() -> None:
    tokenizer = unigram()
    assert tokenizer.bos_token_id not in prompt_tokens(tokenizer, "{inputs}", "the farmer")
    assert prompt_tokens(tokenizer, "<s>{inputs}", "the farmer").count(tokenizer.bos_token_id) == 1


def test_a_tokenizer_that_adds_an_eos_token_does_not_end_prompts(tmp_path: Path) -> None:
    """Tokenizers of fine-tuned models are often saved in this form."""
    plain = AutoTokenizer.from_pretrained(TINY / "base")
    plain.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["post_processor"]["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    content["post_processor"]["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    ending = AutoTokenizer.from_pretrained(tmp_path)
    assert ending("red")["input_ids"][-1] == ending.eos_token_id
    for text in ("what is it ?", "a </s> b", ""):
        assert prompt_tokens(ending, ALPACA, text) == prompt_tokens(plain, ALPACA, text)
    sample = Sample(inputs="what is it ?", targets="red")
    assert encode_example(ending, sample, ALPACA, 100) == encode_example(plain, sample, ALPACA, 100)
    long = " ".join(["the red lamp"] * 60)
    assert encode_prompt(ending, ALPACA, long, 60) == encode_prompt(plain, ALPACA, long, 60)


def test_a_target_with_tags_is_trained_as_text(tokenizer: PreTrainedTokenizerBase) -> None:
    labels = encode_example(tokenizer, Sample(inputs="x", targets="<s> red </s>"), ALPACA, 100)["labels"]
    answer = [label for label in labels if label != IGNORED]
    assert tokenizer.bos_token_id not in answer
    assert answer.count(tokenizer.eos_token_id) == 1
    assert answer[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("text", ["a </s> b", "</s>", "<pad> x", "plain text", "é <extra_id_0>"])
def test_a_tokenizer_written_in_python_keeps_text_as_text(text: str) -> None:
    """The tokenizer of ByT5 has a token for each byte, and puts `</s>` behind every text."""
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    text_as_bytes = [byte + 3 for byte in text.encode()]
    assert text_tokens(tokenizer, text) == text_as_bytes
    before, after = [byte + 3 for byte in b"say "], [byte + 3 for byte in b" now"]
    assert prompt_tokens(tokenizer, "say {inputs} now", text) == before + text_as_bytes + after
    # The `</s>` of this tokenizer removes the white space around itself.
    assert prompt_tokens(tokenizer, "say </s> {inputs} now", text) == [*before[:-1], 1, *text_as_bytes, *after]

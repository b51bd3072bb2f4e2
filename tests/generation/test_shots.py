"""Examples before the input: the samples of the row's own adapter, in the template, as many as fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import QUIET, lines_of, tiny_profile
from tokenizers_made import byte_level
from transformers import PreTrainedTokenizerBase

from lora_retriever.data.rows import PoolEntry, Row, Sample
from lora_retriever.generation.generator import answer_of, row_prompts
from lora_retriever.generation.prompt import ALPACA
from lora_retriever.generation.settings import GenerationSection
from lora_retriever.running.evaluate import evaluate

CHATML = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_end|>' + message['role'] + '\n' + message['content'] | trim "
    "+ '\n' }}{% endfor %}{{ '<|im_end|>assistant\n' }}"
)
SAMPLES = [
    ("what is  </s> ?", "own input"),
    ("where is Karin ?", " garden "),
    ("is it red ?", "yes </s>"),
    ("how ?", "x"),
]
POOL = [
    PoolEntry(model_name="asking", domain="d", sample=[Sample(inputs=text, targets=target) for text, target in SAMPLES])
]


def row(inputs: str = "what is </s> ?", task: str = "asking") -> Row:
    return Row(inputs=inputs, targets="t", task=task, domain="d", metric="em", id=0)


def plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text in which no special token is parsed, behind the BOS token."""
    return [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids]


@pytest.mark.parametrize(("template", "space"), [(ALPACA, ""), ("{inputs}", " "), ("Q: {inputs}\nA:", " ")])
def test_examples_are_filled_templates_with_their_targets(template: str, space: str) -> None:
    tokenizer = byte_level()
    settings = GenerationSection(template=template, shots=2, max_prompt_tokens=2000)
    (prompt,) = row_prompts([row()], tokenizer, settings, POOL)
    text = "".join(f"{template.replace('{inputs}', x)}{space}{y}\n\n" for x, y in SAMPLES[1:3])
    assert prompt.token_ids == plain(tokenizer, text + template.replace("{inputs}", row().inputs))
    assert prompt.shots == 2, "the sample with the row's own input is left out"


def test_examples_are_turns_of_a_chat() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = CHATML
    settings = GenerationSection(template="chat", system="Be brief.", shots=3, max_prompt_tokens=2000)
    (prompt,) = row_prompts([row("so ?")], tokenizer, settings, POOL)
    turns = [{"role": "system", "content": "Be brief."}]
    for text, target in SAMPLES[:3]:
        turns += [{"role": "user", "content": text}, {"role": "assistant", "content": target}]
    turns.append({"role": "user", "content": "so ?"})
    whole = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    assert str(tokenizer.decode(prompt.token_ids)) == whole
    special = [id for id in prompt.token_ids if id in tokenizer.all_special_ids]
    assert special.count(tokenizer.eos_token_id) == 0, "a special token in an example is text"


def test_examples_that_do_not_fit_are_left_out_before_the_input_is_cut() -> None:
    tokenizer = byte_level()
    one = len(row_prompts([row()], tokenizer, GenerationSection(shots=1), POOL)[0].token_ids)
    settings = GenerationSection(shots=3, max_prompt_tokens=one)
    rows = [row(), row(task="unknown"), row("why ? " * 200)]
    fitting, without, cut = row_prompts(rows, tokenizer, settings, POOL)
    assert (fitting.shots, fitting.truncated_tokens, len(fitting.token_ids)) == (1, 0, one)
    assert (without.shots, without.truncated_tokens) == (0, 0)
    assert cut.shots == 0
    assert cut.truncated_tokens > 0
    assert row_prompts(rows[:1], tokenizer, GenerationSection(), POOL)[0].shots is None


def test_an_answer_ends_where_another_example_begins() -> None:
    tokenizer = byte_level()
    whole = tokenizer("a garden\n\n" + ALPACA.replace("{inputs}", "and ?") + "house").input_ids
    assert answer_of(whole[1:], tokenizer, GenerationSection(shots=1).answer_end).text == "a garden"
    assert answer_of(whole[1:], tokenizer, GenerationSection().answer_end).text == "house"


@pytest.mark.slow
def test_a_run_with_examples_records_how_many_and_depends_on_the_pool(tmp_path: Path) -> None:
    profile = tiny_profile(tmp_path, generation={"shots": 1, "max_prompt_tokens": 256, "max_new_tokens": 4})
    evaluate(profile, ["base"], tmp_path / "results", 1, QUIET)
    assert {line["shots"] for line in lines_of(tmp_path / "results", "base")} == {1}
    record = (tmp_path / "results" / "base.meta.json").read_text()
    assert '"shots": 1' in record
    assert '"pool": "' in record

"""The bundled miniature is as its README says: complete, small, without leaks and pickles, made by its generator."""

from __future__ import annotations

import json
from itertools import islice

import pytest
from build_tiny import POOL_SAMPLES, TEST_ROWS, TRAIN_ROWS
from places import TINY
from tiny_benchmark.corpus import documents
from tiny_benchmark.tasks import TASKS, task_rows
from tiny_benchmark.world import build_world
from transformers import PreTrainedTokenizerBase

from lora_retriever.data.rows import PoolEntry, Row
from lora_retriever.generation.prompt import ALPACA

OFFICIAL_DOMAINS = {
    "struct to text", "translation", "commonsense", "sentiment", "reading comp", "closed_book QA", "coreference",
    "read.comp.w:commonsense", "paraphrase", "nli",
}  # fmt: skip


def test_has_nineteen_tasks_in_nine_official_domains_and_all_metrics(
    tiny_rows: list[Row], tiny_pool: list[PoolEntry]
) -> None:
    assert len({row.task for row in tiny_rows}) == 19
    assert len({row.domain for row in tiny_rows}) == 9
    assert {row.domain for row in tiny_rows} <= OFFICIAL_DOMAINS
    assert {row.metric for row in tiny_rows} == {"em", "bleu", "rouge"}
    assert [entry.model_name for entry in tiny_pool] == [task.name for task in TASKS]


def test_every_domain_has_siblings() -> None:
    domains = [task.domain for task in TASKS]
    assert all(domains.count(domain) >= 2 for domain in domains)


def test_every_task_has_its_test_rows_and_pool_samples(tiny_rows: list[Row], tiny_pool: list[PoolEntry]) -> None:
    for entry in tiny_pool:
        assert len(entry.sample) == POOL_SAMPLES
        assert sum(row.task == entry.model_name for row in tiny_rows) == TEST_ROWS
        assert (TINY / "adapters" / entry.model_name / "adapter_model.safetensors").is_file()


def test_no_test_input_occurs_in_the_pool(tiny_rows: list[Row], tiny_pool: list[PoolEntry]) -> None:
    seen = {sample.inputs for entry in tiny_pool for sample in entry.sample}
    assert not seen & {row.inputs for row in tiny_rows}


@pytest.mark.long
def test_is_what_the_generator_makes_from_the_recorded_seed(tiny_rows: list[Row], tiny_pool: list[PoolEntry]) -> None:
    seed = json.loads((TINY / "record.json").read_text(encoding="utf-8"))["seed"]
    world = build_world(seed)
    generated = []
    for task, entry in zip(TASKS, tiny_pool, strict=True):
        train, test = task_rows(task, world, seed, TRAIN_ROWS, TEST_ROWS)
        generated += test
        trained_on = {(row["inputs"], row["targets"]) for row in train}
        assert not {inputs for inputs, _ in trained_on} & {row.inputs for row in tiny_rows}
        assert {(sample.inputs, sample.targets) for sample in entry.sample} <= trained_on
    assert [row.model_dump(exclude={"id"}) for row in tiny_rows] == generated


def test_another_seed_makes_another_world() -> None:
    assert build_world(1) == build_world(1)
    assert build_world(1) != build_world(2)
    first, again, other = (list(islice(documents(build_world(1), ["a"] * 10, seed), 50)) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.slow
def test_tokenizer_gives_every_text_back(tiny_rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> None:
    for row in tiny_rows:
        for text in (row.targets, row.inputs, ALPACA.format(inputs=row.inputs)):
            tokens = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in tokens, text
            assert tokenizer.decode(tokens, skip_special_tokens=True) == text


@pytest.mark.slow
def test_prompts_and_answers_are_short(tiny_rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> None:
    assert max(len(tokenizer(row.inputs)["input_ids"]) for row in tiny_rows) <= 60
    assert max(len(tokenizer(row.targets)["input_ids"]) for row in tiny_rows) <= 16


def test_base_has_never_read_the_prompt_template() -> None:
    text = " ".join(islice(documents(build_world(0), ["Below"] * 10, 0), 2000))
    assert "###" not in text
    assert "?" not in text


def test_is_small_and_free_of_pickles() -> None:
    files = [path for path in TINY.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 24 * 2**20
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}


def test_record_says_that_all_conditions_were_met() -> None:
    record = json.loads((TINY / "record.json").read_text(encoding="utf-8"))
    assert record["stages"]["check"]["unmet"] == []

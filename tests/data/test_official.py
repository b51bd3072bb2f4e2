"""The tasks of the official benchmark have one name, whatever a file writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_retriever.data.official import official_name, renamed
from lora_retriever.data.rows import read_pool, read_rows
from lora_retriever.errors import UserError

ROW = {"inputs": "?", "targets": "yes", "domain": "nli", "metric": "em"}


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("rte_10templates", "rte"),
        ("wmt16_translate_csen_10templates", "wmt16_translate_csen"),
        ("rte", "rte"),
        ("rte_10templates_10templates", "rte_10templates_10templates"),
        ("rte_templates", "rte_templates"),
        ("my_task_10templates", "my_task_10templates"),  # no task of the official benchmark
        ("_10templates", "_10templates"),
    ],
)
def test_only_names_of_official_tasks_lose_the_suffix(written: str, name: str) -> None:
    assert official_name(written) == name


def test_a_benchmark_with_the_suffix_is_read_as_the_official_one_and_says_so(tmp_path: Path) -> None:
    tasks = ["rte_10templates", "cb", "snli_10templates", "mine_10templates"]
    (tmp_path / "rows.json").write_text(json.dumps([{**ROW, "task": task} for task in tasks]))
    notes: list[str] = []
    assert [row.task for row in read_rows(tmp_path / "rows.json", notes)] == ["rte", "cb", "snli", "mine_10templates"]
    assert notes == [
        f"{tmp_path / 'rows.json'}: task rte_10templates is read as rte, the official benchmark's name, and 1 more "
        "tasks likewise"
    ]
    assert renamed(["rte", "mine_10templates"]) == ""


def test_adapters_of_official_tasks_lose_the_suffix_too(tmp_path: Path) -> None:
    entries = [
        {"model_name": name, "domain": "nli", "sample": [{"inputs": "a", "targets": "b"}]}
        for name in ("rte_10templates", "cb")
    ]
    (tmp_path / "pool.json").write_text(json.dumps(entries))
    assert [entry.model_name for entry in read_pool(tmp_path / "pool.json")] == ["rte", "cb"]
    (tmp_path / "pool.json").write_text(json.dumps([*entries, {**entries[0], "model_name": "rte"}]))
    with pytest.raises(UserError, match="adapter 'rte' is there more than once"):
        read_pool(tmp_path / "pool.json")
